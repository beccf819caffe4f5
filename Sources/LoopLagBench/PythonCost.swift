/// What a FastAPI server pays for each request: with the agent, with nothing (twice, as a control), and with the sampling
/// profilers that people use beside it, py-spy and austin, where they are installed.
///
/// All servers live at the same time and take turns at the same load, so that whatever the machine does meets all of
/// them. CPU is the server's own; time is what the clients waited, since a profiler that stops the process from outside
/// costs it no CPU. LOOPLAG_BENCH_PYTHON names the interpreter, LOOPLAG_BENCH_TOOLS the folder of the profilers.

import Glibc

enum PythonCost {
    private static let names = ["plain", "control", "agent", "py-spy", "austin"]

    static func measure(into table: inout Table, _ plan: Plan) {
        let what = "CPU per request, FastAPI, on/off"
        let bar = "not above the off/off control"
        table.attempt(what, bar: bar) { (table) throws(BenchError) in
            var players = try start(plan)
            let requests = plan.isQuick ? 400 : 1500
            for i in players.indices { _ = try players[i].turn(requests: requests) }
            for _ in 0..<(plan.isQuick ? 5 : 12) {
                for i in players.indices { try players[i].play(requests: requests) }
            }
            let plain = players[0]
            for player in players.dropFirst() {
                let cpu = Figures(zip(player.cpu, plain.cpu).map { $0 / $1 })
                let time = Figures(zip(player.time, plain.time).map { $0 / $1 })
                let range = cpu.medianInterval
                let figure =
                    "CPU \(rounded(cpu.median, digits: 3)) (\(rounded(range.lowerBound, digits: 3)) to "
                    + "\(rounded(range.upperBound, digits: 3))), time \(rounded(time.median, digits: 3))"
                if player.name == "agent" {
                    let control = Figures(zip(players[1].cpu, plain.cpu).map { $0 / $1 }).medianInterval
                    table.add(
                        what, "\(figure), \(microseconds(Figures(plain.cpu).median)) each", bar: bar,
                        holds: range.lowerBound <= max(control.upperBound, 1))
                } else {
                    table.note("  the same with \(player.name)", figure)
                }
            }
            for name in names where !players.contains(where: { $0.name == name }) {
                table.skip("  the same with \(name)", because: "it is not installed, or ended at once")
            }
            players.removeAll()
        }
    }

    private static func start(_ plan: Plan) throws(BenchError) -> [Player] {
        let tools = getenv("LOOPLAG_BENCH_TOOLS").map { String(cString: $0) + "/" } ?? ""
        var players: [Player] = []
        for name in names {
            let server = try ServerKind.fastapi.start(withAgent: name == "agent", plan: plan)
            let pid = "\(server.host.pid)"
            do throws(BenchError) {
                switch name {
                case "py-spy":
                    let profiler = try Host(
                        [
                            tools + "py-spy", "record", "-r", "100", "-d", "3600", "-o", plan.folder + "/p.svg", "-p",
                            pid,
                        ])
                    players.append(try Player(name, server, profiler))
                case "austin":
                    let profiler = try Host([tools + "austin", "-i", "10ms", "-o", plan.folder + "/a.txt", "-p", pid])
                    players.append(try Player(name, server, profiler))
                default: players.append(try Player(name, server, nil))
                }
            } catch {
                guard name == "py-spy" || name == "austin" else { throw error }
            }
        }
        return players
    }

    private struct Player {
        let name: String
        var cpu: [Double] = []
        var time: [Double] = []
        private let server: Server
        private let load: Load
        private let profiler: Host?

        init(_ name: String, _ server: Server, _ profiler: Host?) throws(BenchError) {
            self.name = name
            self.server = server
            self.profiler = profiler
            load = try Load(server, connections: 4)
            // One that may not trace says so by ending.
            if let profiler {
                pause(milliseconds: 1500)
                guard profiler.isRunning else { throw BenchError("\(name) ended at once") }
            }
        }

        mutating func play(requests: Int) throws(BenchError) {
            let figures = try turn(requests: requests)
            cpu.append(figures.cpu)
            time.append(figures.time)
        }

        func turn(requests: Int) throws(BenchError) -> (cpu: Double, time: Double) {
            guard let before = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
            let start = now()
            try load.run(requests: requests, within: 120)
            let end = now()
            pause(milliseconds: 5)
            guard let after = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
            return (Double(after &- before) / Double(requests), Double(end &- start) / Double(requests))
        }
    }
}
