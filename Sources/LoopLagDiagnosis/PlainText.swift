/// Text that is safe to show to a person: printable, cut and padded by columns of a terminal.
///
/// Called by every room of the command line that prints (reports, stall lines, `top`), on any thread. Pure. It refuses
/// to pass anything on that a terminal would act upon: names come from foreign processes, and a thread may call itself
/// "\u{1b}[2J".
public enum PlainText {
    /// `text` with every control, format and line-breaking character replaced by a visible one.
    public static func printable(_ text: String) -> String {
        if text.utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7f }) { return text }
        var scalars = String.UnicodeScalarView()
        for scalar in text.unicodeScalars { scalars.append(isPrintable(scalar) ? scalar : "\u{fffd}") }
        return String(scalars)
    }

    private static func isPrintable(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        // Format characters hold the bidirectional overrides, with which a name can disguise a line.
        case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator, .paragraphSeparator: false
        default: true
        }
    }

    /// Columns that a character takes, where no terminal library is at hand to say: East Asian wide and emoji two,
    /// combining marks none (they come with the character they join).
    public static func columns(of character: Character) -> Int {
        guard let scalar = character.unicodeScalars.first else { return 0 }
        if scalar.value < 0x300 { return 1 }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .enclosingMark: return 0
        default: break
        }
        if scalar.properties.isEmojiPresentation { return 2 }
        switch scalar.value {
        case 0x1100...0x115f, 0x2e80...0x303e, 0x3041...0xa4cf, 0xac00...0xd7a3, 0xf900...0xfaff, 0xfe30...0xfe6f,
            0xff00...0xff60, 0xffe0...0xffe6, 0x20000...0x3fffd:
            return 2
        default: return 1
        }
    }

    public static func columns(of text: String, measure: (Character) -> Int = columns(of:)) -> Int {
        text.reduce(0) { $0 + measure($1) }
    }

    /// At most `limit` columns of `text`, printable; what was cut shows as a trailing "…".
    public static func clip(
        _ text: String, to limit: Int, measure: (Character) -> Int = columns(of:), mark: Character = "…"
    ) -> String {
        let text = printable(text)
        guard columns(of: text, measure: measure) > limit else { return text }
        var result = ""
        var used = 0
        let room = limit - measure(mark)
        guard room >= 0 else { return "" }
        for character in text {
            let width = measure(character)
            if used + width > room { break }
            result.append(character)
            used += width
        }
        return result + String(mark)
    }

    /// `text` in exactly `width` columns.
    public static func left(
        _ text: String, _ width: Int, measure: (Character) -> Int = columns(of:), mark: Character = "…"
    ) -> String {
        let clipped = clip(text, to: width, measure: measure, mark: mark)
        return clipped + String(repeating: " ", count: max(0, width - columns(of: clipped, measure: measure)))
    }

    public static func right(
        _ text: String, _ width: Int, measure: (Character) -> Int = columns(of:), mark: Character = "…"
    ) -> String {
        let clipped = clip(text, to: width, measure: measure, mark: mark)
        return String(repeating: " ", count: max(0, width - columns(of: clipped, measure: measure))) + clipped
    }

    /// The last component of a path; the whole text where there is no slash.
    public static func fileName(_ path: String) -> String {
        path.split(separator: "/", omittingEmptySubsequences: true).last.map(String.init) ?? path
    }

    /// Three digits and a unit, as a person reads a length of time: "182 ms", "3.1 s", "2 min 5 s".
    public static func duration(nanoseconds: Int64) -> String {
        let value = Double(max(0, nanoseconds))
        if value == 0 { return "0 ms" }
        if value < 1e3 { return "\(nanoseconds) ns" }
        if value < 999_500 { return number(value / 1e3) + " us" }
        if value < 999_500_000 { return number(value / 1e6) + " ms" }
        if value < 99.95e9 { return number(value / 1e9) + " s" }
        let seconds = Int64((value / 1e9).rounded())
        if seconds < 3600 { return "\(seconds / 60) min \(seconds % 60) s" }
        return "\(seconds / 3600) h \(seconds % 3600 / 60) min"
    }

    /// 0...1 as per cent; one decimal below ten, where it still tells something.
    public static func percent(_ share: Double) -> String {
        guard share.isFinite else { return "?" }
        // A report file may hold any number: what cannot be an Int must not become one.
        let value = min(1e9, max(-1e9, share * 100))
        return (value > 0 && value < 9.95 ? decimal(value) : "\(Int(value.rounded()))") + " %"
    }

    /// At least two significant digits, no exponent; for values of 0 ..< 1000.
    private static func number(_ value: Double) -> String {
        value < 9.95 ? decimal(value) : "\(Int(value.rounded()))"
    }

    private static func decimal(_ value: Double) -> String {
        let tenths = Int((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }
}
