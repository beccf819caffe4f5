/// The two clocks of the command line, and the way from one to the other.
///
/// Any thread. Telemetry is stamped with CLOCK_MONOTONIC; people and reports want the time of day, taken from our own
/// clock at the moment of asking, so that a clock that was set since a server started does not shift its stalls.

import Glibc
import LoopLagModel

enum Clock {
    static func monotonic() -> MonotonicTime { MonotonicTime(nanoseconds: read(CLOCK_MONOTONIC)) }

    /// Nanoseconds since 1970.
    static func wall() -> UInt64 { read(CLOCK_REALTIME) }

    /// The time of day of a monotonic reading, nanoseconds since 1970.
    static func wall(of time: MonotonicTime) -> UInt64 {
        ClockAnchor(monotonic: monotonic(), realtimeNanoseconds: wall()).realtime(of: time)
    }

    private static func read(_ clock: clockid_t) -> UInt64 {
        var time = timespec()
        clock_gettime(clock, &time)
        return UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
    }
}
