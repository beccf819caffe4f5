/// The upper table: a line for each loop and pool, under their process.
///
/// Called by the screen each time it draws, on any thread. Pure. A narrow terminal gets fewer columns, never a cut
/// number: bars, sparklines and what a loop does now go first, then the median and the names.

import LoopLagDiagnosis
import LoopLagModel

struct LoopTable {
    let threshold: Duration
    let columns: Int
    let glyphs: Glyphs

    private static let mark = 2
    private static let pid = 7
    private static let percent = 6
    private var isTiny: Bool { columns < 63 }
    private var hasMedian: Bool { columns >= 80 }
    private var hasBar: Bool { columns >= 108 }
    private var hasNow: Bool { columns >= 143 }
    private var number: Int { isTiny ? 7 : 8 }
    private var server: Int {
        switch columns {
        case ..<63: 0
        case ..<80: 9
        case ..<92: 10
        case ..<108: 12
        case ..<114: 13
        case ..<180: 15
        default: 22
        }
    }
    private var loop: Int {
        switch columns {
        case ..<63: 9
        case ..<80: 10
        case ..<92: 14
        case ..<108: 16
        case ..<114: 18
        case ..<180: 20
        default: 28
        }
    }
    private var bar: Int { !hasBar ? 0 : columns < 114 ? 6 : 8 }
    private var stalls: Int { isTiny ? 0 : columns < 80 ? 8 : columns < 92 ? 10 : 11 }
    private var spark: Int {
        guard hasBar else { return 0 }
        let room = columns - 114 - (hasNow ? 29 : 0) - (columns >= 180 ? 15 : 0)
        return min(60, max(12, 12 + room))
    }

    func titles() -> StyledLine {
        var text = glyphs.left("", Self.mark) + glyphs.right("PID", Self.pid) + " "
        if server > 0 { text += " " + glyphs.left("SERVER", server) + " " }
        text += glyphs.left(isTiny ? "LOOP" : "LOOP / POOL", loop)
        text += bar > 0 ? " " + glyphs.left("BUSY", bar + Self.percent) : glyphs.right("BUSY", Self.percent)
        if hasMedian { text += glyphs.right("DELAY p50", number + 2) }
        text += glyphs.right("p99", number) + glyphs.right("max", number)
        if stalls > 0 { text += "  " + glyphs.left("STALLS", stalls) }
        if spark > 0 { text += " " + glyphs.left("LAG, 60 s", spark) }
        if hasNow { text += "  NOW" }
        return StyledLine(text, .bold)
    }

    func line(_ row: TableRow, isSelected: Bool, hasKeys: Bool) -> StyledLine {
        let isOpen = row.loop?.open != nil
        let mark = (isSelected ? glyphs.pointer : " ") + (isOpen ? glyphs.open : " ")
        let base: Style = row.process.isGone ? .dim : .plain
        var spans = [Span(mark, isOpen ? .bad : .plain)]
        spans.append(Span(glyphs.right(row.isFirst ? "\(row.process.pid)" : "", Self.pid) + " ", base))
        if server > 0 {
            spans.append(Span(" " + glyphs.left(row.isFirst ? row.process.server : "", server) + " ", base))
        }
        switch row.content {
        case .loop(let loop): spans += self.spans(of: loop, isGone: row.process.isGone)
        case .pool(let pool): spans += self.spans(of: pool)
        case .note(let text): spans.append(Span(text, .dim))
        }
        return StyledLine(spans, isReversed: isSelected && hasKeys)
    }

    private func spans(of loop: LiveLoop, isGone: Bool) -> [Span] {
        let base: Style = isGone ? .dim : .plain
        let name = isTiny ? loop.name : "\(loop.name) \(glyphs.dot) \(loop.kind)"
        var spans = [Span(glyphs.left(name, self.loop), base)]
        let percent = loop.utilization.map(PlainText.percent) ?? "-"
        if bar > 0 {
            spans.append(
                Span(" " + glyphs.left(loop.utilization.map(cells) ?? "", bar), isGone ? .dim : busyStyle(loop)))
        }
        spans.append(Span(glyphs.right(percent, Self.percent), base))
        if hasMedian { spans.append(delay(loop.delay.p50NS, number + 2, isGone)) }
        spans.append(delay(loop.delay.p99NS, number, isGone))
        spans.append(delay(loop.delay.maxNS, number, isGone))
        if stalls > 0 {
            spans.append(Span("  " + glyphs.right("\(loop.stallCount)", 3), base))
            spans.append(Span(glyphs.left(loop.open == nil ? "" : "  1 open", stalls - 3), .bad))
        }
        if spark > 0 { spans.append(Span(" " + glyphs.left(sparkline(loop.history), spark), base)) }
        if hasNow { spans.append(now(loop, isGone: isGone)) }
        return spans
    }

