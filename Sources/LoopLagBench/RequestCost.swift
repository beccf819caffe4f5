/// CPU per request with the agent and without, beside a control of two servers without it; instructions where they
/// count.
///
/// Three servers of one kind live at the same time, two plain and one measured, and take turns at the same load, so
/// that whatever the machine does meets all three. Each turn gives two ratios: measured to plain, and plain to plain.
/// The second says how much of the first is noise. The agent's own thread counts as the server's.

import Glibc

enum RequestCost {
    fileprivate static let connections = 8

    static func measure(into table: inout Table, _ plan: Plan) {
        for kind in [ServerKind.node, .nio] {
            let what = "CPU per request, \(kind.rawValue), on/off"
            let bar = "not above the off/off control"
            table.attempt(what, bar: bar) { (table) throws(BenchError) in
                let turns = try Turns(kind, plan)
                let on = Figures(turns.on)
                let off = Figures(turns.off)
                guard !on.isEmpty, !off.isEmpty else { throw BenchError("no round was measured") }
                table.add(
                    what, "\(interval(on)), off/off \(interval(off)), \(microseconds(turns.perRequest)) each", bar: bar,
                    holds: on.medianInterval.lowerBound <= max(off.medianInterval.upperBound, 1))
                let name = "instructions per request, \(kind.rawValue), on/off"
                switch turns.instructions {
                case .success(let values) where !values.isEmpty:
                    let median = Figures(values).median
                    table.add(name, ratio(median), bar: "<= 1.02", holds: median <= 1.02)
                case .success: table.skip(name, because: "no round was measured", bar: "<= 1.02")
                case .failure(let error): table.skip(name, because: error.reason, bar: "<= 1.02")
                }
            }
        }
    }

    /// The median, and where it may lie.
    private static func interval(_ figures: Figures) -> String {
        let range = figures.medianInterval
        return "\(ratio(figures.median)) (\(ratio(range.lowerBound)) to \(ratio(range.upperBound)))"
    }

    private static func ratio(_ value: Double) -> String { rounded(value, digits: 3) }

    /// The ratios of all turns of all groups.
    private struct Turns {
        /// Measured to the mean of the two plain ones.
        var on: [Double] = []
        /// One plain server to the other, both ways round in turn.
        var off: [Double] = []
        var instructions: Result<[Double], BenchError> = .success([])
        /// Nanoseconds of CPU of a plain server.
        var perRequest = 0.0

        init(_ kind: ServerKind, _ plan: Plan) throws(BenchError) {
            // Fresh processes for each group: layout and compiled code differ from one to the next.
            for _ in 0..<(plan.isQuick ? 1 : 3) { try addGroup(kind, plan) }
        }

        private mutating func addGroup(_ kind: ServerKind, _ plan: Plan) throws(BenchError) {
            let requests = plan.isQuick ? 3000 : 8000
            let rounds = plan.isQuick ? 6 : 9
            var servers: [Measured] = []
            for withAgent in [false, false, true] {
                servers.append(try Measured(try kind.start(withAgent: withAgent, plan: plan)))
            }
            // Past the first compilations of node and the first allocations of everyone.
            for server in servers { _ = try server.turn(requests: requests * 2) }
            for server in servers { server.startCounting() }
            for round in 0..<rounds {
                var cpu = [0.0, 0.0, 0.0]
                var counts: [Double?] = [nil, nil, nil]
                for step in 0..<3 {
                    let i = (step + round) % 3
                    (cpu[i], counts[i]) = try servers[i].turn(requests: requests)
                }
                guard cpu.allSatisfy({ $0 > 0 }) else { throw BenchError("schedstat does not count CPU time here") }
                on.append(cpu[2] / ((cpu[0] + cpu[1]) / 2))
                off.append(round % 2 == 0 ? cpu[0] / cpu[1] : cpu[1] / cpu[0])
                perRequest = (cpu[0] + cpu[1]) / 2
                if let a = counts[0], let b = counts[1], let measured = counts[2], a + b > 0 {
                    instructions = instructions.map { $0 + [measured / ((a + b) / 2)] }
                }
            }
            if let reason = servers[2].whyNotCounting { instructions = .failure(reason) }
        }
    }
}

/// One server, its clients, and its counters.
private final class Measured {
    private let server: Server
    private let load: Load
    private var counter: InstructionCounter?
    private(set) var whyNotCounting: BenchError?

    init(_ server: Server) throws(BenchError) {
        self.server = server
        load = try Load(server, connections: RequestCost.connections)
    }

    func startCounting() {
        do throws(BenchError) {
            counter = try InstructionCounter(server.host.pid)
        } catch {
            whyNotCounting = error
        }
    }

    /// Nanoseconds of CPU per request over one load, and instructions if they are counted.
    func turn(requests: Int) throws(BenchError) -> (cpu: Double, instructions: Double?) {
        let counted = counter?.total
        guard let before = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
        try load.run(requests: requests, within: 60)
        // What a thread ran since it last gave up its core is booked when it does.
        pause(milliseconds: 5)
        guard let after = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("the server has ended") }
        let instructions = counted.flatMap { first in
            counter.map { Double($0.total &- first) / Double(requests) }
        }
        return (Double(after &- before) / Double(requests), instructions)
    }
}
