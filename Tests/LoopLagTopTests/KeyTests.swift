import LoopLagModel
import Testing

@testable import LoopLagTop

@Suite("Keys of top")
struct KeyTests {
    @discardableResult
    private func press(_ keys: [Key], _ state: inout TopState, _ picture: LivePicture = Sample.picture) -> Effect {
        var effect = Effect.none
        for key in keys { effect = TopKeys.handle(key, &state, picture: picture, page: 10) }
        return effect
    }

    private var fresh: TopState { TopState(threshold: .milliseconds(100)) }

    @Test("q and Ctrl-C quit, Ctrl-C also out of the filter and the help")
    func quitting() {
        var state = fresh
        #expect(press([.character("q")], &state) == .quit)
        state.isTyping = true
        #expect(press([.character("q")], &state) == .none)
        #expect(state.filter == "q")
        #expect(press([.interrupt], &state) == .quit)
        state = fresh
        state.showsHelp = true
        #expect(press([.interrupt], &state) == .quit)
    }

    @Test(
        "Arrows and j, k walk through the stalls and stop at both ends; at the top the selection follows what happens")
    func walking() {
        var state = fresh
        press([.down], &state)
        #expect(state.selectedStall == "4242.s8")
        press([.character("j"), .character("j"), .down], &state)
        #expect(state.selectedStall == "4242.s7")
        press([.up, .character("k"), .up], &state)
        #expect(state.selectedStall == nil)
        press([.end], &state)
        #expect(state.selectedStall == "4242.s7")
        press([.home], &state)
        #expect(state.selectedStall == nil)
    }

    @Test("Tab goes round the panes in both directions, and the same keys move in each")
    func panes() {
        var state = fresh
        #expect(state.focus == .stalls)
        press([.tab, .down], &state)
        #expect(state.focus == .stack)
        #expect(state.stackTop == 1)
        press([.tab, .down, .down], &state)
        #expect(state.focus == .loops)
        #expect(state.selectedRow == "4310.0.1")
        press([.up], &state)
        #expect(state.selectedRow == "4242.p0")
        press([.backTab], &state)
        #expect(state.focus == .stack)
    }

    @Test("Scrolling a stack stops at its last line")
    func scrollBounds() {
        var state = fresh
        state.focus = .stack
        press([.end, .pageDown], &state)
        #expect(state.stackTop == 1)
        press([.pageUp, .pageUp], &state)
        #expect(state.stackTop == 0)
    }

    @Test("Enter opens the stack and closes it again; Esc leaves it too")
    func opening() {
        var state = fresh
        press([.enter], &state)
        #expect(state.isExpanded)
        press([.tab], &state)
        #expect(state.focus == .stalls)
        press([.escape], &state)
        #expect(!state.isExpanded)
        var none = fresh
        press([.enter], &none, LivePicture())
        #expect(!none.isExpanded)
    }

    @Test("Enter on a loop lists its stalls only, and again lists all")
    func onlyLoop() {
        var state = fresh
        state.focus = .loops
        state.selectedRow = "4310.0.1"
        press([.enter], &state)
        #expect(TopRows.stalls(Sample.picture, state).isEmpty)
        press([.enter], &state)
        #expect(TopRows.stalls(Sample.picture, state).count == 3)
    }

    @Test("A filter is typed, kept with Enter, dropped with Esc, and finds loops, causes and culprits")
    func filtering() {
        var state = fresh
        press([.character("/")] + "BILLING".map { .character($0) } + [.enter], &state)
        #expect(!state.isTyping)
        #expect(TopRows.stalls(Sample.picture, state).map(\.id) == ["4242.s8"])
        press([.escape], &state)
        press([.character("/")] + "serverx".map { .character($0) } + [.backspace, .enter], &state)
        #expect(state.filter == "server")
        #expect(TopRows.rows(Sample.picture, state).map(\.id) == ["4310.0.1"])
        press([.character("/"), .escape], &state)
        #expect(state.filter.isEmpty)
        press([.character("/")] + String(repeating: "a\u{1b}", count: 200).map { .character($0) }, &state)
        #expect(state.filter.count == 60)
        #expect(state.filter.allSatisfy { $0 == "a" })
    }

    @Test("Sorting goes by busy, p99, max and stalls, the largest first, and back to the order found")
    func sorting() {
        var state = fresh
        let picture = Sample.crowd(3, 2)
        #expect(TopRows.rows(picture, state).map(\.id).first == "5000.0.1")
        press([.character("s"), .character("s")], &state, picture)
        #expect(state.sort == .p99)
        #expect(TopRows.rows(picture, state).map(\.id).prefix(3) == ["5002.1.1", "5002.0.1", "5001.1.1"])
        press([.character("s"), .character("s"), .character("s")], &state, picture)
        #expect(state.sort == .found)
    }

    @Test("The threshold goes up and down in steps and stays between 1 ms and 10 s")
    func threshold() {
        var state = fresh
        #expect(press([.character("+")], &state) == .threshold(.milliseconds(200)))
        #expect(press([.character("-"), .character("-")], &state) == .threshold(.milliseconds(50)))
        press(Array(repeating: .character("-"), count: 20), &state)
        #expect(state.threshold == .milliseconds(1))
        #expect(press([.character("-")], &state) == .none)
        press(Array(repeating: .character("+"), count: 40), &state)
        #expect(state.threshold == .seconds(10))
        state.threshold = .milliseconds(37)
        #expect(press([.character("+")], &state) == .threshold(.milliseconds(50)))
    }

    @Test("Copy and write ask for the selected stall; without one they say so")
    func exporting() {
        var state = fresh
        #expect(press([.character("c")], &state) == .copy(stall: "4242.s9"))
        press([.down], &state)
        #expect(press([.character("w")], &state) == .save(stall: "4242.s8"))
        #expect(press([.character("c")], &state, LivePicture()) == .none)
        #expect(state.message == "no stall is selected")
    }

    @Test("Space and p pause; h opens the help and any key closes it")
    func pauseAndHelp() {
        var state = fresh
        press([.character(" ")], &state)
        #expect(state.isPaused)
        press([.character("p")], &state)
        #expect(!state.isPaused)
        press([.character("h"), .down, .down, .up], &state)
        #expect(state.showsHelp)
        #expect(state.helpTop == 1)
        press([.character("x")], &state)
        #expect(!state.showsHelp)
    }

    @Test("A selection whose stall is forgotten falls back to the first")
    func forgotten() {
        var state = fresh
        state.selectedStall = "gone"
        #expect(state.selected(in: Sample.picture)?.id == "4242.s9")
        #expect(state.processInFocus(in: Sample.picture) == 4242)
        #expect(state.processInFocus(in: LivePicture()) == nil)
    }

    @Test("No key in any state crashes, with or without anything to see")
    func everyKey() {
        let keys: [Key] =
            [.up, .down, .pageUp, .pageDown, .home, .end, .enter, .escape, .tab, .backTab, .backspace]
            + (0x20...0x7e).compactMap { Unicode.Scalar($0) }.map { .character(Character($0)) }
        for picture in [LivePicture(), Sample.picture, Sample.hostile] {
            var state = fresh
            var random = SystemRandomNumberGenerator()
            for _ in 0..<600 {
                guard let key = keys.randomElement(using: &random) else { continue }
                _ = TopKeys.handle(key, &state, picture: picture, page: Int.random(in: 0...50, using: &random))
                #expect(Screen.lines(picture, state, columns: 80, rows: 24).count == 24)
            }
        }
    }
}
