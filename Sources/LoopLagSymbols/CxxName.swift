/// Shortens a demangled C++ (or old Rust) name to its qualified name: no return type, no parameters.
///
/// Who calls it: Demangler; pure. `void ns::Pool<int>::run(std::string const&) const` becomes `ns::Pool<int>::run`. By
/// bytes: all that it looks for is ASCII.

enum CxxName {
    static func simplify(_ full: String) -> String {
        let text = Array(full.utf8)
        var output: [UInt8] = []
        output.reserveCapacity(text.count)
        /// Where the qualified name begins in `output`: after the return type.
        var start = 0
        var angle = 0
        var i = 0
        func matches(_ word: StaticString, at index: Int) -> Bool {
            let count = word.utf8CodeUnitCount
            guard index < text.count, text[index] == word.utf8Start[0], index + count <= text.count else {
                return false
            }
            return (1..<count).allSatisfy { text[index + $0] == word.utf8Start[$0] }
        }
        func name() -> String { String(decoding: output[start...], as: UTF8.self) }
        while i < text.count {
            let byte = text[i]
            if matches("operator", at: i), i == 0 || !isInName(text[i - 1]) {
                // The operator's own name up to its parameters; operator() has a pair more.
                var end = i + 8
                if matches("()", at: end) { end += 2 }
                while end < text.count, text[end] != UInt8(ascii: "(") { end += 1 }
                output += text[i..<end]
                i = end
                guard angle > 0 else { break }
                continue
            }
            if matches("(anonymous namespace)", at: i) {
                output += text[i..<i + 21]
                i += 21
                continue
            }
            switch byte {
            case UInt8(ascii: "<"): angle += 1
            case UInt8(ascii: ">") where i > 0 && text[i - 1] != UInt8(ascii: "-"): angle = max(0, angle - 1)
            case UInt8(ascii: "(") where angle == 0:
                guard let close = matching(text, i) else { return name() }
                var after = close + 1
                if matches(" const", at: after) { after += 6 }
                // Something local to a function: f(int)::{lambda(int)#1}; else the parameters end the name.
                guard matches("::", at: after) else { return rust(name()) }
                i = after
                continue
            case UInt8(ascii: "{"):
                guard let close = text[i...].firstIndex(of: UInt8(ascii: "}")) else { return name() }
                output += text[i...close]
                i = close + 1
                continue
            case UInt8(ascii: " ") where angle == 0:
                let name = name()
                // "non-virtual thunk to X", "vtable for X" are part of the name; anything else is a return type.
                if !["non-virtual", "non-virtual thunk", "virtual", "virtual thunk", "vtable", "typeinfo"]
                    .contains(name), !name.hasSuffix(" to"), !name.hasSuffix(" for"), !matches(" to ", at: i),
                    !matches(" for ", at: i), !matches(" name", at: i), !matches(" [clone", at: i)
                {
                    output.append(byte)
                    start = output.count
                    i += 1
                    continue
                }
            default: break
            }
            output.append(byte)
            i += 1
        }
        return rust(name())
    }

    /// Whether a byte can be part of an identifier, as far as it stands before the word `operator`.
    private static func isInName(_ byte: UInt8) -> Bool {
        byte >= 0x80 || byte == UInt8(ascii: "_")
            || (byte | 0x20 >= UInt8(ascii: "a") && byte | 0x20 <= UInt8(ascii: "z"))
    }

    private static func matching(_ text: [UInt8], _ open: Int) -> Int? {
        var depth = 0
        for i in open..<text.count {
            if text[i] == UInt8(ascii: "(") { depth += 1 }
            if text[i] == UInt8(ascii: ")") { depth -= 1 }
            if depth == 0 { return i }
        }
        return nil
    }

    /// Old Rust names end in `::h` and 16 hexadecimal digits, and spell punctuation as `$LT$`.
    private static func rust(_ name: String) -> String {
        guard name.holds("::h"), let range = name.range(ofLast: "::h"), name[range.upperBound...].count == 16,
            name[range.upperBound...].allSatisfy(\.isHexDigit)
        else { return name }
        var result = String(name[..<range.lowerBound])
        for (code, text) in [
            ("$LT$", "<"), ("$GT$", ">"), ("$RF$", "&"), ("$BP$", "*"), ("$LP$", "("), ("$RP$", ")"), ("$C$", ","),
            ("$u20$", " "), ("$u7b$", "{"), ("$u7d$", "}"), ("$u5b$", "["), ("$u5d$", "]"), ("$u27$", "'"),
            ("..", "::"),
        ] { result = result.replacing(code, with: text) }
        return result
    }
}

extension String {
    fileprivate func range(ofLast needle: String) -> Range<String.Index>? {
        ranges(of: needle).last
    }
}
