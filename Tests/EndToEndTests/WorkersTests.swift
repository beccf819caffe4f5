/// Servers of several processes or threads, under `looplag run` and followed from their parent: each worker is measured
/// by itself, those that are born later too, and only the one that stalls is said to.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Workers")
    struct WorkersTests {
        /// A server under `looplag run`, with the report that it leaves.
        private struct Running {
            let child: Child
            let folder: TemporaryFolder
            var file: String { folder.path + "/report.json" }

            init(_ command: [String], options: [String] = []) throws {
                folder = try TemporaryFolder()
                child = try LoopLagTool.start(["run", "-o", folder.path + "/report.json"] + options + ["--"] + command)
            }

            /// Waits until so many processes are said to be measured.
            func measured(_ count: Int) throws -> Set<Int32> {
                try eventually("\(count) measured processes in: \(child.errors.text)", within: .seconds(40)) {
                    let pids = Set(
                        child.errors.text.matches(of: /measuring (\d+) \(/).compactMap { Int32($0.output.1) })
                    return pids.count >= count ? pids : nil
                }
            }

            func report() throws -> Report {
                child.send(SIGTERM)
                _ = try child.exitStatus(within: .seconds(30))
                let report = try ReportFile.read(URL(filePath: file))
                // A worker that its master killed, or that ended by _exit, leaves its segment.
                for process in report.processes { Segments.remove(ofProcess: process.pid) }
                return report
            }
        }

        /// Longer than anything that a server does while it starts, also on a machine that is busy with something else.
        private static let long = 2000

        /// The stalls that can be the one of `answer`, with their processes: nobody else has one as long.
        private func stalls(_ report: Report, like answer: HandlerAnswer) -> [(
            process: ReportProcess, stall: ReportStall
        )] {
            report.processes.flatMap { process in process.stalls.map { (process, $0) } }
                .filter { Duration.nanoseconds($0.1.durationNS) >= answer.duration * 0.97 }
        }

        private func longStall(_ running: Running) throws {
            _ = try eventually("the long stall in: \(running.child.errors.text)", within: .seconds(20)) {
                running.child.errors.text.matches(of: /closed +[2-9]\.\d s/).isEmpty ? nil : true
            }
        }

        private func port(_ child: Child, _ pattern: String) throws -> Address {
            .port(Int(try child.wait(forOutput: pattern)) ?? 0)
        }

        private func serving(_ report: Report) -> [ReportProcess] {
            report.processes.filter { $0.loops.contains { $0.role == .server } }
        }

        @Test("Of uvicorn's spawned workers only the one that stalls is flagged")
        func uvicornWorkers() throws {
            let running = try Running([
                Tools.installed("PYTHON"), "-m", "uvicorn", "asgi:app", "--app-dir", Tools.hosts.path, "--host",
                "127.0.0.1", "--port", "0", "--workers", "2", "--no-access-log",
            ])
            defer { running.child.end() }
            let address = try port(running.child, #"Uvicorn running on http://127.0.0.1:(\d+)"#)
            _ = try running.measured(2)
            let answer = try eventually("an answer", within: .seconds(20)) {
                try? Client.getAnswer("/sleep?ms=\(Self.long)", of: address)
            }
            try longStall(running)
            let report = try running.report()
            #expect(serving(report).count == 2, "\(report.processes.map(\.command))")
            let long = stalls(report, like: answer)
            #expect(long.count == 1, "\(long.map(\.stall.durationNS))")
            #expect(long.first?.stall.cause == .syscall)
            figure("uvicorn --workers 2: \(report.processes.count) processes, 1 of them stalled")
        }

        @Test("uvicorn --reload: the worker of the new code is measured, the old one counts to its end")
        func uvicornReload() throws {
            let code = try TemporaryFolder()
            let source = try String(contentsOfFile: Tools.host("asgi.py"), encoding: .utf8)
            try source.write(toFile: code.path + "/reloaded.py", atomically: true, encoding: .utf8)
            let running = try Running([
                Tools.installed("PYTHON"), "-m", "uvicorn", "reloaded:app", "--app-dir", code.path, "--reload-dir",
                code.path, "--host", "127.0.0.1", "--port", "0", "--reload", "--no-access-log",
            ])
            defer { running.child.end() }
            let address = try port(running.child, #"Uvicorn running on http://127.0.0.1:(\d+)"#)
            let first = try running.measured(1)
            // The watcher of files compares times of modification.
            let later = Date(timeIntervalSinceNow: 5)
            try (source + "\n# changed\n").write(toFile: code.path + "/reloaded.py", atomically: true, encoding: .utf8)
            try FileManager.default.setAttributes([.modificationDate: later], ofItemAtPath: code.path + "/reloaded.py")
            let both = try running.measured(2)
            let answer = try eventually("an answer", within: .seconds(20)) {
                try? Client.getAnswer("/sleep?ms=\(Self.long)", of: address)
            }
            try longStall(running)
            let report = try running.report()
            let fresh = both.subtracting(first)
            #expect(Set(stalls(report, like: answer).map(\.process.pid)) == fresh)
            #expect(report.processes.contains { first.contains($0.pid) })
            figure("uvicorn --reload: \(first.count) + \(fresh.count) workers measured")
        }

        @Test("Of node's cluster only the stalled worker is flagged, and a worker that was born later is measured too")
        func nodeCluster() throws {
            let running = try Running([Tools.installed("NODE"), Tools.host("cluster.js"), "processes", "2"])
            defer { running.child.end() }
            _ = try port(running.child, #"worker 1 is \d+ listening on http=(\d+)\."#)
            let second = try port(running.child, #"worker 2 is \d+ listening on http=(\d+)\."#)
            // The primary waits in a loop of its own.
            _ = try running.measured(3)
            _ = try Client.getAnswer("/exit", of: second)
            let pid = Int32(try running.child.wait(forOutput: #"worker 3 is (\d+) listening"#)) ?? 0
            let third = try port(running.child, #"worker 3 is \d+ listening on http=(\d+)\."#)
            #expect(try running.measured(4).contains(pid))
            let answer = try Client.getAnswer("/cpu?ms=\(Self.long)", of: third)
            try longStall(running)
            let report = try running.report()
            #expect(stalls(report, like: answer).map(\.process.pid) == [pid])
            figure("node cluster: \(report.processes.count) processes, the third worker's stall is its own")
        }

        @Test("node's worker threads are loops that come and go, and only the stalled one is flagged")
        func nodeThreads() throws {
            let running = try Running([Tools.installed("NODE"), Tools.host("cluster.js"), "threads", "2"])
            defer { running.child.end() }
            let first = try port(running.child, #"worker 1 is \d+ listening on http=(\d+)\."#)
            let second = try port(running.child, #"worker 2 is \d+ listening on http=(\d+)\."#)
            _ = try running.measured(1)
            _ = try Client.getAnswer("/cpu?ms=1", of: first)
            _ = try Client.getAnswer("/exit", of: second)
            let third = try port(running.child, #"worker 3 is \d+ listening on http=(\d+)\."#)
            let answer = try Client.getAnswer("/cpu?ms=\(Self.long)", of: third)
            try longStall(running)
            let report = try running.report()
            let process = try #require(report.processes.first)
            #expect(report.processes.count == 1)
            let long = stalls(report, like: answer)
            #expect(long.count == 1, "\(process.stalls.map(\.durationNS))")
            let loop = try #require(process.loops.first { $0.id == long.first?.stall.loopID })
            #expect(loop.tid != process.pid)
            figure("node worker_threads: \(process.loops.count { $0.role == .server }) loops, one of them stalled")
        }

        @Test("gunicorn followed from its master: a worker that takes a killed one's place is measured too")
        func followedMaster() throws {
            let host = try Host.gunicorn(workers: 2, environment: Agent.preload())
            defer { host.end() }
            func workers() throws -> Set<Int32> {
                try eventually("two workers with a segment", within: .seconds(30)) {
                    let children = ProcessTable.children(of: host.pid)
                    return children.count == 2 && children.allSatisfy { Segments.path(ofProcess: $0) != nil }
                        ? Set(children) : nil
                }
            }
            let before = try workers()
            let follower = try Follower([host.pid])
            defer { follower.end() }
            let victim = try #require(before.first)
            kill(victim, SIGKILL)
            defer { Segments.remove(ofProcess: victim) }
            let after = try eventually("another worker", within: .seconds(30)) { () -> Set<Int32>? in
                let now = try workers()
                return now == before ? nil : now
            }
            let fresh = try #require(after.subtracting(before).first)
            _ = try eventually("the new worker to be followed: \(follower.child.errors.text)", within: .seconds(30)) {
                follower.child.errors.text.contains("measuring \(fresh) ") ? true : nil
            }
            let answer = try Client.getAnswer("/sleep?ms=\(Self.long)", of: host.address)
            let stall = try eventually("the stall") {
                try FollowedStall.group(follower.events()).first { ($0.duration ?? .zero) >= answer.duration * 0.97 }
            }
            #expect(after.contains(try #require(stall.closed).event.pid))
            let tree = try LoopLagTool.run(["ps"])
            #expect(tree.output.split(separator: "\n").count { $0.contains("└ gunicorn") } >= 2, "\(tree.output)")
            figure("gunicorn followed from its master: \(before.sorted()) became \(after.sorted())")
        }

        @Test("A parent that never waits is followed by its children, and --no-children leaves them")
        func parentWithoutLoop() throws {
            let child = try Child(
                ["/bin/sh", "-c", "\"$0\" --workers 1 & wait", try Tools.compiledHost("epoll_server")],
                environment: Agent.preload())
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            let address = Address.port(Int(port) ?? 0)
            _ = try Client.ask("ok", of: address)
            let server = try eventually("a server with a segment") {
                ProcessTable.members(ofGroup: child.pid).first {
                    $0 != child.pid && Segments.path(ofProcess: $0) != nil
                }
            }
            var answer: HandlerAnswer?
            let report = try LoopLagTool.record(child.pid, for: .milliseconds(2500)) {
                answer = try Client.ask("sleep 1000", of: address)
            }
            let long = stalls(report, like: try #require(answer))
            #expect(long.count == 1)
            #expect(report.processes.contains { $0.pid == server })
            #expect(!report.processes.contains { $0.pid == child.pid })
            for verb in [["stalls", "\(child.pid)"], ["stalls", "\(child.pid)", "--follow"]] {
                let alone = try LoopLagTool.run(verb + ["--no-children", "--no-attach"])
                #expect(alone.status == .exited(1), "\(alone.errors)")
                #expect(alone.errors.hasPrefix("looplag: "))
            }
            let listed = try LoopLagTool.run(["stalls", "\(child.pid)", "--json"])
            #expect(listed.output.contains("\"closed\""), "\(listed.errors)")
        }

        @Test("A shell and its short-lived helpers are no processes of a report, and leave nothing behind")
        func shells() throws {
            let script = "i=0; while [ $i -lt 60 ]; do /bin/true; i=$((i+1)); done; (exit 3)"
            let folder = try TemporaryFolder()
            let file = folder.path + "/report.json"
            let before = try FileManager.default.contentsOfDirectory(atPath: Segments.folder)
            let result = try LoopLagTool.run(["run", "-o", file, "--", "/bin/sh", "-c", script])
            #expect(result.status == .exited(3), "\(result.errors)")
            #expect(!result.errors.contains("measuring"))
            #expect(try ReportFile.read(URL(filePath: file)).processes.isEmpty)
            let left = try FileManager.default.contentsOfDirectory(atPath: Segments.folder)
            #expect(Set(left).subtracting(before).filter { $0.hasPrefix("looplag-") }.isEmpty)
        }
    }
}
