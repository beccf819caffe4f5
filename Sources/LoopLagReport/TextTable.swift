/// A table of text that fits a width: columns as wide as their longest cell, the flexible ones cut first.
///
/// Called by the text report. Pure.

import LoopLagDiagnosis

struct TextTable {
    struct Column {
        var title: String
        var isRight: Bool
        /// May be cut down to `least` columns where the line is too long.
        var least: Int

        static func left(_ title: String, least: Int = .max) -> Column {
            Column(title: title, isRight: false, least: least)
        }
        static func right(_ title: String) -> Column { Column(title: title, isRight: true, least: .max) }
    }

    let columns: [Column]
    private var rows: [[String]] = []

    init(_ columns: [Column]) { self.columns = columns }

    mutating func add(_ cells: [String]) { rows.append(cells.map(PlainText.printable)) }

    var isEmpty: Bool { rows.isEmpty }

    /// The lines, the titles first, each at most `width` columns.
    func lines(width: Int, indent: Int = 2) -> [String] {
        let gap = 2
        var widths = columns.indices.map { i in
            ([columns[i].title] + rows.map { $0.indices.contains(i) ? $0[i] : "" }).map { PlainText.columns(of: $0) }
                .max() ?? 0
        }
        var surplus = widths.reduce(0, +) + gap * max(0, columns.count - 1) + indent - width
        while surplus > 0 {
            // The widest of those that may shrink gives way, a column at a time.
            let candidates = columns.indices.filter { widths[$0] > columns[$0].least }
            guard let widest = candidates.max(by: { widths[$0] < widths[$1] }) else { break }
            widths[widest] -= 1
            surplus -= 1
        }
        let margin = String(repeating: " ", count: indent)
        return ([columns.map(\.title)] + rows).map { cells in
            var line = margin
            for i in columns.indices {
                let cell = cells.indices.contains(i) ? cells[i] : ""
                if i > 0 { line += String(repeating: " ", count: gap) }
                line += columns[i].isRight ? PlainText.right(cell, widths[i]) : PlainText.left(cell, widths[i])
            }
            while line.last == " " { line.removeLast() }
            return PlainText.clip(line, to: width)
        }
    }

    /// `text` in lines of at most `width` columns, broken at blanks; further lines are indented by `hanging`.
    static func wrap(_ text: String, width: Int, indent: Int = 0, hanging: Int? = nil) -> [String] {
        var lines: [String] = []
        var line = String(repeating: " ", count: indent)
        var isBlank = true
        for word in PlainText.printable(text).split(separator: " ") {
            if !isBlank, PlainText.columns(of: line) + 1 + PlainText.columns(of: String(word)) > width {
                lines.append(line)
                line = String(repeating: " ", count: hanging ?? indent)
                isBlank = true
            }
            if !isBlank { line += " " }
            line += word
            isBlank = false
        }
        if !isBlank { lines.append(line) }
        return lines.map { PlainText.clip($0, to: width) }
    }
}
