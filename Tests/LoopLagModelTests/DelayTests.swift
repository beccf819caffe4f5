import LoopLagModel
import Testing

@Suite("Delay by the law")
struct DelayTests {
    private static func milliseconds(_ duration: Duration?) throws -> Double {
        try #require(duration).secondsAsDouble * 1000
    }

    @Test("A 200 ms stall every 2.5 s has a p99 of 175 ms and a median of none")
    func acceptance() throws {
        let stalls = Array(repeating: Duration.milliseconds(200), count: 24)
        let delay = DelayDistribution(histogram: IterationHistogram(), exact: stalls, window: .seconds(60))
        #expect(try abs(Self.milliseconds(delay.delay(atQuantile: 0.99)) - 175) < 0.001)
        #expect(try Self.milliseconds(delay.delay(atQuantile: 0.5)) == 0)
        #expect(try Self.milliseconds(delay.maximum) == 200)
        // The mean is the sum of d²/2T: 24 * 0.04 / 120 s.
        #expect(try abs(Self.milliseconds(delay.mean) - 8) < 0.001)
        #expect(abs(delay.probability(exceeding: .milliseconds(100)) - 0.04) < 1e-9)
    }

    @Test("Stalls that only the histogram knows are off by its bucket at most")
    func fromHistogram() throws {
        var histogram = IterationHistogram()
        histogram.record(200_000_000, count: 24)
        let delay = DelayDistribution(histogram: histogram, window: .seconds(60))
        #expect(try abs(Self.milliseconds(delay.delay(atQuantile: 0.99)) - 175) < 200 * 0.031 + 1)
    }

    @Test("Percentiles agree with a count over every arrival")
    func bruteForce() throws {
        // Arrivals each 0.1 ms over a window of 1 s in which these iterations run back to back, then idle.
        let lengths = [3, 17, 80, 80, 250, 1, 1, 40]
        var delays: [Double] = []
        for length in lengths {
            for tenth in 0..<length * 10 { delays.append(Double(length) - (Double(tenth) + 0.5) / 10) }
        }
        delays += Array(repeating: 0, count: 10_000 - delays.count)
        delays.sort()
        let law = DelayDistribution(
            histogram: IterationHistogram(), exact: lengths.map { .milliseconds($0) }, window: .seconds(1))
        for quantile in [0.1, 0.5, 0.55, 0.6, 0.75, 0.9, 0.99, 0.999] {
            let counted = delays[min(delays.count - 1, Int(quantile * 10_000))]
            #expect(try abs(Self.milliseconds(law.delay(atQuantile: quantile)) - counted) < 0.2, "at \(quantile)")
        }
    }

    @Test("Percentiles rise with the quantile and end at the longest iteration")
    func monotone() throws {
        var histogram = IterationHistogram()
        histogram.record(50_000, count: 10_000)
        histogram.record(3_000_000, count: 300)
        let delay = DelayDistribution(
            histogram: histogram, exact: [.milliseconds(150), .seconds(2)], window: .seconds(10))
        var last = Duration.zero
        for step in 0...1000 {
            let value = try #require(delay.delay(atQuantile: Double(step) / 1000))
            #expect(value >= last)
            last = value
        }
        #expect(try abs(Self.milliseconds(last) - 2000) < 0.001)
    }

    @Test("An empty window has no delay, and an idle one has none to wait")
    func empty() {
        let nothing = DelayDistribution(histogram: IterationHistogram(), window: .zero)
        #expect(nothing.delay(atQuantile: 0.99) == nil)
        #expect(nothing.mean == nil)
        #expect(nothing.maximum == nil)
        #expect(nothing.probability(exceeding: .zero) == 0)
        let idle = DelayDistribution(histogram: IterationHistogram(), window: .seconds(10))
        #expect(idle.delay(atQuantile: 0.999) == .zero)
        #expect(idle.maximum == .zero)
    }

    @Test("A loop busy for longer than the window counts as busy all the time")
    func overfull() throws {
        let delay = DelayDistribution(histogram: IterationHistogram(), exact: [.seconds(20)], window: .seconds(10))
        #expect(abs(delay.probability(exceeding: .zero) - 1) < 1e-9)
        #expect(delay.delay(atQuantile: 0.5) == .seconds(10))
    }

    @Test("Hostile counts and lengths do not trap")
    func hostile() {
        let counts = Array(repeating: UInt64.max, count: IterationHistogram.bucketCount)
        let delay = DelayDistribution(
            histogram: IterationHistogram(counts: counts), exact: [.nanoseconds(Int64.max), .seconds(-3)],
            window: .nanoseconds(Int64.max))
        #expect(delay.mean != nil)
        #expect(delay.delay(atQuantile: 0.99) != nil)
        #expect(delay.delay(atQuantile: .nan) != nil)
    }

    @Test("Time differences saturate instead of wrapping")
    func time() {
        let early = MonotonicTime(nanoseconds: 5)
        let late = MonotonicTime(nanoseconds: 1_000)
        #expect(late.since(early) == .nanoseconds(995))
        #expect(early.since(late) == .zero)
        #expect(MonotonicTime(nanoseconds: .max).since(early).nanosecondCount == .max)
        #expect(Duration.seconds(Int64.max).nanosecondCount == .max)
        let anchor = ClockAnchor(monotonic: late, realtimeNanoseconds: 10_000)
        #expect(anchor.realtime(of: early) == 9_005)
    }
}
