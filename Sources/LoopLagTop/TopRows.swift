/// Which rows and stalls there are to see under the state: filtered, sorted, and which of them is selected.
///
/// Called by the keys and by the screen, on any thread. Pure.

import LoopLagDiagnosis
import LoopLagModel

/// One line of the upper table.
struct TableRow {
    enum Content {
        case loop(LiveLoop)
        case pool(ReportPool)
        case note(String)
    }

    var id: String
    var process: LiveProcess
    var content: Content
    /// Names its process.
    var isFirst: Bool

    var loop: LiveLoop? {
        if case .loop(let loop) = content { return loop }
        return nil
    }
}

enum TopRows {
    static func rows(_ picture: LivePicture, _ state: TopState) -> [TableRow] {
        var processes = picture.processes
        if state.sort != .found {
            processes = stable(processes) { $0.loops.map { value($0, state.sort) }.max() ?? -1 }
        }
        return processes.flatMap { rows(of: $0, state) }
    }

    private static func rows(of process: LiveProcess, _ state: TopState) -> [TableRow] {
        var loops = process.loops
        if state.sort != .found { loops = stable(loops) { value($0, state.sort) } }
        let isWhole = matches(process.server, state) || matches("\(process.pid)", state)
        var contents: [(id: String, content: TableRow.Content)] = []
        for loop in loops where isWhole || matches(loop.name, state) || matches(loop.kind, state) {
            contents.append((loop.id, .loop(loop)))
        }
        for pool in process.pools where isWhole || matches(pool.name, state) || matches(pool.kind, state) {
            contents.append((pool.id, .pool(pool)))
        }
        if contents.isEmpty, isWhole {
            contents.append(("\(process.pid)", .note(process.note)))
        }
        return contents.enumerated().map {
            TableRow(id: $0.element.id, process: process, content: $0.element.content, isFirst: $0.offset == 0)
        }
    }

    static func selectedRow(_ picture: LivePicture, _ state: TopState) -> TableRow? {
        let rows = rows(picture, state)
        return rows.first { $0.id == state.selectedRow } ?? rows.first
    }

    static func stalls(_ picture: LivePicture, _ state: TopState) -> [LiveStall] {
        picture.stalls.filter { stall in
            if let only = state.onlyLoop, stall.loopID != only { return false }
            guard !state.filter.isEmpty else { return true }
            let culprit = stall.diagnosis.culprit
            let request = stall.diagnosis.request.map { "\($0.method) \($0.path)" }
            return [
                stall.server, "\(stall.pid)", stall.loop, stall.diagnosis.cause.rawValue, stall.diagnosis.syscall,
                culprit?.function, culprit?.file, request, stall.diagnosis.task,
            ].contains { $0.map { matches($0, state) } ?? false }
        }
    }

    static func stall(_ picture: LivePicture, _ state: TopState) -> LiveStall? {
        let stalls = stalls(picture, state)
        return stalls.first { $0.id == state.selectedStall } ?? stalls.first
    }

    private static func matches(_ text: String, _ state: TopState) -> Bool {
        state.filter.isEmpty || text.lowercased().contains(state.filter.lowercased())
    }

    private static func value(_ loop: LiveLoop, _ sort: SortOrder) -> Double {
        switch sort {
        case .found: 0
        case .busy: loop.utilization ?? -1
        case .p99: loop.delay.p99NS.map(Double.init) ?? -1
        case .max: loop.delay.maxNS.map(Double.init) ?? -1
        case .stalls: Double(loop.stallCount) + (loop.open == nil ? 0 : 0.5)
        }
    }

    /// The largest first, equals as they were.
    private static func stable<Item>(_ items: [Item], _ key: (Item) -> Double) -> [Item] {
        items.enumerated().map { (place: $0.offset, key: key($0.element), item: $0.element) }
            .sorted { ($1.key, $0.place) < ($0.key, $1.place) }.map(\.item)
    }
}

extension TopState {
    /// The stall that the lower panes show, for whoever makes the picture.
    public func selected(in picture: LivePicture) -> LiveStall? { TopRows.stall(picture, self) }

    /// The process that the picture's findings should be about.
    public func processInFocus(in picture: LivePicture) -> Int32? {
        TopRows.stall(picture, self)?.pid ?? TopRows.selectedRow(picture, self)?.process.pid
    }
}
