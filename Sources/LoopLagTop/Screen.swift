/// The whole screen of `top` as lines: what is seen is a function of the picture, the state and the terminal's size.
///
/// Called by the live view each time it draws, and by tests, on any thread. Pure. It refuses to be wider or longer than
/// the terminal, and to leave anything out without counting it.

import LoopLagDiagnosis
import LoopLagModel

public enum Screen {
    /// - Returns: exactly `rows` lines, none wider than `columns`.
    public static func lines(
        _ picture: LivePicture, _ state: TopState, columns: Int, rows: Int, glyphs: Glyphs = .unicode
    ) -> [StyledLine] {
        guard columns > 0, rows > 0 else { return [] }
        let layout = Layout(picture: picture, state: state, columns: columns, rows: rows, glyphs: glyphs)
        var lines: [StyledLine] =
            if state.showsHelp {
                layout.help()
            } else if state.isExpanded, let stall = TopRows.stall(picture, state) {
                layout.wholeStack(stall)
            } else {
                layout.main()
            }
        lines = lines.prefix(rows).map { $0.fitted(columns, glyphs) }
        return lines + Array(repeating: StyledLine(), count: rows - lines.count)
    }

    /// Lines of the pane that has the keys, for the page keys.
    public static func page(
        _ picture: LivePicture, _ state: TopState, columns: Int, rows: Int, glyphs: Glyphs = .unicode
    ) -> Int {
        guard columns > 0, rows > 0 else { return 1 }
        let layout = Layout(picture: picture, state: state, columns: columns, rows: rows, glyphs: glyphs)
        if state.isExpanded { return max(1, rows - 6) }
        let shares = layout.shares
        switch state.focus {
        case .loops: return max(1, shares.table)
        case .stalls: return max(1, shares.stalls)
        case .stack: return max(1, shares.stack)
        }
    }
}

private struct Layout {
    let picture: LivePicture
    let state: TopState
    let columns: Int
    let rows: Int
    let glyphs: Glyphs
    let tableRows: [TableRow]
    let stalls: [LiveStall]
    let stall: LiveStall?
    let stack: [StackLines.Line]

    init(picture: LivePicture, state: TopState, columns: Int, rows: Int, glyphs: Glyphs) {
        self.picture = picture
        self.state = state
        self.columns = columns
        self.rows = rows
        self.glyphs = glyphs
        tableRows = TopRows.rows(picture, state)
        stalls = TopRows.stalls(picture, state)
        stall = stalls.first { $0.id == state.selectedStall } ?? stalls.first
        stack = stall.map(StackLines.lines) ?? []
    }

    // MARK: How much room each pane gets

    /// Lines of content of each pane, its title apart.
    var shares: (table: Int, stalls: Int, stack: Int, finding: Int) {
        // Header, titles of the table, title of the stalls, footer.
        var room = max(0, rows - 4)
        let finding = rows >= 16 ? min(findingLines.count, rows >= 30 ? 3 : 2) : 0
        room -= finding
        let wantsStack = stall != nil && room >= 6
        if wantsStack { room -= 1 }
        let wanted = (
            table: max(1, tableRows.count), stalls: max(1, stalls.count), stack: wantsStack ? max(1, stack.count) : 0
        )
        // First what everybody must have, then the rest to whoever still wants it: the stack last and the most.
        var table = min(wanted.table, max(1, room * 2 / 5))
        var list = min(wanted.stalls, max(1, room / 4))
        var frames = min(wanted.stack, max(0, room - table - list))
        var left = max(0, room - table - list - frames)
        let moreTable = min(left, wanted.table - table)
        table += moreTable
        left -= moreTable
        let moreList = min(left, wanted.stalls - list)
        list += moreList
        left -= moreList
        frames += min(left, wanted.stack - frames)
        return (table, list, wantsStack ? max(1, frames) : 0, finding)
    }

    // MARK: The panes

    func main() -> [StyledLine] {
        let shares = self.shares
        var lines = [header()]
        let table = LoopTable(threshold: state.threshold, columns: columns, glyphs: glyphs)
        lines.append(table.titles())
        let selectedRow = state.selectedRow.flatMap { id in tableRows.firstIndex { $0.id == id } } ?? 0
        let top = Self.top(of: selectedRow, page: shares.table, count: tableRows.count)
        for (place, row) in tableRows.enumerated().dropFirst(top).prefix(shares.table) {
            var row = row
            // The first line of a page says whose loops these are.
            if place == top { row.isFirst = true }
            lines.append(
                table.line(
                    row, isSelected: place == selectedRow && (state.focus == .loops || state.selectedRow != nil),
                    hasKeys: state.focus == .loops))
        }
        if tableRows.isEmpty { lines.append(StyledLine(nothingToShow, .dim)) }
        // Room that nobody wants stays above the stalls, so that the panes do not jump.
        lines += stallPane(shares.stalls)
        if shares.stack > 0, let stall { lines += stackPane(stall, shares.stack) }
        lines += findingLines.prefix(shares.finding)
        while lines.count < rows - 1 { lines.append(StyledLine()) }
        lines.append(footer(hidden: hidden(shares, top: top)))
        return lines
    }

