/// Points in time and lengths of it, as the whole command line uses them.
///
/// The model imports nothing, so the wall clock appears only as nanoseconds since the epoch; LoopLagReport formats it.

/// A reading of the machine's CLOCK_MONOTONIC, comparable between processes of the same boot.
public struct MonotonicTime: Hashable, Comparable, Sendable {
    /// Nanoseconds since an arbitrary start.
    public var nanoseconds: UInt64

    public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }

    public static func < (a: MonotonicTime, b: MonotonicTime) -> Bool { a.nanoseconds < b.nanoseconds }

    /// The time from `earlier` to this one; zero when `earlier` is in fact later (hostile input must not trap).
    public func since(_ earlier: MonotonicTime) -> Duration {
        nanoseconds > earlier.nanoseconds ? Duration(nanosecondCount: nanoseconds - earlier.nanoseconds) : .zero
    }

    public func advanced(by duration: Duration) -> MonotonicTime {
        MonotonicTime(nanoseconds: nanoseconds &+ UInt64(bitPattern: duration.nanosecondCount))
    }
}

extension Duration {
    /// A length from a counter of nanoseconds; saturates at 292 years, which only a corrupt file can reach.
    public init(nanosecondCount: UInt64) {
        self = .nanoseconds(Int64(clamping: nanosecondCount))
    }

    /// The whole nanoseconds of this length, saturating.
    public var nanosecondCount: Int64 {
        let (seconds, attoseconds) = components
        let (product, overflow) = seconds.multipliedReportingOverflow(by: 1_000_000_000)
        if overflow { return seconds < 0 ? .min : .max }
        let (sum, overflowed) = product.addingReportingOverflow(attoseconds / 1_000_000_000)
        return overflowed ? (seconds < 0 ? .min : .max) : sum
    }

    /// Seconds as a floating-point number, for ratios and charts.
    public var secondsAsDouble: Double {
        let (seconds, attoseconds) = components
        return Double(seconds) + Double(attoseconds) * 1e-18
    }
}

/// Ties one process's monotonic clock to the wall clock: both were read at the same moment.
public struct ClockAnchor: Hashable, Sendable {
    public var monotonic: MonotonicTime
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    public var realtimeNanoseconds: UInt64

    public init(monotonic: MonotonicTime, realtimeNanoseconds: UInt64) {
        self.monotonic = monotonic
        self.realtimeNanoseconds = realtimeNanoseconds
    }

    /// The wall-clock time of a monotonic reading, in nanoseconds since the epoch.
    public func realtime(of time: MonotonicTime) -> UInt64 {
        realtimeNanoseconds &+ (time.nanoseconds &- monotonic.nanoseconds)
    }
}
