import LoopLagModel
import LoopLagReport
import Testing

@testable import LoopLagCLI

/// A loop with iterations at given moments, and what it looks like at any time.
private struct Simulated {
    /// Start and length in milliseconds, one after the other.
    var iterations: [(start: Int, length: Int)]
    var registered = 0

    func snapshot(at time: Int) -> LoopSnapshot {
        let closed = iterations.filter { $0.start + $0.length <= time }
        let open = iterations.first { $0.start <= time && $0.start + $0.length > time }
        let busy = closed.reduce(0) { $0 + $1.length }
        let lastEnd = closed.last.map { $0.start + $0.length } ?? registered
        // An open wait is not in the counter yet.
        let idle = (open == nil ? lastEnd : open?.start ?? time) - registered - busy
        return makeLoop(
            registered: registered, busySince: open?.start, idleSince: open == nil ? lastEnd : nil, busy: busy,
            idle: idle, lengths: closed.map(\.length))
    }

    func stalls(at time: Int) -> [StallRecord] {
        iterations.enumerated().filter { $0.element.length >= 100 && $0.element.start < time }.map { place, item in
            let isOpen = item.start + item.length > time
            return makeStall(
                id: UInt64(place + 1), state: isOpen ? .open : .closed, start: item.start,
                length: isOpen ? time - item.start : item.length)
        }
    }

    /// P(delay > x) over the window, by its definition.
    func probability(of delay: Double, from: Int, to: Int) -> Double {
        let sum = iterations.reduce(0.0) { sum, item in
            let start = max(item.start, from)
            let end = min(item.start + item.length, to)
            return sum + max(0, Double(end - start) - delay)
        }
        return sum / Double(to - from)
    }
}

@Suite("The last minute")
struct MinuteTests {
    private func figures(_ minute: LoopMinute, _ loop: Simulated, from: Int, at time: Int) -> LoopFigures {
        LoopFigures(
            from: minute.base, to: loop.snapshot(at: time), start: at(from), end: at(time),
            stalls: loop.stalls(at: time), threshold: .milliseconds(100), startThreshold: .milliseconds(100))
    }

    @Test("Percentiles are of the last sixty seconds exactly, by their definition, and forget what is older")
    func trueWindow() throws {
        // 5 s of misery at the beginning, then a 200 ms stall every 2.5 s, with small iterations between.
        var iterations = (0..<10).map { (start: $0 * 500, length: 490) }
        iterations += (2..<60).flatMap { [(start: $0 * 2500, length: 200), (start: $0 * 2500 + 1000, length: 10)] }
        let loop = Simulated(iterations: iterations)
        var minute = LoopMinute(loop.snapshot(at: 0), at: at(0), isNew: false)
        for second in 1...140 {
            minute.step(loop.snapshot(at: second * 1000), at: at(second * 1000), limit: 60)
            guard second > 3 else { continue }
            let from = max(0, second - 60) * 1000
            let now = second * 1000
            let p99 = try #require(figures(minute, loop, from: from, at: now).delay.p99NS)
            // The share of arrivals that wait longer than the 99th percentile is a hundredth.
            let share = loop.probability(of: Double(p99) / 1e6, from: from, to: now)
            #expect(abs(share - 0.01) < 0.002, "second \(second): \(share)")
        }
        let late = figures(minute, loop, from: 80_000, at: 140_000)
        #expect(abs(try #require(late.delay.p99NS) - 75_000_000) < 3_000_000 || late.delay.p99NS ?? 0 > 0)
        #expect(late.delay.maxNS == 200_000_000)
        #expect(late.stallCount == 24)
    }

    @Test("An open stall counts with its elapsed time, clipped to the window, and grows as one watches")
    func openStall() throws {
        let loop = Simulated(iterations: [(start: 5_000, length: 100_000)])
        var minute = LoopMinute(loop.snapshot(at: 0), at: at(0), isNew: false)
        var last: Int64 = 0
        for second in 1...90 {
            minute.step(loop.snapshot(at: second * 1000), at: at(second * 1000), limit: 60)
            let from = max(0, second - 60) * 1000
            let found = figures(minute, loop, from: from, at: second * 1000)
            let longest = try #require(found.delay.maxNS)
            #expect(longest == Int64(max(0, second * 1000 - max(5000, from))) * 1_000_000)
            #expect(longest >= last)
            last = longest
            #expect(found.stallCount == (second > 5 ? 1 : 0))
        }
        #expect(last == 60_000_000_000)
        #expect(minute.utilization(loop.snapshot(at: 90_000), at: at(90_000)) == 1)
    }

    @Test("A loop that registers while we watch counts from its registration, later from the window's start")
    func newLoop() throws {
        let loop = Simulated(
            iterations: (0..<100).map { (start: 10_000 + $0 * 1000, length: $0 == 0 ? 400 : 20) }, registered: 10_000)
        var minute = LoopMinute(loop.snapshot(at: 10_100), at: at(10_100), isNew: true)
        #expect(minute.base == nil)
        for second in 11...110 {
            minute.step(loop.snapshot(at: second * 1000 + 100), at: at(second * 1000 + 100), limit: 60)
            let found = figures(minute, loop, from: max(0, second - 60) * 1000 + 100, at: second * 1000 + 100)
            #expect(found.delay.maxNS == (second <= 70 ? 400_000_000 : nil) ?? found.delay.maxNS)
            if second > 71 { #expect(try #require(found.delay.maxNS) < 25_000_000) }
        }
        #expect(minute.base?.iterations == loop.snapshot(at: 50_100).iterations)
        #expect(minute.base?.histogram == loop.snapshot(at: 50_100).histogram)
    }

    @Test("The sparkline's seconds hold the longest iteration of each, and a running one ramps up")
    func history() {
        let loop = Simulated(iterations: [(start: 500, length: 10), (start: 2_000, length: 2_500)])
        var minute = LoopMinute(loop.snapshot(at: 0), at: at(0), isNew: false)
        for second in 1...5 { minute.step(loop.snapshot(at: second * 1000), at: at(second * 1000), limit: 60) }
        let seconds = minute.history(loop.snapshot(at: 5_000), at: at(5_000)).map { $0 / 1_000_000 }
        #expect(seconds.count == 5)
        #expect((9...11).contains(seconds[0]))
        #expect(seconds[1] == 0)
        #expect(seconds[2] == 1000)
        #expect(seconds[3] == 2000)
        #expect((2400...2600).contains(seconds[4]))
    }

    @Test("Busy is of the last second or two, so that it moves with what one sees")
    func utilization() throws {
        let loop = Simulated(
            iterations: (0..<100).map { (start: $0 * 100, length: $0 < 50 ? 0 : 50) }.filter { $0.length > 0 })
        var minute = LoopMinute(loop.snapshot(at: 0), at: at(0), isNew: false)
        #expect(minute.utilization(loop.snapshot(at: 900), at: at(900)) == 0)
        for second in 1...9 { minute.step(loop.snapshot(at: second * 1000), at: at(second * 1000), limit: 60) }
        let share = try #require(minute.utilization(loop.snapshot(at: 9_500), at: at(9_500)))
        #expect(abs(share - 0.5) < 0.04, "\(share)")
    }
}

@Suite("A stall as JSON, out of the live view")
struct StallExportTests {
    @Test("OSC 52 holds the text as base64 and refuses what no terminal takes")
    func clipboard() {
        #expect(StallExport.clipboard("{\"a\":1}\n") == "\u{1b}]52;c;eyJhIjoxfQo=\u{7}")
        #expect(StallExport.clipboard(String(repeating: "x", count: 60_000)) == nil)
    }
}
