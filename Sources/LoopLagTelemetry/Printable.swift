/// Turns bytes that a foreign process wrote into text that is safe to show to a person.
///
/// Called by every decoder of this target for every string. A process chooses its own thread names, arguments and
/// paths, and a terminal obeys escape sequences: what leaves this file has no control character, nothing invisible
/// and nothing that reverses the direction of text.

enum Printable {
    /// `bytes` as text: invalid UTF-8 repaired, a line break or tab as a space, other control characters removed.
    static func text(_ bytes: UnsafeRawBufferPointer) -> String {
        if bytes.allSatisfy({ $0 >= 0x20 && $0 < 0x7f }) { return String(decoding: bytes, as: UTF8.self) }
        return text(String(decoding: bytes, as: UTF8.self))
    }

    static func text(_ string: String) -> String {
        if string.utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7f }) { return string }
        var result = String.UnicodeScalarView()
        for scalar in string.unicodeScalars {
            switch scalar {
            case "\n", "\r", "\t":
                result.append(" ")
            default:
                if isShown(scalar) { result.append(scalar) }
            }
        }
        return String(result)
    }

    /// A fixed field of the layout: up to the first NUL, or all of it.
    static func field(_ bytes: UnsafeRawBufferPointer) -> String {
        let end = bytes.firstIndex(of: 0) ?? bytes.count
        return text(UnsafeRawBufferPointer(rebasing: bytes[..<end]))
    }

    private static func isShown(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        // `format` holds the bidirectional overrides and the zero-width characters.
        case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .unassigned: false
        default: true
        }
    }
}
