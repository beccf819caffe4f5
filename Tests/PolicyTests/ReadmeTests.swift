/// What the README says, held against the sources: its commands, its messages, its pictures and its paths. That the
/// commands run is tested end to end.

import Foundation
import Testing

@Suite("README")
struct ReadmeTests {
    /// Every call of `looplag` in the README's code, fenced or in backticks: the words after its name.
    private func commands() throws -> [[Substring]] {
        var isFenced = false
        var pieces: [Substring] = []
        for line in try Repository.text("README.md").split(separator: "\n") {
            if line.hasPrefix("```") {
                isFenced.toggle()
            } else if isFenced {
                pieces += line.split(separator: "&&")
            } else {
                pieces += line.matches(of: /`([^`]+)`/).map { $0.1 }
            }
        }
        return pieces.compactMap { piece in
            let words = piece.split(separator: " ").drop { $0 == "$" || $0.contains("=") }
            guard let first = words.first, first == "looplag" || first.hasSuffix("/looplag"), words.count > 1
            else { return nil }
            return Array(words.dropFirst())
        }
    }

    @Test("Every command in the README is a verb that exists, with options that exist")
    func commandsExist() throws {
        let sources = try Repository.files(in: "Sources/LoopLagCLI", endings: ["swift"])
        let text = sources.map(\.text).joined()
        let verbs = Set(text.matches(of: /commandName: "([a-z]+)"/).map { $0.1 }).union(["help"])
        let options = optionNames(text)
        let commands = try commands()
        #expect(!commands.isEmpty)
        for command in commands {
            let verb = try #require(command.first)
            #expect(verb.hasPrefix("-") || verbs.contains(verb), "looplag \(verb)")
            // What follows `--` belongs to somebody else.
            for word in command.prefix(while: { $0 != "--" && $0 != "|" && $0 != "#" }) where word.hasPrefix("--") {
                let name = word.dropFirst(2).prefix { $0 != "=" }
                #expect(options.contains(String(name)), "looplag \(verb) \(word)")
            }
        }
    }

    /// Long options as ArgumentParser derives or is told them.
    private func optionNames(_ text: String) -> Set<String> {
        // ArgumentParser brings these.
        var names: Set<String> = ["help", "version", "generate-completion-script"]
        for match in text.matches(of: /\.customLong\("([a-z-]+)"/) { names.insert(String(match.1)) }
        for match in text.matches(of: /@(?:Option|Flag)(?:\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))?\s+var (\w+)/) {
            names.insert(match.1.map { $0.isUppercase ? "-\($0.lowercased())" : "\($0)" }.joined())
        }
        return names
    }

    @Test("The README's build and test commands are the ones that CI runs")
    func buildCommands() throws {
        let readme = try Repository.text("README.md")
        let script = try Repository.text(".ci/run")
        #expect(readme.contains("Tests/setup.sh && swift test"))
        #expect(script.contains("Tests/setup.sh && "))
        #expect(script.contains("swift test"))
    }

    @Test("The first command installs the packages, builds everything and ends in the demo, in one line")
    func firstCommand() throws {
        let readme = try Repository.text("README.md")
        let first = try #require(readme.split(separator: "\n").first { $0.contains("apt-get install") })
        let package = try Repository.text("Package.swift")
        let packages = package.matches(of: /\.apt\(\["([a-z0-9-]+)"\]\)/).map { String($0.1) }
        #expect(packages.count == 3)
        for name in packages { #expect(first.contains(" \(name)"), "\(name)") }
        // `swift run` would build the command alone, without the agent object.
        #expect(first.hasSuffix("&& swift build && .build/debug/looplag demo"))
        #expect(!readme.contains("`swift run looplag"))
    }

    /// Rows of the table under a heading: the cells of each.
    private func table(under heading: String) throws -> [[String]] {
        let readme = try Repository.text("README.md")
        let section = try #require(readme.components(separatedBy: "\n\(heading)\n").dropFirst().first)
        let lines = section.components(separatedBy: "\n## ")[0].split(separator: "\n").filter { $0.hasPrefix("|") }
        return lines.dropFirst(2).map { line in
            line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
        }
    }

    @Test("Every message in the troubleshooting table is one that the sources can say")
    func messages() throws {
        let sources = try Repository.files(in: "Sources", endings: ["swift", "h"]).map(\.text).joined()
        // What stands for something else in each case.
        let examples = ["4242", "looplag-demo", "(redis-server)", "dumb", "permission denied", "telemetry of"]
        let rows = try table(under: "## Troubleshooting")
        #expect(rows.count >= 10)
        for row in rows {
            for key in row[0].matches(of: /`([^`]+)`/).map({ String($0.1) }) where !key.hasPrefix("/dev/shm") {
                if let header = key.firstMatch(of: /^'(.+)' file not found$/) {
                    #expect(sources.contains("#include <\(header.1)>"), "\(key)")
                    continue
                }
                var pieces = [key]
                for example in examples { pieces = pieces.flatMap { $0.components(separatedBy: example) } }
                for piece in pieces.map({ $0.trimmingCharacters(in: .whitespaces) }) where piece.count > 3 {
                    #expect(sources.contains(piece) || sources.contains(piece.dropLast(4)), "\(key): \(piece)")
                }
            }
        }
    }

    @Test("Every file that the README names is there")
    func files() throws {
        let readme = try Repository.text("README.md")
        let paths =
            readme.matches(of: /`((?:Sources|Tests|\.ci)\/[\w\/.-]+)`/).map { String($0.1) }
            + readme.matches(of: /\]\((Tests\/[^)]+)\)/).map { String($0.1) }
        #expect(paths.count >= 8)
        for path in paths {
            #expect(FileManager.default.fileExists(atPath: Repository.root.appending(path: path).path), "\(path)")
        }
    }

    @Test("Every target of the package stands in the tour of the house")
    func tour() throws {
        let readme = try Repository.text("README.md")
        let tour = try #require(readme.components(separatedBy: "\n## A tour of the house\n").dropFirst().first)
        for target in PolicyTests.allowed.keys { #expect(tour.contains("`\(target)`"), "\(target)") }
    }
}
