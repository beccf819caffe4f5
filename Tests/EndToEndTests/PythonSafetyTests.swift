/// That the agent hurts no interpreter: exits, forks, sub-interpreters and reloads while samples are taken as fast as the
/// agent can.
///
/// LOOPLAG_TEST_EXITS says how often each is done; a few times in every run. Before a release forty times, with an agent
/// that samples every quarter of a millisecond, made by `swift build -c release --product looplag-agent -Xcc -DLAG_STRESS` in a
/// folder of its own (`--scratch-path`) and named by LOOPLAG_TEST_AGENT; the figures say what rate was reached.

import Foundation
import Glibc
import LoopLagModel
import LoopLagTelemetry
import Testing

extension EndToEnd {
    @Suite("Python ends as without an agent")
    struct PythonSafetyTests {
        static let asked = ProcessInfo.processInfo.environment["LOOPLAG_TEST_EXITS"].flatMap { Int($0) }
        static let rounds = asked ?? 6

        @Test(
            "Interpreters shut down, fork and make others inside while they are sampled",
            arguments: ["exit", "threads", "fork", "subinterpreters"], PythonVersionsTests.minors)
        func exits(mode: String, minor: Int) throws {
            let name = PythonVersionsTests.name(minor)
            guard let python = Tools.optional(name) else {
                figure("CPython 3.\(minor): not on this machine (\(name) in the env file)")
                return
            }
            // 3.7 has no module that makes an interpreter inside.
            if mode == "subinterpreters", minor < 8 { return }
            let rounds = minor == 11 ? Self.rounds : Self.asked ?? 2
            // 3.10 frees its interpreter under daemon threads that still ask for the lock (take_gil): one in fifty such
            // exits crashes with nothing loaded. More than that would be ours.
            let isFragile = minor == 10 && mode == "threads"
            var tally = SampleTally()
            var crashes = 0
            for round in 0..<rounds {
                let child = try Child(
                    [python, Tools.host("exits.py"), mode, "\(round)"], environment: Agent.preload(threshold: "1ms"))
                defer { child.end() }
                let segment = try SampleTally.follow(child.pid)
                let status = try child.exitStatus(within: .seconds(30))
                try tally.add(segment.snapshot())
                for word in try child.output.wholeText().split(whereSeparator: \.isWhitespace) {
                    if let forked = Int32(word) { Segments.remove(ofProcess: forked) }
                }
                if isFragile, status == .signalled(SIGSEGV) {
                    crashes += 1
                } else {
                    #expect(status == .exited(0), "\(mode), round \(round): \(status) \(child.errors.text)")
                }
            }
            #expect(crashes <= 1 + rounds / 8)
            #expect(tally.samples > 0)
            figure("3.\(minor), \(mode): \(rounds) exits, \(crashes) crashes, \(tally)")
        }

        @Test("SIGTERM under load ends a server as it should")
        func terminated() throws {
            var tally = SampleTally()
            for round in 0..<Self.rounds {
                let host = try Host.uvicorn(
                    loop: round % 2 == 0 ? "asyncio" : "uvloop", application: "blocking:app",
                    environment: Agent.preload(threshold: "1ms", ["JSON_MEGABYTES": "1"]))
                defer { host.end() }
                let segment = try SampleTally.follow(host.pid)
                let load = try SteadyLoad(host.address, path: "/sync-cpu", pause: .milliseconds(1))
                let second = try SteadyLoad(host.address, path: "/json", pause: .milliseconds(1))
                kill(host.pid, SIGTERM)
                let status = try host.child.exitStatus(within: .seconds(30))
                load.end()
                second.end()
                try tally.add(segment.snapshot())
                #expect(status == .exited(0) || status == .signalled(SIGTERM), "round \(round): \(status)")
            }
            #expect(tally.samples > 0)
            figure("SIGTERM under load: \(Self.rounds) exits, no crash, \(tally)")
        }

