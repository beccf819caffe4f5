import CLoopLag
import Testing

@testable import LoopLagAgent

/// What can be tested of V8 without V8: the parts that read plain memory.
@Suite("V8 and libuv, from plain memory")
struct V8Tests {
    @Test("Waits are told by what is missing from a queue, and an address that moves back is another item")
    func poolWaits() throws {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: PoolWaits.bytes, alignment: 16)
        defer { memory.deallocate() }
        var waits = PoolWaits(memory)
        waits.clear(since: 1_000_000_000)
        func look(_ queue: [UInt64], _ milliseconds: UInt64) {
            queue.withUnsafeBufferPointer { items in
                if let base = items.baseAddress {
                    waits.look(base, count: items.count, now: milliseconds * 1_000_000)
                }
            }
        }
        look([1], 1000)
        look([1, 2, 3], 1010)
        #expect(waits.count == 0)
        // The first has been served; the second is next.
        look([2, 3, 4], 1100)
        #expect(waits.count == 1)
        #expect(waits.longest == 55_000_000)
        // 2 at the end again: a new item at its address.
        look([3, 4, 2], 1200)
        #expect(waits.count == 2)
        look([9], 1300)
        #expect(waits.count == 5)
        let found = waits.percentiles()
        #expect(found.median > 0)
        #expect(found.p99 <= waits.longest)
        #expect(waits.longest == 245_000_000)
    }

    @Test("A wait queue with more items than can be followed counts the last ones")
    func manyWaits() {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: PoolWaits.bytes, alignment: 16)
        defer { memory.deallocate() }
        var waits = PoolWaits(memory)
        waits.clear(since: 1_000_000_000)
        let queue = (1...500).map(UInt64.init)
        queue.withUnsafeBufferPointer { items in
            guard let base = items.baseAddress else { return }
            waits.look(base, count: 500, now: 1_000_000_000)
            waits.look(base, count: 500, now: 2_000_000_000)
            waits.look(base, count: 0, now: 3_000_000_000)
        }
        #expect(waits.count == 64)
        #expect(waits.longest == 1_500_000_000)
    }

    @Test("The builtins lie where an isolate's longest run of close addresses points")
    func builtins() {
        var words = [UInt64](repeating: 0, count: 4096)
        for i in 0..<300 { words[i] = 0x10_0000_0001 + UInt64(i) * 8 }  // tagged: no addresses of code
        for i in 0..<900 { words[1000 + i] = 0x7f00_1000_0000 + UInt64(i) * 64 }
        words.withUnsafeBytes { bytes in
            guard let base = bytes.baseAddress else { return }
            let found = V8Range.ofBuiltins(base, bytes: bytes.count)
            #expect(found.low == 0x7f00_1000_0000)
            #expect(found.high == 0x7f00_1000_0000 + 899 * 64 + (64 << 10))
            let few = V8Range.ofBuiltins(base + 8 * 1000, bytes: 8 * 400)
            #expect(few.low == 0 && few.high == 0)
        }
    }

    @Test("Numbers of a position table are short, signed and bounded")
    func variableLength() {
        // 0, -1, 1, -64, 8191; then one that never ends.
        let bytes: [UInt8] = [0, 1, 2, 127, 0xfe, 0x7f] + [UInt8](repeating: 0xff, count: 16)
        let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: 4)
        defer { buffer.deallocate() }
        bytes.withUnsafeBytes { raw in
            guard let base = raw.baseAddress else { return }
            var source = V8ByteSource(
                at: UInt64(UInt(bitPattern: base)), count: UInt64(bytes.count), buffer, 4)
            #expect(source.signed() == 0)
            #expect(source.signed() == -1)
            #expect(source.signed() == 1)
            #expect(source.signed() == -64)
            #expect(source.signed() == 8191)
            #expect(source.signed() == nil)
        }
    }

    @Test("Without V8 in the process there is no layout, no isolate and no interrupt")
    func withoutV8() {
        #expect(!lag_v8_is_present())
        #expect(lag_v8_layout() == nil)
        #expect(lag_v8_current_isolate() == 0)
        var view = lag_v8_loop()
        #expect(!lag_v8_loop_read(0, 1, &view))
        #expect(!lag_v8_loop_read(UInt32.max, 1, &view))
        var text = [UInt8](repeating: 0, count: 8)
        #expect(lag_v8_string(0x1001, &text, 8) == -1)
        var time: UInt64 = 7
        #expect(!lag_v8_gc_within(3, 1, 0, &time))
    }

    @Test("The same place of the same script is counted once")
    func lineCache() {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: V8LineCache.bytes, alignment: 16)
        defer { memory.deallocate() }
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: V8LineCache.bytes)
        var cache = V8LineCache(memory)
        #expect(cache.find(1, 2, 3) == nil)
        cache.add(1, 2, 3, 40, 5)
        #expect(cache.find(1, 2, 3)?.line == 40)
        #expect(cache.find(1, 2, 4) == nil)
        #expect(cache.find(1, 9, 3) == nil)
        for i in 0..<200 { cache.add(100, 100, UInt64(i) + 1, UInt32(i), 1) }
        #expect(cache.find(1, 2, 3) == nil)
        #expect(cache.find(100, 100, 200)?.line == 199)
    }
}
