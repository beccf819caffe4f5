/// What a screen may draw with: UTF-8's blocks and lines, or plain ASCII, and how wide a character comes out.
///
/// Chosen once by whoever opens the terminal, on its thread; then a plain value.

import CNcurses
import LoopLagDiagnosis

public struct Glyphs: Sendable {
    /// From empty to full, for bars (cells filled from the left) and for sparklines (from the bottom).
    var bar: [Character]
    var spark: [Character]
    var rule: Character
    var dot: String
    var warning: String
    var cut: Character
    /// Before the selected line.
    var pointer: String
    /// A stall that is open.
    var open: String
    /// Beside the user's own frames.
    var arrow: String
    var isUnicode: Bool
    /// Columns of one character on the terminal at hand.
    public var measure: @Sendable (Character) -> Int

    /// What the terminal of this process can show. Sets LC_CTYPE: call it once, before other threads format text.
    public static func forTerminal() -> Glyphs {
        guard lag_curses_use_utf8() else { return ascii }
        var glyphs = unicode
        // ncurses places text by wcwidth, so the columns counted here have to be its own.
        glyphs.measure = { character in
            character.unicodeScalars.reduce(0) { $0 + Int(max(0, lag_curses_columns($1.value))) }
        }
        return glyphs
    }

    public static let unicode = Glyphs(
        bar: [" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"], spark: ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"], rule: "─",
        dot: "·", warning: "⚠", cut: "…", pointer: "▸", open: "●", arrow: "←", isUnicode: true,
        measure: { PlainText.columns(of: $0) })

    public static let ascii = Glyphs(
        bar: [" ", "#"], spark: [".", ":", "|", "#"], rule: "-", dot: "-", warning: "!", cut: "~", pointer: ">",
        open: "*", arrow: "<-", isUnicode: false, measure: { _ in 1 })

    // Where the terminal has no UTF-8, a character of it is one that cannot be shown.
    func shown(_ text: String) -> String {
        let text = PlainText.printable(text)
        if isUnicode || text.utf8.allSatisfy({ $0 < 0x80 }) { return text }
        return String(text.map { $0.isASCII ? $0 : "?" })
    }

    func width(_ text: String) -> Int { PlainText.columns(of: text, measure: measure) }

    func clip(_ text: String, _ limit: Int) -> String {
        PlainText.clip(shown(text), to: max(0, limit), measure: measure, mark: cut)
    }

    func left(_ text: String, _ width: Int) -> String {
        PlainText.left(shown(text), max(0, width), measure: measure, mark: cut)
    }

    func right(_ text: String, _ width: Int) -> String {
        PlainText.right(shown(text), max(0, width), measure: measure, mark: cut)
    }
}
