/// What a host carries that does nothing: the object's size and needs, resident memory, the watchdog's CPU time.
///
/// Used by Bench, one after another; each starts the host it needs and ends it.

import CLoopLag
import Glibc
import LoopLagModel
import LoopLagTelemetry

/// The preload object as it would be shipped, and that it leaves a process without a loop alone.
enum ObjectCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        table.attempt("preload object, stripped", bar: "<= 128 KiB") { (table) throws(BenchError) in
            let stripped = plan.folder + "/stripped.so"
            try runTool(["strip", "-o", stripped, try Products.agent()])
            guard let bytes = ProcFigures.size(of: stripped) else { throw BenchError("strip wrote nothing") }
            table.add(
                "preload object, stripped", "\((bytes + 1023) / 1024) KiB", bar: "<= 128 KiB", holds: bytes <= 128 << 10
            )
        }
        table.attempt("preload object needs", bar: "libc only") { (table) throws(BenchError) in
            let tool = try Host(["readelf", "-d", try Products.agent()], environment: ["LC_ALL": "C"])
            let needed = try tool.everything(within: 10).filter { $0.contains("(NEEDED)") }.compactMap { line in
                line.split(separator: "[").last.map { String($0.prefix { $0 != "]" }) }
            }
            // The dynamic linker itself comes with libc.
            let others = needed.filter { !$0.hasPrefix("libc.so") && !$0.hasPrefix("ld-linux") }
            table.add(
                "preload object needs", needed.isEmpty ? "nothing" : needed.joined(separator: ", "), bar: "libc only",
                holds: others.isEmpty)
        }
        let what = "preloaded into a process that never waits"
        table.attempt(what, bar: "no thread, no segment") { (table) throws(BenchError) in
            let host = try Host(["sleep", "5"], environment: ["LD_PRELOAD": try Products.agent()])
            _ = try eventually("the start of sleep", within: 5) { () throws(BenchError) -> Bool? in
                ProcFigures.executable(of: host.pid)?.hasSuffix("/looplag-bench") == true ? nil : true
            }
            pause(milliseconds: 300)
            let threads = ProcFigures.threads(of: host.pid).count
            let isMapped = readFile("/proc/\(host.pid)/maps")?.contains("liblooplag-agent") == true
            guard isMapped, threads > 0 else { throw BenchError("the object was not loaded into sleep(1)") }
            let hasSegment = (try? SegmentDiscovery.live(pid: host.pid)) != nil
            table.add(
                what, "\(threads) thread, \(hasSegment ? "a" : "no") segment", bar: "no thread, no segment",
                holds: threads == 1 && !hasSegment)
        }
    }

    private static func runTool(_ command: [String]) throws(BenchError) {
        let tool = try Host(command)
        _ = try eventually("\(command[0])'s end", within: 10) { () throws(BenchError) -> Bool? in
            tool.isRunning ? nil : true
        }
    }
}

/// A host that only waits for clients that never come.
enum IdleHost: String {
    case redis = "redis-server"
    case demo = "looplag-demo"

    func start(withAgent: Bool, _ plan: Plan) throws(BenchError) -> Host {
        switch self {
        case .demo:
            return try ServerKind.nio.start(withAgent: withAgent, plan: plan).host
        case .redis:
            let socket = plan.folder + "/redis.sock"
            unlink(socket)
            let environment = withAgent ? ["LD_PRELOAD": try Products.agent()] : [:]
            let command = [
                "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir",
                plan.folder,
            ]
            let host = try Host(command, environment: environment)
            _ = try eventually("redis's socket", within: 10) { () throws(BenchError) -> Bool? in
                guard host.isRunning else { throw BenchError("redis-server ended at its start") }
                return access(socket, F_OK) == 0 ? true : nil
            }
            return host
        }
    }
}

enum MemoryCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        let bytes = Int(LAG_SEGMENT_BYTES) + MemoryLayout<lag_capture>.size
        table.add(
            "host memory: segment and capture slot, at most", "\(bytes / 1024) KiB", bar: "<= 2 MiB",
            holds: bytes <= 2 << 20)
        for idle in [IdleHost.redis, .demo] {
            let what = "host memory added, \(idle.rawValue)"
            table.attempt(what, bar: "<= 2 MiB") { (table) throws(BenchError) in
                var with: [Double] = []
                var without: [Double] = []
                for _ in 0..<(plan.isQuick ? 1 : 3) {
                    without.append(try resident(idle, withAgent: false, plan))
                    with.append(try resident(idle, withAgent: true, plan))
                }
                let added = Figures(with).median - Figures(without).median
                table.add(
                    what, "\(mebibytes(added)) resident (\(mebibytes(Figures(without).median)) without)",
                    bar: "<= 2 MiB", holds: added <= Double(2 << 20))
            }
        }
    }

    private static func resident(_ idle: IdleHost, withAgent: Bool, _ plan: Plan) throws(BenchError) -> Double {
        let host = try idle.start(withAgent: withAgent, plan)
        defer { host.end() }
        if withAgent { _ = try Segments.of(host, within: 5) }
        pause(milliseconds: 700)
        guard let bytes = ProcFigures.resident(host.pid) else { throw BenchError("smaps_rollup cannot be read") }
        return Double(bytes)
    }
}

enum IdleCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        let seconds = plan.isQuick ? 4.0 : 10.0
        for idle in [IdleHost.redis, .demo] {
            let what = "agent CPU, idle \(idle.rawValue)"
            table.attempt(what, bar: "<= 0.2 % of a core") { (table) throws(BenchError) in
                let host = try idle.start(withAgent: true, plan)
                defer { host.end() }
                let telemetry = try Segments.of(host, within: 5)
                guard let watchdog = telemetry.latest.agent.watchdogTID else { throw BenchError("no watchdog runs") }
                pause(milliseconds: 1000)
                let start = now()
                guard let before = ProcFigures.cpu(of: host.pid, thread: watchdog) else {
                    throw BenchError("the watchdog's schedstat cannot be read")
                }
                // What the machine takes for waking a thread that does nothing, as often as the watchdog wakes.
                let ownBefore = ProcFigures.cpu(of: getpid(), thread: getpid())
                let deadline = Deadline(seconds: seconds)
                while !deadline.hasPassed { pause(milliseconds: 100) }
                let ownAfter = ProcFigures.cpu(of: getpid(), thread: getpid())
                guard let after = ProcFigures.cpu(of: host.pid, thread: watchdog) else {
                    throw BenchError("the watchdog ended")
                }
                let elapsed = Double(now() - start)
                let share = Double(after &- before) / elapsed * 100
                let bare = Double((ownAfter ?? 0) &- (ownBefore ?? 0)) / elapsed * 100
                table.add(
                    what,
                    "\(rounded(share, digits: 3)) % over \(rounded(seconds, digits: 0)) s at 100 ms; "
                        + "a bare sleeper of its period \(rounded(bare, digits: 3)) %",
                    bar: "<= 0.2 % of a core", holds: share <= 0.2)
            }
        }
    }
}

enum Segments {
    /// The segment of a host that has just started, once its agent runs.
    static func of(_ host: Host, within seconds: Double) throws(BenchError) -> ProcessTelemetry {
        try eventually("the agent's start", within: seconds) { () throws(BenchError) -> ProcessTelemetry? in
            guard host.isRunning else { throw BenchError("the host ended at its start") }
            guard let source = try? SegmentDiscovery.live(pid: host.pid), let found = try? ProcessTelemetry(source),
                found.latest.state == .running, found.latest.agent.watchdogTID != nil
            else { return nil }
            return found
        }
    }
}
