/// The watchdog's memory of one loop, driven tick by tick with times of the test's own: each iteration at or above the
/// threshold has exactly one record, opened while it runs if a tick saw it, closed with the length its thread measured.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

/// A loop slot that the test writes as a loop thread would.
private struct FakeLoop {
    let fixture: SegmentFixture
    var slot: UnsafeMutablePointer<lag_loop_slot> { fixture.segment.loops }

    init(_ fixture: SegmentFixture, generation: UInt32 = 1) {
        self.fixture = fixture
        register(generation: generation)
    }

    /// The test's own thread stands in for the loop's; -2 has no descriptor that could be gone.
    func register(generation: UInt32) {
        slot.pointee = lag_loop_slot()
        slot.pointee.generation = generation
        slot.pointee.tid = lag_gettid()
        slot.pointee.epfd = -2
        slot.pointee.state = UInt32(LAG_LOOP_LIVE)
    }

    func begin(at time: UInt64) {
        slot.pointee.busy_since_ns = time
        slot.pointee.idle_since_ns = 0
    }

    func end(at time: UInt64, recordedFrom threshold: UInt64) {
        let start = slot.pointee.busy_since_ns
        slot.pointee.busy_since_ns = 0
        slot.pointee.idle_since_ns = time
        slot.pointee.iterations += 1
        guard time - start >= threshold else { return }
        let index = Int(slot.pointee.long_head % UInt32(LAG_RECENT_LONG))
        withUnsafeMutableBytes(of: &slot.pointee.recent_long) { bytes in
            bytes.storeBytes(
                of: lag_long_iteration(start_ns: start, duration_ns: time - start), toByteOffset: index * 16,
                as: lag_long_iteration.self)
        }
        slot.pointee.long_head += 1
    }
}

@Suite("Loop watch")
struct LoopWatchTests {
    private let ms: UInt64 = 1_000_000
    private let threshold: UInt64 = 100_000_000
    /// Times of the test are whole seconds from here: far from 0, which means "never".
    private let t0: UInt64 = 1_000_000_000_000

    private func states(_ fixture: SegmentFixture) -> [Int] { fixture.stalls.map { Int($0.state) } }