    private func busyStyle(_ loop: LiveLoop) -> Style {
        guard let share = loop.utilization else { return .plain }
        return share >= 0.9 ? .bad : share >= 0.6 ? .fair : .good
    }

    private func delay(_ nanoseconds: Int64?, _ width: Int, _ isGone: Bool) -> Span {
        var text = nanoseconds.map { PlainText.duration(nanoseconds: $0) } ?? "-"
        // "12 min 5 s": minutes will do where the cell is too small for all of it.
        if text.count >= width { text = text.split(separator: " ").prefix(2).joined(separator: " ") }
        return Span(glyphs.right(text, width), isGone ? .dim : style(ofDelay: nanoseconds))
    }

    private func style(ofDelay nanoseconds: Int64?) -> Style {
        guard let nanoseconds else { return .dim }
        let limit = threshold.nanosecondCount
        return nanoseconds >= limit ? .bad : nanoseconds >= limit / 4 ? .fair : .good
    }

    /// What the loop does at this moment: "on_cpu 312 ms, running".
    private func now(_ loop: LiveLoop, isGone: Bool) -> Span {
        guard !isGone else { return Span("  gone", .dim) }
        guard let open = loop.open else { return Span("") }
        var text = "  \(open.cause.rawValue) \(PlainText.duration(nanoseconds: open.elapsedNS))"
        if let state = open.threadState.flatMap(ThreadWords.text) { text += ", \(state)" }
        return Span(glyphs.clip(text, 29), .bad)
    }

    private func spans(of pool: ReportPool) -> [Span] {
        let name = glyphs.left("pool \(pool.kind)", loop)
        var text = ""
        if let busy = pool.busy {
            text += pool.threads.map { " \(busy.last) of \($0) busy" } ?? " \(busy.last) busy"
        }
        if let queue = pool.queueDepth { text += "   \(queue.last) queued" }
        if let wait = pool.queueWait?.p99NS {
            text += " \(glyphs.dot) wait p99 \(PlainText.duration(nanoseconds: wait))"
        }
        if pool.method == .estimate { text += " (estimate)" }
        let isSaturated =
            pool.busy.map { busy in pool.threads.map { $0 > 0 && busy.last >= Int64($0) } ?? false } ?? false
            && (pool.queueDepth?.last ?? 0) > 0
        guard isSaturated else { return [Span(name), Span(text)] }
        // First where there is little room: it is the news.
        return isTiny
            ? [Span(name), Span(" \(glyphs.warning) saturated", .bad), Span(text)]
            : [Span(name), Span(text), Span("   \(glyphs.warning) saturated", .bad)]
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

    /// The last minute in as many cells as there is room for; the threshold is half way up, on a logarithmic scale.
    func sparkline(_ seconds: [Int64]) -> String {
        guard !seconds.isEmpty, spark > 0 else { return "" }
        let minute = 60
        let cells = min(spark, minute)
        let recent = Array(seconds.suffix(minute))
        let limit = max(1, Double(threshold.nanosecondCount))
        return String(
            (0..<cells).map { cell in
                // Time that was not measured yet is blank at the left.
                let from = cell * minute / cells - (minute - recent.count)
                let to = max(from + 1, (cell + 1) * minute / cells - (minute - recent.count))
                guard to > 0, let worst = recent[max(0, from)..<min(to, recent.count)].max() else { return " " }
                return glyphs.spark[level(Double(max(0, worst)) / limit)]
            })
    }

    /// A sixteenth of the threshold is the floor, eight times it the ceiling.
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
}

enum ThreadWords {
    /// The state letters of /proc/PID/stat; nil for those that tell nothing.
    static func text(_ letter: Character) -> String? {
        switch letter {
        case "R": "running"
        case "S": "waiting"
        case "D": "waiting for the disk"
        case "T", "t": "stopped"
        default: nil
        }
    }
}
