/// Shortens the runtime's full demangling of a Swift symbol to what a person wrote.
///
/// Who calls it: Demangler; pure. `static App.Menu.price(of: Swift.String, _: Swift.Int) async throws -> Swift.Double`
/// becomes `static App.Menu.price(of:_:)`. The entity's own Swift module stays in front, because in a statically
/// linked server it alone tells the user's code from a framework's. Generic arguments, types, effects, private
/// discriminators and the compiler's notes on specialization go: all copies of a function are one function. It goes by
/// bytes, since all that it looks for is ASCII: by characters a long generic name took a millisecond and more.

enum SwiftName {
    static func simplify(_ full: String) -> String {
        var text = Substring(full)
        var prefix = ""
        // Peel what stands before the entity; every round removes at least one character.
        peeling: while true {
            for note in [
                "generic specialization <", "generic not re-abstracted specialization <",
                "generic partial specialization <", "generic pre-specialization <", "inlined generic function <",
                "function signature specialization <", "prespecialized generic specialization <",
            ] where text.begins(with: note) {
                guard let rest = afterBracket(text.dropFirst(note.count)), rest.begins(with: " of ") else {
                    break peeling
                }
                text = rest.dropFirst(4)
                continue peeling
            }
            for note in ["merged ", "distributed thunk ", "@objc ", "@nonobjc ", "async function pointer to "]
            where text.begins(with: note) {
                text = text.dropFirst(note.count)
                continue peeling
            }
            // "(1) await resume partial function for X" is a later part of X.
            if text.utf8.first == UInt8(ascii: "("), let close = text.firstIndex(of: ")"),
                !text[text.index(after: text.startIndex)..<close].isEmpty,
                text[text.index(after: text.startIndex)..<close].allSatisfy(\.isNumber)
            {
                let rest = text[text.index(after: close)...]
                for note in [" await resume partial function for ", " suspend resume partial function for "]
                where rest.begins(with: note) {
                    text = rest.dropFirst(note.count)
                    continue peeling
                }
            }
            for (note, kept) in [
                ("partial apply forwarder for ", "partial apply for "), ("partial apply for ", "partial apply for "),
                ("dispatch thunk of ", ""), ("method descriptor for ", "method descriptor for "),
                ("protocol witness for ", "protocol witness for "), ("default argument ", "default argument "),
            ] where text.begins(with: note) {
                text = text.dropFirst(note.count)
                prefix += kept
                continue peeling
            }
            break
        }
        if text.begins(with: "reabstraction thunk helper ") { return prefix + "reabstraction thunk" }
        if text.place(of: "thunk for @") != nil { return prefix + "reabstraction thunk" }
        for note in [
            "outlined ", "type metadata ", "lazy protocol witness table ", "protocol witness table ", "nominal type ",
            "metadata ", "associated type ", "value witness ", "reflection metadata ", "protocol conformance ",
            "demangling cache ", "generic type metadata ", "base witness table ", "protocol descriptor ",
            "lazy cache variable for type metadata ",
        ] where text.begins(with: note) {
            return prefix + String(text).replacing("Swift.", with: "")
        }
        for note in ["variable initialization expression of ", "property wrapper backing initializer of "]
        where text.begins(with: note) {
            return prefix + note + entity(text.dropFirst(note.count))
        }
        if prefix == "protocol witness for ", let range = text.place(of: " in conformance ") {
            let conforming = text[range.upperBound...].place(of: " : ").map {
                text[range.upperBound..<$0.lowerBound]
            }
            return prefix + chain(text[..<range.lowerBound]) + (conforming.map { " in " + entity($0) } ?? "")
        }
        return prefix + chain(text)
    }

    /// `closure #1 (A) -> B in inner #2 () -> () in App.outer()`: simplified from part to part.
    private static func chain(_ text: Substring) -> String {
        var parts: [String] = []
        var rest = text
        while let range = topLevel(" in ", rest), parts.count < 32 {
            parts.append(local(rest[..<range.lowerBound]))
            rest = rest[range.upperBound...]
        }
        parts.append(entity(rest))
        return parts.joined(separator: " in ")
    }

