/// Waiting for conditions that no stream or descriptor announces.

import Foundation
import Glibc
import LoopLagModel

/// Asks again every few milliseconds until there is an answer. The pause is a poll on nothing: it only keeps the test
/// from taking the processor away from the host, and no test's outcome depends on its length.
func eventually<Found>(
    _ what: String, within limit: Duration = .seconds(15), _ find: () throws -> Found?
) throws -> Found {
    let deadline = MonotonicTime.now().advanced(by: limit)
    while true {
        if let found = try find() { return found }
        guard MonotonicTime.now() < deadline else { throw TimedOut(what: what, seen: "") }
        poll(nil, 0, 5)
    }
}

/// Lets a stretch of time pass that is itself the thing measured: ten idle seconds, the window of a delay.
func letPass(_ duration: Duration) {
    let end = MonotonicTime.now().advanced(by: duration)
    while MonotonicTime.now() < end {
        let left = end.since(.now())
        poll(nil, 0, Int32(clamping: left.nanosecondCount / 1_000_000 + 1))
    }
}
