/// Lengths of time as people type them: `250us`, `100ms`, `2s`, `1m`. Nothing else: a bare number has no unit, and a
/// guessed one would be wrong by a thousand.

import ArgumentParser
import LoopLagAttach
import LoopLagModel

enum DurationArgument {
    /// Parses a positive length; the error is a sentence for the usage line.
    static func parse(_ text: String) throws -> Duration {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        let factor: Int64? =
            switch text.dropFirst(digits.count) {
            case "us": 1_000
            case "ms": 1_000_000
            case "s": 1_000_000_000
            case "m": 60_000_000_000
            default: nil
            }
        guard !digits.isEmpty, let factor else {
            throw ValidationError("it is no duration; write 250us, 100ms, 2s or 1m")
        }
        guard let count = Int64(digits) else { throw ValidationError("it is too long") }
        let (nanoseconds, overflow) = count.multipliedReportingOverflow(by: factor)
        if overflow { throw ValidationError("it is too long") }
        if nanoseconds == 0 { throw ValidationError("it must be more than zero") }
        return .nanoseconds(nanoseconds)
    }

    /// As typed, in the largest unit that stays whole.
    static func format(_ duration: Duration) -> String {
        let nanoseconds = duration.nanosecondCount
        for (factor, unit) in [(60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")]
            as [(Int64, String)]
        {
            if nanoseconds >= factor && nanoseconds % factor == 0 { return "\(nanoseconds / factor)\(unit)" }
        }
        return "\(nanoseconds)ns"
    }
}

/// `--threshold`, the same in every verb that measures.
struct ThresholdOption: ParsableArguments {
    static let usual: Duration = .milliseconds(100)

    @Option(
        name: .customLong("threshold"),
        help: ArgumentHelp(
            "Report iterations of at least this length (default: 100ms).", valueName: "duration"),
        transform: DurationArgument.parse)
    var given: Duration?

    var threshold: Duration { given ?? Self.usual }

    /// For a verb that starts servers: what they would take from the environment themselves is not overruled by a
    /// default. A value that is no duration is told, and left alone as the agent leaves it.
    static func resolve(given: Duration?, environment: String?) -> (threshold: Duration, complaint: String?) {
        if let given { return (given, nil) }
        guard let environment, !environment.isEmpty else { return (usual, nil) }
        guard let asked = try? DurationArgument.parse(environment) else {
            let text = ProcessFacts.printable(environment)
            return (
                usual, "LOOPLAG_THRESHOLD=\(text) is no duration and was ignored; write 250us, 100ms, 2s or 1m"
            )
        }
        return (asked, nil)
    }

    /// The agent captures stalls of this length and more, whatever is asked for.
    private static let smallest: Duration = .milliseconds(1)

    func noteLimits() { Self.noteLimits(of: threshold) }

    static func noteLimits(of threshold: Duration) {
        if threshold < smallest {
            Console.error("stalls under 1ms are counted and not shown: the agent watches for 1ms and more")
        }
    }
}