    /// `closure #1 @Sendable (A) async -> B` or `inner #2 (x: A) -> B`.
    private static func local(_ text: Substring) -> String {
        guard let hash = text.place(of: " #") else { return entity(text) }
        let end = text[hash.upperBound...].firstIndex { !$0.isNumber } ?? text.endIndex
        let name = text[..<hash.lowerBound]
        let head = text[..<end]
        if name.hasPrefix("$") || name == "closure" || name == "implicit closure" || name.hasSuffix(" closure") {
            return String(head)
        }
        // A local function keeps its labels: "inner #2 (x: A)" is inner(x:) #2.
        let rest = text[end...]
        guard let open = rest.firstIndex(of: "("), let close = matching(rest[open...]) else { return String(head) }
        return name + arguments(rest[rest.index(after: open)..<close]) + text[hash.lowerBound..<end]
    }

    /// `static (extension in M):Swift.Array<A>.foo(x: A) -> B`.
    private static func entity(_ text: Substring) -> String {
        var output = ""
        var text = text
        while let word = ["static ", "class "].first(where: { text.begins(with: $0) }) {
            output += word
            text = text.dropFirst(word.count)
        }
        if text.begins(with: "(extension in "), let close = text.place(of: "):") {
            let module = text[..<close.lowerBound].dropFirst("(extension in ".count)
            text = text[close.upperBound...]
            // The extending module in the place of the extended type's.
            output += module
            text = text.firstIndex(of: ".").map { text[$0...] } ?? text
        }
        let bytes = text.utf8
        var i = bytes.startIndex
        /// What lies between here and `i` is part of the name as it stands.
        var kept = i
        var previous = UInt8(ascii: " ")
        scanning: while i < bytes.endIndex {
            let byte = bytes[i]
            switch byte {
            case _ where previous == UInt8(ascii: ".") && isOperator(byte):
                // An operator: everything up to the note " infix", " prefix" or " postfix".
                i = bytes[i...].firstIndex(of: UInt8(ascii: " ")) ?? bytes.endIndex
                output += text[kept..<i]
                for note in [" infix", " prefix", " postfix"] where text[i...].begins(with: note) {
                    i = bytes.index(i, offsetBy: note.utf8.count)
                    break
                }
                kept = i
                previous = UInt8(ascii: "o")
                continue scanning
            case UInt8(ascii: "<"):
                guard let close = matching(text[i...]) else { break scanning }
                output += text[kept..<i]
                i = bytes.index(after: close)
                kept = i
                previous = UInt8(ascii: ">")
                continue scanning
            case UInt8(ascii: "("):
                guard let close = matching(text[i...]) else { break scanning }
                output += text[kept..<i]
                kept = i
                let inner = text[bytes.index(after: i)..<close]
                if previous == UInt8(ascii: ".") || previous == UInt8(ascii: " "),
                    let range = inner.place(of: " in _")
                {
                    // A private declaration: (name in _DISCRIMINATOR).
                    output += inner[..<range.lowerBound]
                } else {
                    output += arguments(inner)
                    // A nested context goes on after its arguments: f(x: A) -> B.Local is not written, f(x:).Local is.
                    guard bytes[bytes.index(after: close)...].first == UInt8(ascii: ".") else { break scanning }
                }
                i = bytes.index(after: close)
                kept = i
                previous = UInt8(ascii: ")")
                continue scanning
            case UInt8(ascii: " "):
                let rest = text[i...]
                if [" : ", " -> ", " async ", " throws "].contains(where: { rest.begins(with: $0) }) { break scanning }
            default: break
            }
            previous = byte
            i = bytes.index(after: i)
        }
        output += text[kept..<i]
        // Imported from C: the module is the importer's invention.
        if output.hasPrefix("__C.") { output = String(output.dropFirst(4)) }
        guard output.holds("__") else { return output }
        return output.replacing("__allocating_init", with: "init").replacing("__deallocating_deinit", with: "deinit")
    }

