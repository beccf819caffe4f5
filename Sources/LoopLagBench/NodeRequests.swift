/// What `--requests` costs a node server: CPU per request with the agent and with the requests noted too, against a plain
/// server, and a plain one beside it that says how much is noise.
///
/// `looplag-bench --only node-requests`; LOOPLAG_BENCH_NODE names another node than the one on PATH. Called by Bench, one
/// thread. The servers live at the same time and take turns at the same load, as in RequestCost. One row for a handler
/// that answers at once, one for a handler that awaits eight times, a timer and a file among them.

import Glibc
import LoopLagAttach

enum NodeRequests {

    private enum Kind: String, CaseIterable {
        case plain, control, agent = "looplag"
        case requests = "looplag --requests"
    }

    static func measure(into table: inout Table, _ plan: Plan) {
        for handler in ["at once", "after eight awaits"] {
            table.attempt("node, CPU per request \(handler)") { (table) throws(BenchError) in
                try measure(handler, &table, plan)
            }
        }
    }

    private static func start(_ kind: Kind, _ handler: String, _ plan: Plan) throws(BenchError) -> Server {
        let node = getenv("LOOPLAG_BENCH_NODE").map { String(cString: $0) } ?? "node"
        var command = [node]
        let agent = try Products.agent()
        if kind == .requests {
            command += ["--require", try plan.write(NodeProgram.module(agent: agent), to: "looplag-requests.cjs")]
        }
        command += [try plan.write(script, to: "requests.js"), handler]
        let isPlain = kind == .plain || kind == .control
        let host = try Host(command, environment: isPlain ? [:] : ["LD_PRELOAD": agent])
        guard let text = try host.line(within: 20).split(separator: "=").last, let port = UInt16(text) else {
            throw BenchError("node did not say where it listens")
        }
        return Server(host: host, port: port, speech: .http)
    }

    private static func measure(_ handler: String, _ table: inout Table, _ plan: Plan) throws(BenchError) {
        let turns = try NodeTurns(Kind.allCases, plain: .plain) { (kind) throws(BenchError) in
            try start(kind, handler, plan)
        }
        try turns.measure(
            into: &table, "node, CPU per request \(handler)", requests: plan.isQuick ? 1500 : 5000,
            rounds: plan.isQuick ? 7 : 21, showsPlain: true)
    }

    private static let script = """
        const http = require('http');
        const fs = require('fs');
        const later = require('timers/promises');
        async function work() {
          for (let i = 0; i < 6; i++) await null;
          await later.setImmediate();
          await fs.promises.stat(__filename);
        }
        function answer(response) {
          const body = 'done 0\\n';
          response.setHeader('Content-Length', body.length);
          response.end(body);
        }
        const isAsync = process.argv[2] !== 'at once';
        const server = http.createServer((request, response) => {
          if (isAsync) work().then(() => answer(response)); else answer(response);
        });
        server.keepAliveTimeout = 60000;
        server.listen(0, '127.0.0.1', () => console.log('listening on http=' + server.address().port));
        process.on('SIGTERM', () => process.exit(0));
        """
}
