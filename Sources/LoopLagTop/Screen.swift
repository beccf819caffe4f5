/// The upper table of `top`, as lines of text: processes with their loops and pools.
///
/// Called by the live view each time it draws, and by tests, on any thread. Pure. Numbers come as a report of the last
/// 60 s, so that `top` and a recording can never disagree. It refuses to be wider or longer than the terminal.

import LoopLagDiagnosis
import LoopLagModel

public enum Screen {
    /// - Parameters:
    ///   - processes: of a report over the view's window.
    ///   - threshold: the view's own.
    ///   - time: the time of day, as the corner shows it.
    ///   - history: longest iteration of each second, oldest first, in nanoseconds by loop id.
    /// - Returns: at most `rows` lines of at most `columns` columns; what did not fit is counted on the last.
    public static func lines(
        processes: [ReportProcess], threshold: Duration, time: String, history: [String: [Int64]] = [:],
        columns: Int, rows: Int, glyphs: Glyphs = .unicode
    ) -> [String] {
        guard columns > 0, rows > 0 else { return [] }
        let table = Table(threshold: threshold, history: history, columns: columns, glyphs: glyphs)
        var lines = [table.header(processes, time: time), table.titles()]
        for process in processes { lines += table.lines(of: process) }
        if processes.isEmpty {
            lines.append("   no process with an agent; `looplag run -- CMD` or `looplag attach PID`")
        }
        if lines.count > rows {
            let hidden = lines.count - rows + 1
            lines = Array(lines.prefix(rows - 1)) + ["   ... \(hidden) more lines"]
        }
        return lines.map { table.fit($0) }
    }
}

private struct Table {
    let threshold: Duration
    let history: [String: [Int64]]
    let columns: Int
    let glyphs: Glyphs

    // Columns of the sketch: PID, SERVER, LOOP / POOL, BUSY (bar and number), DELAY p50 p99 max, STALLS, LAG.
    private static let pid = 7
    // A terminal of 80 columns keeps every number and goes without bars and sparklines.
    private var isNarrow: Bool { columns < 109 }
    private var server: Int { isNarrow ? 12 : 15 }
    private var loop: Int { isNarrow ? 16 : 20 }
    private var bar: Int { isNarrow ? 0 : 8 }
    private static let percent = 6
    private static let number = 7
    private static let stalls = 10

    func header(_ processes: [ReportProcess], time: String) -> String {
        let loops = processes.reduce(0) { $0 + $1.loops.count { $0.role == .server } }
        let pools = processes.reduce(0) { $0 + $1.pools.count }
        func plural(_ n: Int, _ word: String) -> String {
            n == 1 ? "1 \(word)" : "\(n) \(word)\(word.last == "s" ? "es" : "s")"
        }
        let left = " LoopLag  \(plural(processes.count, "process"))  \(plural(loops, "loop"))  \(plural(pools, "pool"))"
        let limit = "threshold \(PlainText.duration(nanoseconds: threshold.nanosecondCount))"
        let right = "\(limit)   \(time)  ? help"
        let gap = columns - width(left) - width(right)
        return gap > 0 ? left + String(repeating: " ", count: gap) + right : left
    }

    func titles() -> String {
        right("PID", Self.pid) + "  " + left("SERVER", server) + " " + left("LOOP / POOL", self.loop) + " "
            + (isNarrow ? right("BUSY", Self.percent) : left("BUSY", bar + Self.percent))
            + right("DELAY p50", Self.number + 2) + right("p99", Self.number)
            + right("max", Self.number) + "  " + left("STALLS", Self.stalls) + (isNarrow ? "" : "  LAG, 60 s")
    }

    func lines(of process: ReportProcess) -> [String] {
        let name = serverName(
            command: process.command, executable: process.executable, runtime: process.runtime?.name)
        // Helpers stay hidden unless one of them stalled.
        let shown = process.loops.filter { $0.role == .server || $0.stallCount > 0 }
        var lines = shown.map { line(of: $0, in: process) } + process.pools.map(line)
        if lines.isEmpty { lines = ["no event loop seen yet"] }
        let lead = right("\(process.pid)", Self.pid) + "  " + left(name, server) + " "
        let blank = String(repeating: " ", count: Self.pid + 2 + server + 1)
        return lines.enumerated().map { ($0.offset == 0 ? lead : blank) + $0.element }
    }