    private var nothingToShow: String {
        if !picture.processes.isEmpty { return "   nothing matches the filter; Esc drops it" }
        return "   no process with an agent; `looplag run -- CMD` starts one"
    }

    /// The page that holds the selection.
    static func top(of selection: Int, page: Int, count: Int) -> Int {
        guard page > 0, count > page else { return 0 }
        return min(selection / page * page, count - page)
    }

    private func header() -> StyledLine {
        let all = picture.processes.filter { !$0.isGone }
        let loops = all.reduce(0) { $0 + $1.loops.count }
        let pools = all.reduce(0) { $0 + $1.pools.count }
        let open = picture.stalls.count { $0.isOpen }
        func plural(_ n: Int, _ word: String, _ words: String) -> String { n == 1 ? "1 \(word)" : "\(n) \(words)" }
        var left = [Span(" LoopLag", .bold)]
        if columns >= 60 {
            left.append(Span("  \(plural(all.count, "process", "processes"))  \(plural(loops, "loop", "loops"))"))
            if pools > 0 { left.append(Span("  \(plural(pools, "pool", "pools"))")) }
        } else {
            left.append(Span(" \(plural(loops, "loop", "loops"))"))
        }
        if open > 0 { left.append(Span("  \(glyphs.open) \(plural(open, "stall", "stalls")) open", .bad)) }
        if state.isPaused { left.append(Span("  PAUSED", .fair)) }
        let limit = PlainText.duration(nanoseconds: state.threshold.nanosecondCount)
        var right = columns >= 60 ? "threshold \(limit)   \(picture.time)  ? help " : "> \(limit)  ? help "
        if columns < 80, columns >= 60 { right = "threshold \(limit)  ? help " }
        let used = left.reduce(0) { $0 + glyphs.width($1.text) } + glyphs.width(right)
        if used < columns {
            left.append(Span(String(repeating: " ", count: columns - used) + right))
        }
        return StyledLine(left)
    }

    private func title(_ name: String, _ rest: String, hasKeys: Bool) -> StyledLine {
        let lead = String(glyphs.rule)
        let text = " \(name) "
        let rest = rest.isEmpty ? "" : "\(rest) "
        let used = 1 + glyphs.width(text) + glyphs.width(glyphs.shown(rest))
        return StyledLine([
            Span(lead, .dim), Span(text, hasKeys ? .bold : .plain), Span(glyphs.shown(rest)),
            Span(String(repeating: glyphs.rule, count: max(0, columns - used)), .dim),
        ])
    }

    private func stallPane(_ share: Int) -> [StyledLine] {
        let loops = picture.processes.reduce(0) { $0 + $1.loops.count }
        let list = StallList(
            columns: columns, glyphs: glyphs, namesLoop: loops > 1, namesProcess: picture.processes.count > 1,
            hasRequests: stalls.contains { $0.diagnosis.request != nil })
        let hasKeys = state.focus == .stalls
        let selected = stall.flatMap { stall in stalls.firstIndex { $0.id == stall.id } } ?? 0
        let top = Self.top(of: selected, page: share, count: stalls.count)
        var lines: [StyledLine] = []
        if stalls.isEmpty {
            lines.append(title("STALLS", "", hasKeys: hasKeys))
            let limit = PlainText.duration(nanoseconds: state.threshold.nanosecondCount)
            let isLimited = !state.filter.isEmpty || state.onlyLoop != nil
            lines.append(
                StyledLine(isLimited ? "   none that match; Esc shows all" : "   none of \(limit) or more", .good))
            return lines
        }
        // The pane's name stands in the first column's title, and over the second where it counts what is hidden.
        var name = " STALLS"
        if stalls.count > share { name += " \(top + 1)-\(top + share)/\(stalls.count)" }
        let titles = "  " + list.titles()
        let cut = name.count < 16 ? 16 : 25
        lines.append(
            StyledLine([
                Span(String(glyphs.rule), .dim), Span(glyphs.left(name, cut - 1), hasKeys ? .bold : .plain),
                Span(String(titles.dropFirst(cut)), .bold),
            ]))
        for (place, stall) in stalls.enumerated().dropFirst(top).prefix(share) {
            lines.append(list.line(stall, isSelected: place == selected, hasKeys: hasKeys))
        }
        return lines
    }

