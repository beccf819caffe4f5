/// The self-check of V8's layout, on a node whose exported constants are not true: what a version looks like that this
/// code was not written for.

import Foundation
import LoopLagModel
import Testing

/// The distribution's node with a copy of its libnode, in which some constants have been changed.
private struct LyingNode {
    var program: String
    var environment: [String: String]
    private let folder: TemporaryFolder

    init(_ changes: String...) throws {
        folder = try TemporaryFolder()
        let root = URL(filePath: try Tools.installed("NODE_DEBIAN")).deletingLastPathComponent().appending(path: "usr")
        let files = FileManager.default.enumerator(at: root, includingPropertiesForKeys: nil)
        let library = try #require(
            files?.lazy.compactMap { $0 as? URL }.first { $0.lastPathComponent.hasPrefix("libnode.so.") })
        let copy = folder.path + "/" + library.lastPathComponent
        let maker = try Child(
            [Tools.installed("PYTHON"), Tools.host("lying_exports.py"), library.path, copy] + changes)
        defer { maker.end() }
        guard try maker.exitStatus(within: .seconds(30)) == .exited(0) else {
            throw SpawnFailed(description: maker.errors.text)
        }
        program = root.appending(path: "bin/node").path
        environment = ["LD_LIBRARY_PATH": folder.path + ":" + library.deletingLastPathComponent().path]
    }

    func file(_ name: String) -> String { folder.path + "/" + name }
}

extension EndToEnd {
    @Suite("A V8 that is not what it says")
    struct NodeLayoutTests {
        @Test(
            "Constants that lie are found out before a frame is shown: native stacks, and a line that says so",
            arguments: [
                // Both are texts: only V8's own trace tells that the one is not a name.
                "v8dbg_class_Script__name__Object=v8dbg_class_Script__source__Object",
                "v8dbg_class_SeqOneByteString__chars__char=24",
            ])
        func lyingExports(change: String) throws {
            let node = try LyingNode(change)
            let file = node.file("report.json")
            let result = try LoopLagTool.run(
                [
                    "run", "-o", file, "--", node.program, "--expose-gc", Tools.host("blocks.js"),
                    "--only=parseText,busyLoop,readPipe",
                ], environment: node.environment.merging(["NODE_PATH": "/usr/share/nodejs"]) { $1 },
                within: .seconds(90))
            #expect(result.status == .exited(0), "\(result.errors.suffix(1000))")
            let report = try ReportFile.read(URL(filePath: file))
            let process = try #require(report.processes.first { $0.runtime?.name == .node })
            #expect(process.agent.degraded.contains("no-javascript"))
            #expect(!report.frames.contains { $0.kind == .javascript })
            #expect(process.stalls.allSatisfy { $0.request == nil })
            // The native half is what it was.
            let functions = Set(report.frames.filter { $0.kind == .native }.map(\.function))
            #expect(functions.contains { $0.contains("JsonParse") }, "\(functions)")
            #expect(process.stalls.count >= 6)
        }

        @Test("The doctor says what a lying V8 costs, and the server goes on")
        func doctor() throws {
            let node = try LyingNode("v8dbg_off_fp_function=-32")
            let server = try Child(
                [node.program, Tools.host("server.js")], environment: Agent.preload(node.environment))
            defer { server.end() }
            let port = try #require(Int(try server.wait(forOutput: #"listening on http=(\d+)"#)))
            let connection = try Connection(.port(port))
            _ = try eventually("the self-check") { () -> Bool? in
                #expect(try connection.getKeptAlive("/ok").hasPrefix("done"))
                return try LoopLagTool.run(["doctor", "\(server.pid)"]).output.contains("native stacks only")
                    ? true : nil
            }
            #expect(try connection.getKeptAlive("/ok").hasPrefix("done"))
        }
    }
}
