/// Node beside what else watches a node server: CPU per request against a plain control, and what each says of a 200 ms
/// stall every 2.5 s. A profile holds the time of each function and no stall; what can be read from it is said.
///
/// `looplag-bench --only peers`. Called by Bench, one thread. Five servers live at the same time and take turns at the
/// same load, as in RequestCost; two of them are plain, and the ratio of these two says how much is noise.

import Glibc
import LoopLagModel
import LoopLagTelemetry

enum NodePeers {
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
        command.append(peer.rawValue)
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
        let turns = try NodeTurns(Peer.allCases, plain: .plain) { (peer) throws(BenchError) in try start(peer, plan) }
        try turns.measure(
            into: &table, "node, CPU per request", requests: plan.isQuick ? 2000 : 6000,
            rounds: plan.isQuick ? 5 : 15)
    }

    // MARK: - what each says of stalls

    private static func stalls(_ table: inout Table, _ plan: Plan) throws(BenchError) {
        try seenByBoth(&table, plan)
        for peer in [Peer.cpuProfile, .inspector] {
            let server = try start(peer, plan)
            let connection = try Connection(server)
            _ = try stall(connection, plan)
            // The inspector's profile is asked for while the server lives; the other is written at its end.
            var told: String?
            if peer == .inspector { told = try connection.ask(.block(milliseconds: 0), within: 20).told }
            server.host.end()
            if peer == .cpuProfile { told = try summary(ofProfileIn: plan) }
            guard let text = told else { throw BenchError("no profile came") }
            table.note("node, 200 ms every 2.5 s: \(peer.rawValue)", "no stall, no delay: \(text)")
        }
    }

    /// Handlers that spin, and the time that they took by their own clock.
    private static func stall(_ connection: Connection, _ plan: Plan) throws(BenchError) -> [Double] {
        var lengths: [Double] = []
        for _ in 0..<(plan.isQuick ? 4 : 12) {
            pause(milliseconds: pauseMilliseconds)
            let answer = try connection.ask(.spin(milliseconds: stallMilliseconds), within: 10)
            guard let length = answer.blocked else { throw BenchError("the handler did not say how long it took") }
            lengths.append(length)
        }
        return lengths
    }

    /// One server that carries the agent and the monitor, so that they see the same stalls.
    private static func seenByBoth(_ table: inout Table, _ plan: Plan) throws(BenchError) {
        let environment = ["LD_PRELOAD": try Products.agent()]
        let command = ["node", try plan.write(script, to: "peers.js"), Peer.delayMonitor.rawValue]
        let server = try listening(Host(command, environment: environment))
        let telemetry = try Segments.of(server.host, within: 5)
        let connection = try Connection(server)
        _ = try connection.ask(.ok, within: 5)
        _ = try connection.ask(.spin(milliseconds: 0), within: 5)
        let first = try snapshot(telemetry)
        let began = now()
        let lengths = try stall(connection, plan)
        pause(milliseconds: 100)
        let nanoseconds = now() - began
        let last = try snapshot(telemetry)
        guard let loop = last.loops.max(by: { $0.iterations < $1.iterations }) else {
            throw BenchError("the agent saw no loop")
        }
        let before = first.loops.first { $0.id == loop.id }?.histogram ?? IterationHistogram()
        let delay = DelayDistribution(
            histogram: loop.histogram.since(before), window: .nanoseconds(Int64(nanoseconds)))
        let p99 = delay.delay(atQuantile: 0.99).map { milliseconds(Double($0.nanosecondCount)) } ?? "unknown"
        let known = Set(first.stalls.map(\.id))
        let stalls = last.stalls.filter { !known.contains($0.id) }
        let error = zip(stalls.map { Double($0.duration.nanosecondCount) }.sorted(), lengths.sorted())
            .map { abs($0 - $1) }.max()
        table.note(
            "node, 200 ms every 2.5 s: by the handler's own clock",
            "delay p99 \(milliseconds(delayed(lengths, of: Double(nanoseconds)))), \(lengths.count) stalls")
        table.note(
            "node, 200 ms every 2.5 s: looplag",
            "delay p99 \(p99), \(stalls.count) stalls, each right to "
                + (stalls.count == lengths.count ? error.map(milliseconds) ?? "?" : "?"))
        // The monitor answers in the place of a length: p99, in nanoseconds.
        let told = try connection.ask(.block(milliseconds: 0), within: 5)
        table.note(
            "node, 200 ms every 2.5 s: monitorEventLoopDelay(10)",
            "p99 \(told.blocked.map(milliseconds) ?? "unknown"), no stalls, no culprit")
    }

    /// What one of a hundred events waits longer than, that arrive at random moments: the sum of what is above it in each
    /// stall is a hundredth of the time.
    private static func delayed(_ lengths: [Double], of window: Double) -> Double {
        var low = 0.0
        var high = lengths.max() ?? 0
        for _ in 0..<60 {
            let middle = (low + high) / 2
            if lengths.reduce(0, { $0 + max(0, $1 - middle) }) > window / 100 { low = middle } else { high = middle }
        }
        return low
    }

    /// Read by node itself: it wrote it.
    private static func summary(ofProfileIn plan: Plan) throws(BenchError) -> String {
        let program = try plan.write(profileReader, to: "profile.js")
        let reader = try Host(["node", program, plan.folder])
        defer { reader.end() }
        return try reader.line(within: 30)
    }

    private static func snapshot(_ telemetry: ProcessTelemetry) throws(BenchError) -> ProcessSnapshot {
        do throws(TelemetryError) {
            return try telemetry.poll().snapshot
        } catch {
            throw BenchError("the segment: \(error.message)")
        }
    }

    /// How much of a profile is the handler that stalled.
    private static let summarize = """
        function summarize(profile) {
          const within = new Set();
          for (const { id, callFrame, children } of profile.nodes) {
            if (callFrame.functionName !== 'stalling' && !within.has(id)) continue;
            within.add(id);
            for (const child of children ?? []) within.add(child);
          }
          const inHandler = profile.samples.filter((id) => within.has(id)).length;
          const share = (inHandler * 100 / profile.samples.length).toFixed(1);
          return profile.samples.length + ' samples, ' + share + ' % of them in the function that stalled';
        }

        """

    private static let profileReader =
        summarize + """
            const fs = require('fs');
            const folder = process.argv[2];
            const files = fs.readdirSync(folder).filter((name) => name.endsWith('.cpuprofile'));
            // The servers of the measurement before have left theirs.
            files.sort((a, b) => fs.statSync(folder + '/' + b).mtimeMs - fs.statSync(folder + '/' + a).mtimeMs);
            console.log('when it ends, ' + summarize(JSON.parse(fs.readFileSync(folder + '/' + files[0]))));
            """

    /// `/spin/0` resets the monitor; `/block/0` answers its p99, or what the inspector's profile holds.
    private static let script =
        summarize + """
            const http = require('http');
            const { monitorEventLoopDelay } = require('perf_hooks');
            const peer = process.argv[2];
            let monitor, session;
            if (peer === 'monitorEventLoopDelay(10)') {
              monitor = monitorEventLoopDelay({ resolution: 10 });
              monitor.enable();
            }
            if (peer === 'inspector profiler') {
              const { Session } = require('inspector');
              session = new Session();
              session.connect();
              session.post('Profiler.enable', () => session.post('Profiler.start'));
            }
            function stalling(start, milliseconds) {
              while (process.hrtime.bigint() - start < BigInt(milliseconds) * 1000000n);
            }
            const server = http.createServer((request, response) => {
              const start = process.hrtime.bigint();
              const [, what, amount] = request.url.split('/');
              const answer = (text) => {
                const body = 'done ' + text + '\\n';
                response.setHeader('Content-Length', body.length);
                response.end(body);
              };
              if (what === 'block' && session) {
                session.post('Profiler.stop', (error, { profile }) => answer('when it is asked, ' + summarize(profile)));
              } else if (what === 'block') {
                answer(monitor ? Math.round(monitor.percentile(99)) : 0);
              } else {
                if (what === 'spin') stalling(start, amount);
                if (amount === '0' && monitor) monitor.reset();
                answer(what === 'spin' ? process.hrtime.bigint() - start : 0);
              }
            });
            server.keepAliveTimeout = 60000;
            server.listen(0, '127.0.0.1', () => console.log('listening on http=' + server.address().port));
            process.on('SIGTERM', () => process.exit(0));
            """
}
