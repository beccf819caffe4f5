/// Node servers that live at the same time and take turns at the same load: whatever the machine does meets all of them, and
/// each turn gives the CPU time per request of each as a ratio to the plain one's.
///
/// Used by NodePeers and NodeRequests, one thread.

struct NodeTurns<Kind: RawRepresentable & Hashable> where Kind.RawValue == String {
    private var servers: [(kind: Kind, server: Server, load: Load)] = []
    private let plain: Kind
    private static var connections: Int { 8 }

    init(_ kinds: [Kind], plain: Kind, start: (Kind) throws(BenchError) -> Server) throws(BenchError) {
        self.plain = plain
        for kind in kinds {
            let server = try start(kind)
            servers.append((kind, server, try Load(server, connections: Self.connections)))
        }
    }

    /// One row for each server but the plain one, and with `showsPlain` one for that.
    func measure(
        into table: inout Table, _ what: String, requests count: Int, rounds: Int, showsPlain: Bool = false
    ) throws(BenchError) {
        for entry in servers { try entry.load.run(requests: count * 2, within: 90) }
        var ratios: [Kind: [Double]] = [:]
        var spentPlain: [Double] = []
        for round in 0..<rounds {
            var spent: [Kind: Double] = [:]
            for step in servers.indices {
                let entry = servers[(step + round) % servers.count]
                let before = try cpu(of: entry.server)
                try entry.load.run(requests: count, within: 90)
                pause(milliseconds: 5)
                spent[entry.kind] = try Double(cpu(of: entry.server) &- before)
            }
            guard let base = spent[plain], base > 0 else { throw BenchError("schedstat does not count CPU time here") }
            spentPlain.append(base / Double(count))
            for (kind, cpu) in spent where kind != plain { ratios[kind, default: []].append(cpu / base) }
        }
        if showsPlain { table.note("\(what), \(plain.rawValue)", microseconds(Figures(spentPlain).median)) }
        for entry in servers where entry.kind != plain {
            let figures = Figures(ratios[entry.kind] ?? [])
            let range = figures.medianInterval
            table.note(
                "\(what), \(entry.kind.rawValue) / \(plain.rawValue)",
                "\(rounded(figures.median, digits: 3)) (\(rounded(range.lowerBound, digits: 3)) to "
                    + "\(rounded(range.upperBound, digits: 3)))")
        }
    }

    private func cpu(of server: Server) throws(BenchError) -> UInt64 {
        guard let spent = ProcFigures.cpu(of: server.host.pid) else { throw BenchError("node has ended") }
        return spent
    }
}
