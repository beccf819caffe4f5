/// Every CPython of this machine, each with a server of asyncio's own: whose function blocks it, who holds the lock that it
/// waits for, and for versions that are not known what the named fallback still says.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Every CPython on this machine")
    struct PythonVersionsTests {
        /// 3.11 is what the other tests run; which of the others are here, Tests/setup.sh has found out.
        static let minors = [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
        /// What the env file calls it.
        static func name(_ minor: Int) -> String { minor == 11 ? "PYTHON" : "PYTHON3\(minor)" }

        @Test("The blocking function, its task and the holder of what it waits for are named", arguments: minors)
        func blocked(minor: Int) throws {
            let name = Self.name(minor)
            guard let python = Tools.optional(name) else {
                figure("CPython 3.\(minor): not on this machine (\(name) in the env file)")
                return
            }
            let host = try Host.plainPython(python, environment: Agent.preload())
            defer { host.end() }
            let paths = ["/spin", "/sleep", "/lock", "/mutex", "/interpreter"]
            var answers: [String: Duration] = [:]
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(2500)) {
                for path in paths { answers[path] = try Client.getAnswer(path, of: host.address).duration }
            }
            let process = try #require(report.processes.first)
            #expect(process.runtime?.version?.hasPrefix("3.\(minor).") == true)
            // A sleep lasts as long as it was asked to.
            #expect(try #require(answers["/sleep"]) >= .milliseconds(249))
            let told = Told(report, process)
            if (9...15).contains(minor) {
                #expect(!process.agent.degraded.contains { $0.contains("python") }, "\(process.agent.degraded)")
                try expectAll(told)
            } else {
                #expect(process.agent.degraded.contains("python-fallback"), "\(process.agent.degraded)")
                #expect(!process.agent.degraded.contains("no-python"))
                try expectRunningOnly(told, host.pid)
            }
            figure(
                "CPython \(process.runtime?.version ?? ""): \(process.stalls.count) stalls, culprits "
                    + "\(process.stalls.map { $0.culprit?.function ?? "-" }), behind "
                    + "\(process.stalls.map { $0.blockedBy?.threadName ?? "-" }), \(process.agent.degraded)")
        }

        /// What was sure of each stall, by the Python function that stands in it.
        private struct Told {
            var report: Report
            var process: ReportProcess

            init(_ report: Report, _ process: ReportProcess) {
                self.report = report
                self.process = process
            }

            func frames(_ stack: [Int]) -> [Frame] { stack.map { report.frames[$0] } }

            func stall(in function: String) throws -> ReportStall {
                try #require(
                    process.stalls.first { stall in
                        stall.samples.contains { frames($0.stack).contains { $0.function == function } }
                    }, "no stall in \(function): \(process.stalls.map { $0.culprit?.function ?? "-" })")
            }

            func holder(of stall: ReportStall) -> [String]? {
                stall.blockedBy.map { frames($0.stack).filter { $0.kind == .python }.map(\.function) }
            }
        }

        private func expectAll(_ told: Told) throws {
            for (function, culprit) in [("spin_here", "spin"), ("sleep_here", "nap"), ("want_mutex", "want_mutex")] {
                let stall = try told.stall(in: function)
                #expect(stall.culprit?.function == culprit)
                #expect(stall.culprit?.file?.hasSuffix(".py") == true)
                #expect((stall.culprit?.line ?? 0) > 0)
                #expect(stall.task?.hasPrefix("Task-") == true, "\(stall.task ?? "no task")")
                #expect(stall.request == nil)
                #expect(stall.samples.allSatisfy { told.frames($0.stack).contains { $0.coroutine == true } })
            }
            let sleep = try told.stall(in: "sleep_here")
            #expect(sleep.cause == .syscall)
            #expect(sleep.blockedBy == nil)
            for (function, keeper) in [("want_plain", "keep_plain"), ("want_mutex", "keep_mutex")] {
                let stall = try told.stall(in: function)
                #expect(stall.cause == .lock)
                #expect(stall.blockedBy?.threadName == "keeper")
                #expect(
                    told.holder(of: stall)?.contains(keeper) == true, "\(function): \(told.holder(of: stall) ?? [])")
            }
            let waiting = try told.stall(in: "wait_for_interpreter")
            #expect(waiting.blockedBy?.threadName == "number-cruncher")
            #expect(told.holder(of: waiting)?.contains("hold_interpreter") == true)
        }

        /// The frames of a thread that runs are right; a blocked one was not signalled, so it has none.
        private func expectRunningOnly(_ told: Told, _ pid: Int32) throws {
            let spin = try told.stall(in: "spin_here")
            #expect(spin.culprit?.function == "spin")
            #expect((11...14).contains(spin.culprit?.line ?? 0), "\(spin.culprit?.line ?? 0)")
            let blocked = told.process.stalls.filter { $0.cause == .syscall }
            #expect(!blocked.isEmpty)
            let passive = blocked.flatMap(\.samples).filter { $0.method != .signal }
            #expect(!passive.isEmpty)
            #expect(passive.allSatisfy { told.frames($0.stack).allSatisfy { $0.kind == .native } })
            // The owner of a mutex is known without the interpreter.
            #expect(told.process.stalls.contains { $0.cause == .lock && ($0.blockedBy?.tid ?? pid) != pid })
            #expect(told.process.stalls.allSatisfy { $0.blockedBy?.stack.isEmpty ?? true })
        }
    }

    @Suite("Who holds the lock that a loop waits for")
    struct LockOwnerTests {
        @Test(
            "Under uvicorn the thread that holds it is named with its Python stack, and nobody where nobody surely does",
            arguments: ["asyncio", "uvloop"])
        func uvicorn(loop: String) throws {
            let host = try Host.uvicorn(loop: loop, application: "locking:app", environment: Agent.preload())
            defer { host.end() }
            let wanted: [(path: String, function: String, keeper: String?)] = [
                ("/lock", "want_plain", "keep_plain"), ("/rlock", "want_recursive", "keep_recursive"),
                ("/mutex", "want_mutex", "keep_mutex"), ("/by-name", "want_by_name", nil),
                ("/condition", "want_condition", nil),
            ]
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(2500)) {
                for (path, _, _) in wanted { _ = try Client.get(path, of: host.address) }
            }
            let process = try #require(report.processes.first)
            for (path, function, keeper) in wanted {
                let stall = try #require(process.stalls.first { $0.request?.path == path }, "no stall for \(path)")
                #expect(stall.cause == .lock, "\(path)")
                #expect(stall.culprit?.function == function)
                guard let keeper else {
                    #expect(stall.blockedBy == nil, "\(path): \(stall.blockedBy?.threadName ?? "")")
                    continue
                }
                let holder = try #require(stall.blockedBy, "nobody holds the lock of \(path)")
                #expect(holder.threadName == "keeper")
                #expect(holder.tid != host.pid)
                #expect(holder.stack.contains { report.frames[$0].function == keeper }, "\(path)")
            }
            figure(
                "\(loop): "
                    + process.stalls.map { "\($0.cause) of \($0.blockedBy?.threadName ?? "-")" }.joined(separator: ", ")
            )
        }

        @Test("A NIO loop behind a pthread mutex: its owner by number and name")
        func swift() throws {
            let host = try Host.demo(["--raw-only", "--threshold-ms", "40"])
            defer { host.end() }
            let address = try #require(host.rawAddress)
            _ = try Client.ask("ok", of: address)
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(1500), options: ["--threshold", "40ms"]) {
                _ = try Client.ask("lock 200", of: address)
                // A sleep is nobody's lock.
                _ = try Client.ask("sleep 200", of: address)
            }
            let process = try #require(report.processes.first)
            let stall = try #require(
                process.stalls.first { stall in
                    stall.samples.contains {
                        $0.stack.contains { report.frames[$0].function.contains("waitUntilFree") }
                    }
                }, "\(process.stalls.map { "\($0.cause) \($0.culprit?.function ?? "-")" })")
            let holder = try #require(stall.blockedBy)
            // Made by the loop's thread, it goes by that one's name; the number tells them apart.
            #expect(!holder.threadName.isEmpty)
            #expect(!process.loops.contains { $0.tid == holder.tid })
            #expect(process.stalls.filter { $0.cause == .syscall }.allSatisfy { $0.blockedBy == nil })
            figure("nio: the loop waits for thread \(holder.tid), \(holder.threadName)")
        }
    }
}
