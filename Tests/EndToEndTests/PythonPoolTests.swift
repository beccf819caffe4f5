/// The pools behind Python servers: how full they are, how long their queues are waited in, and which server runs them.
/// The truths are the fixture's: its jobs' own clocks, its clients' waits, and how it fills its pools.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Pools of Python servers")
    struct PythonPoolTests {
        @Test("Pools are read as they are: 30 jobs on 6 threads, 60 sync requests on 40 tokens")
        func pools() throws {
            let host = try Host.uvicorn(loop: "asyncio", application: "blocking:app", environment: Agent.preload())
            defer { host.end() }
            var slowest = Duration.zero
            let report = try LoopLagTool.record(host.pid, for: .seconds(7)) {
                _ = try Client.get("/jobs", of: host.address)
                slowest = try Client.timeTogether((0..<60).map { _ in "/sync-second" }, of: host.address).last ?? .zero
            }
            let process = try #require(report.processes.first)
            let jobs = try #require(process.pools.first { $0.name == "jobs" })
            #expect(jobs.kind == "thread-pool-executor")
            #expect(jobs.threads == 6)
            #expect(jobs.busy?.max == 6)
            #expect(jobs.queueDepth?.max == 24)
            let anyio = try #require(process.pools.first { $0.kind == "anyio" })
            #expect(anyio.threads == 40)
            #expect(anyio.busy?.max == 40)
            #expect(anyio.queueDepth?.max == 20)
            // The last six jobs wait four seconds; a request waits for a token as long as it
            // takes longer than its second, less what the server took to read it.
            let longest = Duration.nanoseconds(jobs.queueWait?.maxNS ?? 0)
            #expect(longest >= .milliseconds(3700) && longest <= .milliseconds(4800), "\(longest)")
            let request = Duration.nanoseconds(anyio.queueWait?.maxNS ?? 0)
            let truth = slowest - .seconds(1)
            #expect(
                request >= .milliseconds(200) && request <= truth + .milliseconds(100), "\(request), \(truth)")
            #expect(report.findings.contains { $0.id.hasSuffix("pool-full") })
            figure(
                "pools: jobs depth \(jobs.queueDepth?.max ?? -1) of \(jobs.threads ?? -1) threads, wait p50 "
                    + "\(Duration.nanoseconds(jobs.queueWait?.p50NS ?? 0).inMilliseconds) max \(longest.inMilliseconds); "
                    + "anyio \(anyio.busy?.max ?? -1) of \(anyio.threads ?? -1), \(anyio.queueDepth?.max ?? -1) waiting, "
                    + "wait max \(request.inMilliseconds)")
        }

        @Test(
            "Six jobs of 100 ms on two threads wait as long as their own clocks say",
            arguments: ["asyncio", "uvloop"])
        func waits(loop: String) throws {
            let host = try Host.uvicorn(
                loop: loop, application: "blocking:app", environment: Agent.preload(["JSON_MEGABYTES": "1"]))
            defer { host.end() }
            var truth: [Duration] = []
            let report = try LoopLagTool.record(host.pid, for: .seconds(3)) {
                let answer = try Client.get("/pair", of: host.address)
                truth = answer.split(whereSeparator: \.isWhitespace).compactMap { Int($0) }.map { .nanoseconds($0) }
                    .sorted()
            }
            try #require(truth.count == 6)
            let pool = try #require(report.processes.first?.pools.first { $0.name == "pair" })
            let wait = try #require(pool.queueWait)
            let median = Duration.nanoseconds(wait.p50NS ?? 0)
            let longest = Duration.nanoseconds(wait.maxNS ?? 0)
            figure(
                "\(loop): jobs waited \(truth.map(\.inMilliseconds)); read p50 \(median.inMilliseconds), "
                    + "max \(longest.inMilliseconds)")
            #expect(pool.threads == 2)
            #expect(pool.method == .exact && wait.method == .estimate)
            // Looked at every 20 ms; a busy machine looks later.
            let late = Duration.nanoseconds(report.processes.first?.agent.cpuNS ?? 0)
            let allowed = Duration.milliseconds(45) + late
            #expect(median >= truth[2] - allowed && median <= truth[3] + allowed)
            #expect(longest >= truth[5] - allowed && longest <= truth[5] + allowed)
            // The two that did not wait are among them: without them the median would be that of the last four.
            #expect(median <= (truth[3] + truth[4]) / 2)
        }

        @Test(
            "Hypercorn, and gunicorn with either class of workers, tell function, request and pools",
            arguments: ["hypercorn", "UvicornWorker", "UvicornH11Worker"])
        func otherServers(server: String) throws {
            let host =
                try server == "hypercorn"
                ? Host.hypercorn(application: "blocking", environment: Agent.preload(["JSON_MEGABYTES": "1"]))
                : Host.gunicorn(
                    workers: 1, application: "blocking:app", workerClass: server,
                    environment: Agent.preload(["JSON_MEGABYTES": "1"]))
            defer { host.end() }
            let pid = try server == "hypercorn" ? host.pid : host.worker()
            let report = try LoopLagTool.record(pid, for: .seconds(5)) {
                _ = try Client.get("/sleep?ms=300", of: host.address)
                _ = try Client.get("/jobs?ms=300", of: host.address)
                _ = try Client.timeTogether((0..<45).map { _ in "/sync-second?ms=700" }, of: host.address)
            }
            let process = try #require(report.processes.first)
            let stall = try #require(process.stalls.first { $0.request?.path == "/sleep" })
            #expect(stall.request?.method == "GET")
            #expect(stall.culprit?.function == "slow_helper")
            #expect(stall.task?.isEmpty == false)
            let loop = try #require(process.loops.first { $0.role == .server })
            #expect(loop.kind == (server == "UvicornWorker" ? "uvloop" : "asyncio"))
            let jobs = try #require(process.pools.first { $0.name == "jobs" })
            #expect(jobs.threads == 6)
            #expect(jobs.busy?.max == 6)
            #expect((jobs.queueDepth?.max ?? 0) >= 18, "\(jobs)")
            let anyio = try #require(process.pools.first { $0.kind == "anyio" })
            #expect(anyio.threads == 40)
            #expect(anyio.busy?.max == 40)
            #expect((1...5).contains(anyio.queueDepth?.max ?? 0), "\(anyio)")
            figure(
                "\(server): \(loop.kind), stall of \(stall.culprit?.function ?? "-") for \(stall.request?.path ?? "-"), "
                    + "jobs \(jobs.busy?.max ?? -1) of \(jobs.threads ?? -1) with \(jobs.queueDepth?.max ?? -1) waiting, "
                    + "anyio \(anyio.busy?.max ?? -1) of \(anyio.threads ?? -1) with \(anyio.queueDepth?.max ?? -1)")
        }
    }
}
