/// Keys: how each changes the state, and what it asks of the outside.
///
/// Called by the live view for each key, on its thread. Pure: the same state, picture and key give the same result. It
/// refuses nothing with a beep: a key without a meaning here does nothing.

import LoopLagModel

public enum TopKeys {
    /// What `?` shows, and the README's table: key, what it does.
    public static let help: [(keys: String, meaning: String)] = [
        ("up down, j k", "move in the pane that has the keys; PgUp PgDn, Home End (g G)"),
        ("Tab, Shift-Tab", "next pane: loops, stalls, stack"),
        ("Enter", "on a loop: only its stalls; on a stall: its stack on the whole screen"),
        ("Esc", "back; on the main screen: drop filter and selection"),
        ("/", "filter loops and stalls by process, loop, cause or culprit; Enter keeps it"),
        ("s", "sort loops: order found, busy, p99, max, stalls"),
        ("space, p", "pause the picture; measuring goes on"),
        ("+ -", "threshold up and down: what counts as a stall"),
        ("c", "copy the selected stall as JSON (OSC 52: the terminal must allow it)"),
        ("w", "write the selected stall as JSON into the current folder"),
        ("Ctrl-L", "draw everything anew"),
        ("h, ?", "this help"),
        ("q, Ctrl-C", "quit; servers and their agents stay as they are"),
    ]

    /// - Parameter page: lines of the pane that has the keys.
    public static func handle(_ key: Key, _ state: inout TopState, picture: LivePicture, page: Int) -> Effect {
        if key == .interrupt { return .quit }
        state.message = nil
        if state.isTyping { return typing(key, &state) }
        if state.showsHelp { return helping(key, &state) }
        switch key {
        case .character("q"): return .quit
        case .character("h"), .character("?"):
            state.showsHelp = true
            state.helpTop = 0
        case .character("/"): state.isTyping = true
        case .character("s"):
            let all = SortOrder.allCases
            let place = all.firstIndex(of: state.sort) ?? 0
            state.sort = all[(place + 1) % all.count]
            state.message = "sorted by \(state.sort.rawValue)"
        case .character(" "), .character("p"): state.isPaused.toggle()
        case .character("+"), .character("="), .character(">"): return step(&state, up: true)
        case .character("-"), .character("_"), .character("<"): return step(&state, up: false)
        case .character("c"): return TopRows.stall(picture, state).map { .copy(stall: $0.id) } ?? noStall(&state)
        case .character("w"): return TopRows.stall(picture, state).map { .save(stall: $0.id) } ?? noStall(&state)
        case .character("\u{c}"): return .redraw
        case .tab: turn(&state, by: 1)
        case .backTab: turn(&state, by: -1)
        case .enter: enter(&state, picture)
        case .escape: back(&state)
        case .up, .character("k"): move(&state, picture, by: -1)
        case .down, .character("j"): move(&state, picture, by: 1)
        case .pageUp: move(&state, picture, by: -max(1, page - 1))
        case .pageDown: move(&state, picture, by: max(1, page - 1))
        case .home, .character("g"): move(&state, picture, by: -1_000_000)
        case .end, .character("G"): move(&state, picture, by: 1_000_000)
        default: break
        }
        return .none
    }

    private static func noStall(_ state: inout TopState) -> Effect {
        state.message = "no stall is selected"
        return .none
    }

    private static func typing(_ key: Key, _ state: inout TopState) -> Effect {
        switch key {
        case .character(let character):
            // A line of text, not control characters, and no longer than anything it could match.
            if state.filter.count < 60, character.unicodeScalars.allSatisfy({ $0.value >= 0x20 && $0.value != 0x7f }) {
                state.filter.append(character)
            }
        case .backspace:
            if state.filter.isEmpty { state.isTyping = false } else { state.filter.removeLast() }
        case .enter: state.isTyping = false
        case .escape:
            state.isTyping = false
            state.filter = ""
        default: break
        }
        return .none
    }

    private static func helping(_ key: Key, _ state: inout TopState) -> Effect {
        switch key {
        case .up, .character("k"): state.helpTop = max(0, state.helpTop - 1)
        case .down, .character("j"): state.helpTop = min(help.count + 12, state.helpTop + 1)
        case .character("q"): return .quit
        default: state.showsHelp = false
        }
        return .none
    }

    private static func turn(_ state: inout TopState, by step: Int) {
        // The whole screen is the stack's: there is nothing to turn to.
        guard !state.isExpanded else { return }
        let all = Pane.allCases
        state.focus = all[(state.focus.rawValue + step + all.count) % all.count]
    }

    private static func enter(_ state: inout TopState, _ picture: LivePicture) {
        switch state.focus {
        case .loops:
            guard let row = TopRows.selectedRow(picture, state), let loop = row.loop else { return }
            state.onlyLoop = state.onlyLoop == loop.id ? nil : loop.id
            state.selectedStall = nil
            state.stackTop = 0
        case .stalls, .stack:
            guard TopRows.stall(picture, state) != nil else { return }
            state.isExpanded.toggle()
            state.stackTop = 0
        }
    }

    private static func back(_ state: inout TopState) {
        if state.isExpanded {
            state.isExpanded = false
        } else {
            state.filter = ""
            state.onlyLoop = nil
            state.selectedStall = nil
            state.selectedRow = nil
        }
        state.stackTop = 0
    }

    private static func move(_ state: inout TopState, _ picture: LivePicture, by step: Int) {
        if state.isExpanded || state.focus == .stack {
            let lines = TopRows.stall(picture, state).map { StackLines.count($0) } ?? 0
            state.stackTop = min(max(0, state.stackTop + step), max(0, lines - 1))
            return
        }
        switch state.focus {
        case .loops:
            let rows = TopRows.rows(picture, state)
            let place = rows.firstIndex { $0.id == state.selectedRow } ?? 0
            guard !rows.isEmpty else { return }
            state.selectedRow = rows[min(max(0, place + step), rows.count - 1)].id
        case .stalls:
            let stalls = TopRows.stalls(picture, state)
            let place = stalls.firstIndex { $0.id == state.selectedStall } ?? 0
            guard !stalls.isEmpty else { return }
            let next = min(max(0, place + step), stalls.count - 1)
            // At the top the selection follows what happens.
            state.selectedStall = next == 0 ? nil : stalls[next].id
            state.stackTop = 0
        case .stack: break
        }
    }

    private static let thresholds: [Int64] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000]

    private static func step(_ state: inout TopState, up: Bool) -> Effect {
        let now = state.threshold.nanosecondCount
        let steps = thresholds.map { $0 * 1_000_000 }
        guard let next = up ? steps.first(where: { $0 > now }) : steps.last(where: { $0 < now }) else { return .none }
        state.threshold = .nanoseconds(next)
        return .threshold(state.threshold)
    }
}
