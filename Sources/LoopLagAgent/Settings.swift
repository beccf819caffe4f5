/// What the environment of the host asks of the agent. Read once, on the thread that starts it. Nonsense is ignored in
/// favour of the default: a typing error in a variable must not change what the server does.

import CLoopLag

struct Settings {
    static let defaultThreshold: UInt64 = 100_000_000
    static let smallestThreshold: UInt64 = 1_000_000
    static let largestThreshold: UInt64 = 3_600_000_000_000

    var threshold: UInt64
    var families: UInt32
    /// The first signal number to try.
    var firstSignal: Int32
    var takesStacks: Bool
    /// What the watchdog may use before it backs off, in per cent of one core.
    var budget: UInt64 = 1

    static func fromEnvironment(threshold: UInt64?) -> Settings {
        var settings = Settings(
            threshold: threshold ?? defaultThreshold, families: UInt32(LAG_FAMILY_EPOLL), firstSignal: 0,
            takesStacks: true)
        if let text = lag_env("LOOPLAG_THRESHOLD"), let parsed = duration(text) { settings.threshold = parsed }
        settings.threshold = clamp(settings.threshold)
        if let text = lag_env("LOOPLAG_WAITS") { settings.families = families(text) }
        if let text = lag_env("LOOPLAG_SIGNAL") {
            var parser = ByteParser(bytes(text), count: length(text))
            if let number = parser.decimal(), number > 0, number < 65 {
                settings.firstSignal = Int32(truncatingIfNeeded: number)
            }
        }
        if let text = lag_env("LOOPLAG_BUDGET") {
            var parser = ByteParser(bytes(text), count: length(text))
            if let percent = parser.decimal(), percent > 0, percent <= 100 { settings.budget = UInt64(percent) }
        }
        if let text = lag_env("LOOPLAG_STACKS"), text[0] == 0x30, text[1] == 0 { settings.takesStacks = false }
        return settings
    }

    static func clamp(_ threshold: UInt64) -> UInt64 {
        threshold < smallestThreshold
            ? smallestThreshold : (threshold > largestThreshold ? largestThreshold : threshold)
    }

    /// `250us`, `100ms`, `2s`, `1m`; nanoseconds, or nil for anything else.
    static func duration(_ text: UnsafePointer<CChar>) -> UInt64? {
        var parser = ByteParser(bytes(text), count: length(text))
        guard let number = parser.decimal(), number > 0, number < 1_000_000_000 else { return nil }
        let unit: UInt64
        if parser.take("us") {
            unit = 1_000
        } else if parser.take("ms") {
            unit = 1_000_000
        } else if parser.take("s") {
            unit = 1_000_000_000
        } else if parser.take("m") {
            unit = 60_000_000_000
        } else {
            return nil
        }
        return parser.isAtEnd ? number &* unit : nil
    }

    /// A comma-separated list of `epoll`, which is always measured, and `poll`; unknown words are passed over.
    static func families(_ text: UnsafePointer<CChar>) -> UInt32 {
        var parser = ByteParser(bytes(text), count: length(text))
        var found = UInt32(LAG_FAMILY_EPOLL)
        while !parser.isAtEnd {
            if parser.take("poll"), parser.isAtEnd || parser.peek == UInt8(ascii: ",") {
                found |= UInt32(LAG_FAMILY_POLL)
            }
            _ = parser.passOver(UInt8(ascii: ","))
        }
        return found
    }

    private static func bytes(_ text: UnsafePointer<CChar>) -> UnsafePointer<UInt8> {
        UnsafeRawPointer(text).assumingMemoryBound(to: UInt8.self)
    }

    private static func length(_ text: UnsafePointer<CChar>) -> Int {
        var count = 0
        while count < 256, text[count] != 0 { count &+= 1 }
        return count
    }
}
