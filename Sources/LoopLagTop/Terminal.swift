/// The terminal itself, through ncursesw: draws lines, reads keys, and gives the terminal back as it was.
///
/// Used by the live view, on the main thread, one at a time. Whoever opens it closes it on every way out; a crash is
/// caught by the handler in CNcurses. It refuses a terminal that cannot place text, saying why, and never prints a byte
/// that `Screen` did not make: foreign names come here as printable text only.

import CNcurses
import Glibc

public final class Terminal {
    public enum Refusal: Error, Sendable {
        /// TERM is not set, unknown, or names one that only prints line after line.
        case cannotPlaceText(name: String)
        /// There is no keyboard.
        case noInput
    }

    public let glyphs: Glyphs
    private var shown: [StyledLine] = []
    private var isOpen = false

    /// Takes the terminal on standard input and output over.
    public init(colours: Bool) throws(Refusal) {
        let name = getenv("TERM").map { String(cString: $0) } ?? ""
        guard isatty(STDIN_FILENO) == 1 else { throw .noInput }
        // The locale before ncurses, which asks it once.
        glyphs = Glyphs.forTerminal()
        guard !name.isEmpty, name != "dumb", lag_curses_can_place(), lag_curses_open(colours) else {
            throw .cannotPlaceText(name: name)
        }
        isOpen = true
    }

    deinit { close() }

    public var columns: Int { Int(lag_curses_width()) }
    public var rows: Int { Int(lag_curses_rows()) }

    /// Writes what is new since the last time.
    public func draw(_ lines: [StyledLine]) {
        for (row, line) in lines.enumerated() where row >= shown.count || shown[row] != line {
            lag_curses_start_line(Int32(row))
            for span in line.spans { lag_curses_add(span.text, Self.code(span.style), line.isReversed) }
        }
        shown = lines
        lag_curses_show()
    }

    private static func code(_ style: Style) -> Int32 {
        switch style {
        case .plain: Int32(LAG_CURSES_PLAIN)
        case .good: Int32(LAG_CURSES_GOOD)
        case .fair: Int32(LAG_CURSES_FAIR)
        case .bad: Int32(LAG_CURSES_BAD)
        case .dim: Int32(LAG_CURSES_DIM)
        case .bold: Int32(LAG_CURSES_BOLD)
        }
    }

    /// The size has changed.
    public func resize() {
        lag_curses_resize()
        shown = []
    }

    public func redraw() {
        lag_curses_redraw()
        shown = []
    }

    /// The next key that was pressed, or nil.
    public func key() -> Key? {
        var value: UInt32 = 0
        while true {
            switch lag_curses_key(&value) {
            case 1:
                if let key = Self.key(character: value) { return key }
            case 2:
                if let key = Self.key(function: Int32(bitPattern: value)) { return key }
            default: return nil
            }
        }
    }

    private static func key(character value: UInt32) -> Key? {
        switch value {
        case 3: return .interrupt
        case 8, 127: return .backspace
        case 9: return .tab
        case 10, 13: return .enter
        case 27: return .escape
        default: return Unicode.Scalar(value).map { .character(Character($0)) }
        }
    }

    private static func key(function value: Int32) -> Key? {
        switch value {
        case KEY_UP: .up
        case KEY_DOWN: .down
        case KEY_PPAGE: .pageUp
        case KEY_NPAGE: .pageDown
        case KEY_HOME: .home
        case KEY_END: .end
        case KEY_ENTER: .enter
        case KEY_BTAB: .backTab
        case KEY_BACKSPACE: .backspace
        default: nil
        }
    }

    /// Writes past ncurses: a bell, the clipboard.
    public func send(_ bytes: String) {
        var rest = Array(bytes.utf8)[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
            if count > 0 { rest = rest.dropFirst(count) } else if errno != EINTR { return }
        }
    }

    public func close() {
        guard isOpen else { return }
        isOpen = false
        lag_curses_close()
    }

    /// Gives the terminal back, stops as Ctrl-Z stops any program, and takes it again when somebody says go on.
    /// - Parameter stop: sends the stop signal; returns once the program runs again.
    public func suspend(_ stop: () -> Void) {
        lag_curses_close()
        stop()
        lag_curses_resume()
        resize()
    }
}