    @Test("A stall is open while it runs, and closed with the length its thread measured")
    func openThenClosed() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + 99 * ms, &context)
        #expect(states(fixture) == [])
        #expect(context.nextDeadline == t0 + 100 * ms)
        watch.tick(0, loop.slot, t0 + 100 * ms, &context)
        #expect(states(fixture) == [LAG_STALL_OPEN])
        #expect(watch.hasStall)
        watch.tick(0, loop.slot, t0 + 150 * ms, &context)
        loop.end(at: t0 + 163 * ms, recordedFrom: threshold)
        watch.tick(0, loop.slot, t0 + 175 * ms, &context)
        let record = try #require(fixture.stalls.first)
        #expect(states(fixture) == [LAG_STALL_CLOSED])
        #expect(record.start_ns == t0 && record.duration_ns == 163 * ms && record.detected_ns == t0 + 100 * ms)
        let looks = withUnsafeBytes(of: record.look_ns) { $0.bindMemory(to: UInt64.self).reduce(0, +) }
        #expect(record.looks == 2 && looks == 163 * ms, "every nanosecond counts for something once")
        #expect(!watch.hasStall)
    }

    @Test("What begins and ends between two ticks has a record too, and only one")
    func betweenTicks() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: 10 * ms)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        for i in 0..<3 as Range<UInt64> {
            loop.begin(at: t0 + i * 20 * ms)
            loop.end(at: t0 + i * 20 * ms + 12 * ms, recordedFrom: 10 * ms)
        }
        watch.tick(0, loop.slot, t0 + 60 * ms, &context)
        watch.tick(0, loop.slot, t0 + 65 * ms, &context)
        #expect(states(fixture) == [LAG_STALL_CLOSED, LAG_STALL_CLOSED, LAG_STALL_CLOSED])
        #expect(fixture.stalls.map(\.duration_ns) == [12 * ms, 12 * ms, 12 * ms])
        #expect(fixture.stalls.allSatisfy { $0.detected_ns == 0 })
        #expect(fixture.header.stalls_missed == 0)
    }

    @Test("More than the slot can keep between two ticks are counted as missed")
    func missed() throws {
        let fixture = try SegmentFixture(stalls: 32)
        defer { fixture.release() }
        var context = try fixture.context(threshold: 1 * ms)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        for i in 0..<20 as Range<UInt64> {
            loop.begin(at: t0 + i * 2 * ms)
            loop.end(at: t0 + i * 2 * ms + ms, recordedFrom: ms)
        }
        watch.tick(0, loop.slot, t0 + 60 * ms, &context)
        #expect(fixture.stalls.count == Int(LAG_RECENT_LONG))
        #expect(fixture.header.stalls_missed == 20 - UInt64(LAG_RECENT_LONG))
    }

    @Test("Random iterations: each at or above the threshold has one record, each below has none")
    func exactlyOnce() throws {
        let fixture = try SegmentFixture(stalls: 4096)
        defer { fixture.release() }
        let threshold = 10 * ms
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        var generator = SeededGenerator(state: 11)
        var expected: [UInt64: UInt64] = [:]
        var clock = t0
        var tick = t0
        for _ in 0..<600 {
            loop.begin(at: clock)
            let length = UInt64.random(in: 0...(30 * ms), using: &generator)
            let end = clock + length
            while tick <= end {
                watch.tick(0, loop.slot, max(tick, clock), &context)
                tick += 5 * ms
            }
            loop.end(at: end, recordedFrom: threshold)
            if length >= threshold { expected[clock] = length }
            clock = end + UInt64.random(in: 1...(3 * ms), using: &generator)
        }
        watch.tick(0, loop.slot, clock, &context)
        let found = fixture.stalls
        #expect(found.allSatisfy { $0.state == UInt32(LAG_STALL_CLOSED) })
        #expect(found.count == expected.count)
        #expect(Dictionary(found.map { ($0.start_ns, $0.duration_ns) }, uniquingKeysWith: { a, _ in a }) == expected)
        #expect(found.contains { $0.detected_ns != 0 } && found.contains { $0.detected_ns == 0 })
    }

    @Test("A loop that goes away in the middle of a stall leaves a dropped record")
    func dropped() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + threshold, &context)
        loop.slot.pointee.busy_since_ns = 0
        loop.slot.pointee.state = UInt32(LAG_LOOP_RETIRED)
        watch.tick(0, loop.slot, t0 + 2 * threshold, &context)
        #expect(states(fixture) == [LAG_STALL_DROPPED])

        // Its next tenant starts from nothing, even where the tick in between was missed.
        loop.register(generation: 2)
        loop.begin(at: t0 + 3 * threshold)
        watch.tick(0, loop.slot, t0 + 5 * threshold, &context)
        loop.register(generation: 3)
        loop.begin(at: t0 + 6 * threshold)
        watch.tick(0, loop.slot, t0 + 6 * threshold + 1, &context)
        #expect(states(fixture) == [LAG_STALL_DROPPED, LAG_STALL_DROPPED])
        #expect(fixture.stalls.map(\.loop_generation) == [1, 2])
    }

    @Test("A stall whose record gave way to newer ones is entered again when it ends")
    func outlivedItsRecord() throws {
        let fixture = try SegmentFixture(stalls: 8)
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + threshold, &context)
        for i in 0..<8 as Range<UInt64> {
            _ = context.book.open(slot: 1, view: lag_loop_view(), start: i, detected: i, events: 1)
        }
        #expect(!fixture.stalls.contains { $0.start_ns == t0 })
        loop.end(at: t0 + 5 * threshold, recordedFrom: threshold)
        watch.tick(0, loop.slot, t0 + 6 * threshold, &context)
        let record = try #require(fixture.stalls.first { $0.start_ns == t0 })
        #expect(record.state == UInt32(LAG_STALL_CLOSED) && record.duration_ns == 5 * threshold)
    }

    @Test("An iteration ends with no tick near it: the open record still gets its own length, not the next one's")
    func backToBack() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + 110 * ms, &context)
        loop.end(at: t0 + 120 * ms, recordedFrom: threshold)
        loop.begin(at: t0 + 121 * ms)
        watch.tick(0, loop.slot, t0 + 260 * ms, &context)
        #expect(states(fixture) == [LAG_STALL_CLOSED, LAG_STALL_OPEN])
        #expect(fixture.stalls.map(\.start_ns) == [t0, t0 + 121 * ms])
        #expect(fixture.stalls[0].duration_ns == 120 * ms)
    }

    @Test("A thread that has ended retires its loop, and an endless stall of it is not opened")
    func deadThread() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.slot.pointee.tid = try TestThread.run { lag_gettid() }
        loop.slot.pointee.epfd = 5
        #expect(eventually { !lag_thread_exists(loop.slot.pointee.tid) })
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + threshold, &context)
        #expect(!states(fixture).contains(LAG_STALL_OPEN))
    }

    @Test("The watchdog's own lateness is kept with the stall")
    func lateness() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        watch.tick(0, loop.slot, t0 + threshold, &context)
        context.late = 70 * ms
        watch.tick(0, loop.slot, t0 + 2 * threshold, &context)
        context.late = 0
        loop.end(at: t0 + 3 * threshold, recordedFrom: threshold)
        watch.tick(0, loop.slot, t0 + 3 * threshold, &context)
        #expect(fixture.stalls.first?.watchdog_late_ns == 70 * ms)
    }

    @Test("A stall without a stack says once why")
    func explained() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var context = try fixture.context(threshold: threshold, takesStacks: false)
        let loop = FakeLoop(fixture)
        var watch = LoopWatch.zero
        loop.begin(at: t0)
        for i in 0..<8 as Range<UInt64> { watch.tick(0, loop.slot, t0 + threshold + i * 60 * ms, &context) }
        let record = fixture.segment.samples.loadUnaligned(as: lag_sample.self)
        #expect(record.no_stack_reason == UInt32(LAG_DROP_DISABLED))
        #expect(record.flags & UInt16(LAG_SAMPLE_NO_STACK) != 0)
        #expect(fixture.header.samples_head == UInt64(record.total_bytes), "said more than once")
    }
}