    private func stackTitle(_ stall: LiveStall) -> String {
        guard let first = MergedStack.merge(stall.samples).first else { return "" }
        return StackLines.agreement(first, of: stall.samples.count)
    }

    private func stackPane(_ stall: LiveStall, _ share: Int) -> [StyledLine] {
        let top = min(state.stackTop, max(0, stack.count - share))
        var rest = stackTitle(stall)
        if stack.count > share { rest += "  \(top + 1)-\(top + share) of \(stack.count) lines, Enter: all" }
        let lines = [title("STACK", rest, hasKeys: state.focus == .stack)]
        return lines + frameLines(Array(stack.dropFirst(top).prefix(share)), isWhole: false)
    }

    /// Frames in columns: kind, function, place, and whose code it is.
    private func frameLines(_ lines: [StackLines.Line], isWhole: Bool) -> [StyledLine] {
        let mark = "  \(glyphs.arrow) your code"
        let room = max(0, columns - 3 - 6 - 2 - glyphs.width(mark))
        var widest = (name: 0, place: 0)
        for case .frame(let frame, _) in stack {
            widest.name = max(widest.name, glyphs.width(glyphs.shown(frame.function)))
            widest.place = max(widest.place, glyphs.width(glyphs.shown(place(frame, isWhole))))
        }
        // Names may take what places leave, and at least three fifths.
        let name = min(widest.name, max(room * 3 / 5, room - widest.place))
        let place = min(widest.place, max(0, room - name))
        return lines.map { line in
            switch line {
            case .group(let text): return StyledLine("   " + glyphs.clip(text, columns - 3), .bold)
            case .note(let text): return StyledLine("   " + glyphs.clip(text, columns - 3), .dim)
            case .frame(let frame, let isUser):
                let style: Style = isUser ? .bold : .dim
                let text =
                    "   \(glyphs.left(StackLines.kind(frame), 6))\(glyphs.left(frame.function, name))  "
                    + glyphs.left(self.place(frame, isWhole), place)
                return StyledLine([Span(text, style)] + (isUser ? [Span(mark, .fair)] : []))
            }
        }
    }

    private func place(_ frame: Frame, _ isWhole: Bool) -> String {
        var text = StackLines.place(frame, isLong: isWhole)
        guard columns >= 80 else { return text }
        if frame.inlined == true { text += " (inlined)" }
        if frame.coroutine == true { text += " (coroutine)" }
        return text
    }

    private var findingLines: [StyledLine] {
        let chosen =
            stall.flatMap { stall in picture.findings.first { $0.stalls.contains(stall.id) } } ?? picture.findings.first
        guard let chosen else { return [] }
        let style: Style =
            switch chosen.severity {
            case .critical: .bad
            case .warning: .fair
            case .info: .plain
            }
        var lines = [
            StyledLine([Span(" ! ", style), Span(glyphs.clip(chosen.title, columns - 3), .bold)])
        ]
        for text in [chosen.advice, chosen.evidence] {
            lines.append(StyledLine("   " + glyphs.clip(text, columns - 3)))
        }
        return lines
    }

    // MARK: The last line

    private func hidden(_ shares: (table: Int, stalls: Int, stack: Int, finding: Int), top: Int) -> String? {
        guard tableRows.count > shares.table, shares.table > 0 else { return nil }
        return "rows \(top + 1)-\(top + shares.table) of \(tableRows.count)"
    }

    private func footer(hidden: String?) -> StyledLine {
        if state.isTyping { return StyledLine([Span(" filter: ", .bold), Span(glyphs.shown(state.filter) + "_")]) }
        var spans: [Span] = []
        func add(_ text: String, _ style: Style) { spans.append(Span((spans.isEmpty ? " " : "   ") + text, style)) }
        if let notice = picture.notice { add(glyphs.shown(notice), .bad) }
        if let message = state.message { add(glyphs.shown(message), .bold) }
        if let hidden { add(hidden, .plain) }
        if !state.filter.isEmpty { add("filter: \(glyphs.shown(state.filter))", .fair) }
        if let only = state.onlyLoop {
            let loop = picture.processes.flatMap(\.loops).first { $0.id == only }
            add("stalls of \(loop.map { glyphs.shown($0.name) } ?? only)", .fair)
        }
        if state.sort != .found { add("sorted by \(state.sort.rawValue)", .plain) }
        if state.message == nil {
            add("q quit  Tab pane  Enter open  / filter  s sort  p pause  +- threshold  c copy  w write", .dim)
        }
        return StyledLine(spans)
    }

