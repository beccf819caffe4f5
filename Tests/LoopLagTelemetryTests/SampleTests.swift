/// The ring of raw samples, as it wraps and is overwritten.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Samples")
struct SampleTests {
    let folder: Folder
    let image: SegmentImage

    init() throws {
        folder = try Folder()
        image = try SegmentImage(path: folder.file())
    }

    @Test("carry what the watchdog found")
    func contents() throws {
        let position = image.append(stall: 9, stack: Array(0..<100)) {
            $0.time_ns = 5_000
            $0.offset_ns = 1_000
            $0.pause_ns = 30
            $0.loop_index = 2
            $0.method = UInt8(LAG_SAMPLE_PASSIVE)
            $0.thread_state = UInt8(ascii: "S")
            $0.flags = UInt16(LAG_SAMPLE_TRUNCATED)
            $0.syscall_nr = 230
            $0.regs_valid = 1 << UInt32(LAG_REG_RSP) | 1 << UInt32(LAG_REG_RIP)
            $0.regs.6 = 1
            $0.regs.7 = 0x7fff_0000
            $0.regs.16 = 0x40_0000
            $0.stack_base = 0x7fff_0000
            SegmentImage.write("futex_do_wait", to: &$0.wait_channel)
        }
        let sample = try #require(try SegmentReader(image.source).samples(after: nil).first)
        #expect(sample.position == position)
        #expect(sample.stallID == 9)
        #expect(sample.loopSlot == 2)
        #expect(sample.tid == 77)
        #expect(sample.time == MonotonicTime(nanoseconds: 5_000))
        #expect(sample.offset == .microseconds(1))
        #expect(sample.pause == .nanoseconds(30))
        #expect(sample.method == .passive)
        #expect(sample.threadState == "S")
        #expect(sample.isTruncated)
        #expect(sample.noStackReason == nil)
        #expect(sample.syscallNumber == 230)
        #expect(sample.waitChannel == "futex_do_wait")
        #expect(sample.registers.count == 17)
        #expect(sample.registers[6] == nil)
        #expect(sample.registers[7] == 0x7fff_0000)
        #expect(sample.registers[16] == 0x40_0000)
        #expect(sample.stackBase == 0x7fff_0000)
        #expect(sample.stack == Array(0..<100))
    }

    @Test("without a stack say why", arguments: [(1, "timeout"), (3, "no-evidence"), (9, "gone"), (77, "unknown")])
    func noStack(_ reason: UInt32, _ name: String) throws {
        image.append(stall: 1, stack: []) {
            $0.flags = UInt16(LAG_SAMPLE_NO_STACK)
            $0.no_stack_reason = reason
            $0.thread_state = 0x1b
        }
        let sample = try #require(try SegmentReader(image.source).samples(after: nil).first)
        #expect(sample.noStackReason == name)
        #expect(sample.stack.isEmpty)
        #expect(sample.syscallNumber == nil)
        #expect(sample.threadState == "?")
    }

    @Test("come once each and in order, while the ring wraps many times")
    func wrap() throws {
        let reader = try SegmentReader(image.source)
        var random = Seeded(state: 3)
        var written: [UInt64] = []
        var read: [UInt64] = []
        var position: UInt64?
        for round in 0..<400 {
            for _ in 0..<(round % 4) {
                let count = Int(random.next() % 900)
                let byte = UInt8(truncatingIfNeeded: written.count)
                written.append(image.append(stall: 1, stack: Array(repeating: byte, count: count)))
            }
            for sample in try reader.samples(after: position) {
                let byte = UInt8(truncatingIfNeeded: read.count)
                #expect(sample.stack.allSatisfy { $0 == byte })
                read.append(sample.position)
                position = sample.position
            }
        }
        #expect(written.count > 500)
        #expect(read == written)
        // A new reader that knows the position goes on from there, too.
        image.append(stall: 2, stack: [1, 2, 3])
        #expect(try SegmentReader(image.source).samples(after: position).map(\.stallID) == [2])
        #expect(try reader.samples(after: .max).isEmpty)
    }

