/// What a FastAPI server pays for each request, on asyncio and on uvloop: with the agent, beside a control of two servers
/// without it, and with the sampling profilers that people use, py-spy and austin; then what a sample costs it.
///
/// Called by Bench, one thread. The servers of a group live at the same time and take turns at the same load, so that
/// whatever the machine does meets all of them; each profiler has a group of its own, since it samples its server all the
/// time. CPU is the server's own; throughput is what the clients saw, since a profiler that stops the process from
/// outside costs it no CPU.

import Glibc

/// The interpreter and the profilers: named by LOOPLAG_BENCH_PYTHON and LOOPLAG_BENCH_TOOLS, else those that Tests/setup.sh
/// brings, else those of PATH.
enum PythonTools {
    private static var cache: String {
        let home = getenv("XDG_CACHE_HOME").map { String(cString: $0) }
        return (home ?? (getenv("HOME").map { String(cString: $0) } ?? "") + "/.cache") + "/looplag-tests"
    }

    static var interpreter: String {
        if let named = getenv("LOOPLAG_BENCH_PYTHON").map({ String(cString: $0) }), !named.isEmpty { return named }
        let own = cache + "/venv/bin/python"
        return access(own, X_OK) == 0 ? own : "python3"
    }

    static func profiler(_ name: String) -> String {
        if let named = getenv("LOOPLAG_BENCH_TOOLS").map({ String(cString: $0) }), !named.isEmpty {
            return named + "/" + name
        }
        let own = cache + "/profilers/bin/" + name
        return access(own, X_OK) == 0 ? own : name
    }
}

enum PythonCost {
    private static let connections = 4

    private enum Player: String {
        case plain, agent
        case pySpy = "py-spy"
        case austin
    }

    static func measure(into table: inout Table, _ plan: Plan) {
        for kind in [ServerKind.fastapi, .fastapiUvloop] {
            let what = "CPU per request, \(kind.rawValue), on/off"
            let bar = "not above the off/off control"
            table.attempt(what, bar: bar) { (table) throws(BenchError) in
                let group = try Group([.plain, .plain, .agent], kind, plan)
                let off = Figures(group.ratios(1, to: [0], \.cpu))
                let on = Figures(group.ratios(2, to: [0, 1], \.cpu))
                table.add(
                    what,
                    "\(interval(on)), off/off \(interval(off)), \(microseconds(group.median(0, \.cpu))) each", bar: bar,
                    holds: on.medianInterval.lowerBound <= max(off.medianInterval.upperBound, 1))
                table.note(
                    "throughput, \(kind.rawValue), on/off",
                    "\(interval(Figures(group.ratios(2, to: [0, 1], \.rate)))), off/off "
                        + "\(interval(Figures(group.ratios(1, to: [0], \.rate)))), "
                        + "\(rounded(group.median(0, \.rate), digits: 0)) a second")
            }
            for player in [Player.pySpy, .austin] {
                let what = "  the same with \(player.rawValue), 100 samples a second"
                table.attempt(what) { (table) throws(BenchError) in
                    let group = try Group([.plain, player], kind, plan)
                    table.note(
                        what,
                        "CPU \(interval(Figures(group.ratios(1, to: [0], \.cpu)))), throughput "
                            + interval(Figures(group.ratios(1, to: [0], \.rate))))
                }
            }
            table.attempt("samples, \(kind.rawValue)") { (table) throws(BenchError) in
                let run = try StallRun(kind, plan)
                defer { run.server.host.end() }
                StallCost.addPauses(run, kind, &table)
            }
        }
    }

    private static func interval(_ figures: Figures) -> String {
        let range = figures.medianInterval
        return "\(rounded(figures.median, digits: 3)) (\(rounded(range.lowerBound, digits: 3)) to "
            + "\(rounded(range.upperBound, digits: 3)))"
    }

    /// One load on one server.
    private struct Turn {
        /// Nanoseconds of CPU a request.
        var cpu: Double
        /// Requests a second.
        var rate: Double
    }

    /// Servers that take turns, and what came of each round.
    private struct Group {
        private var rounds: [[Turn]] = []

        init(_ players: [Player], _ kind: ServerKind, _ plan: Plan) throws(BenchError) {
            let requests = plan.isQuick ? 400 : 1000
            var seats: [Seat] = []
            for player in players { seats.append(try Seat(player, kind, plan)) }
            for seat in seats { _ = try seat.turn(requests: requests) }
            for round in 0..<(plan.isQuick ? 6 : 14) {
                var turns = seats.map { _ in Turn(cpu: 0, rate: 0) }
                for step in seats.indices {
                    let i = (step + round) % seats.count
                    turns[i] = try seats[i].turn(requests: requests)
                }
                guard turns.allSatisfy({ $0.cpu > 0 }) else {
                    throw BenchError("schedstat does not count CPU time here")
                }
                rounds.append(turns)
            }
            for seat in seats { try seat.check() }
        }

        /// One server's figure of each round to the mean of others'.
        func ratios(_ index: Int, to others: [Int], _ figure: KeyPath<Turn, Double>) -> [Double] {
            rounds.map { turns in
                let mean = others.reduce(0) { $0 + turns[$1][keyPath: figure] } / Double(others.count)
                return turns[index][keyPath: figure] / mean
            }
        }

        func median(_ index: Int, _ figure: KeyPath<Turn, Double>) -> Double {
            Figures(rounds.map { $0[index][keyPath: figure] }).median
        }
    }

    /// A server with its clients, and with the profiler that watches it.
    private final class Seat {
        private let player: Player
        private let server: Server
        private let load: Load
        private let profiler: Host?

        init(_ player: Player, _ kind: ServerKind, _ plan: Plan) throws(BenchError) {
            self.player = player
            server = try kind.start(withAgent: player == .agent, plan: plan)
            load = try Load(server, connections: PythonCost.connections)
            let pid = "\(server.host.pid)"
            let tool = PythonTools.profiler(player.rawValue)
            let command: [String]
            switch player {
            case .plain, .agent:
                profiler = nil
                return
            case .pySpy:
                command = [tool, "record", "-r", "100", "-d", "3600", "-o", plan.folder + "/py-spy.svg", "-p", pid]
            case .austin: command = [tool, "-i", "10ms", "-o", plan.folder + "/austin.txt", "-p", pid]
            }
            do throws(BenchError) {
                profiler = try Host(command)
            } catch {
                throw BenchError(error.reason + ": Tests/setup.sh --profilers brings it")
            }
            pause(milliseconds: 1500)
            try check()
        }

        /// A profiler that may not trace, or does not fit this C library, says so by ending.
        func check() throws(BenchError) {
            guard let profiler, !profiler.isRunning else { return }
            throw BenchError(
                "\(player.rawValue) has ended: see what it says by itself; Tests/setup.sh --profilers brings one that fits"
            )
        }

        func turn(requests: Int) throws(BenchError) -> Turn {
            guard let before = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
            let start = now()
            try load.run(requests: requests, within: 120)
            let end = now()
            // What a thread ran since it last gave up its core is booked when it does.
            pause(milliseconds: 5)
            guard let after = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
            return Turn(
                cpu: Double(after &- before) / Double(requests),
                rate: Double(requests) * 1e9 / Double(max(1, end &- start)))
        }
    }
}