    // MARK: One stall, and the help

    func wholeStack(_ stall: LiveStall) -> [StyledLine] {
        let length = PlainText.duration(nanoseconds: stall.lengthNS)
        let state = stall.isOpen ? "\(glyphs.open) open" : "closed"
        var lines = [
            StyledLine([
                Span(" STALL ", .bold), Span(stall.id, .bold), Span("  \(state)", stall.isOpen ? .bad : .plain),
                Span("  \(length)", stall.isOpen ? .bad : .bold), Span("  from \(stall.time)"),
            ]),
            StyledLine(
                " " + glyphs.shown("\(stall.server) (\(stall.pid)), loop \(stall.loop)")
                    + (stall.diagnosis.request.map { "  \(glyphs.shown($0.method)) \(glyphs.shown($0.path))" } ?? "")),
            StyledLine([
                Span(" \(glyphs.shown(StallWords.cause(stall.diagnosis)))", .bold),
                Span(stall.diagnosis.phase.map { "  phase \(glyphs.shown($0))" } ?? ""),
                Span(stall.diagnosis.task.map { "  task \(glyphs.shown($0))" } ?? ""),
                Span("  \(StallWords.evidence(stall.diagnosis))"),
            ]),
        ]
        lines.append(title("STACK", stackTitle(stall), hasKeys: true))
        let findings = rows >= 14 ? Array(findingLines.prefix(3)) : []
        let share = max(1, rows - lines.count - findings.count - 1)
        let top = min(self.state.stackTop, max(0, stack.count - share))
        lines += frameLines(Array(stack.dropFirst(top).prefix(share)), isWhole: true)
        while lines.count < rows - 1 - findings.count { lines.append(StyledLine()) }
        lines += findings
        var foot: [Span] = []
        if stack.count > share {
            foot.append(Span(" lines \(top + 1)-\(top + share) of \(stack.count)  "))
        }
        if let message = self.state.message { foot.append(Span(" " + glyphs.shown(message), .bold)) }
        foot.append(Span(" Enter, Esc back  up down scroll  c copy  w write  q quit", .dim))
        lines.append(StyledLine(foot))
        return lines
    }

    func help() -> [StyledLine] {
        let wide = min(18, max(8, columns / 4))
        var lines = [StyledLine(" LoopLag: keys", .bold), StyledLine()]
        for (keys, meaning) in TopKeys.help {
            for (place, part) in wrap(meaning, to: columns - wide - 3).enumerated() {
                lines.append(
                    StyledLine([Span(" " + glyphs.left(place == 0 ? keys : "", wide), .bold), Span(" " + part)]))
            }
        }
        lines.append(StyledLine())
        for sentence in Self.legend {
            for part in wrap(sentence, to: columns - 2) { lines.append(StyledLine(" " + part)) }
        }
        let share = max(1, rows - 1)
        let top = min(state.helpTop, max(0, lines.count - share))
        let more = lines.count > share ? " lines \(top + 1)-\(top + share) of \(lines.count), up down scroll;" : ""
        lines = Array(lines.dropFirst(top).prefix(share))
        while lines.count < rows - 1 { lines.append(StyledLine()) }
        return lines + [StyledLine("\(more) any other key closes the help", .dim)]
    }

    private static let legend = [
        "DELAY is what an event that arrives at a random moment waits until its loop is free, over the last 60 s; STALLS "
            + "counts iterations of the threshold or more in that time. BUSY is of the last second or two.",
        "LAG shows the longest iteration of each stretch of the last minute; half way up is the threshold.",
        "Colours repeat what the numbers say: green under a quarter of the threshold, yellow under it, red from it on.",
        "A line number with a + is where its function begins; the frame stands there or further down.",
        "A narrow terminal leaves out bars, sparklines and the median; more columns bring them back.",
    ]

    private func wrap(_ text: String, to limit: Int) -> [String] {
        let limit = max(8, limit)
        var lines: [String] = []
        var line = ""
        for word in text.split(separator: " ") {
            if !line.isEmpty, line.count + 1 + word.count > limit {
                lines.append(line)
                line = ""
            }
            line += (line.isEmpty ? "" : " ") + word
        }
        return lines + (line.isEmpty ? [] : [line])
    }
}
