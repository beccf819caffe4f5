/// A segment that changes under the reader: by a writer at full speed, and by malice or damage. Nothing may crash, and
/// what the sequence numbers protect is never seen half-written.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Synchronization
import Testing

@testable import LoopLagTelemetry

@Suite("A reader under attack")
struct HostileTests {
    let folder: Folder

    init() throws { folder = try Folder() }

    /// Everything that a report later calculates, so that no value can trap there.
    private func use(_ snapshot: ProcessSnapshot) {
        for loop in snapshot.loops {
            _ = loop.histogram.total
            _ = loop.histogram.value(atQuantile: 0.99)
            let open = loop.busySince.map { [snapshot.takenAt.since($0)] } ?? []
            let delay = DelayDistribution(histogram: loop.histogram, exact: open, window: loop.busy + loop.idle)
            _ = delay.delay(atQuantile: 0.99)
            _ = delay.mean
        }
        let lengths = snapshot.stalls.map(\.duration)
        let delay = DelayDistribution(histogram: .init(), exact: lengths, window: .seconds(60))
        _ = delay.delay(atQuantile: 0.5)
        _ = delay.maximum
        for stall in snapshot.stalls { _ = snapshot.anchor.realtime(of: stall.start.advanced(by: stall.duration)) }
    }

    private func filledImage() throws -> SegmentImage {
        let image = try SegmentImage(
            path: folder.file(), .init(loops: 2, pools: 2, stalls: 4, modules: 2, stringBytes: 512, ringBytes: 4096))
        image.startLoop(0)
        image.loop(0).pointee.iterations = 3
        image.histogram(0)[40] = 3
        for id in UInt64(1)...6 { image.openStall(id, start: 1000) }
        image.endStall(6, duration: 5000)
        image.pool(0).pointee.state = 1
        let path = image.addText(Array("/usr/bin/server".utf8))
        (image.header.pointee.executable_offset, image.header.pointee.executable_bytes) = path
        (image.header.pointee.command_offset, image.header.pointee.command_bytes) = path
        for i in 0..<2 {
            image.module(i).pointee.path_offset = path.offset
            image.module(i).pointee.path_bytes = path.count
            image.module(i).pointee.end = 0x1000
        }
        image.header.pointee.modules_used = 2
        for i in 0..<20 { image.append(stall: UInt64(i), stack: Array(repeating: 1, count: i * 20)) }
        return image
    }

    @Test("survives twenty thousand mutations of a good segment")
    func mutations() throws {
        let image = try filledImage()
        let good = Array(UnsafeRawBufferPointer(start: image.base, count: image.bytes))
        // The records that hold structure; the histogram's 15 KiB would swallow most of the blows.
        let tables = [image.header.pointee.pools, image.header.pointee.stalls, image.header.pointee.modules]
        let loop = Int(image.header.pointee.loops.offset)
        let ring = Int(image.header.pointee.samples.offset)
        var ranges = [0..<1200, loop..<loop + 448, ring..<ring + 4096]
        ranges += tables.map { Int($0.offset)..<Int($0.offset + $0.count * $0.stride) }
        let telling: [UInt64] = [0, 1, 7, 8, 255, 1 << 31, 1 << 32 - 1, 1 << 62, 1 << 63, .max - 7, .max]

        var random = Seeded(state: 20_260_101)
        let reader = try SegmentReader(image.source)
        var refused = 0
        for round in 0..<20_000 {
            var touched: [Range<Int>] = []
            for _ in 0...Int(random.next() % 3) {
                let range = ranges[Int(random.next() % UInt64(ranges.count))]
                let place = range.lowerBound + Int(random.next() % UInt64(range.count - 8))
                switch random.next() % 3 {
                case 0:
                    let old = image.base.load(fromByteOffset: place, as: UInt8.self)
                    image.base.storeBytes(of: old ^ 1 << UInt8(random.next() % 8), toByteOffset: place, as: UInt8.self)
                case 1:
                    let value = telling[Int(random.next() % UInt64(telling.count))]
                    image.base.storeBytes(of: value, toByteOffset: place & ~3, as: UInt64.self)
                default:
                    image.base.storeBytes(
                        of: UInt32(truncatingIfNeeded: random.next()), toByteOffset: place & ~3,
                        as: UInt32.self)
                }
                touched.append((place & ~3)..<(place & ~3) + 12)
            }
            do {
                // A new reader and an old one with its memory of better days.
                let fresh = round % 4 == 0 ? try SegmentReader(image.deadSource) : reader
                let snapshot = try fresh.snapshot()
                if round % 8 < 2 { use(snapshot) }
                _ = try fresh.samples(after: round % 2 == 0 ? nil : random.next() % 8192)
            } catch {
                refused += 1
            }
            for range in touched {
                for i in range { image.base.storeBytes(of: good[i], toByteOffset: i, as: UInt8.self) }
            }
        }
        #expect(refused > 100)
        use(try reader.snapshot())
    }

