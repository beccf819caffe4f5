/// What the watchdog writes for readers: the ring of raw samples, the stall records, and the thresholds it takes from them.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

@Suite("Sample ring")
struct SampleRingTests {
    /// Walks the ring as a reader does: from tail to head, by what the records say of themselves.
    private func walk(_ fixture: SegmentFixture) -> [lag_sample] {
        let size = UInt64(fixture.segment.sampleBytes)
        var position = fixture.header.samples_tail
        let end = fixture.header.samples_head
        var found: [lag_sample] = []
        #expect(end &- position <= size)
        while position < end {
            let offset = position % size
            // Too little for a filler's own head: the lap is over.
            guard size - offset >= 16 else {
                position += size - offset
                continue
            }
            let record = fixture.segment.samples + Int(offset)
            let magic = record.loadUnaligned(as: UInt32.self)
            let total = record.loadUnaligned(fromByteOffset: 4, as: UInt32.self)
            #expect(record.loadUnaligned(fromByteOffset: 8, as: UInt64.self) == position)
            #expect(total % 8 == 0 && total > 0)
            #expect(offset + UInt64(total) <= size, "a record wraps")
            if magic == UInt32(LAG_SAMPLE_MAGIC) {
                let sample = record.loadUnaligned(as: lag_sample.self)
                let stack = record + MemoryLayout<lag_sample>.stride
                let bytes = Int(sample.stack_bytes)
                let wanted = [UInt8](repeating: UInt8(truncatingIfNeeded: sample.stall_id), count: bytes)
                #expect(memcmp(stack, wanted, bytes) == 0, "its stack is not its own")
                found.append(sample)
            } else {
                #expect(magic == UInt32(LAG_SAMPLE_FILLER))
                #expect(UInt64(total) == size - offset, "a filler does not end its lap")
            }
            guard total > 0 else { break }
            position += UInt64(total)
        }
        #expect(position == end)
        return found
    }

    private func append(_ ring: inout SampleRing, id: UInt64, stackBytes: Int) {
        var sample = lag_sample()
        sample.stall_id = id
        let stack = [UInt8](repeating: UInt8(truncatingIfNeeded: id), count: max(1, stackBytes))
        stack.withUnsafeBytes { ring.append(sample, stack: $0.baseAddress, stackBytes: stackBytes) }
    }

    @Test("Records of every length come back in order, whole, across many laps", arguments: [4096, 8200, 65_536])
    func laps(size: Int) throws {
        let fixture = try SegmentFixture(sampleBytes: size)
        defer { fixture.release() }
        var ring = try #require(SampleRing(fixture.segment))
        defer { ring.release() }
        var generator = SeededGenerator(state: UInt64(size))
        for id in 1...200 as ClosedRange<UInt64> {
            let stackBytes = Int.random(in: 0...(size / 2 - 300), using: &generator)
            guard ring.hasRoom(stackBytes: stackBytes, managedBytes: 0) else { continue }
            append(&ring, id: id, stackBytes: stackBytes)
            let found = walk(fixture)
            #expect(found.last?.stall_id == id)
            #expect(found.last?.stack_bytes == UInt32(stackBytes))
            #expect(found.map(\.stall_id) == found.map(\.stall_id).sorted())
        }
    }

    @Test("The tail passes a record before a byte of it changes")
    func tailFirst() throws {
        let fixture = try SegmentFixture(sampleBytes: 8192)
        defer { fixture.release() }
        var ring = try #require(SampleRing(fixture.segment))
        defer { ring.release() }
        append(&ring, id: 1, stackBytes: 2000)
        for id in 2...40 as ClosedRange<UInt64> {
            let before = walk(fixture)
            append(&ring, id: id, stackBytes: Int(id) * 50)
            let tail = fixture.header.samples_tail
            // What is still in front of the tail must be untouched: the walk checks its bytes.
            #expect(walk(fixture).map(\.stall_id) == before.filter { $0.position >= tail }.map(\.stall_id) + [id])
        }
    }

    @Test("What can never fit is refused, and a ring of no size takes nothing")
    func refusals() throws {
        let fixture = try SegmentFixture(sampleBytes: 4096)
        defer { fixture.release() }
        var ring = try #require(SampleRing(fixture.segment))
        defer { ring.release() }
        #expect(!ring.hasRoom(stackBytes: 4096, managedBytes: 0))
        append(&ring, id: 1, stackBytes: 4096)
        #expect(fixture.header.samples_head == 0)

        let none = try SegmentFixture(sampleBytes: 0)
        defer { none.release() }
        var empty = try #require(SampleRing(none.segment))
        defer { empty.release() }
        #expect(!empty.hasRoom(stackBytes: 0, managedBytes: 0))
        append(&empty, id: 1, stackBytes: 0)
        #expect(none.header.samples_head == 0)
    }

