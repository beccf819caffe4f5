/// Which module a Swift function belongs to, told from its name: in a statically linked server NIO, Foundation and the
/// user's handlers all lie in one executable, and only the name tells them apart.
///
/// Called by the rules for user code. Pure. It refuses to demangle; it reads what a demangler or the symbol table gave.

/// The module of a Swift function, mangled (`$s8NIOPosix...`) or demangled (`closure #1 in App.run() -> ()`); nil where
/// the name does not say.
func swiftModule(ofFunction name: String) -> String? {
    for prefix in ["$s", "$S", "_$s", "_$S"] where name.hasPrefix(prefix) {
        return mangledModule(name.dropFirst(prefix.count))
    }
    return demangledModule(name[...])
}

/// After the mangling prefix a module is its length and its name, or one letter for the standard library.
private func mangledModule(_ rest: Substring) -> String? {
    guard let first = rest.first else { return nil }
    guard first.isASCII, first.isNumber else {
        // s = Swift, S... = a type of the standard library, So = imported from C.
        if first == "S" { return rest.hasPrefix("So") ? "__C" : "Swift" }
        return first == "s" ? "Swift" : nil
    }
    let digits = rest.prefix { $0.isASCII && $0.isNumber }
    guard let length = Int(digits), length > 0, length < 256 else { return nil }
    let identifier = rest.dropFirst(digits.count).prefix(length)
    return identifier.count == length ? String(identifier) : nil
}

private func demangledModule(_ name: Substring) -> String? {
    var rest = name
    if let conformance = name.firstRange(of: " in conformance ") {
        // "protocol witness for Swift.Sequence.next() in conformance App.Rows : Swift.Sequence in App": the type that
        // conforms is whose code it is.
        rest = rest[conformance.upperBound...]
    } else {
        // "closure #1 (Swift.Int) -> () in closure #2 () -> () in App.run() -> ()": the outermost context comes last.
        rest = afterLast(" in ", rest)
        // "partial apply forwarder for ...", "(1) await resume partial function for ...", "default argument 0 of ...".
        rest = afterLast(" for ", rest)
        rest = afterLast(" of ", rest)
    }
    // "specialized static App.Main.run() -> ()": words before the path are the demangler's.
    while !rest.isEmpty {
        if rest.hasPrefix("(extension in ") {
            let module = rest.dropFirst("(extension in ".count).prefix { $0 != ")" }
            return module.isEmpty ? nil : String(module)
        }
        let word = rest.prefix { $0.isLetter || $0.isNumber || $0 == "_" || $0 == "@" }
        let next = rest.dropFirst(word.count)
        if next.first == ".", !word.isEmpty { return String(word) }
        guard next.first == " " else { return nil }
        rest = next.dropFirst()
    }
    return nil
}

/// What follows the last `separator` that stands outside all parentheses; the whole text where there is none.
private func afterLast(_ separator: String, _ text: Substring) -> Substring {
    var depth = 0
    var start = text.startIndex
    var i = text.startIndex
    while i < text.endIndex {
        switch text[i] {
        case "(", "[", "{": depth += 1
        case ")", "]", "}": depth -= 1
        case " " where depth == 0 && text[i...].hasPrefix(separator):
            start = text.index(i, offsetBy: separator.count)
        default: break
        }
        i = text.index(after: i)
    }
    return text[start...]
}
