/// `looplag dump` of servers with an interpreter: whose function each loop is in, and whose hold the pools' slots; with an
/// agent, with one that is loaded for the moment, and without.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Stacks on demand, with an interpreter's frames")
    struct ManagedDumpTests {
        private func uvicorn(_ loop: String, preloaded: Bool = true) throws -> Host {
            let small = ["JSON_MEGABYTES": "1"]
            return try Host.uvicorn(
                loop: loop, application: "blocking:app", environment: preloaded ? Agent.preload(small) : small)
        }

        private func dump(_ pid: Int32, _ options: [String] = []) throws -> (report: Report, errors: String) {
            let result = try LoopLagTool.run(["dump", "\(pid)", "--json"] + options)
            guard result.status == .exited(0) else {
                throw SpawnFailed(description: "looplag dump: \(result.status): \(result.errors)")
            }
            let file = FileManager.default.temporaryDirectory.appending(path: "looplag-dump-\(UUID().uuidString).json")
            defer { try? FileManager.default.removeItem(at: file) }
            try result.output.write(to: file, atomically: true, encoding: .utf8)
            return (try ReportFile.read(file), result.errors)
        }

        /// Requests that go on while the test does; each ends with its server at the latest.
        private func begin(_ paths: [String], of address: Address) {
            for path in paths {
                let thread = Thread { _ = try? Client.get(path, of: address, timeout: .seconds(60)) }
                thread.stackSize = 256 << 10
                thread.start()
            }
        }

        private func frames(_ thread: ReportThread, in report: Report) -> [Frame] {
            thread.stack.map { report.frames[$0] }
        }

        @Test(
            "Sixty sync requests on forty tokens: each slot's holder with its stack, and twenty that wait",
            arguments: ["asyncio", "uvloop"])
        func slots(loop: String) throws {
            let host = try uvicorn(loop)
            defer { host.end() }
            _ = try Client.get("/jobs?ms=8000", of: host.address)
            begin((0..<60).map { _ in "/sync-second?ms=6000" }, of: host.address)
            // By the handlers' own word: a busy machine takes its time to connect sixty, and to start forty threads.
            let truth = try eventually("forty handlers at once", within: .seconds(20)) {
                let held = try Client.get("/held", of: host.address).split(whereSeparator: \.isWhitespace)
                return held.count == 40 ? Set(held.compactMap { Int32($0) }) : nil
            }
            let (report, process, anyio) = try eventually("twenty waiting", within: .seconds(20)) {
                let (report, _) = try dump(host.pid)
                guard let process = report.processes.first,
                    let anyio = process.pools.first(where: { $0.kind == "anyio" }), anyio.queueDepth?.last == 20
                else { return nil as (Report, ReportProcess, ReportPool)? }
                return (report, process, anyio)
            }
            #expect(anyio.busy?.last == 40)
            #expect(truth.count == 40)
            #expect(anyio.threads == 40)
            let threads = try #require(process.dump)
            let holders = threads.filter { $0.poolID == anyio.id }
            #expect(holders.count == 40)
            #expect(Set(holders.map(\.tid)) == truth)
            for holder in holders {
                #expect(frames(holder, in: report).first?.function == "hold_worker")
                #expect(holder.culprit?.function == "hold_worker")
                #expect(holder.syscall == "clock_nanosleep" || holder.syscall == "pselect6")
                #expect(holder.state == .busy && holder.method == .passive)
            }
            let jobs = try #require(process.pools.first { $0.name == "jobs" })
            #expect(jobs.busy?.last == 6 && jobs.queueDepth?.last == 24)
            let workers = threads.filter { $0.poolID == jobs.id }
            #expect(workers.count == 6)
            #expect(workers.allSatisfy { frames($0, in: report).map(\.function).contains("_WorkItem.run") })
            let main = try #require(threads.first { $0.tid == host.pid })
            #expect(main.loopID == process.loops.first?.id)
            #expect(frames(main, in: report).contains { $0.kind == .python && $0.function == "_run_module_as_main" })
            let text = try LoopLagTool.run(["dump", "\(host.pid)"]).output
            #expect(text.contains("pool anyio  40 of 40 busy, 20 queued"))
            #expect(text.contains("  40 x in "))
            #expect(text.components(separatedBy: "hold_worker").count == 2, "not folded: \(text)")
        }

        @Test(
            "A sleeping async handler is shown with its Python frames and request, and sleeps as long as it asked for")
        func sleeping() throws {
            let host = try uvicorn("asyncio")
            defer { host.end() }
            let file = FileManager.default.temporaryDirectory.appending(path: "looplag-answer-\(UUID().uuidString)")
            defer { try? FileManager.default.removeItem(at: file) }
            let address = host.address
            Thread {
                try? Client.get("/sleep?ms=2500", of: address).write(to: file, atomically: true, encoding: .utf8)
            }.start()
            let (report, main) = try eventually("the sleep") {
                let (report, _) = try dump(host.pid)
                let main = report.processes.first?.dump?.first { $0.tid == host.pid && $0.state == .busy }
                return main.map { (report, $0) }
            }
            let stack = frames(main, in: report)
            let helper = try #require(stack.firstIndex { $0.function == "slow_helper" }, "\(stack.map(\.function))")
            #expect(stack[..<helper].allSatisfy { $0.kind == .native })
            #expect(stack[helper + 1].function == "sleep_in_async" && stack[helper + 1].coroutine == true)
            #expect(main.culprit?.function == "slow_helper")
            #expect(main.request == ReportStall.Request(method: "GET", path: "/sleep"))
            #expect(main.task?.isEmpty == false)
            let answer = try eventually("the answer") { try? HandlerAnswer(String(contentsOf: file, encoding: .utf8)) }
            #expect(answer.duration >= .milliseconds(2500))
        }

        @Test("Without an agent one is loaded for the dump and taken out; --no-attach loads none")
        func loaded() throws {
            let host = try uvicorn("uvloop", preloaded: false)
            defer { host.end() }
            begin((0..<3).map { _ in "/sync-second?ms=6000" }, of: host.address)
            _ = try eventually("three handlers") {
                try Client.get("/held", of: host.address).split(separator: " ").count == 3 ? true : nil
            }
            let (native, _) = try dump(host.pid, ["--no-attach"])
            #expect(native.processes.first?.loops.isEmpty == true)
            #expect(!native.frames.contains { $0.kind == .python })
            let maps = "/proc/\(host.pid)/maps"
            #expect(try !String(contentsOfFile: maps, encoding: .utf8).contains("looplag-agent"))
            let (report, errors) = try dump(host.pid)
            #expect(errors.isEmpty)
            let process = try #require(report.processes.first)
            let anyio = try #require(process.pools.first { $0.kind == "anyio" })
            let holders = process.dump?.filter { $0.poolID == anyio.id } ?? []
            #expect(holders.count == 3)
            #expect(holders.allSatisfy { frames($0, in: report).first?.function == "hold_worker" })
            let main = try #require(process.dump?.first { $0.tid == host.pid })
            #expect(frames(main, in: report).contains { $0.function == "_run_module_as_main" })
            #expect(Segments.path(ofProcess: host.pid) == nil, "the agent was left in it")
            _ = try Client.get("/ok", of: host.address)
        }

        @Test("A stalled server without an agent is shown with native frames at once, with a line that says why")
        func stalled() throws {
            let host = try uvicorn("asyncio", preloaded: false)
            defer { host.end() }
            begin(["/sleep?ms=4000"], of: host.address)
            let (report, errors) = try eventually("the sleep") {
                let (report, errors) = try dump(host.pid)
                let main = report.processes.first?.dump?.first { $0.tid == host.pid }
                return main?.syscall == "clock_nanosleep" ? (report, errors) : nil
            }
            let lines = errors.split(separator: "\n")
            #expect(lines.count == 1)
            #expect(lines.first?.contains("native frames only of \(host.pid)") == true)
            #expect(report.frames.contains { $0.function.contains("sleep") })
            #expect(Segments.path(ofProcess: host.pid) == nil)
        }

        @Test("node: JavaScript frames of a busy loop, and native stacks of the four that hold libuv's pool")
        func node() throws {
            let host = try Host.node(environment: Agent.preload())
            defer { host.end() }
            _ = try Client.get("/pool", of: host.address)
            begin(["/cpu?ms=4000"], of: host.address)
            let (report, process, main) = try eventually("the loop to be busy") {
                let (report, _) = try dump(host.pid)
                let process = report.processes.first
                let main = process?.dump?.first { $0.tid == host.pid && $0.state == .busy }
                return process.flatMap { process in main.map { (report, process, $0) } }
            }
            #expect(frames(main, in: report).contains { $0.kind == .javascript && $0.function == "spin" })
            #expect(main.culprit?.function == "spin")
            let pool = try #require(process.pools.first { $0.kind == "libuv" })
            #expect(pool.busy?.last == 4 && pool.threads == 4)
            #expect(process.dump?.filter { $0.poolID == pool.id }.count == 4)
        }
    }
}