    /// `x: Swift.Int, Swift.String` becomes `(x:_:)`.
    private static func arguments(_ text: Substring) -> String {
        if text.allSatisfy(\.isWhitespace) { return "()" }
        var labels = "("
        var rest = text
        var count = 0
        while count < 64 {
            let comma = topLevel(", ", rest)
            let argument = comma.map { rest[..<$0.lowerBound] } ?? rest
            let colon = argument.place(of: ": ")
            let label = colon.map { argument[..<$0.lowerBound] } ?? "_"
            labels += (label.allSatisfy { $0.isLetter || $0.isNumber || $0 == "_" } ? label : "_") + ":"
            count += 1
            guard let comma else { break }
            rest = rest[comma.upperBound...]
        }
        return labels + ")"
    }

    private static func isOperator(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "/"), UInt8(ascii: "="), UInt8(ascii: "-"), UInt8(ascii: "+"), UInt8(ascii: "!"),
            UInt8(ascii: "*"), UInt8(ascii: "%"), UInt8(ascii: "<"), UInt8(ascii: ">"), UInt8(ascii: "&"),
            UInt8(ascii: "|"), UInt8(ascii: "^"), UInt8(ascii: "~"), UInt8(ascii: "?"):
            true
        default: false
        }
    }

    /// The first `needle` outside of all brackets.
    private static func topLevel(_ needle: String, _ text: Substring) -> Range<Substring.Index>? {
        let bytes = text.utf8
        let first = needle.utf8.first
        var depth = 0
        var previous = UInt8(ascii: " ")
        var i = bytes.startIndex
        while i < bytes.endIndex {
            let byte = bytes[i]
            if depth == 0, byte == first, text[i...].begins(with: needle) {
                return i..<bytes.index(i, offsetBy: needle.utf8.count)
            }
            switch byte {
            case UInt8(ascii: "("), UInt8(ascii: "["), UInt8(ascii: "{"): depth += 1
            case UInt8(ascii: "<") where previous != UInt8(ascii: "."): depth += 1
            case UInt8(ascii: ")"), UInt8(ascii: "]"), UInt8(ascii: "}"): depth -= 1
            case UInt8(ascii: ">") where previous != UInt8(ascii: "-") && previous != UInt8(ascii: ".") && depth > 0:
                depth -= 1
            default: break
            }
            previous = byte
            i = bytes.index(after: i)
        }
        return nil
    }

    /// The bracket that closes the one at the start of `text`.
    private static func matching(_ text: Substring) -> Substring.Index? {
        var depth = 0
        var previous = UInt8(ascii: " ")
        for i in text.utf8.indices {
            let byte = text.utf8[i]
            switch byte {
            case UInt8(ascii: "("), UInt8(ascii: "["), UInt8(ascii: "{"), UInt8(ascii: "<"): depth += 1
            case UInt8(ascii: ")"), UInt8(ascii: "]"), UInt8(ascii: "}"): depth -= 1
            case UInt8(ascii: ">") where previous != UInt8(ascii: "-"): depth -= 1
            default: break
            }
            if depth == 0 { return i }
            previous = byte
        }
        return nil
    }

    /// What follows the `>` that closes a bracket opened just before `text`.
    private static func afterBracket(_ text: Substring) -> Substring? {
        var depth = 1
        var previous = UInt8(ascii: " ")
        for i in text.utf8.indices {
            let byte = text.utf8[i]
            switch byte {
            case UInt8(ascii: "<"): depth += 1
            case UInt8(ascii: ">") where previous != UInt8(ascii: "-"): depth -= 1
            default: break
            }
            if depth == 0 { return text[text.utf8.index(after: i)...] }
            previous = byte
        }
        return nil
    }
}

extension Substring {
    /// `hasPrefix` of a part of a text goes character by character.
    fileprivate func begins(with part: String) -> Bool { utf8.starts(with: part.utf8) }

    /// Where an ASCII text occurs first.
    fileprivate func place(of part: String) -> Range<Index>? {
        guard let first = part.utf8.first else { return nil }
        var i = utf8.startIndex
        while let hit = utf8[i...].firstIndex(of: first) {
            if utf8[hit...].starts(with: part.utf8) { return hit..<utf8.index(hit, offsetBy: part.utf8.count) }
            i = utf8.index(after: hit)
        }
        return nil
    }
}
