import LoopLagModel
import Testing

@testable import LoopLagReport

@Suite("A loop's numbers over a window")
struct WindowTests {
    private static func window(
        from: LoopSnapshot? = nil, to: LoopSnapshot, start: Int = 0, end: Int = 60_000, stalls: [StallRecord] = [],
        threshold: Int = 100
    ) -> LoopWindow {
        LoopWindow(
            from: from, to: to, start: at(start), end: at(end), stalls: stalls, threshold: .milliseconds(threshold),
            startThreshold: .milliseconds(100))
    }

    @Test(
        "A 200 ms stall every 2.5 s gives a delay p99 of 165 to 185 ms and a p50 near none", arguments: [true, false])
    func acceptance(recordsKnown: Bool) throws {
        let stalls = (0..<24).map { makeStall(id: UInt64($0 + 1), start: 1000 + $0 * 2500, length: 200) }
        let loop = makeLoop(
            idleSince: 59_000, busy: 4800, idle: 54_200, lengths: Array(repeating: 200, count: 24))
        let result = Self.window(to: loop, stalls: recordsKnown ? stalls : [])
        let p99 = try #require(result.delay.p99NS)
        #expect((165_000_000...185_000_000).contains(p99), "\(p99)")
        if recordsKnown { #expect(abs(p99 - 175_000_000) <= 1) }
        #expect(result.delay.p50NS == 0)
        #expect(result.stallCount == 24)
        #expect(result.stalled == .milliseconds(4800))
        #expect(try abs(#require(result.utilization) - 0.08) < 1e-9)
        #expect(result.iteration.maxNS == 200_000_000)
    }

    @Test("An iteration that was open at the start counts from the start only")
    func clippedStart() throws {
        let from = makeLoop(busySince: 9_000, busy: 100, idle: 8_900)
        let to = makeLoop(
            registered: 0, idleSince: 12_000, busy: 100 + 3_000, idle: 8_900, lengths: [3_000])
        let stall = makeStall(start: 9_000, length: 3_000)
        let result = Self.window(from: from, to: to, start: 10_000, end: 20_000, stalls: [stall])
        #expect(result.busy == .seconds(2))
        #expect(result.idle == .seconds(8))
        #expect(result.stallCount == 1)
        #expect(result.stalled == .seconds(2))
        #expect(result.delay.maxNS == 2_000_000_000)
        #expect(result.iteration.maxNS == 3_000_000_000)
        #expect(result.utilization == 0.2)
    }

    @Test("An iteration that is open at the end counts with its elapsed time")
    func openEnd() {
        let from = makeLoop(idleSince: 9_000, busy: 0, idle: 9_000)
        let to = makeLoop(busySince: 15_000, busy: 0, idle: 15_000)
        let stall = makeStall(state: .open, start: 15_000, length: 4_990)
        let result = Self.window(from: from, to: to, start: 10_000, end: 20_000, stalls: [stall])
        #expect(result.busy == .seconds(5))
        #expect(result.idle == .seconds(5))
        #expect(result.stallCount == 1)
        #expect(result.stalled == .seconds(5))
        #expect(result.delay.maxNS == 5_000_000_000)
        #expect(result.iterations == 0)
        #expect(result.iteration.maxNS == nil)
    }

    @Test("A loop stuck through the whole window is busy all the time, stalled once")
    func stuck() {
        let from = makeLoop(busySince: 5_000, idle: 5_000)
        let to = makeLoop(busySince: 5_000, idle: 5_000)
        let result = Self.window(from: from, to: to, start: 10_000, end: 20_000)
        #expect(result.busy == .seconds(10))
        #expect(result.utilization == 1)
        #expect(result.stallCount == 1)
        #expect(result.stalled == .seconds(10))
    }

    @Test("A loop that waited through the whole window is idle, without a wait ever closing")
    func idle() {
        let from = makeLoop(idleSince: 5_000)
        let to = makeLoop(idleSince: 5_000)
        let result = Self.window(from: from, to: to, start: 10_000, end: 20_000)
        #expect(result.utilization == 0)
        #expect(result.idle == .seconds(10))
        #expect(result.delay.p999NS == 0)
    }

    @Test("Busy and idle add up to the window however it cuts the iterations", arguments: [0, 37, 500, 999, 1500])
    func addsUp(offset: Int) {
        // A loop that is busy for 400 ms and idle for 600 ms, again and again from time 0.
        func snapshot(_ time: Int) -> LoopSnapshot {
            let cycles = time / 1000
            let rest = time % 1000
            return makeLoop(
                busySince: rest < 400 ? cycles * 1000 : nil, idleSince: rest < 400 ? nil : cycles * 1000 + 400,
                busy: cycles * 400 + (rest < 400 ? 0 : 400), idle: cycles * 600,
                lengths: Array(repeating: 400, count: cycles + (rest < 400 ? 0 : 1)))
        }
        let start = 3_000 + offset
        let result = Self.window(from: snapshot(start), to: snapshot(start + 10_000), start: start, end: start + 10_000)
        #expect(result.busy + result.idle == .seconds(10))
        #expect(result.busy == .seconds(4))
    }

    @Test("A stall counts once: what its record tells exactly is taken out of the histogram")
    func onceOnly() throws {
        let loop = makeLoop(idleSince: 2_000, busy: 300, idle: 1_700, lengths: [300])
        let result = Self.window(to: loop, end: 10_000, stalls: [makeStall(start: 500, length: 300)])
        // d²/2T of one iteration of 0.3 s in 10 s.
        #expect(try abs(#require(result.delay.meanNS) - 4_500_000) <= 1)
    }

    @Test("Records of stalls that the snapshots do not span change nothing")
    func foreignRecords() {
        let from = makeLoop(idleSince: 9_000, busy: 500, idle: 8_500, lengths: [500])
        let to = makeLoop(idleSince: 9_000, busy: 500, idle: 8_500, lengths: [500])
        let before = makeStall(id: 1, start: 1_000, length: 500)
        let after = makeStall(id: 2, start: 19_900, length: 500)
        let result = Self.window(from: from, to: to, start: 10_000, end: 20_000, stalls: [before, after])
        #expect(result.stallCount == 0)
        #expect(result.delay.maxNS == 0)
    }

    @Test("Each reader filters by its own threshold")
    func ownThreshold() {
        let loop = makeLoop(idleSince: 5_000, busy: 500, idle: 4_500, lengths: [150, 350])
        let stalls = [makeStall(id: 1, start: 1_000, length: 150), makeStall(id: 2, start: 2_000, length: 350)]
        #expect(Self.window(to: loop, stalls: stalls, threshold: 100).stallCount == 2)
        #expect(Self.window(to: loop, stalls: stalls, threshold: 200).stallCount == 1)
        #expect(Self.window(to: loop, stalls: stalls, threshold: 200).stalled == .milliseconds(350))
        #expect(Self.window(to: loop, stalls: stalls, threshold: 1000).stallCount == 0)
    }

    @Test("Where records were lost the slot's counters stand in, and the histogram for another threshold")
    func lostRecords() {
        let loop = makeLoop(idleSince: 9_000, busy: 1_500, idle: 7_500, lengths: Array(repeating: 300, count: 5))
        let kept = [makeStall(id: 5, start: 6_000, length: 300)]
        let same = Self.window(to: loop, end: 10_000, stalls: kept)
        #expect(same.stallCount == 5)
        #expect(same.stalled == .milliseconds(1_500))
        let other = Self.window(to: loop, end: 10_000, stalls: kept, threshold: 50)
        #expect(other.stallCount == 5)
        #expect(abs(other.stalled.secondsAsDouble - 1.5) <= 1.5 * 0.031)
    }

    @Test("A retired loop's open iteration was dropped and stalls nobody")
    func retired() {
        let to = makeLoop(isLive: false, retired: 3_000, busySince: 2_000, idle: 2_000)
        let dropped = makeStall(state: .dropped, start: 2_000, length: 900)
        let result = Self.window(to: to, stalls: [dropped])
        #expect(result.stallCount == 0)
        #expect(result.busy == .zero)
        #expect(result.delay.maxNS == 0)
    }

    @Test("A loop that was neither busy nor idle has no utilization")
    func unknownUtilization() {
        #expect(Self.window(to: makeLoop(registered: 60_000), end: 60_000).utilization == nil)
    }

    @Test("The window's extremes are the slot's where it set them, else the histogram's")
    func extremes() throws {
        var from = makeLoop(idleSince: 1_000, busy: 905, idle: 95, lengths: [5, 900])
        var to = makeLoop(idleSince: 9_000, busy: 905 + 72, idle: 7_000, lengths: [5, 900, 40, 32])
        let inner = Self.window(from: from, to: to, start: 1_000, end: 10_000).iteration
        #expect(try abs(Double(#require(inner.maxNS)) - 40e6) <= 40e6 * 0.031)
        #expect(try abs(Double(#require(inner.minNS)) - 32e6) <= 32e6 * 0.031)
        #expect(inner.meanNS == 36_000_000)
        from.longest = .milliseconds(30)
        to.longest = .milliseconds(40)
        #expect(Self.window(from: from, to: to, start: 1_000, end: 10_000).iteration.maxNS == 40_000_000)
    }

    @Test("Hostile counters do not trap")
    func hostile() {
        var loop = makeLoop(busySince: 0)
        loop.histogram = IterationHistogram(counts: Array(repeating: .max, count: 928))
        loop.iterations = .max
        loop.busy = .nanoseconds(Int64.max)
        loop.idle = .nanoseconds(Int64.max)
        loop.stallCount = .max
        loop.stalled = .nanoseconds(Int64.max)
        loop.busySince = MonotonicTime(nanoseconds: .max)
        var stall = makeStall(state: .open)
        stall.duration = .nanoseconds(Int64.max)
        stall.start = MonotonicTime(nanoseconds: .max)
        for state in [StallState.open, .closed, .dropped] {
            stall.state = state
            #expect(Self.window(to: loop, stalls: [stall, stall]).iterations == .max)
            #expect(Self.window(from: makeLoop(), to: loop, start: 50, end: 10, stalls: [stall]).stallCount >= 0)
        }
    }
}
