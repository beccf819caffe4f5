/// The distribution of a loop's iteration times: log-linear, 32 sub-buckets an octave, error at most 3.1 %.
///
/// The bucket bounds are those of `lag_histogram_index` in the segment layout; a test holds the two together.
public struct IterationHistogram: Hashable, Sendable {
    public static let bucketCount = 928

    /// Iterations per bucket.
    public private(set) var counts: [UInt64]

    public init() { counts = Array(repeating: 0, count: Self.bucketCount) }

    /// Takes counts as they lie in the segment; missing buckets are zero, surplus ones are ignored.
    public init(counts: [UInt64]) {
        self.counts = Array(counts.prefix(Self.bucketCount))
        self.counts.append(contentsOf: repeatElement(0, count: Self.bucketCount - self.counts.count))
    }

    public static func index(of nanoseconds: UInt64) -> Int {
        if nanoseconds < 1024 { return Int(nanoseconds >> 5) }
        let octave = 63 - nanoseconds.leadingZeroBitCount
        if octave > 37 { return bucketCount - 1 }
        return 32 + (octave - 10) * 32 + Int((nanoseconds >> UInt64(octave - 5)) & 31)
    }

    /// The smallest value of bucket `index`; `index == bucketCount` gives the upper bound of the last.
    public static func lowerBound(_ index: Int) -> UInt64 {
        if index < 32 { return UInt64(max(0, index)) << 5 }
        return UInt64(32 + (index & 31)) << UInt64((index - 32) / 32 + 5)
    }

    /// The value that stands for bucket `index`: its middle.
    public static func middle(_ index: Int) -> UInt64 {
        let low = lowerBound(index)
        return low &+ (lowerBound(index + 1) &- low) / 2
    }

    public mutating func record(_ nanoseconds: UInt64, count: UInt64 = 1) {
        counts[Self.index(of: nanoseconds)] &+= count
    }

    public mutating func add(_ other: IterationHistogram) {
        for i in counts.indices { counts[i] &+= other.counts[i] }
    }

    /// What was recorded since `earlier`, an older snapshot of the same loop.
    public func since(_ earlier: IterationHistogram) -> IterationHistogram {
        var result = self
        for i in counts.indices {
            result.counts[i] = counts[i] > earlier.counts[i] ? counts[i] - earlier.counts[i] : 0
        }
        return result
    }

    public var total: UInt64 { counts.reduce(0, &+) }

    /// The value at or below which the share `quantile` (0...1) of all iterations lies; nil when empty.
    public func value(atQuantile quantile: Double) -> UInt64? {
        let total = self.total
        guard total > 0 else { return nil }
        let share = (Double(total) * min(1, max(0, quantile))).rounded(.up)
        let rank = share >= 1.8e19 ? total : max(1, UInt64(share))
        var seen: UInt64 = 0
        for (i, count) in counts.enumerated() where count > 0 {
            seen &+= count
            if seen >= rank { return Self.middle(i) }
        }
        return nil
    }

    public var isEmpty: Bool { counts.allSatisfy { $0 == 0 } }
}
