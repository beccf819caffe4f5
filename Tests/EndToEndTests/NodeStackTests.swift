/// JavaScript stacks on every node that is supported: one process a version blocks in every way there is, in an Express
/// route and in a worker thread. The truth is the fixture's own text: the line that blocks says so.

import Foundation
import LoopLagModel
import Testing

/// `blocks.js`, run to its end under `looplag run -o`, and what its report says.
struct BlocksRun {
    /// The functions that block; `tick` is what the way `tickAgain` blocks in.
    static let cases = [
        "busyLoop", "parseText", "hashPassword", "matchPattern", "readPipe", "runCommand", "waitAtomics",
        "collectGarbage", "tick",
    ]

    var report: Report
    var process: ReportProcess
    /// The line that carries `BLOCKS name`.
    var lines: [String: Int]

    init(node: String, options: [String] = [], nodeOptions: [String] = []) throws {
        let script = Tools.host("blocks.js")
        let file = FileManager.default.temporaryDirectory.appending(path: "looplag-test-\(UUID().uuidString).json")
        defer { try? FileManager.default.removeItem(at: file) }
        let result = try LoopLagTool.run(
            ["run", "-o", file.path, "--", Tools.installed(node), "--expose-gc"] + nodeOptions + [script] + options,
            environment: ["NODE_PATH": "/usr/share/nodejs"], within: .seconds(90))
        guard result.status == .exited(0) else {
            throw SpawnFailed(description: "\(node) ended with \(result.status): \(result.errors.suffix(2000))")
        }
        report = try ReportFile.read(file)
        process = try #require(
            report.processes.filter { $0.runtime?.name == .node }.max { $0.stalls.count < $1.stalls.count })
        lines = [:]
        for (index, line) in try String(contentsOfFile: script, encoding: .utf8).split(
            separator: "\n", omittingEmptySubsequences: false
        ).enumerated() {
            guard let mark = line.range(of: "// BLOCKS ") else { continue }
            lines[String(line[mark.upperBound...])] = index + 1
        }
    }

    /// A child awaited before the loop's first turn leaves a short-lived loop of its own behind.
    var main: ReportLoop? { busiest { $0.tid == process.pid } }
    var worker: ReportLoop? { busiest { $0.tid != process.pid } }

    private func busiest(_ isWanted: (ReportLoop) -> Bool) -> ReportLoop? {
        process.loops.filter { $0.role == .server && isWanted($0) }.max { $0.iterations < $1.iterations }
    }

    func stall(_ function: String, on loop: ReportLoop?) -> ReportStall? {
        process.stalls.first { $0.culprit?.function == function && $0.loopID == loop?.id }
    }

    func stack(_ sample: ReportStall.Sample) -> [Frame] { sample.stack.map { report.frames[$0] } }
}

extension EndToEnd {
    @Suite("JavaScript stacks")
    struct NodeStackTests {
        @Test(
            "Every way to block node is blamed on its line, in a route and in a worker thread",
            arguments: ["NODE18", "NODE", "NODE22", "NODE24", "NODE_DEBIAN"])
        func everyWay(node: String) throws {
            let first = try BlocksRun(node: node)
            #expect(!first.process.agent.degraded.contains("no-javascript"))
            #expect(try first.process.runtime?.version == Self.version(of: node))
            // Node names a worker's thread from version 24 on; before that its number tells it from the others.
            #expect(first.worker?.threadName == (node == "NODE24" ? "cruncher" : "node"))
            var exact = 0
            for isMain in [true, false] {
                for name in BlocksRun.cases {
                    // Of a thread that hardly gets a processor no sample may come in time: then once more.
                    var run = first
                    var found = run.stall(name, on: isMain ? run.main : run.worker)
                    for _ in 0..<3 where found == nil {
                        run = try BlocksRun(node: node, options: ["--only=\(name == "tick" ? "tickAgain" : name)"])
                        found = run.stall(name, on: isMain ? run.main : run.worker)
                    }
                    let stall = try #require(found, "\(node): no stall is blamed on \(name)")
                    let culprit = try #require(stall.culprit)
                    #expect(culprit.kind == .javascript)
                    #expect(culprit.file == Tools.host("blocks.js"))
                    let line = try #require(run.lines[name])
                    // A busy loop's samples are of whichever of its lines ran; of one that could not be interrupted in time
                    // only the function's first line is known, and the frame says so.
                    let distance = abs((culprit.line ?? 0) - line)
                    let isLoop = name == "busyLoop" || name == "tick"
                    let slack = culprit.approximate == true ? 4 : isLoop ? 1 : 0
                    #expect(distance <= slack, "\(node) \(name): \(culprit)")
                    if distance == 0 { exact += 1 }
                    try expectMerged(stall, name, run)
                    expectCause(stall, name)
                    // The handler of the tick has returned by then: its request is not on the stack.
                    let request = isMain && name != "tick" ? "/block/\(name)" : nil
                    #expect(stall.request?.path == request, "\(node) \(name)")
                    #expect(stall.request?.method == request.map { _ in "GET" })
                    // Of a stripped libnode only what JavaScript's frames tell: unknown is absent.
                    let phase = name == "tick" ? "nextTick" : "poll"
                    let isStripped = node == "NODE_DEBIAN" && stall.phase == nil
                    #expect(stall.phase == phase || isStripped, "\(node) \(name)")
                }
            }
            try expectPool(first, node)
            figure(
                "\(node): \(exact) of \(BlocksRun.cases.count * 2) lines exact, "
                    + "\(first.process.agent.signalsSent) signals, agent \(first.process.agent.cpuShare) of a core")
        }

