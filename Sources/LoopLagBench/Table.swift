/// The one table that the bench prints: what was measured, the figure, whether it holds, and the bar.
///
/// Filled by the measurements in the order they ran, printed once at the end. One thread. It refuses to invent: what
/// could not be measured here is a row that says why, and counts neither for nor against.

enum Verdict: String {
    case holds = "ok"
    case over = "OVER"
    case notMeasured = "-"
    /// A figure that stands beside a budget and has none of its own.
    case noBar = ""
}

struct Table {
    private struct Row {
        var what: String
        var figure: String
        var bar: String
        var verdict: Verdict
    }

    private var rows: [Row] = []

    mutating func add(_ what: String, _ figure: String, bar: String, holds: Bool) {
        rows.append(Row(what: what, figure: figure, bar: bar, verdict: holds ? .holds : .over))
    }

    /// A figure without a budget.
    mutating func note(_ what: String, _ figure: String) {
        rows.append(Row(what: what, figure: figure, bar: "", verdict: .noBar))
    }

    mutating func skip(_ what: String, because reason: String, bar: String = "") {
        rows.append(Row(what: what, figure: "not measured: " + reason, bar: bar, verdict: .notMeasured))
    }

    /// Runs one measurement that may find that it cannot be made here.
    mutating func attempt(_ what: String, bar: String = "", _ body: (inout Table) throws(BenchError) -> Void) {
        do throws(BenchError) {
            try body(&self)
        } catch {
            skip(what, because: error.reason, bar: bar)
        }
    }

    var holds: Bool { rows.allSatisfy { $0.verdict != .over } }

    var text: String {
        let what = rows.map(\.what.count).max() ?? 0
        // A long reason must not push every bar to the right.
        let figure = rows.map(\.figure.count).filter { $0 <= 76 }.max() ?? 0
        return rows.map { row in
            let line =
                padded(row.what, what) + "  " + padded(row.verdict.rawValue, 4) + "  " + padded(row.figure, figure)
                + "  "
                + row.bar
            return String(line.reversed().drop { $0 == " " }.reversed())
        }.joined(separator: "\n")
    }

    private func padded(_ text: String, _ width: Int) -> String {
        text + String(repeating: " ", count: max(0, width - text.count))
    }
}

/// Why something could not be measured here.
struct BenchError: Error {
    var reason: String

    init(_ reason: String) { self.reason = reason }

    /// With what errno says.
    static func system(_ what: String, _ code: Int32) -> BenchError {
        BenchError("\(what): \(systemReason(code))")
    }
}