    private func line(of loop: ReportLoop, in process: ReportProcess) -> String {
        let name = loopName(tid: loop.tid, main: process.pid, threadName: loop.threadName)
        let open = process.stalls.count { $0.open && $0.loopID == loop.id }
        let stalls = "\(loop.stallCount)" + (open > 0 ? "  \(open) open" : "")
        return left("\(name) \(glyphs.dot) \(loop.kind)", self.loop) + " "
            + left(loop.utilization.map(cells) ?? "", bar)
            + right(loop.utilization.map(PlainText.percent) ?? "-", Self.percent)
            + right(known(loop.delay.p50NS), Self.number + 2) + right(known(loop.delay.p99NS), Self.number)
            + right(known(loop.delay.maxNS), Self.number) + "  " + left(stalls, Self.stalls) + "  "
            + spark(history[loop.id] ?? [])
    }

    private func line(of pool: ReportPool) -> String {
        var text = left("pool \(pool.kind)", self.loop) + " "
        if let busy = pool.busy {
            text += pool.threads.map { "\(busy.last) of \($0) busy" } ?? "\(busy.last) busy"
        }
        if let queue = pool.queueDepth { text += "   \(queue.last) queued" }
        if let wait = pool.queueWait?.p99NS {
            text += " \(glyphs.dot) wait p99 \(PlainText.duration(nanoseconds: wait))"
        }
        if let busy = pool.busy, let threads = pool.threads, threads > 0, busy.last >= Int64(threads),
            (pool.queueDepth?.last ?? 0) > 0
        {
            text += "   \(glyphs.warning) saturated"
        }
        return text
    }

    /// A share 0...1 as cells, the last one in parts where there are glyphs for it.
    private func cells(_ share: Double) -> String {
        let cells = bar - 1
        guard share.isFinite, cells > 0 else { return "" }
        let steps = glyphs.bar.count - 1
        let filled = Int((min(1, max(0, share)) * Double(cells * steps)).rounded())
        let full = filled / steps
        let part = filled % steps
        return String(repeating: glyphs.bar[steps], count: full) + (part > 0 ? String(glyphs.bar[part]) : "")
    }

    /// A minute in twelve cells or as many as there is room for; the threshold is half way up, on a logarithmic scale.
    private func spark(_ seconds: [Int64]) -> String {
        guard !seconds.isEmpty, !isNarrow else { return "" }
        let cells = 12
        let recent = Array(seconds.suffix(60))
        let limit = max(1, Double(threshold.nanosecondCount))
        return String(
            (0..<cells).map { cell in
                let from = cell * recent.count / cells
                let to = max(from + 1, (cell + 1) * recent.count / cells)
                let worst = recent[min(from, recent.count - 1)..<min(to, recent.count)].max() ?? 0
                return glyphs.spark[level(Double(max(0, worst)) / limit)]
            })
    }

    /// A sixteenth of the threshold is the floor, sixteen times it the ceiling.
    private func level(_ ratio: Double) -> Int {
        var step = 0
        var bound = 1.0 / 16
        let steps = glyphs.spark.count - 1
        let factor = steps > 4 ? 2.0 : 8.0
        while step < steps, ratio >= bound {
            step += 1
            bound *= factor
        }
        return step
    }

    private func known(_ nanoseconds: Int64?) -> String {
        nanoseconds.map { PlainText.duration(nanoseconds: $0) } ?? "-"
    }

    func fit(_ line: String) -> String {
        let end = line.lastIndex { $0 != " " }.map(line.index(after:)) ?? line.startIndex
        return PlainText.clip(String(line[..<end]), to: columns, measure: glyphs.measure, mark: glyphs.cut)
    }

    private func width(_ text: String) -> Int { PlainText.columns(of: text, measure: glyphs.measure) }

    private func left(_ text: String, _ width: Int) -> String {
        PlainText.left(text, width, measure: glyphs.measure, mark: glyphs.cut)
    }

    private func right(_ text: String, _ width: Int) -> String {
        PlainText.right(text, width, measure: glyphs.measure, mark: glyphs.cut)
    }
}