        /// JavaScript stands between what it called and what called it.
        private func expectMerged(_ stall: ReportStall, _ name: String, _ run: BlocksRun) throws {
            let stacks = stall.samples.map(run.stack).filter { stack in stack.contains { $0.function == name } }
            let stack = try #require(stacks.first)
            let first = try #require(stack.firstIndex { $0.kind == .javascript })
            let last = try #require(stack.lastIndex { $0.kind == .javascript })
            let rest = stack[(last + 1)...].map(\.function)
            #expect(
                rest.contains { $0.hasPrefix("uv_run") } || stall.samples.allSatisfy(\.truncated), "\(name): \(rest)")
            let leaf = try #require(stack.firstIndex { $0.function == name })
            #expect(leaf >= first)
            switch name {
            case "parseText": #expect(stack[..<first].contains { $0.function.contains("Json") })
            case "runCommand": #expect(stack[..<leaf].map(\.function).contains("execSync"))
            case "hashPassword": #expect(stack[..<leaf].map(\.function).contains("pbkdf2Sync"))
            case "readPipe": #expect(stack[..<leaf].map(\.function).contains("readFileSync"))
            default: break
            }
        }

        /// The machine may keep a busy thread waiting for a processor for longer than it runs.
        private func expectCause(_ stall: ReportStall, _ name: String) {
            switch name {
            case "readPipe", "runCommand": #expect(stall.cause == .syscall)
            case "waitAtomics": #expect(stall.cause == .lock)
            case "collectGarbage":
                #expect(stall.cause == .gc || stall.cause == .runQueue)
                #expect((stall.evidence["gc_time_ns"] ?? 0) > 50e6)
            default: #expect([.onCPU, .runQueue, .gc, .lock].contains(stall.cause), "\(name): \(stall.cause)")
            }
            // Blocked in native code: no pause, so no signal.
            if ["parseText", "hashPassword", "readPipe", "runCommand", "waitAtomics"].contains(name) {
                // But for a last look that finds the call just over; one wait is sampled once, so that may be every other.
                let signalled = stall.samples.count { $0.method == .signal }
                #expect(stall.samples.last?.method != .signal || signalled * 2 <= stall.samples.count, "\(name)")
            }
        }

        /// As it says itself, without its "v".
        private static func version(of node: String) throws -> String {
            let child = try Child([Tools.installed(node), "--version"])
            defer { child.end() }
            _ = try child.exitStatus(within: .seconds(20))
            return try String(child.output.wholeText().dropFirst().prefix { !$0.isNewline })
        }

        private func expectPool(_ run: BlocksRun, _ node: String) throws {
            let pool = try #require(run.process.pools.first { $0.kind == "libuv" })
            #expect(pool.threads == 4)
            #expect(pool.busy?.max == 4)
            // Without libuv's own variables whatever else the loops wait for is counted too.
            guard node != "NODE_DEBIAN" else {
                #expect(pool.method == .estimate)
                #expect((16...20).contains(pool.inFlight?.max ?? 0))
                return
            }
            #expect(pool.method == .exact)
            #expect(pool.inFlight?.max == 16)
            // Twelve once all four threads have taken one; a look may come before that.
            #expect((12...16).contains(pool.queueDepth?.max ?? 0))
            // Sixteen jobs of a quarter of a second on four threads: the last four wait for three rounds.
            let longest = try #require(pool.queueWait?.maxNS)
            #expect(longest > 450_000_000)
            figure("\(node) pool: waits up to \(longest / 1_000_000) ms")
        }

        @Test("A request is named only while its own handler runs, however many are under way")
        func requests() throws {
            let run = try BlocksRun(node: "NODE", options: ["--both"])
            var named = 0
            var late = 0
            for stall in run.process.stalls {
                let functions = Set(stall.samples.flatMap(run.stack).map(\.function))
                let sync = functions.filter { $0.hasPrefix("sync") && $0 != "syncRoute" }
                if let request = stall.request {
                    #expect(sync.contains(request.path.replacingOccurrences(of: "/", with: "")), "\(request)")
                    named += 1
                }
                if sync.isEmpty { #expect(stall.request == nil) }
                if functions.contains(where: { $0.hasPrefix("late") && $0 != "lateRoute" }) { late += 1 }
            }
            #expect(named > 0)
            #expect(late > 0)
            figure("requests: \(named) stalls named, \(late) held work after an await")
        }

        @Test("Each worker of a cluster is a process of its own in one view")
        func clusterWorkers() throws {
            let run = try BlocksRun(node: "NODE", options: ["--cluster"])
            let blocked = run.report.processes.filter { process in
                process.stalls.contains { $0.culprit?.function == "waitAtomics" }
            }
            #expect(run.report.processes.count { $0.runtime?.name == .node } == 3)
            #expect(blocked.count == 2)
        }

        @Test(
            "A profiler, the inspector and a small heap work beside the agent",
            arguments: [
                ["--cpu-prof", "--cpu-prof-dir=/tmp"], ["--inspect=127.0.0.1:0"], ["--max-old-space-size=200"],
            ])
        func besideOthers(options: [String]) throws {
            let folder = try TemporaryFolder()
            let given = options.map { $0.replacingOccurrences(of: "=/tmp", with: "=" + folder.path) }
            let run = try BlocksRun(node: "NODE", options: ["--only=parseText,runCommand"], nodeOptions: given)
            for name in ["parseText", "runCommand"] {
                let stall = try #require(run.stall(name, on: run.main))
                #expect(stall.culprit?.line == run.lines[name])
            }
            if options[0] == "--cpu-prof" {
                let files = try FileManager.default.contentsOfDirectory(atPath: folder.path)
                #expect(files.contains { $0.hasSuffix(".cpuprofile") })
            }
        }
    }
}