    @Test("that were overwritten before the reader came are lost, and only those")
    func lateReader() throws {
        let reader = try SegmentReader(image.source)
        for i in 0..<3 { image.append(stall: UInt64(i), stack: []) }
        let first = try reader.samples(after: nil)
        #expect(first.map(\.stallID) == [0, 1, 2])
        for i in 3..<100 { image.append(stall: UInt64(i), stack: Array(repeating: 0, count: 200)) }
        let late = try reader.samples(after: first.last?.position).map(\.stallID)
        #expect(late.count > 5)
        #expect(late == Array(UInt64(100 - late.count)..<100))
    }

    @Test("that the writer overtakes while they are copied are dropped")
    func overtaken() throws {
        let positions = (0..<4).map { image.append(stall: UInt64($0), stack: []) }
        let reader = try SegmentReader(image.source)
        // The copy was made, and while it was, the tail moved on: those before it may be half new by now.
        let end = image.header.pointee.samples_head
        let copy = RecordBuffer(count: Int(end))
        copy.start.copyMemory(
            from: image.base + Int(image.header.pointee.samples.offset), byteCount: Int(end))
        var walk = RingWalk(bytes: copy, start: 0, end: end, size: UInt64(image.header.pointee.samples.count))
        #expect(walk.samples(after: nil, intactFrom: positions[2]).map(\.sample.stallID) == [2, 3])
        // It had moved before the reader came.
        image.header.pointee.samples_tail = positions[2]
        #expect(try reader.samples(after: nil).map(\.stallID) == [2, 3])
        // One within a record, as damage would leave it: the next record is found by its own position.
        image.header.pointee.samples_tail = positions[2] + 8
        #expect(try reader.samples(after: nil).map(\.stallID) == [3])
    }

    @Test("after a damaged one are found again")
    func damage() throws {
        let positions = (0..<5).map { image.append(stall: UInt64($0), stack: Array(repeating: 7, count: 64)) }
        let ring = image.base + Int(image.header.pointee.samples.offset)
        func record(_ i: Int) -> UnsafeMutablePointer<lag_sample> {
            (ring + Int(positions[i])).assumingMemoryBound(to: lag_sample.self)
        }
        let reader = try SegmentReader(image.source)
        record(1).pointee.total_bytes = .max
        record(2).pointee.position += 8
        record(3).pointee.stack_bytes = 73
        #expect(try reader.samples(after: nil).map(\.stallID) == [0, 4])
        record(1).pointee.total_bytes = 4
        record(0).pointee.method = 0
        #expect(try reader.samples(after: nil).map(\.stallID) == [4])
        record(4).pointee.magic = UInt32(LAG_SAMPLE_FILLER)
        #expect(try reader.samples(after: nil).isEmpty)
    }

    @Test("are none where head and tail are nonsense")
    func nonsense() throws {
        image.append(stall: 1, stack: [])
        let reader = try SegmentReader(image.source)
        let values: [UInt64] = [0, 1, 8, 272, 1 << 32, 1 << 63, .max, .max - 7, .max - 8191]
        for head in values {
            for tail in values {
                image.header.pointee.samples_head = head
                image.header.pointee.samples_tail = tail
                for position in [nil, 0, 7, .max] as [UInt64?] {
                    let count = try reader.samples(after: position).count
                    #expect(count <= 1)
                }
            }
        }
    }

    @Test("are none in a small segment, which has no ring")
    func noRing() throws {
        let image = try SegmentImage(path: folder.file("small"), .init(pools: 0, modules: 0, ringBytes: 0))
        let reader = try SegmentReader(image.source)
        #expect(try reader.samples(after: nil).isEmpty)
        #expect(try reader.snapshot().pools.isEmpty)
    }
}
