/// Node beside what else watches a node server: CPU per request against a plain control, and what each says of a 200 ms
/// stall every 2.5 s.
///
/// `looplag-bench --only peers`. Called by Bench, one thread. Five servers live at the same time and take turns at the
/// same load, as in RequestCost; two of them are plain, and the ratio of these two says how much is noise.

import Glibc
import LoopLagModel
import LoopLagTelemetry

enum NodePeers {
    private static let connections = 8
    private static let stallMilliseconds = 200
    private static let pauseMilliseconds: UInt32 = 2300

    private enum Peer: String, CaseIterable {
        case plain, control, agent = "looplag"
        case delayMonitor = "monitorEventLoopDelay(10)"
        case cpuProfile = "--cpu-prof"
        case inspector = "inspector profiler"
    }

    static func measure(into table: inout Table, _ plan: Plan) {
        table.attempt("node, CPU per request") { (table) throws(BenchError) in try requests(&table, plan) }
        table.attempt("node, a 200 ms stall every 2.5 s") { (table) throws(BenchError) in try stalls(&table, plan) }
    }

    private static func start(_ peer: Peer, _ plan: Plan, threshold: Int = 100) throws(BenchError) -> Server {
        var command = ["node"]
        if peer == .cpuProfile { command += ["--cpu-prof", "--cpu-prof-dir=" + plan.folder] }
        command.append(try plan.write(script, to: "peers.js"))
        command.append(peer == .agent ? Peer.delayMonitor.rawValue + " off" : peer.rawValue)
        let environment: [String: String] =
            peer == .agent
            ? ["LD_PRELOAD": try Products.agent(), "LOOPLAG_THRESHOLD": "\(threshold)ms"] : [:]
        return try listening(Host(command, environment: environment))
    }

    private static func listening(_ host: Host) throws(BenchError) -> Server {
        let line = try host.line(within: 20)
        guard let text = line.split(separator: "=").last, let port = UInt16(text) else {
            throw BenchError("node did not say where it listens")
        }
        return Server(host: host, port: port, speech: .http)
    }

    // MARK: - CPU per request

    private static func requests(_ table: inout Table, _ plan: Plan) throws(BenchError) {
        let count = plan.isQuick ? 2000 : 6000
        var servers: [(peer: Peer, server: Server, load: Load)] = []
        for peer in Peer.allCases {
            let server = try start(peer, plan)
            servers.append((peer, server, try Load(server, connections: connections)))
        }
        for entry in servers { try entry.load.run(requests: count * 2, within: 60) }
        var ratios: [Peer: [Double]] = [:]
        for round in 0..<(plan.isQuick ? 5 : 15) {
            var spent: [Peer: Double] = [:]
            for step in servers.indices {
                let entry = servers[(step + round) % servers.count]
                guard let before = ProcFigures.cpu(of: entry.server.host.pid) else {
                    throw BenchError("node has ended")
                }
                try entry.load.run(requests: count, within: 60)
                pause(milliseconds: 5)
                guard let after = ProcFigures.cpu(of: entry.server.host.pid) else { throw BenchError("node has ended") }
                spent[entry.peer] = Double(after &- before)
            }
            guard let plain = spent[.plain], plain > 0 else {
                throw BenchError("schedstat does not count CPU time here")
            }
            for (peer, cpu) in spent where peer != .plain { ratios[peer, default: []].append(cpu / plain) }
        }
        for peer in Peer.allCases where peer != .plain {
            let figures = Figures(ratios[peer] ?? [])
            let range = figures.medianInterval
            table.note(
                "node, CPU per request, \(peer.rawValue) / plain",
                "\(rounded(figures.median, digits: 3)) (\(rounded(range.lowerBound, digits: 3)) to "
                    + "\(rounded(range.upperBound, digits: 3)))")
        }
    }

    // MARK: - what each says of stalls

    /// One server that carries both, so that they see the same stalls.
    private static func stalls(_ table: inout Table, _ plan: Plan) throws(BenchError) {
        let environment = ["LD_PRELOAD": try Products.agent()]
        let command = ["node", try plan.write(script, to: "peers.js"), Peer.delayMonitor.rawValue]
        let server = try listening(Host(command, environment: environment))
        let telemetry = try Segments.of(server.host, within: 5)
        let connection = try Connection(server)
        _ = try connection.ask(.ok, within: 5)
        _ = try connection.ask(.spin(milliseconds: 0), within: 5)
        let first = try snapshot(telemetry)
        let began = now()
        for _ in 0..<(plan.isQuick ? 4 : 12) {
            pause(milliseconds: pauseMilliseconds)
            _ = try connection.ask(.spin(milliseconds: stallMilliseconds), within: 10)
        }
        pause(milliseconds: 100)
        let window = Duration.nanoseconds(Int64(now() - began))
        let last = try snapshot(telemetry)
        guard let loop = last.loops.max(by: { $0.iterations < $1.iterations }) else {
            throw BenchError("the agent saw no loop")
        }
        let before = first.loops.first { $0.id == loop.id }?.histogram ?? IterationHistogram()
        let delay = DelayDistribution(histogram: loop.histogram.since(before), window: window)
        let stalls = last.stalls.count { $0.duration >= .milliseconds(Int64(stallMilliseconds) * 9 / 10) }
        table.note(
            "node, 200 ms every 2.5 s: looplag",
            "delay p99 \(milliseconds(delay.delay(atQuantile: 0.99))), \(stalls) stalls on record")
        // The monitor answers in the body's place of a length: p99, in nanoseconds.
        let told = try connection.ask(.block(milliseconds: 0), within: 5)
        table.note(
            "node, 200 ms every 2.5 s: monitorEventLoopDelay(10)",
            "p99 \(told.blocked.map { rounded($0 / 1e6, digits: 1) + " ms" } ?? "unknown")")
    }

    private static func milliseconds(_ duration: Duration?) -> String {
        duration.map { rounded(Double($0.nanosecondCount) / 1e6, digits: 1) + " ms" } ?? "unknown"
    }

    private static func snapshot(_ telemetry: ProcessTelemetry) throws(BenchError) -> ProcessSnapshot {
        do throws(TelemetryError) {
            return try telemetry.poll().snapshot
        } catch {
            throw BenchError("the segment: \(error.message)")
        }
    }

    /// `/block/0` answers the monitor's p99, and `/spin/0` resets it.
    private static let script = """
        const http = require('http');
        const { monitorEventLoopDelay } = require('perf_hooks');
        const peer = process.argv[2];
        let monitor;
        if (peer === 'monitorEventLoopDelay(10)') {
          monitor = monitorEventLoopDelay({ resolution: 10 });
          monitor.enable();
        }
        if (peer === 'inspector profiler') {
          const { Session } = require('inspector');
          const session = new Session();
          session.connect();
          session.post('Profiler.enable', () => session.post('Profiler.start'));
        }
        const server = http.createServer((request, response) => {
          const start = process.hrtime.bigint();
          const [, what, amount] = request.url.split('/');
          if (what === 'spin') {
            while (process.hrtime.bigint() - start < BigInt(amount) * 1000000n);
            if (amount === '0' && monitor) monitor.reset();
          }
          const told = what === 'block' && monitor ? Math.round(monitor.percentile(99)) : 0;
          const body = 'done ' + told + '\\n';
          response.setHeader('Content-Length', body.length);
          response.end(body);
        });
        server.keepAliveTimeout = 60000;
        server.listen(0, '127.0.0.1', () => console.log('listening on http=' + server.address().port));
        process.on('SIGTERM', () => process.exit(0));
        """
}
