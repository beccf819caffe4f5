/// Small arithmetic over measured values, and how figures are written.
///
/// Used by every measurement; pure.

import Glibc

/// A set of measured values, sorted once.
struct Figures {
    private let sorted: [Double]

    init(_ values: some Sequence<Double>) { sorted = values.sorted() }

    var count: Int { sorted.count }
    var isEmpty: Bool { sorted.isEmpty }
    var least: Double { sorted.first ?? 0 }
    var most: Double { sorted.last ?? 0 }
    var median: Double { at(0.5) }

    /// Where the true median lies with 95 % confidence, by ranks: no assumption about the shape of the noise.
    var medianInterval: ClosedRange<Double> {
        guard !sorted.isEmpty else { return 0...0 }
        let half = 0.98 * Double(sorted.count).squareRoot()
        let low = Int((Double(sorted.count) / 2 - half).rounded(.down))
        let high = Int((Double(sorted.count) / 2 + half).rounded(.up))
        return sorted[max(0, low)]...sorted[min(sorted.count - 1, high)]
    }

    /// The nearest-rank quantile; 0 for an empty set.
    func at(_ quantile: Double) -> Double {
        guard !sorted.isEmpty else { return 0 }
        let rank = Int((quantile * Double(sorted.count)).rounded(.up)) - 1
        return sorted[min(sorted.count - 1, max(0, rank))]
    }
}

/// A decimal number with a fixed count of digits after the point.
func rounded(_ value: Double, digits: Int = 2) -> String {
    guard value.isFinite, abs(value) < 1e15 else { return "?" }
    var scale = 1
    for _ in 0..<digits { scale *= 10 }
    let whole = Int((abs(value) * Double(scale)).rounded())
    let fraction = String(whole % scale)
    let sign = value < 0 && whole > 0 ? "-" : ""
    guard digits > 0 else { return sign + String(whole) }
    return sign + String(whole / scale) + "." + String(repeating: "0", count: digits - fraction.count) + fraction
}

func microseconds(_ nanoseconds: Double) -> String {
    rounded(nanoseconds / 1e3, digits: nanoseconds < 1e5 ? 1 : 0) + " us"
}

func milliseconds(_ nanoseconds: Double) -> String {
    rounded(nanoseconds / 1e6, digits: nanoseconds < 1e8 ? 2 : 0) + " ms"
}

func mebibytes(_ bytes: Double) -> String { rounded(bytes / 1_048_576, digits: 1) + " MiB" }

func systemReason(_ code: Int32) -> String { String(cString: strerror(code)) }

/// CLOCK_MONOTONIC in nanoseconds: the clock of the segment and of the hosts' own answers.
func now() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
}

func pause(milliseconds: UInt32) { usleep(milliseconds &* 1000) }

/// A moment after which a wait gives up.
struct Deadline {
    private let end: UInt64

    init(seconds: Double) { end = LoopLagBench.now() &+ UInt64(max(0, seconds) * 1e9) }

    var hasPassed: Bool { LoopLagBench.now() >= end || Cleaner.signalNumber != nil }

    /// For poll(2): at least 1 while time is left.
    var milliseconds: Int32 {
        let now = LoopLagBench.now()
        return now >= end ? 0 : Int32(clamping: (end - now) / 1_000_000 + 1)
    }
}

/// Asks again every few milliseconds until there is an answer.
func eventually<Value>(
    _ what: String, within seconds: Double, _ body: () throws(BenchError) -> Value?
) throws(BenchError) -> Value {
    let deadline = Deadline(seconds: seconds)
    while true {
        if let value = try body() { return value }
        if deadline.hasPassed { throw BenchError("\(what) did not happen within \(rounded(seconds, digits: 0)) s") }
        pause(milliseconds: 3)
    }
}
