/// Shortens the runtime's full demangling of a Swift symbol to what a person wrote.
///
/// Who calls it: Demangler; pure. `static App.Menu.price(of: Swift.String, _: Swift.Int) async throws -> Swift.Double`
/// becomes `static App.Menu.price(of:_:)`. The entity's own Swift module stays in front, because in a statically
/// linked server it alone tells the user's code from a framework's. Generic arguments, types, effects, private
/// discriminators and the compiler's notes on specialization go: all copies of a function are one function.

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
            ] where text.hasPrefix(note) {
                guard let rest = afterBracket(text.dropFirst(note.count)), rest.hasPrefix(" of ") else {
                    break peeling
                }
                text = rest.dropFirst(4)
                continue peeling
            }
            for note in ["merged ", "distributed thunk ", "@objc ", "@nonobjc ", "async function pointer to "]
            where text.hasPrefix(note) {
                text = text.dropFirst(note.count)
                continue peeling
            }
            // "(1) await resume partial function for X" is a later part of X.
            if text.hasPrefix("("), let close = text.firstIndex(of: ")"),
                !text[text.index(after: text.startIndex)..<close].isEmpty,
                text[text.index(after: text.startIndex)..<close].allSatisfy(\.isNumber)
            {
                let rest = text[text.index(after: close)...]
                for note in [" await resume partial function for ", " suspend resume partial function for "]
                where rest.hasPrefix(note) {
                    text = rest.dropFirst(note.count)
                    continue peeling
                }
            }
            for (note, kept) in [
                ("partial apply forwarder for ", "partial apply for "), ("partial apply for ", "partial apply for "),
                ("dispatch thunk of ", ""), ("method descriptor for ", "method descriptor for "),
                ("protocol witness for ", "protocol witness for "), ("default argument ", "default argument "),
            ] where text.hasPrefix(note) {
                text = text.dropFirst(note.count)
                prefix += kept
                continue peeling
            }
            break
        }
        if text.hasPrefix("reabstraction thunk helper ") { return prefix + "reabstraction thunk" }
        if text.contains("thunk for @") { return prefix + "reabstraction thunk" }
        for note in [
            "outlined ", "type metadata ", "lazy protocol witness table ", "protocol witness table ", "nominal type ",
            "metadata ", "associated type ", "value witness ", "reflection metadata ", "protocol conformance ",
            "demangling cache ", "generic type metadata ", "base witness table ", "protocol descriptor ",
            "lazy cache variable for type metadata ",
        ] where text.hasPrefix(note) {
            return prefix + String(text).replacing("Swift.", with: "")
        }
        for note in ["variable initialization expression of ", "property wrapper backing initializer of "]
        where text.hasPrefix(note) {
            return prefix + note + entity(text.dropFirst(note.count))
        }
        if prefix == "protocol witness for ", let range = text.firstRange(of: " in conformance ") {
            let conforming = text[range.upperBound...].firstRange(of: " : ").map {
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
        guard let hash = text.firstRange(of: " #") else { return entity(text) }
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
        while let word = ["static ", "class "].first(where: { text.hasPrefix($0) }) {
            output += word
            text = text.dropFirst(word.count)
        }
        if text.hasPrefix("(extension in "), let close = text.firstRange(of: "):") {
            let module = text[..<close.lowerBound].dropFirst("(extension in ".count)
            text = text[close.upperBound...]
            // The extending module in the place of the extended type's.
            output += module
            text = text.firstIndex(of: ".").map { text[$0...] } ?? text
        }
        var i = text.startIndex
        var previous: Character = " "
        while i < text.endIndex {
            let character = text[i]
            let rest = text[i...]
            if previous == ".", isOperator(character) {
                // An operator: everything up to the note " infix", " prefix" or " postfix".
                let end = rest.firstIndex(of: " ") ?? rest.endIndex
                output += rest[..<end]
                i = end
                for note in [" infix", " prefix", " postfix"] where text[i...].hasPrefix(note) {
                    i = text.index(i, offsetBy: note.count)
                    break
                }
                previous = "o"
                continue
            }
            if character == "<" {
                guard let close = matching(rest) else { break }
                i = text.index(after: close)
                previous = ">"
                continue
            }
            if character == "(" {
                guard let close = matching(rest) else { break }
                let inner = text[text.index(after: i)..<close]
                if previous == "." || previous == " ", let range = inner.firstRange(of: " in _") {
                    // A private declaration: (name in _DISCRIMINATOR).
                    output += inner[..<range.lowerBound]
                    i = text.index(after: close)
                    previous = ")"
                    continue
                }
                output += arguments(inner)
                let after = text[text.index(after: close)...]
                // A nested context goes on after its arguments: f(x: A) -> B.Local is not written, f(x:).Local is.
                guard after.first == "." else { break }
                i = text.index(after: close)
                previous = ")"
                continue
            }
            if rest.hasPrefix(" : ") || rest.hasPrefix(" -> ") || rest.hasPrefix(" async ")
                || rest.hasPrefix(" throws ")
            {
                break
            }
            output.append(character)
            previous = character
            i = text.index(after: i)
        }
        // Imported from C: the module is the importer's invention.
        if output.hasPrefix("__C.") { output = String(output.dropFirst(4)) }
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
            let colon = argument.firstRange(of: ": ")
            let label = colon.map { argument[..<$0.lowerBound] } ?? "_"
            labels += (label.allSatisfy { $0.isLetter || $0.isNumber || $0 == "_" } ? label : "_") + ":"
            count += 1
            guard let comma else { break }
            rest = rest[comma.upperBound...]
        }
        return labels + ")"
    }

    private static func isOperator(_ character: Character) -> Bool {
        "/=-+!*%<>&|^~?".contains(character)
    }

    /// The first `needle` outside of all brackets.
    private static func topLevel(_ needle: String, _ text: Substring) -> Range<Substring.Index>? {
        var depth = 0
        var previous: Character = " "
        var i = text.startIndex
        while i < text.endIndex {
            let character = text[i]
            if depth == 0, character == needle.first, text[i...].hasPrefix(needle) {
                return i..<text.index(i, offsetBy: needle.count)
            }
            switch character {
            case "(", "[", "{": depth += 1
            case "<" where previous != ".": depth += 1
            case ")", "]", "}": depth -= 1
            case ">" where previous != "-" && previous != "." && depth > 0: depth -= 1
            default: break
            }
            previous = character
            i = text.index(after: i)
        }
        return nil
    }

    /// The bracket that closes the one at the start of `text`.
    private static func matching(_ text: Substring) -> Substring.Index? {
        var depth = 0
        var previous: Character = " "
        for i in text.indices {
            switch text[i] {
            case "(", "[", "{", "<": depth += 1
            case ")", "]", "}": depth -= 1
            case ">" where previous != "-": depth -= 1
            default: break
            }
            if depth == 0 { return i }
            previous = text[i]
        }
        return nil
    }

    /// What follows the `>` that closes a bracket opened just before `text`.
    private static func afterBracket(_ text: Substring) -> Substring? {
        var depth = 1
        var previous: Character = " "
        for i in text.indices {
            switch text[i] {
            case "<": depth += 1
            case ">" where previous != "-": depth -= 1
            default: break
            }
            if depth == 0 { return text[text.index(after: i)...] }
            previous = text[i]
        }
        return nil
    }
}
