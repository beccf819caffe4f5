/// How long an event that arrives at a random moment waits before the loop is free.
///
/// Derived, not probed: over a window of length T, P(delay > x) = sum over iterations i of max(0, d_i - x) / T.
/// So the percentiles hold every stall in full and know no coordinated omission.
public struct DelayDistribution: Hashable, Sendable {
    /// The window's length in nanoseconds.
    public let window: UInt64
    /// Iteration lengths, ascending, with how often each occurred.
    private let lengths: [Length]

    private struct Length: Hashable, Sendable {
        var value: Double
        var count: Double
        /// Sum of value * count, and of count, over this entry and all longer ones.
        var tailSum: Double = 0
        var tailCount: Double = 0
    }

    /// - Parameters:
    ///   - histogram: the iterations that closed within the window, less those listed in `exact`.
    ///   - exact: iterations whose length is known to the nanosecond (stalls, clipped to the window; an open one
    ///     with its elapsed time).
    ///   - window: the window's length; busy time longer than the window counts as if the window were that long.
    public init(histogram: IterationHistogram, exact: [Duration] = [], window: Duration) {
        var lengths: [Length] = []
        for (i, count) in histogram.counts.enumerated() where count > 0 {
            lengths.append(Length(value: Double(IterationHistogram.middle(i)), count: Double(count)))
        }
        for duration in exact where duration > .zero {
            lengths.append(Length(value: Double(duration.nanosecondCount), count: 1))
        }
        lengths.sort { $0.value < $1.value }
        var sum = 0.0
        var count = 0.0
        for i in lengths.indices.reversed() {
            sum += lengths[i].value * lengths[i].count
            count += lengths[i].count
            lengths[i].tailSum = sum
            lengths[i].tailCount = count
        }
        self.lengths = lengths
        self.window = UInt64(clamping: max(window.nanosecondCount, Int64(min(sum, 9e18))))
    }

    /// P(delay > x).
    public func probability(exceeding delay: Duration) -> Double {
        guard window > 0 else { return 0 }
        return excess(over: Double(delay.nanosecondCount)) / Double(window)
    }

    /// The delay that the share `quantile` (0...1) of arrivals does not exceed; nil for an empty window.
    public func delay(atQuantile quantile: Double) -> Duration? {
        guard window > 0 else { return nil }
        let target = (1 - min(1, max(0, quantile))) * Double(window)
        if excess(over: 0) <= target { return .zero }
        // excess(x) = tailSum - x * tailCount is linear between two neighbouring lengths: find the pair, solve.
        var previous = 0.0
        for length in lengths {
            let atEnd = length.tailSum - length.value * length.tailCount
            if atEnd <= target {
                let x = (length.tailSum - target) / length.tailCount
                return Self.length(max(previous, min(x, length.value)))
            }
            previous = length.value
        }
        return lengths.last.map { Self.length($0.value) }
    }

    /// The expected delay: sum of d² / 2T.
    public var mean: Duration? {
        guard window > 0 else { return nil }
        let sum = lengths.reduce(0.0) { $0 + $1.value * $1.value * $1.count }
        return Self.length(sum / 2 / Double(window))
    }

    public var maximum: Duration? {
        guard window > 0 else { return nil }
        return Self.length(lengths.last?.value ?? 0)
    }

    /// Saturates: a corrupt file can hold counts whose sums no integer takes.
    private static func length(_ nanoseconds: Double) -> Duration {
        .nanoseconds(nanoseconds < 9e18 ? Int64(max(0, nanoseconds)) : Int64.max)
    }

    /// Sum over iterations of max(0, d - x), in nanoseconds.
    private func excess(over x: Double) -> Double {
        var low = 0
        var high = lengths.count
        while low < high {
            let middle = (low + high) / 2
            if lengths[middle].value > x { high = middle } else { low = middle + 1 }
        }
        guard low < lengths.count else { return 0 }
        return lengths[low].tailSum - x * lengths[low].tailCount
    }
}
