/// How long attaching stops the borrowed thread of a running server, as the injector measures it.
///
/// `looplag-bench --only attach`. Called by Bench, one thread. The `looplag` beside the bench attaches and detaches again
/// and again; in between the server answers, so that every round meets it in its wait and not in the leavings of the
/// round before. Where tracing is not permitted the row says so.

import Glibc

enum AttachCost {
    private static let bar = "p50 <= 2 ms"

    static func measure(into table: inout Table, _ plan: Plan) {
        let rounds = plan.isQuick ? 10 : 50
        for kind in [ServerKind.node, .nio, .python] {
            let what = "attach: thread stopped, \(kind.rawValue)"
            table.attempt(what, bar: bar) { (table) throws(BenchError) in
                let server = try kind.start(withAgent: false, plan: plan)
                let connection = try Connection(server)
                try measure(what, server.host, rounds, into: &table) { () throws(BenchError) in
                    _ = try connection.ask(.ok, within: 5)
                }
            }
        }
        let what = "attach: thread stopped, redis"
        table.attempt(what, bar: bar) { (table) throws(BenchError) in
            let host = try IdleHost.redis.start(withAgent: false, plan)
            try measure(what, host, rounds, into: &table) { () throws(BenchError) in pause(milliseconds: 5) }
        }
    }

    private static func measure(
        _ what: String, _ host: Host, _ rounds: Int, into table: inout Table, between: () throws(BenchError) -> Void
    ) throws(BenchError) {
        defer { host.end() }
        var stops: [Double] = []
        var took: [Double] = []
        for _ in 0..<rounds {
            try between()
            let began = now()
            stops.append(try stopped(of: tool(["attach", "\(host.pid)", "--verbose", "--no-children"])))
            took.append(Double(now() - began))
            try between()
            _ = try tool(["detach", "\(host.pid)"])
            guard host.isRunning else { throw BenchError("the server ended") }
        }
        let figures = Figures(stops)
        table.add(
            what,
            "p50 \(milliseconds(figures.median)), p99 \(milliseconds(figures.at(0.99))), most "
                + "\(milliseconds(figures.most)); \(rounds) rounds, the whole command \(milliseconds(Figures(took).median))",
            bar: bar, holds: figures.median <= 2e6)
    }

    /// What `looplag` says of one run, on either stream.
    private static func tool(_ arguments: [String]) throws(BenchError) -> [String] {
        let host = try Host(["sh", "-c", "exec \"$@\" 2>&1", "sh", Products.path("looplag")] + arguments)
        defer { host.end() }
        return try host.everything(within: 30)
    }

    /// `... stopped for 0.254 ms, of that ...`, in nanoseconds.
    private static func stopped(of lines: [String]) throws(BenchError) -> Double {
        for line in lines {
            let words = line.split(separator: " ")
            if let at = words.firstIndex(of: "stopped"), at + 3 < words.count, words[at + 1] == "for",
                let milliseconds = Double(words[at + 2])
            {
                return milliseconds * 1e6
            }
        }
        throw BenchError(lines.last ?? "looplag attach said nothing")
    }
}
