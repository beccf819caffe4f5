import CLoopLagLayout
import LoopLagModel
import Testing

@Suite("Histogram of iteration times")
struct HistogramTests {
    @Test("Buckets are those of the segment layout, at every bound and around it")
    func agreesWithLayout() {
        #expect(IterationHistogram.bucketCount == Int(LAG_HISTOGRAM_BUCKETS))
        for index in 0...UInt32(IterationHistogram.bucketCount) {
            let bound = lag_histogram_lower(index)
            #expect(IterationHistogram.lowerBound(Int(index)) == bound)
            for value in [bound &- 1, bound, bound &+ 1] {
                #expect(IterationHistogram.index(of: value) == Int(lag_histogram_index(value)), "value \(value)")
            }
        }
    }

    @Test(
        "Every value falls into a bucket that holds it, at most 3.1 % from the middle",
        arguments: [
            0, 1, 31, 32, 1023, 1024, 1025, 99_999, 1_000_000, 123_456_789, 200_000_000, 274_877_906_943,
        ] as [UInt64])
    func bucketHoldsItsValue(value: UInt64) {
        let index = IterationHistogram.index(of: value)
        #expect(IterationHistogram.lowerBound(index) <= value)
        #expect(value < IterationHistogram.lowerBound(index + 1))
        if value >= 1024 {
            let error = abs(Double(IterationHistogram.middle(index)) - Double(value)) / Double(value)
            #expect(error <= 0.031)
        }
    }

    @Test("Values beyond the last bucket count in it, and nothing traps at the extremes")
    func extremes() {
        var histogram = IterationHistogram()
        histogram.record(.max)
        histogram.record(275_000_000_000)
        #expect(histogram.total == 2)
        #expect(histogram.counts.last == 2)
        #expect(IterationHistogram(counts: Array(repeating: .max, count: 2000)).total > 0)
        #expect(IterationHistogram(counts: [1]).counts.count == IterationHistogram.bucketCount)
        #expect(IterationHistogram.lowerBound(-5) == 0)
    }

    @Test("A window is the difference of two snapshots, and a counter that went back counts as nothing")
    func difference() {
        var earlier = IterationHistogram()
        earlier.record(1_000, count: 5)
        var later = earlier
        later.record(1_000, count: 2)
        later.record(5_000_000)
        let window = later.since(earlier)
        #expect(window.total == 3)
        #expect(earlier.since(later).isEmpty)
        var sum = window
        sum.add(earlier)
        #expect(sum == later)
    }

    @Test("Quantiles are of ranks, and an empty histogram has none")
    func quantiles() throws {
        #expect(IterationHistogram().value(atQuantile: 0.5) == nil)
        var histogram = IterationHistogram()
        histogram.record(100_000, count: 90)
        histogram.record(50_000_000, count: 10)
        let median = try #require(histogram.value(atQuantile: 0.5))
        let tail = try #require(histogram.value(atQuantile: 0.91))
        #expect(abs(Double(median) - 100_000) <= 3_100)
        #expect(abs(Double(tail) - 50e6) <= 1.55e6)
        #expect(histogram.value(atQuantile: 0.9) == median)
        #expect(histogram.value(atQuantile: -3) == median)
        #expect(histogram.value(atQuantile: 7) == tail)
    }
}