        @Test("uvicorn --reload starts its server anew, and each is measured")
        func reload() throws {
            let folder = try TemporaryFolder()
            let file = folder.path + "/reloaded.py"
            let source = try String(contentsOfFile: Tools.host("asgi.py"), encoding: .utf8)
            try source.write(toFile: file, atomically: true, encoding: .utf8)
            let child = try Child(
                [
                    Tools.installed("PYTHON"), "-m", "uvicorn", "reloaded:app", "--app-dir", folder.path,
                    "--reload", "--reload-dir", folder.path, "--host", "127.0.0.1", "--port", "0",
                ], environment: Agent.preload(threshold: "1ms"))
            defer { child.end() }
            let port = try child.wait(forOutput: #"Uvicorn running on http://127.0.0.1:(\d+)"#)
            let address = Address.port(Int(port) ?? 0)
            _ = try eventually("the server") { try? Client.get("/ok", of: address) }
            var tally = SampleTally()
            // Each ends by SIGTERM, which is no clean exit.
            var servers = SegmentDiscovery.children(of: child.pid)
            defer { servers.forEach(Segments.remove) }
            let rounds = Self.asked ?? 2
            for round in 0..<rounds {
                let before = child.errors.text.components(separatedBy: "Application startup complete").count
                // A change before uvicorn's first look at the file goes unnoticed: then it takes another.
                var isReloaded = false
                for change in 1...6 where !isReloaded {
                    try (source + "\n# \(round) \(change)\n").write(toFile: file, atomically: true, encoding: .utf8)
                    isReloaded =
                        (try? eventually("the reload", within: .seconds(8)) {
                            child.errors.text.components(separatedBy: "Application startup complete").count > before
                                ? true : nil
                        }) ?? false
                }
                #expect(isReloaded, "\(child.errors.text)")
                let answer = try eventually("the server again") { try? Client.getAnswer("/cpu?ms=30", of: address) }
                #expect(answer.duration >= .milliseconds(30))
                for server in SegmentDiscovery.children(of: child.pid) {
                    servers.append(server)
                    // One that just ends is as good as gone.
                    guard let source = try? SegmentDiscovery.live(pid: server),
                        let snapshot = try? SegmentReader(source).snapshot()
                    else { continue }
                    tally.add(snapshot)
                }
            }
            figure("uvicorn --reload: \(rounds) reloads, no crash, \(tally)")
            #expect(!child.errors.text.contains("Fatal Python error"))
            kill(child.pid, SIGTERM)
            let status = try child.exitStatus(within: .seconds(30))
            #expect(status == .exited(0) || status == .signalled(SIGTERM), "\(status)")
        }
    }
}

/// How often a host was sampled while its loops stalled, by its segments, which a reader keeps beyond the host's end.
private struct SampleTally: CustomStringConvertible {
    private(set) var samples: UInt64 = 0
    private var stalled = Duration.zero
    /// From each host's first loop to its end.
    private var watched = Duration.zero
    private var dropped: [String: UInt64] = [:]

    static func follow(_ pid: Int32) throws -> SegmentReader {
        try eventually("a segment of \(pid)") {
            (try? SegmentDiscovery.live(pid: pid)).flatMap { try? SegmentReader($0) }
        }
    }

    mutating func add(_ snapshot: ProcessSnapshot) {
        samples += snapshot.agent.samplesTaken
        dropped.merge(snapshot.agent.samplesDropped, uniquingKeysWith: +)
        if let start = snapshot.loops.map(\.registeredAt).min() { watched += snapshot.takenAt.since(start) }
        for loop in snapshot.loops {
            stalled += loop.stalled
            // The one that it ended in.
            if let start = loop.busySince, snapshot.takenAt > start { stalled += snapshot.takenAt.since(start) }
        }
    }

    var description: String {
        func rate(_ time: Duration) -> Int { time > .zero ? Int(Double(samples) / time.secondsAsDouble) : 0 }
        let drops = dropped.sorted { $0.key < $1.key }.map { ", \($0.value) dropped (\($0.key))" }
        return "\(samples) samples, \(rate(watched)) a second, \(rate(stalled)) a second of each loop's stalls"
            + drops.joined()
    }
}

extension EndToEnd {
    @Suite("The demo's Python server")
    struct PythonDemoTests {
        @Test(
            "demo --host python shows FastAPI's blocking functions, and says what is missing where it is not installed")
        func demo() throws {
            let python = try Tools.installed("PYTHON")
            let result = try LoopLagTool.run(
                ["demo", "--host", "python", "--duration", "7s"], environment: ["LOOPLAG_PYTHON": python])
            #expect(result.status == .exited(0), "\(result.errors)")
            // As culprits, each with its place; which of them came up in that time is chance.
            let blamed = result.output.components(separatedBy: "STALLS by culprit").last ?? ""
            #expect(
                blamed.contains(/(build_report|charge_card|check_password|find_products) +shop\.py:\d+/),
                "\(result.output)")
            let list = try LoopLagTool.run(
                ["demo", "--host", "python", "--list"], environment: ["LOOPLAG_PYTHON": python])
            #expect(list.output.contains("/pay"))
            // -S leaves out the folder of installed packages: an interpreter without FastAPI.
            let folder = try TemporaryFolder()
            let bare = folder.path + "/python"
            try "#!/bin/sh\nexec \(python) -S \"$@\"\n".write(toFile: bare, atomically: true, encoding: .utf8)
            chmod(bare, 0o755)
            let missing = try LoopLagTool.run(["demo", "--host", "python"], environment: ["LOOPLAG_PYTHON": bare])
            #expect(missing.status == .exited(1))
            #expect(missing.errors.contains("fastapi is not installed"), "\(missing.errors)")
            #expect(missing.errors.contains("pip install fastapi uvicorn"))
        }
    }
}
