/// libuv's thread pool on every node: its size, what waits, and for how long. The truth is the host's own clock round
/// calls that take no time of their own (`pool.js`).

import Foundation
import LoopLagModel
import Testing

/// `pool.js`, run to its end under `looplag run -o`: its own waits, and what the report says.
private struct PoolRun {
    var waits: [Double]
    var report: Report
    var process: ReportProcess
    var pool: ReportPool
    var took: Duration

    init(node: String, threads: Int, options: [String], inScript: Bool = false) throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "looplag-test-\(UUID().uuidString).json")
        defer { try? FileManager.default.removeItem(at: file) }
        let size = inScript ? ["--threads=\(threads)"] : []
        let began = MonotonicTime.now()
        let result = try LoopLagTool.run(
            ["run", "-o", file.path, "--", Tools.installed(node), Tools.host("pool.js")] + options + size,
            environment: ["UV_THREADPOOL_SIZE": inScript ? "" : "\(threads)"], within: .seconds(60))
        took = MonotonicTime.now().since(began)
        guard result.status == .exited(0) else {
            throw SpawnFailed(description: "\(node) ended with \(result.status): \(result.errors.suffix(2000))")
        }
        struct Told: Decodable { var waits: [Double] }
        let line = result.output.split(separator: "\n").last { $0.hasPrefix("{") }
        waits = try line.map { try JSONDecoder().decode(Told.self, from: Data($0.utf8)).waits } ?? []
        report = try ReportFile.read(file)
        process = try #require(report.processes.first { $0.runtime?.name == .node })
        pool = try #require(process.pools.first { $0.kind == "libuv" })
    }

    /// A wait, in milliseconds.
    func measured(_ value: KeyPath<ReportPool.QueueWait, Int64?>) throws -> Double {
        Double(try #require(pool.queueWait?[keyPath: value])) / 1e6
    }

    var truth: Double { waits.max() ?? 0 }

    /// A full pool is no reason for a stall: only a machine that does not let the loop run is.
    func expectHealthyLoop() {
        #expect(process.stalls.allSatisfy { $0.cause == .runQueue }, "\(process.stalls.map(\.cause))")
    }
}

extension EndToEnd {
    @Suite("libuv's thread pool")
    struct NodePoolTests {
        @Test(
            "Size, depth and waits of a pool that can be read agree with the server's own clock",
            arguments: ["NODE18", "NODE", "NODE22", "NODE24"], [1, 8])
        func exact(node: String, threads: Int) throws {
            let run = try PoolRun(node: node, threads: threads, options: ["--length=\(threads == 1 ? 30 : 100)"])
            #expect(run.process.agent.degraded.allSatisfy { $0 == "budget" })
            #expect(run.pool.method == .exact)
            #expect(run.pool.threads == threads)
            #expect(run.pool.busy?.max == Int64(threads))
            #expect((1...17).contains(run.pool.inFlight?.max ?? 0))
            #expect((run.pool.queueDepth?.max ?? 0) <= 17)
            #expect(run.pool.queueWait?.method == .estimate)
            // The last one in the queue waits longest. It is seen to come and to go at the watchdog's looks: a whole
            // threshold apart while all is calm, 20 ms while something waits, later on a busy machine.
            let longest = try run.measured(\.maxNS)
            #expect(abs(longest - run.truth) <= 120 + run.truth * 0.15, "\(longest) of \(run.truth) ms")
            run.expectHealthyLoop()
            figure(
                "\(node) x \(threads) threads: longest wait \(Int(longest)) ms, by its own clock \(Int(run.truth)) ms")
        }

        @Test(
            "A stripped libuv is estimated by name, and a probe measures the wait",
            arguments: [(4, false), (1, false), (8, true)])
        func stripped(threads: Int, inScript: Bool) throws {
            let run = try PoolRun(
                node: "NODE_DEBIAN", threads: threads,
                options: ["--seconds=3", "--length=\(threads == 1 ? 30 : 100)"], inScript: inScript)
            #expect(run.process.agent.degraded.allSatisfy { $0 == "budget" })
            #expect(run.pool.method == .estimate)
            #expect(run.pool.threads == threads)
            #expect(run.pool.busy?.max == Int64(threads))
            // Sixteen jobs, and the looks of the last wait: a look each quarter of a second.
            let most = Int64(17 + run.truth / 250)
            #expect((16...most + 1).contains(run.pool.inFlight?.max ?? 0), "\(run.pool)")
            #expect(run.pool.queueWait?.method == .probe)
            // The probe's waits are among those of the server's own looks at the same queue.
            let shortest = run.waits.min() ?? 0
            for value in [\ReportPool.QueueWait.p50NS, \.maxNS] {
                let wait = try run.measured(value)
                #expect(wait >= shortest * 0.8 - 20 && wait <= run.truth * 1.2 + 20, "\(wait) ms: \(run.waits)")
            }
            run.expectHealthyLoop()
            figure(
                "a stripped libuv x \(threads) threads: probe \(try Int(run.measured(\.p50NS))) ms, by its own clock "
                    + "\(Int(shortest)) to \(Int(run.truth)) ms")
        }

        @Test("A probe under way neither keeps a process nor a worker from ending", arguments: ["exit", "worker"])
        func leaving(how: String) throws {
            let options = ["--seconds=30", "--leave=\(how)", "--length=50"]
            let run = try PoolRun(node: "NODE_DEBIAN", threads: 4, options: options)
            // It ends after a second, and when the work has had its turn that is under way then.
            #expect(run.took < .seconds(15), "\(run.took)")
            #expect(run.pool.queueDepth?.max ?? 0 > 0)
        }
    }
}
