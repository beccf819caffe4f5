/// Wall-clock times as text: RFC 3339 in UTC for reports, the time of day for people.
///
/// Called by the report builder, the stall lines and the text report, on any thread. Pure apart from the time zone,
/// which a caller may hand in.

import Foundation
import LoopLagModel

/// Ties the monotonic clock to the wall clock for one window, so that every time in a report hangs on the same pair.
struct WallClock: Hashable, Sendable {
    let anchor: ClockAnchor

    init(monotonic: MonotonicTime, wallNanoseconds: UInt64) {
        anchor = ClockAnchor(monotonic: monotonic, realtimeNanoseconds: wallNanoseconds)
    }

    /// Nanoseconds since 1970.
    func wall(_ time: MonotonicTime) -> UInt64 { anchor.realtime(of: time) }

    func timestamp(_ time: MonotonicTime) -> String { Self.timestamp(wall(time)) }

    /// "2026-03-01T12:03:22.410123Z".
    static func timestamp(_ nanoseconds: UInt64) -> String {
        let t = Civil(nanoseconds, offset: 0)
        let date = "\(pad(t.year, 4))-\(pad(t.month, 2))-\(pad(t.day, 2))"
        return "\(date)T\(t.clock).\(pad(Int(nanoseconds % 1_000_000_000 / 1000), 6))Z"
    }

    /// "12:03:22.410" in `zone`.
    static func timeOfDay(_ nanoseconds: UInt64, zone: TimeZone) -> String {
        let offset = zone.secondsFromGMT(for: Date(timeIntervalSince1970: Double(nanoseconds / 1_000_000_000)))
        return Civil(nanoseconds, offset: offset).clock + ".\(pad(Int(nanoseconds % 1_000_000_000 / 1_000_000), 3))"
    }

    static func pad(_ value: Int, _ digits: Int) -> String {
        let text = String(value)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    /// Date and time of day by the proleptic Gregorian calendar; leap seconds do not exist in Unix time.
    private struct Civil {
        var year: Int
        var month: Int
        var day: Int
        var clock: String

        init(_ nanoseconds: UInt64, offset: Int) {
            let seconds = Int(nanoseconds / 1_000_000_000) + offset
            let days = Int((Double(seconds) / 86400).rounded(.down))
            let rest = seconds - days * 86400
            clock = "\(pad(rest / 3600, 2)):\(pad(rest / 60 % 60, 2)):\(pad(rest % 60, 2))"
            // Years counted from March: leap days fall at the end, and a 400-year era has 146,097 days.
            let shifted = days + 719_468
            let era = (shifted >= 0 ? shifted : shifted - 146_096) / 146_097
            let dayOfEra = shifted - era * 146_097
            let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
            let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
            let shiftedMonth = (5 * dayOfYear + 2) / 153
            day = dayOfYear - (153 * shiftedMonth + 2) / 5 + 1
            month = shiftedMonth < 10 ? shiftedMonth + 3 : shiftedMonth - 9
            year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        }
    }
}
