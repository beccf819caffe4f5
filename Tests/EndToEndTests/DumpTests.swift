/// `looplag dump` against real servers: idle, asleep, on a processor; with and without an agent; and what they notice.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Stacks on demand")
    struct DumpTests {
        /// The report that `dump --json` prints, held against the schema.
        private func dump(_ pid: Int32, _ options: [String] = []) throws -> Report {
            let result = try LoopLagTool.run(["dump", "\(pid)", "--json"] + options)
            guard result.status == .exited(0) else {
                throw SpawnFailed(description: "looplag dump: \(result.status): \(result.errors)")
            }
            let file = FileManager.default.temporaryDirectory.appending(path: "looplag-dump-\(UUID().uuidString).json")
            defer { try? FileManager.default.removeItem(at: file) }
            try result.output.write(to: file, atomically: true, encoding: .utf8)
            return try ReportFile.read(file)
        }

        private func thread(_ report: Report, _ tid: Int32) throws -> ReportThread {
            try #require(report.processes.first?.dump?.first { $0.tid == tid })
        }

        private func functions(_ thread: ReportThread, in report: Report) -> [String] {
            thread.stack.map { report.frames[$0] }.filter { $0.inlined != true }.map(\.function)
        }

        /// gdb's names of the main thread's frames, leaf first; nil for those that it cannot name.
        private func gdbFunctions(_ pid: Int32) throws -> [String?] {
            let child = try Child([
                Tools.installed("GDB"), "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex",
                "set auto-load off", "-p", "\(pid)", "-ex",
                "python\nf = gdb.newest_frame()\n"
                    + "while f:\n  if f.type() != gdb.INLINE_FRAME: print('FRAME', f.name() or '?')\n  f = f.older()\nend",
            ])
            defer { child.end() }
            _ = try child.exitStatus(within: .seconds(60))
            return try child.output.wholeText().split(separator: "\n").compactMap { line -> String?? in
                guard line.hasPrefix("FRAME ") else { return nil }
                let name = String(line.dropFirst(6))
                return .some(name == "?" ? nil : name)
            }
        }

        @Test("An idle redis without an agent shows the stack that gdb shows")
        func idleRedis() throws {
            let host = try Host.redis(environment: [:])
            defer { host.end() }
            let report = try dump(host.pid)
            let main = try thread(report, host.pid)
            #expect(main.state == .idle)
            #expect(main.syscall == "epoll_wait")
            #expect(main.method == .passive)
            #expect(main.loopID == nil)
            #expect(report.findings.isEmpty)
            let ours = functions(main, in: report)
            let truth = try gdbFunctions(host.pid)
            let end = try #require(truth.firstIndex(of: "main"))
            try #require(ours.count > end)
            for i in 0...end {
                if let name = truth[i] { #expect(ours[i] == name) }
            }
            #expect(ours.contains("aeMain"))
            figure("idle redis: \(ours.count) frames, gdb's \(truth.count)")
        }

        @Test("A redis in DEBUG SLEEP is read without shortening the sleep, and the command is named")
        func sleepingRedis() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let connection = try Connection(host.address)
            try connection.send("DEBUG SLEEP 0.8\r\n")
            // The stall's threshold passes before the dump, so that its record is there.
            letPass(.milliseconds(250))
            let report = try dump(host.pid)
            _ = try connection.readLine()
            // redis's own clock: an entry is id, time, duration in microseconds, ...
            try connection.send("SLOWLOG GET 1\r\n")
            var entry: [String] = []
            while entry.count < 5 { entry.append(try connection.readLine()) }
            let slept = Duration.microseconds(try #require(Int(entry[4].dropFirst())))
            let main = try thread(report, host.pid)
            #expect(main.state == .busy)
            #expect(main.syscall == "clock_nanosleep")
            #expect(functions(main, in: report).contains("debugCommand"))
            #expect(main.culprit?.function == "debugCommand")
            let stall = try #require(report.processes.first?.stalls.first)
            #expect(stall.open)
            #expect(stall.loopID == main.loopID)
            #expect(slept >= .milliseconds(800))
            figure("sleeping redis: slept \(slept.inMilliseconds) of 800 ms")
        }

        @Test("A redis in a Lua loop is on a processor, and its stack reaches down to its loop")
        func runningRedis() throws {
            let host = try Host.redis(environment: [:])
            defer { host.end() }
            let connection = try Connection(host.address)
            try connection.send("EVAL \"while true do end\" 0\r\n")
            let report = try eventually("redis to spin") {
                let report = try dump(host.pid)
                return try thread(report, host.pid).state == .busy ? report : nil
            }
            let main = try thread(report, host.pid)
            #expect(main.method == .ptrace)
            #expect(!main.truncated)
            let names = functions(main, in: report)
            for name in ["lua_pcall", "evalGenericCommand", "aeMain", "main"] { #expect(names.contains(name)) }
        }

        @Test("A server that dies of EINTR in epoll_wait lives through a hundred dumps, idle and under load")
        func strictServer() throws {
            let host = try Host.epollServer(["--strict"], environment: Agent.preload(threshold: "20ms"))
            defer { host.end() }
            let load = try Connection(host.address)
            var stacks = 0
            for round in 0..<100 {
                if round % 2 == 0 { try load.send("storm 3\n") }
                let result = try LoopLagTool.run(["dump", "\(host.pid)"])
                #expect(result.status == .exited(0), "\(result.errors)")
                if result.output.contains("main") { stacks += 1 }
                if round % 2 == 0 { _ = try load.readLine() }
            }
            #expect(host.child.isRunning, "\(host.child.errors.text)")
            #expect(try Client.ask("eintr", of: host.address).duration == .zero)
            #expect(stacks == 100)
        }

        @Test("node, uvicorn and a Swift server show every loop with its kind")
        func kindsOfLoops() throws {
            let hosts: [(Host, String, String)] = [
                (try .node(environment: Agent.preload()), "libuv", "uv_run"),
                (try .uvicorn(loop: "uvloop", environment: Agent.preload()), "uvloop", "uv_run"),
                (try .demo(), "nio", "NIOPosix.SelectableEventLoop.run()"),
            ]
            defer { for (host, _, _) in hosts { host.end() } }
            for (host, kind, function) in hosts {
                let report = try eventually("a loop in \(kind)") {
                    let report = try dump(host.pid)
                    return report.processes.first?.loops.isEmpty == false ? report : nil
                }
                let process = try #require(report.processes.first)
                let threads = try #require(process.dump)
                let loops = process.loops.filter { $0.role == .server }
                #expect(Set(loops.map(\.id)) == Set(threads.compactMap(\.loopID)))
                for thread in threads {
                    #expect(functions(thread, in: report).contains(function), "\(kind)")
                    #expect(!thread.truncated, "\(kind)")
                }
                #expect(loops.allSatisfy { $0.kind == kind })
            }
        }

        @Test("--all-threads shows the workers too, and none of them is blamed")
        func allThreads() throws {
            let host = try Host.redis(environment: [:])
            defer { host.end() }
            let report = try dump(host.pid, ["--all-threads"])
            let threads = try #require(report.processes.first?.dump)
            #expect(threads.count == ProcessTable.threadNames(of: host.pid).count)
            #expect(threads.count > 1)
            for thread in threads where thread.tid != host.pid { #expect(thread.culprit == nil) }
        }

        @Test("No process, and one that is none, are told with the right status")
        func nobody() throws {
            let missing = try LoopLagTool.run(["dump", "4194000"])
            #expect(missing.status == .exited(3))
            #expect(missing.errors.contains("no process 4194000"))
            #expect(try LoopLagTool.run(["dump", "0"]).status == .exited(64))
            let kernel = try LoopLagTool.run(["dump", "2"])
            #expect(kernel.status != .exited(0))
        }
    }
}