    @Test("survives random bytes behind a good head")
    func randomBytes() throws {
        let image = try filledImage()
        var random = Seeded(state: 7)
        for _ in 0..<300 {
            for offset in stride(from: MemoryLayout<lag_header>.size + 8, to: image.bytes - 8, by: 8) {
                image.base.storeBytes(of: random.next(), toByteOffset: offset, as: UInt64.self)
            }
            image.loop(0).pointee.state = UInt32(LAG_LOOP_LIVE)
            image.pool(0).pointee.state = 1
            image.stall(5).pointee.id = 5
            image.stall(5).pointee.state = 1
            let reader = try SegmentReader(image.source)
            use(try reader.snapshot())
            _ = try reader.samples(after: nil)
        }
        let noise = folder.file("noise")
        let file = open(noise, O_RDWR | O_CREAT, 0o600)
        defer { close(file) }
        for _ in 0..<200 {
            var bytes = (0..<1024).map { _ in random.next() }
            if random.next() % 2 == 0 { bytes[0] = LAG_SEGMENT_MAGIC }
            pwrite(file, bytes, 8192, 0)
            #expect(throws: TelemetryError.self) { try SegmentReader(path: noise) }
        }
    }

    @Test("never sees half of a stall, and loses no iteration, while a writer works at full speed")
    func concurrentWriter() throws {
        let image = try SegmentImage(path: folder.file())
        image.startLoop(0)
        let writer = BackgroundWriter(image, writeRound)
        let reader = try SegmentReader(image.source)
        var lastIterations: UInt64 = 0
        var changes = 0
        var whole = 0
        var looks = 0
        // Until enough has been seen; the bound is for a machine that gives the writer no processor.
        while changes < 500, looks < 200_000 {
            looks += 1
            let snapshot = try reader.snapshot()
            for stall in snapshot.stalls {
                #expect(stall.duration.nanosecondCount == Int64(stall.id) * 3)
                #expect(stall.evidence.looks == Int(truncatingIfNeeded: stall.id & 0xffff))
                #expect(stall.evidence.majorFaults == stall.id)
            }
            let loop = try #require(snapshot.loops.first)
            #expect(loop.iterations >= lastIterations)
            if loop.iterations > lastIterations { changes += 1 }
            lastIterations = loop.iterations
            if loop.histogram.total == loop.iterations,
                loop.busy.nanosecondCount == 7 * Int64(loop.iterations)
            {
                whole += 1
            }
        }
        writer.end()
        #expect(changes == 500)
        // Catching a loop between two iterations is a matter of luck on a busy machine, but not of much.
        #expect(whole > looks * 3 / 4)
        let last = try reader.snapshot()
        #expect(last.loops.first?.histogram.total == last.loops.first?.iterations)
        #expect(last.loops.first?.iterations == image.loop(0).pointee.iterations)
    }