    @Test("More records than it can remember cost the oldest, not the order")
    func manySmall() throws {
        let fixture = try SegmentFixture(sampleBytes: 1 << 20)
        defer { fixture.release() }
        var ring = try #require(SampleRing(fixture.segment))
        defer { ring.release() }
        for id in 1...2_000 as ClosedRange<UInt64> { append(&ring, id: id, stackBytes: 0) }
        let found = walk(fixture)
        #expect(found.last?.stall_id == 2_000)
        #expect(found.count > 400)
        #expect(found.map(\.stall_id) == Array((2_000 - UInt64(found.count) + 1)...2_000))
    }
}

@Suite("Stall book")
struct StallBookTests {
    private var view: lag_loop_view {
        var view = lag_loop_view()
        view.generation = 7
        view.tid = 42
        return view
    }

    @Test("A record opens, changes and keeps an even sequence number")
    func lifeOfARecord() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var book = StallBook(fixture.segment)
        let id = book.open(slot: 3, view: view, start: 100, detected: 200, events: 1)
        var record = try #require(fixture.stalls.first)
        #expect(record.id == id && record.state == UInt32(LAG_STALL_OPEN) && record.seq % 2 == 0)
        #expect(record.loop_index == 3 && record.loop_generation == 7 && record.tid == 42 && record.syscall_nr == -1)
        #expect(book.change(id) { $0.pointee.state = UInt32(LAG_STALL_CLOSED) })
        let seq = record.seq
        record = try #require(fixture.stalls.first)
        #expect(record.state == UInt32(LAG_STALL_CLOSED) && record.seq == seq + 2)
        #expect(fixture.header.stalls_opened == id)
    }

    @Test("Ids rise by one, and a record that gave way to newer ones is not touched any more")
    func overwritten() throws {
        let fixture = try SegmentFixture(stalls: 8)
        defer { fixture.release() }
        var book = StallBook(fixture.segment)
        let first = book.open(slot: 0, view: view, start: 1, detected: 1, events: 1)
        let ids = (0..<8 as Range<UInt64>).map { book.open(slot: 0, view: view, start: $0, detected: 1, events: 1) }
        #expect(ids == Array(first + 1...first + 8))
        #expect(!book.change(first) { $0.pointee.duration_ns = 99 })
        #expect(!book.change(0) { $0.pointee.duration_ns = 99 })
        #expect(fixture.stalls.allSatisfy { $0.duration_ns != 99 })
    }

    @Test("A record that its writer never finished is taken over")
    func oddSequence() throws {
        let fixture = try SegmentFixture(stalls: 2)
        defer { fixture.release() }
        var book = StallBook(fixture.segment)
        fixture.segment.stalls[1].seq = 5
        let id = book.open(slot: 0, view: view, start: 1, detected: 1, events: 1)
        #expect(id == 1)
        #expect(fixture.segment.stalls[1].seq == 6)
    }
}

@Suite("Leases")
struct LeaseTests {
    private let second: UInt64 = 1_000_000_000

    @Test("A lease lives while its beat moves, and five seconds longer")
    func expiry() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        let leases = try #require(Leases(fixture.segment.header))
        defer { leases.release() }
        let table = lag_header_leases(fixture.segment.header)
        let own: UInt64 = 100_000_000
        #expect(leases.smallest(own, now: second) == own)
        table[3].threshold_ns = 10_000_000
        #expect(leases.smallest(own, now: second) == own, "a threshold without a beat is nobody's")
        table[3].beat = 1
        #expect(leases.smallest(own, now: 2 * second) == 10_000_000)
        #expect(leases.smallest(own, now: 7 * second - 1) == 10_000_000)
        #expect(leases.smallest(own, now: 7 * second) == own)
        table[3].beat = 2
        #expect(leases.smallest(own, now: 100 * second) == 10_000_000)
        table[3].threshold_ns = 0
        #expect(leases.smallest(own, now: 100 * second + 1) == own)
    }

    @Test("The smallest of several counts, clamped to a millisecond, and never one above the agent's own")
    func smallest() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        let leases = try #require(Leases(fixture.segment.header))
        defer { leases.release() }
        let table = lag_header_leases(fixture.segment.header)
        for (i, threshold) in [50_000_000, UInt64.max, 1, 20_000_000].enumerated() {
            table[i].threshold_ns = threshold
            table[i].beat = 9
        }
        #expect(leases.smallest(100_000_000, now: second) == 1_000_000)
        table[2].threshold_ns = 0
        #expect(leases.smallest(100_000_000, now: second) == 20_000_000)
        #expect(leases.smallest(5_000_000, now: second) == 5_000_000)
    }
}
