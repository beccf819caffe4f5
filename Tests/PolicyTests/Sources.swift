/// The package's own files, as the policy tests read them.

import Foundation

struct SourceFile {
    /// Relative to the repository.
    var path: String
    var text: String

    var lines: [Substring] { text.split(separator: "\n", omittingEmptySubsequences: false) }

    /// Those outside texts of several lines, which may hold a program in another language.
    private var ownLines: [Substring] {
        var isText = false
        return lines.filter { line in
            let wasText = isText
            if !line.split(separator: "\"\"\"", omittingEmptySubsequences: false).count.isMultiple(of: 2) {
                return !wasText
            }
            isText.toggle()
            return !wasText
        }
    }

    /// The modules that a Swift file imports.
    var imports: Set<String> {
        Set(
            ownLines.compactMap { line in
                var words = line.split(separator: " ")[...]
                // Attributes and access levels may stand before.
                while let word = words.first, word.hasPrefix("@") || Self.accessLevels.contains(word) {
                    words.removeFirst()
                }
                guard words.popFirst() == "import", var module = words.popFirst() else { return nil }
                // `import struct Foundation.Data`
                if Self.kinds.contains(module) { module = words.popFirst() ?? module }
                return module.split(separator: ".").first.map(String.init)
            })
    }

    private static let accessLevels: Set<Substring> = ["public", "package", "internal", "fileprivate", "private"]
    private static let kinds: Set<Substring> = [
        "struct", "class", "enum", "protocol", "func", "var", "let", "typealias",
    ]
}

enum Repository {
    static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static func text(_ path: String) throws -> String {
        try String(contentsOf: root.appending(path: path), encoding: .utf8)
    }

    /// Regular files below a folder by the ends of their names; what a symbolic link shows a second time is left out.
    static func files(in folder: String, endings: Set<String>) throws -> [SourceFile] {
        // A package may itself be looked at through links: only those inside the folder are passed over.
        let base = root.appending(path: folder).resolvingSymlinksInPath()
        let keys: Set<URLResourceKey> = [.isRegularFileKey, .isSymbolicLinkKey]
        guard let walk = FileManager.default.enumerator(at: base, includingPropertiesForKeys: Array(keys))
        else { return [] }
        return try walk.compactMap { $0 as? URL }.filter { url in
            let values = try url.resourceValues(forKeys: keys)
            return values.isRegularFile == true && values.isSymbolicLink != true && endings.contains(url.pathExtension)
        }.map { url in
            let relative = folder + url.path.dropFirst(base.path.count)
            return SourceFile(path: relative, text: try String(contentsOf: url, encoding: .utf8))
        }.sorted { $0.path < $1.path }
    }

    static func folders(in folder: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: root.appending(path: folder).path).sorted()
    }
}