    @Test("never takes a sample that the writer is overwriting")
    func concurrentRing() throws {
        let image = try SegmentImage(path: folder.file(), .init(ringBytes: 32 << 10))
        let writer = BackgroundWriter(image) { image, round in
            for _ in 0..<(round % 200) { atomicMemoryFence(ordering: .sequentiallyConsistent) }
            let count = Int(round &* 2_654_435_761 % 1500)
            image.append(stall: round, stack: Array(repeating: UInt8(truncatingIfNeeded: round), count: count)) {
                $0.offset_ns = round
            }
        }
        let reader = try SegmentReader(image.source)
        var position: UInt64?
        var last: UInt64 = 0
        var looks = 0
        var seen = 0
        while seen < 3_000, looks < 200_000 {
            looks += 1
            for sample in try reader.samples(after: position) {
                seen += 1
                #expect(sample.stallID > last)
                #expect(sample.offset.nanosecondCount == Int64(sample.stallID))
                #expect(sample.stack.count == Int(sample.stallID &* 2_654_435_761 % 1500))
                let byte = UInt8(truncatingIfNeeded: sample.stallID)
                #expect(sample.stack.allSatisfy { $0 == byte })
                last = sample.stallID
                position = sample.position
            }
        }
        writer.end()
        #expect(seen >= 3_000)
        // Some were lost, or the writer was never ahead and this showed nothing.
        #expect(last > UInt64(seen))
    }

    @Test("gives up on a record whose writer was killed half-way, and keeps the last good one")
    func tornRecord() throws {
        let image = try SegmentImage(path: folder.file())
        image.openStall(3, start: 1000)
        image.endStall(3, duration: 77)
        image.startLoop(0)
        let reader = try SegmentReader(image.source)
        #expect(try reader.snapshot().stalls.map(\.duration) == [.nanoseconds(77)])
        image.stall(3).pointee.seq |= 1
        image.stall(3).pointee.duration_ns = 99
        image.loop(0).pointee.seq |= 1
        image.loop(0).pointee.iterations = 5
        let snapshot = try reader.snapshot()
        #expect(snapshot.stalls.map(\.duration) == [.nanoseconds(77)])
        #expect(snapshot.loops.first?.iterations == 5)
        // A reader that knows no better takes what is there.
        #expect(try SegmentReader(image.deadSource).snapshot().stalls.map(\.duration) == [.nanoseconds(99)])
    }

    @Test("costs what it should", .enabled(if: getenv("LOOPLAG_MEASURE") != nil))
    func cost() throws {
        let image = try SegmentImage(path: folder.file(), .standard)
        for i in 0..<4 { image.startLoop(i) }
        for id in UInt64(1)...128 {
            image.openStall(id, start: 1)
            image.endStall(id, duration: 5)
        }
        let reader = try SegmentReader(image.source)
        for changes in [0, 1, 2] {
            var times: [UInt64] = []
            for i in 0..<2_000 {
                if changes > 0 {
                    for slot in 0..<4 {
                        image.loop(slot).pointee.iterations += 1
                        image.histogram(slot)[i % 900] += 1
                    }
                }
                if changes > 1 { image.openStall(UInt64(i + 129), start: 1) }
                let start = monotonicNanoseconds()
                _ = try reader.snapshot()
                times.append(monotonicNanoseconds() - start)
            }
            times.sort()
            print("snapshot, \(changes): median \(times[1000]) ns, p99 \(times[1980]) ns, first \(times[0]) ns")
        }
    }
}

/// What a watchdog and a loop do in one round, by the sequence protocol.
@Sendable private func writeRound(_ image: SegmentImage, _ id: UInt64) {
    func fence() { atomicMemoryFence(ordering: .sequentiallyConsistent) }
    let loop = image.loop(0)
    loop.pointee.seq += 1
    fence()
    loop.pointee.iterations += 1
    loop.pointee.busy_ns += 7
    image.histogram(0)[Int(id % 900)] += 1
    fence()
    loop.pointee.seq += 1

    let stall = image.stall(id)
    stall.pointee.seq += 1
    fence()
    stall.pointee.id = id
    stall.pointee.state = UInt32(LAG_STALL_CLOSED)
    // Half of the time some record is half-written, or the test would show nothing.
    for _ in 0..<(id % 200) { fence() }
    stall.pointee.duration_ns = id * 3
    stall.pointee.looks = UInt32(id & 0xffff)
    stall.pointee.major_faults = id
    fence()
    stall.pointee.seq += 1
    for _ in 0..<(id % 400) { fence() }
}
