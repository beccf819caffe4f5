/// The rows of `looplag ps` as a tree in columns: children under their parents, as many columns as the width allows.
///
/// Called by PsVerb, on the main thread. Pure. Everything in a row was chosen by a foreign process: it is made printable
/// before it is measured.

import LoopLagDiagnosis

enum PsTable {
    static let narrowest = 40
    static let widest = 200

    /// In the order of a walk through the trees: parents before their children, by pid; the dead at the end.
    static func ordered(_ rows: [PsVerb.Row]) -> [(row: PsVerb.Row, depth: Int)] {
        let living = rows.filter(\.alive).sorted { $0.pid < $1.pid }
        let pids = Set(living.map(\.pid))
        var children: [Int32: [PsVerb.Row]] = [:]
        var roots: [PsVerb.Row] = []
        for row in living {
            if let parent = row.parent, parent != row.pid, pids.contains(parent) {
                children[parent, default: []].append(row)
            } else {
                roots.append(row)
            }
        }
        var result: [(row: PsVerb.Row, depth: Int)] = []
        var seen: Set<Int32> = []
        func walk(_ row: PsVerb.Row, _ depth: Int) {
            guard seen.insert(row.pid).inserted else { return }
            result.append((row, depth))
            // A process's depth is its own choice; a table's is not.
            for child in children[row.pid] ?? [] where depth < 64 { walk(child, depth + 1) }
        }
        for root in roots { walk(root, 0) }
        // /proc was not read at one moment: a circle has no root, and is shown all the same.
        for row in living { walk(row, 0) }
        let dead = rows.filter { !$0.alive }.sorted { ($0.pid, $0.segment ?? "") < ($1.pid, $1.segment ?? "") }
        return result + dead.map { ($0, 0) }
    }

    private struct Column: Sendable {
        var title: String
        var isRight = false
        /// The order in which columns give way where the line is too long; 0 never does.
        var leaves = 0
        var least = 0
        var cell: @Sendable (PsVerb.Row, Int) -> String
    }

    private static let columns: [Column] = [
        Column(title: "PID", isRight: true) { row, _ in "\(row.pid)" },
        Column(title: "USER", leaves: 2) { row, _ in row.user ?? "-" },
        Column(title: "SERVER", least: 10) { row, depth in
            (depth > 0 ? String(repeating: "  ", count: min(depth, 8) - 1) + "└ " : "") + row.server
        },
        Column(title: "RUNTIME", leaves: 1) { row, _ in
            row.runtime.map { [$0.name, $0.version].compactMap { $0 }.joined(separator: " ") } ?? "-"
        },
        Column(title: "AGENT", least: 7) { row, _ in agent(row) },
        Column(title: "LOOPS", isRight: true, leaves: 3) { row, _ in row.agent.map { "\($0.loops)" } ?? "-" },
        Column(title: "STALLS", isRight: true, leaves: 4) { row, _ in row.agent.map { "\($0.stalls)" } ?? "-" },
    ]

    /// - Parameter width: of the terminal; nil lets every line be as long as it is, notes included.
    static func text(_ rows: [PsVerb.Row], width: Int? = nil) -> String {
        let limit = min(widest, max(narrowest, width ?? widest))
        let ordered = ordered(rows)
        var columns = columns
        var cells = ordered.map { row, depth in columns.map { PlainText.printable($0.cell(row, depth)) } }
        func widths() -> [Int] {
            columns.indices.map { i in
                min(40, max(columns[i].title.count, cells.map { PlainText.columns(of: $0[i]) }.max() ?? 0))
            }
        }
        var sizes = widths()
        func total() -> Int { sizes.reduce(0, +) + 2 * (sizes.count - 1) }
        while total() > limit,
            let next = columns.indices.filter({ columns[$0].leaves > 0 })
                .min(by: { columns[$0].leaves < columns[$1].leaves })
        {
            columns.remove(at: next)
            for i in cells.indices { cells[i].remove(at: next) }
            sizes = widths()
        }
        while total() > limit,
            let next = sizes.indices.filter({ columns[$0].least > 0 && sizes[$0] > columns[$0].least })
                .max(by: { sizes[$0] < sizes[$1] })
        {
            sizes[next] -= 1
        }

        let notes = ordered.map { PlainText.printable(note($0.row)) }
        // Beside the columns where there is room for some words, else on a line of its own.
        let room = limit - total() - 2
        let isBeside = width == nil || room >= 30
        var lines = [line(columns.map(\.title), columns, sizes)]
        if isBeside, notes.contains(where: { !$0.isEmpty }) { lines[0] = padded(lines[0], total()) + "  NOTE" }
        for (i, row) in cells.enumerated() {
            let text = line(row, columns, sizes)
            if notes[i].isEmpty {
                lines.append(text)
            } else if isBeside {
                lines.append(
                    padded(text, total()) + "  " + (width == nil ? notes[i] : PlainText.clip(notes[i], to: room)))
            } else {
                lines.append(text)
                lines.append(PlainText.clip("    " + notes[i], to: limit))
            }
        }
        return lines.map { line in
            var line = width == nil ? line : PlainText.clip(line, to: limit)
            while line.last == " " { line.removeLast() }
            return line + "\n"
        }.joined()
    }

    private static func line(_ cells: [String], _ columns: [Column], _ sizes: [Int]) -> String {
        zip(zip(cells, columns), sizes).map { pair, size in
            pair.1.isRight ? PlainText.right(pair.0, size) : PlainText.left(pair.0, size)
        }.joined(separator: "  ")
    }

    private static func padded(_ text: String, _ width: Int) -> String { PlainText.left(text, width) }

    private static func agent(_ row: PsVerb.Row) -> String {
        if row.error != nil { return "unreadable" }
        guard let agent = row.agent else { return "none" }
        return row.alive ? "\(agent.state), \(agent.mode)" : "dead, segment left"
    }

    private static func note(_ row: PsVerb.Row) -> String {
        if let error = row.error { return error }
        if let agent = row.agent, row.alive { return agent.degraded.joined(separator: ", ") }
        if !row.alive { return "looplag postmortem \(row.pid)" }
        if let obstacle = row.obstacle { return "cannot be measured: \(obstacle)" }
        if row.attachable == true { return "attachable: looplag attach \(row.pid)" }
        return row.attachable == nil ? "its program may not be read" : ""
    }
}
