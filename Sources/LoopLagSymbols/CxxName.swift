/// Shortens a demangled C++ (or old Rust) name to its qualified name: no return type, no parameters.
///
/// Who calls it: Demangler; pure. `void ns::Pool<int>::run(std::string const&) const` becomes `ns::Pool<int>::run`.

enum CxxName {
    static func simplify(_ full: String) -> String {
        let text = Array(full)
        var output: [Character] = []
        /// Where the qualified name begins in `output`: after the return type.
        var start = 0
        var angle = 0
        var i = 0
        func matches(_ word: String, at index: Int) -> Bool {
            let word = Array(word)
            return index + word.count <= text.count && text[index..<(index + word.count)].elementsEqual(word)
        }
        while i < text.count {
            let character = text[i]
            if matches("operator", at: i), i == 0 || !(text[i - 1].isLetter || text[i - 1] == "_") {
                // The operator's own name up to its parameters; operator() has a pair more.
                var end = i + 8
                if matches("()", at: end) { end += 2 }
                while end < text.count, text[end] != "(" { end += 1 }
                output += text[i..<end]
                i = end
                guard angle > 0 else { break }
                continue
            }
            if matches("(anonymous namespace)", at: i) {
                output += Array("(anonymous namespace)")
                i += 21
                continue
            }
            switch character {
            case "<": angle += 1
            case ">" where i > 0 && text[i - 1] != "-": angle = max(0, angle - 1)
            case "(" where angle == 0:
                guard let close = matching(text, i) else { return String(output[start...]) }
                var after = close + 1
                if matches(" const", at: after) { after += 6 }
                // Something local to a function: f(int)::{lambda(int)#1}; else the parameters end the name.
                guard matches("::", at: after) else { return rust(String(output[start...])) }
                i = after
                continue
            case "{":
                guard let close = text[i...].firstIndex(of: "}") else { return String(output[start...]) }
                output += text[i...close]
                i = close + 1
                continue
            case " " where angle == 0:
                let name = String(output[start...])
                // "non-virtual thunk to X", "vtable for X" are part of the name; anything else is a return type.
                if !["non-virtual", "non-virtual thunk", "virtual", "virtual thunk", "vtable", "typeinfo"]
                    .contains(name), !name.hasSuffix(" to"), !name.hasSuffix(" for"), !matches(" to ", at: i),
                    !matches(" for ", at: i), !matches(" name", at: i), !matches(" [clone", at: i)
                {
                    output.append(character)
                    start = output.count
                    i += 1
                    continue
                }
            default: break
            }
            output.append(character)
            i += 1
        }
        return rust(String(output[start...]))
    }

    private static func matching(_ text: [Character], _ open: Int) -> Int? {
        var depth = 0
        for i in open..<text.count {
            if text[i] == "(" { depth += 1 }
            if text[i] == ")" { depth -= 1 }
            if depth == 0 { return i }
        }
        return nil
    }

    /// Old Rust names end in `::h` and 16 hexadecimal digits, and spell punctuation as `$LT$`.
    private static func rust(_ name: String) -> String {
        guard let range = name.range(ofLast: "::h"), name[range.upperBound...].count == 16,
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
