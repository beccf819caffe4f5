/// The laws of the house that a machine can hold: who imports whom, how long a file may be, what may not be written.

import Foundation
import Testing

@Suite("House laws")
struct PolicyTests {
    /// What each target may import of the package and of its dependencies, beside what all may.
    static let allowed: [String: Set<String>] = [
        "LoopLagAgent": ["CLoopLag"],
        "LoopLag": ["LoopLagAgent"],
        "LoopLagNIO": ["LoopLag", "NIOCore", "ServiceLifecycle", "Metrics", "Logging"],
        "LoopLagModel": [],
        "LoopLagTelemetry": ["LoopLagModel", "CLoopLagLayout"],
        "LoopLagSymbols": ["LoopLagModel", "CLibunwind", "CLibdw"],
        "LoopLagDiagnosis": ["LoopLagModel"],
        "LoopLagReport": ["LoopLagModel", "LoopLagDiagnosis"],
        // NIO for one client: node's inspector speaks WebSocket.
        "LoopLagAttach": [
            "LoopLagModel", "CLoopLagTrace", "CLoopLagLayout", "NIOCore", "NIOPosix", "NIOHTTP1", "NIOWebSocket",
        ],
        "LoopLagExport": ["LoopLagModel", "LoopLagTelemetry"],
        "LoopLagTop": ["LoopLagModel", "LoopLagDiagnosis", "CNcurses"],
        "LoopLagCLI": [
            "LoopLagModel", "LoopLagTelemetry", "LoopLagSymbols", "LoopLagDiagnosis", "LoopLagReport", "LoopLagAttach",
            "LoopLagExport", "LoopLagTop", "ArgumentParser",
        ],
        "LoopLagStamp": ["PackagePlugin"],
        "LoopLagDemo": ["LoopLag", "Hummingbird", "NIOCore", "NIOPosix"],
        "LoopLagBench": [
            "LoopLagAgent", "CLoopLag", "CLoopLagLayout", "LoopLagModel", "LoopLagTelemetry", "LoopLagSymbols",
            "LoopLagDiagnosis", "LoopLagReport", "LoopLagAttach",
        ],
    ]

    /// The platform, for all but the agent and the model.
    static let platform: Set<String> = ["Foundation", "FoundationEssentials", "Glibc", "Dispatch", "Synchronization"]
    /// These two live in Embedded Swift and in nothing at all.
    static let bare: Set<String> = ["LoopLagAgent", "LoopLagModel"]
    /// The server's own process: Foundation would come with it into every server that links them.
    static let hostSide: Set<String> = ["LoopLagAgent", "LoopLag", "LoopLagNIO"]

    @Test("Each target imports only what its room may", arguments: allowed.keys.sorted())
    func importDirections(target: String) throws {
        var permitted = try #require(Self.allowed[target])
        if !Self.bare.contains(target) { permitted.formUnion(Self.platform) }
        if Self.hostSide.contains(target) { permitted.subtract(["Foundation", "FoundationEssentials", "Dispatch"]) }
        for file in try Repository.files(in: "Sources/\(target)", endings: ["swift"]) {
            let forbidden = file.imports.subtracting(permitted)
            #expect(forbidden.isEmpty, "\(file.path) imports \(forbidden.sorted())")
        }
    }

    @Test("Every target of the package has its rule here, and no other folder lies beside them")
    func everyTargetHasARule() throws {
        let withoutSwift: Set<String> = [
            "CLoopLag", "CLoopLagLayout", "CLoopLagTrace", "CLibunwind", "CLibdw", "CNcurses",
        ]
        // The same sources as LoopLagAgent, through a link.
        let known = Set(Self.allowed.keys).union(withoutSwift).union(["LoopLagPreload"])
        #expect(try Set(Repository.folders(in: "Sources")) == known)
        let package = try Repository.text("Package.swift")
        for target in known { #expect(package.contains("name: \"\(target)\""), "\(target) is not in Package.swift") }
    }

    @Test("The preloaded agent is the linked agent's source, through a symbolic link")
    func oneAgentSource() throws {
        let link = Repository.root.appending(path: "Sources/LoopLagPreload").resolvingSymlinksInPath()
        let agent = Repository.root.appending(path: "Sources/LoopLagAgent").resolvingSymlinksInPath()
        #expect(link.path == agent.path)
    }

    private func everything() throws -> [SourceFile] {
        try ["Sources", "Tests"].flatMap { folder in
            try Repository.folders(in: folder).flatMap { name in
                try Repository.files(
                    in: "\(folder)/\(name)", endings: ["swift", "c", "h", "py", "js", "sh", "json", "map", "txt"])
            }
        }
    }

    @Test("No source file is longer than 550 lines")
    func fileLengths() throws {
        for file in try everything() where ["swift", "c", "h"].contains(where: { file.path.hasSuffix(".\($0)") }) {
            #expect(file.lines.count <= 550, "\(file.path)")
        }
    }

    @Test("Nothing is put off")
    func nothingIsPutOff() throws {
        // Spelt apart, so that this file keeps the law too.
        let marks = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]
        for file in try everything() {
            for (number, line) in file.lines.enumerated() {
                let words = line.split { !$0.isLetter && $0 != "_" && !$0.isNumber }
                #expect(!marks.contains { words.contains(Substring($0)) }, "\(file.path):\(number + 1)")
            }
        }
    }

    @Test("Nothing on the host's side can be made to trap by a word in the source")
    func noTrapsInTheHost() throws {
        let patterns = ["try!", "as!", "fatalError(", "preconditionFailure(", "precondition(", "unowned("]
        for target in ["LoopLagAgent", "LoopLag", "LoopLagNIO"] {
            for file in try Repository.files(in: "Sources/\(target)", endings: ["swift"]) {
                for (number, line) in file.lines.enumerated() {
                    let code = line.prefix(upTo: line.firstRange(of: "//")?.lowerBound ?? line.endIndex)
                    #expect(!patterns.contains { code.contains($0) }, "\(file.path):\(number + 1)")
                }
            }
        }
    }

    @Test("What promises to be Sendable unchecked says why it is safe")
    func uncheckedSendable() throws {
        for file in try everything() where file.path.hasSuffix(".swift") && !file.path.contains("PolicyTests") {
            let lines = file.lines
            for (number, line) in lines.enumerated() where line.contains("@unchecked Sendable") {
                // The reason stands above the type or as its first words.
                let near = lines[max(0, number - 6)...min(lines.count - 1, number + 2)]
                #expect(near.contains { $0.contains("// Safety:") }, "\(file.path):\(number + 1)")
            }
        }
    }

    @Test("No path of one machine is written down")
    func noMachinePaths() throws {
        let pattern = /(?:^|["' =,:])\/(?:work|root|home)\//
        for file in try everything() {
            for (number, line) in file.lines.enumerated() {
                #expect(line.firstMatch(of: pattern) == nil, "\(file.path):\(number + 1)")
            }
        }
    }

    @Test("The top level holds what was agreed and nothing else")
    func topLevel() throws {
        let agreed: Set<String> = ["Package.swift", "Package.resolved", "Sources", "Tests", "dashboards", "README.md"]
        let others = try Repository.folders(in: ".").filter { !$0.hasPrefix(".") && !agreed.contains($0) }
        #expect(others.isEmpty, "\(others)")
        #expect(try Repository.text(".gitignore").contains("Package.resolved"))
    }
}
