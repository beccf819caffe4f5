/// CPython servers seen from inside: whose function blocks the loop, for which request, behind whose lock, and what does not
/// block it at all. Preloaded, with asyncio and with uvloop.
///
/// The machine that runs this may be busy: a stall may then count as `run_queue`, which is the truth. What is never
/// allowed is a wrong culprit, a wrong request, or a stall where there is none.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("What blocks a Python loop, preloaded")
    struct PythonStackTests {
        private func start(_ loop: String) throws -> Host {
            let host = try Host.uvicorn(
                loop: loop, application: "blocking:app", environment: Agent.preload(["JSON_MEGABYTES": "10"]))
            // The first request of each kind imports, compiles and makes threads.
            _ = try Client.get("/sync-cpu", of: host.address)
            return host
        }

        /// The stalls of requests to this path.
        private func stalls(_ path: String, in report: Report) throws -> [ReportStall] {
            let process = try #require(report.processes.first)
            return process.stalls.filter { $0.request?.path == path }
        }

        @Test(
            "Every kind of blocking call is one stall with Python frames, the user's function and its request",
            arguments: ["asyncio", "uvloop"])
        func kinds(loop: String) throws {
            let host = try start(loop)
            defer { host.end() }
            let wanted: [(path: String, function: String)] = [
                ("/cpu", "cpu_in_async"), ("/sleep", "slow_helper"), ("/json", "parse_json"),
                ("/regex", "match_regex"), ("/pbkdf2", "hash_password"), ("/sqlite", "query_database"),
                ("/socket", "read_socket"), ("/fill", "fill_heap"), ("/collect", "collect_garbage"),
                ("/import", "load"),
            ]
            var answers: [String: Duration] = [:]
            let report = try LoopLagTool.record(host.pid, for: .seconds(20)) {
                for (path, _) in wanted { answers[path] = try Client.getAnswer(path, of: host.address).duration }
            }
            for (path, function) in wanted {
                let handler = try #require(answers[path])
                // What a fast machine does below the threshold is no stall.
                guard handler > .milliseconds(130) else { continue }
                let stall = try #require(try stalls(path, in: report).first, "no stall for \(path), \(handler)")
                #expect(try stalls(path, in: report).count == 1)
                #expect(
                    stall.culprit?.function.contains(function) == true, "\(path): \(String(describing: stall.culprit))"
                )
                #expect(stall.culprit?.kind == .python)
                #expect(stall.culprit?.line != nil)
                #expect(stall.request?.method == "GET")
                #expect(stall.task?.isEmpty == false)
                let duration = Duration.nanoseconds(stall.durationNS)
                #expect(duration >= handler * 0.97, "\(path): \(duration), handler \(handler)")
                // What is made while the collector is off is looked through afterwards, in the same iteration.
                let most = path == "/fill" ? handler * 3 : handler * 1.1 + .milliseconds(100)
                #expect(duration <= most, "\(path): \(duration), handler \(handler)")
                let frames = stall.samples.flatMap { $0.stack.map { report.frames[$0] } }
                #expect(
                    frames.contains { $0.kind == .python && $0.coroutine == true }, "no coroutine marked in \(path)")
                figure(
                    "\(loop) \(path): stall \(duration.inMilliseconds), handler \(handler.inMilliseconds), "
                        + "\(stall.cause.rawValue), culprit \(stall.culprit?.function ?? "none"):"
                        + "\(stall.culprit?.line ?? 0), \(stall.samples.count) samples")
            }
        }

        @Test("A Python frame stands between the native frames that called it and that it calls")
        func merged() throws {
            let host = try start("asyncio")
            defer { host.end() }
            let report = try LoopLagTool.record(host.pid, for: .seconds(2)) {
                _ = try Client.get("/sleep", of: host.address)
            }
            let stall = try #require(try stalls("/sleep", in: report).first)
            let stack = try #require(stall.samples.last).stack.map { report.frames[$0] }
            let place = try #require(stack.firstIndex { $0.function == "slow_helper" })
            #expect(place > 0, "nothing below the Python frame: \(stack.map(\.function))")
            #expect(stack[..<place].allSatisfy { $0.kind == .native })
            #expect(stack[place + 1].function == "sleep_in_async")
            // The interpreter's own function is replaced by what it executes.
            #expect(!stack.contains { $0.function == "_PyEval_EvalFrameDefault" }, "\(stack.map(\.function))")
            let last = try #require(stack.last { $0.kind == .python })
            #expect(last.function == "_run_module_as_main")
        }

        @Test("A sleep in a helper is a blocking call: its cause, its system call and its length")
        func sleep() throws {
            let host = try start("uvloop")
            defer { host.end() }
            let report = try LoopLagTool.record(host.pid, for: .seconds(2)) {
                _ = try Client.get("/sleep?secret=1", of: host.address)
            }
            let stall = try #require(try stalls("/sleep", in: report).first)
            #expect(stall.cause == .syscall)
            #expect(stall.syscall == "clock_nanosleep" || stall.syscall == "pselect6")
            #expect(stall.durationNS >= 499_000_000)
            #expect(stall.samples.allSatisfy { $0.method != .signal }, "a sleeping thread was signalled")
            #expect(report.findings.contains { $0.id.hasSuffix("blocking-call") && $0.title.contains("slow_helper") })
        }

        @Test(
            "Sync routes, executors and to_thread hold no loop up; their pools make the last of many wait",
            arguments: ["asyncio", "uvloop"])
        func notOnTheLoop(loop: String) throws {
            let host = try start(loop)
            defer { host.end() }
            let processors = ProcessInfo.processInfo.activeProcessorCount
            let workers = min(32, processors + 4)
            var sync: [Duration] = []
            var executor: [Duration] = []
            let report = try LoopLagTool.record(host.pid, for: .seconds(8)) {
                for path in ["/sync-sleep", "/executor-sleep", "/to-thread-sleep"] {
                    let answer = try Client.getAnswer(path, of: host.address)
                    #expect(answer.duration >= .milliseconds(499))
                }
                sync = try Client.timeTogether(
                    (0..<41).map { _ in "/sync-sleep" }, of: host.address)
                executor = try Client.timeTogether(
                    (0...workers).map { _ in "/executor-sleep" }, of: host.address)
            }
            let process = try #require(report.processes.first)
            // To begin a thread takes a moment, on a busy machine a long one: but never the length of the work.
            let blamed = process.stalls.filter {
                $0.culprit?.file?.hasSuffix("blocking.py") == true && $0.durationNS >= 400_000_000
            }
            #expect(blamed.isEmpty, "\(blamed.map { $0.culprit?.function ?? "" })")
            // The forty-first waits for a token, the last of the executor's for a thread.
            #expect(sync[39] < sync[40] && sync[40] >= .milliseconds(900), "\(sync)")
            #expect((executor.last ?? .zero) >= .milliseconds(900), "\(executor)")
            let anyio = try #require(process.pools.first { $0.kind == "anyio" })
            #expect(anyio.threads == 40)
            // On a busy machine they do not come together: then not all are there at once.
            #expect((anyio.busy?.max ?? 0) > 20 && (anyio.busy?.max ?? 0) <= 40)
            #expect((anyio.queueDepth?.max ?? 2) <= 1)
            let pool = try #require(process.pools.first { $0.kind == "thread-pool-executor" && $0.name != "jobs" })
            #expect(pool.name == loop)
            #expect(pool.threads == workers)
            // While they are handed in more than the one can be seen to wait, but only that one waits for long.
            #expect((pool.queueDepth?.max ?? 0) >= 1)
            let waited = Duration.nanoseconds(pool.queueWait?.maxNS ?? 0)
            let truth = (executor.last ?? .zero) - .milliseconds(500)
            #expect(waited >= .milliseconds(400) && waited <= truth + .milliseconds(100), "\(waited), \(truth)")
            figure(
                "\(loop): 41 sync sleeps of 0.5 s: 40th \(sync[39].inMilliseconds), 41st \(sync[40].inMilliseconds); "
                    + "\(workers + 1) on an executor of \(workers): last \((executor.last ?? .zero).inMilliseconds)")
        }

        @Test(
            "Four blocking handlers in one iteration are each named by their request", arguments: ["asyncio", "uvloop"])
        func batched(loop: String) throws {
            let host = try start(loop)
            defer { host.end() }
            let paths = (1...4).map { "/nap/\($0)" }
            let report = try LoopLagTool.record(host.pid, for: .seconds(4)) {
                // They gather while the loop sleeps, and are served together.
                let address = host.address
                Thread { _ = try? Client.get("/sleep?ms=900", of: address) }.start()
                letPass(.milliseconds(300))
                _ = try Client.timeTogether(paths, of: host.address)
            }
            let process = try #require(report.processes.first)
            let stalls = process.stalls.filter { $0.culprit?.function == "nap" }
            // The first of them can share the iteration of the sleep, which is the longer.
            let named = Set(
                process.stalls.flatMap(\.samples).compactMap { $0.request?.path }.filter { $0.hasPrefix("/nap") })
            #expect(named == Set(paths), "\(named)")
            // asyncio runs all that is ready in one iteration.
            if loop == "asyncio" { #expect((stalls.map(\.durationNS).max() ?? 0) >= 390_000_000) }
            figure(
                "\(loop): four naps of 0.2 s: \(stalls.count) stalls, the worst "
                    + "\(Duration.nanoseconds(stalls.map(\.durationNS).max() ?? 0).inMilliseconds), named \(named.sorted())"
            )
        }

        @Test(
            "CPU work in sync handlers shows as lock wait of the loop, with a finding",
            arguments: ["asyncio", "uvloop"])
        func convoy(loop: String) throws {
            let host = try start(loop)
            defer { host.end() }
            // The workers exist beforehand: making a thread waits for the lock too.
            _ = try Client.timeTogether((0..<12).map { _ in "/sync-sleep" }, of: host.address)
            var together: [Duration] = []
            let report = try LoopLagTool.record(host.pid, for: .seconds(5)) {
                together = try Client.timeTogether(
                    (0..<12).map { _ in "/sync-cpu" } + (0..<6).map { _ in "/ok" }, of: host.address)
            }
            let process = try #require(report.processes.first)
            let loop0 = try #require(process.loops.first { $0.role == .server })
            let waited = try #require(loop0.gilWaitNS)
            #expect(waited >= 100_000_000, "only \(waited) ns")
            #expect(waited <= loop0.busyNS + 50_000_000)
            // Alone a request takes a twelfth of that.
            #expect((together.last ?? .zero) >= .milliseconds(500), "\(together)")
            // No callback of the loop is long. An iteration is only as long as it waits for the lock in it, and how long
            // that is is drawn by lot: with twelve threads that compute, any thread waits for 170 ms in one case of ten,
            // and up to 400 (a thread that sleeps and measures it by itself, on a machine with a load of 6).
            for stall in process.stalls {
                #expect(stall.cause == .gilWait || stall.cause == .runQueue, "\(stall.cause), \(stall.evidence)")
                #expect(stall.culprit?.function != "cpu_in_sync" || stall.blockedBy != nil)
                let own = Double(stall.durationNS) - (stall.evidence["gil_wait_time_ns"] ?? 0)
                #expect(own < 100_000_000, "\(own) ns of its own: \(stall.evidence)")
            }
            let own = loop0.busyNS - waited
            #expect(own < loop0.busyNS / 2 || own < 200_000_000, "\(own) of \(loop0.busyNS) ns")
            #expect(report.findings.contains { $0.id.hasSuffix("gil-wait") }, "\(report.findings.map(\.id))")
            figure(
                "\(loop): 12 sync handlers with CPU work: the slowest \((together.last ?? .zero).inMilliseconds), lock wait "
                    + "\(Duration.nanoseconds(waited).inMilliseconds) of "
                    + "\(Duration.nanoseconds(loop0.busyNS).inMilliseconds) busy, longest iteration "
                    + "\(Duration.nanoseconds(loop0.iteration.maxNS ?? 0).inMilliseconds), of stalls not waited "
                    + "\(process.stalls.map { Duration.nanoseconds($0.durationNS - Int64($0.evidence["gil_wait_time_ns"] ?? 0)).inMilliseconds })"
            )
        }

        @Test("A thread that holds the interpreter's lock is named, and its function is the culprit")
        func lockHolder() throws {
            let host = try start("asyncio")
            defer { host.end() }
            let report = try LoopLagTool.record(host.pid, for: .seconds(6)) {
                _ = try Client.get("/thread-json", of: host.address)
            }
            let process = try #require(report.processes.first)
            let stall = try #require(process.stalls.first { $0.blockedBy != nil }, "\(process.stalls)")
            let blocker = try #require(stall.blockedBy)
            #expect(stall.cause == .gilWait)
            #expect(stall.culprit?.function == "parse_in_thread")
            #expect(blocker.threadName.hasPrefix("asyncio_"))
            #expect(blocker.tid != host.pid)
            #expect(blocker.stack.contains { report.frames[$0].function == "parse_in_thread" })
            #expect((stall.evidence["gil_wait_time_ns"] ?? 0) >= Double(stall.durationNS) * 0.5)
            figure(
                "json.loads in a thread: the loop waited "
                    + "\(Duration.nanoseconds(stall.durationNS).inMilliseconds) for \(blocker.threadName)")
        }
    }
}
