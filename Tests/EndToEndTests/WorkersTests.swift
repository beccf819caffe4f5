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

            func closedStalls(_ count: Int) throws {
                _ = try eventually("\(count) closed stalls in: \(child.errors.text)", within: .seconds(20)) {
                    child.errors.text.components(separatedBy: "  closed ").count > count ? true : nil
                }
            }

            func report() throws -> Report {
                child.send(SIGTERM)
                _ = try child.exitStatus(within: .seconds(30))
                return try ReportFile.read(URL(filePath: file))
            }
        }

        private func port(_ child: Child, _ pattern: String) throws -> Address {
            .port(Int(try child.wait(forOutput: pattern)) ?? 0)
        }

        private func stalled(_ report: Report) -> [ReportProcess] { report.processes.filter { !$0.stalls.isEmpty } }

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
                try? Client.getAnswer("/sleep?ms=250", of: address)
            }
            try running.closedStalls(1)
            let report = try running.report()
            #expect(serving(report).count == 2, "\(report.processes.map(\.command))")
            let one = try #require(stalled(report).first)
            #expect(stalled(report).count == 1)
            #expect(agree(.nanoseconds(one.stalls.first?.durationNS ?? 0), answer.duration))
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
            _ = try eventually("an answer", within: .seconds(20)) {
                try? Client.getAnswer("/sleep?ms=200", of: address)
            }
            try running.closedStalls(1)
            let report = try running.report()
            let fresh = both.subtracting(first)
            #expect(stalled(report).map(\.pid) == Array(fresh))
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
            let answer = try Client.getAnswer("/cpu?ms=300", of: third)
            try running.closedStalls(1)
            let report = try running.report()
            let one = try #require(report.processes.first { $0.pid == pid })
            #expect(one.stalls.contains { agree(.nanoseconds($0.durationNS), answer.duration) })
            // Starting up is a stall of its own on a busy machine: nobody else has one as long as this.
            let others = report.processes.filter { $0.pid != pid }.flatMap(\.stalls)
            #expect(
                !others.contains { agree(.nanoseconds($0.durationNS), answer.duration) }, "\(others.map(\.durationNS))")
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
            let answer = try Client.getAnswer("/cpu?ms=300", of: third)
            try running.closedStalls(1)
            let report = try running.report()
            let process = try #require(report.processes.first)
            #expect(report.processes.count == 1)
            let long = process.stalls.filter { agree(.nanoseconds($0.durationNS), answer.duration) }
            #expect(Set(long.map(\.loopID)).count == 1, "\(process.stalls.map(\.durationNS))")
            let loop = try #require(process.loops.first { $0.id == long.first?.loopID })
            #expect(loop.tid != process.pid)
            figure("node worker_threads: \(process.loops.count { $0.role == .server }) loops, one of them stalled")
        }

        @Test(
            "A parent without a loop is followed by its children, also those born later, and --no-children leaves them")
        func followedParent() throws {
            let host = try Host.gunicorn(workers: 2, environment: Agent.preload())
            defer { host.end() }
            func workers() throws -> [Int32] {
                try eventually("two workers with a segment", within: .seconds(30)) {
                    let children = ProcessTable.children(of: host.pid)
                    return children.count == 2 && children.allSatisfy { Segments.path(ofProcess: $0) != nil }
                        ? children : nil
                }
            }
            let before = try workers()
            let follower = try Follower([host.pid])
            defer { follower.end() }
            kill(before[0], SIGKILL)
            let after = try eventually("another worker", within: .seconds(30)) { () -> [Int32]? in
                let now = try workers()
                return Set(now) == Set(before) ? nil : now
            }
            let fresh = try #require(Set(after).subtracting(before).first)
            _ = try eventually("the new worker to be followed: \(follower.child.errors.text)", within: .seconds(30)) {
                follower.child.errors.text.contains("measuring \(fresh) ") ? true : nil
            }
            let answer = try Client.getAnswer("/sleep?ms=250", of: host.address)
            let stall = try #require(try follower.stalls(closed: 1).last)
            #expect(agree(try #require(stall.duration), answer.duration))
            #expect(after.contains(try #require(stall.closed).event.pid))
            let alone = try LoopLagTool.run(["stalls", "\(host.pid)", "--follow", "--no-children", "--no-attach"])
            #expect(alone.status == .exited(1), "\(alone.errors)")
            #expect(alone.errors.hasPrefix("looplag: "))
            let tree = try LoopLagTool.run(["ps"])
            #expect(tree.output.split(separator: "\n").count { $0.contains("└ gunicorn") } >= 2, "\(tree.output)")
            figure("gunicorn followed from its master: \(before) became \(after)")
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
