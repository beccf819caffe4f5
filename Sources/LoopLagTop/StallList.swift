/// The middle pane: the recent stalls, a line each, open ones first.
///
/// Called by the screen, on any thread. Pure.

import LoopLagDiagnosis
import LoopLagModel

struct StallList {
    let columns: Int
    let glyphs: Glyphs
    /// Several loops are on the screen, so each stall says whose it is.
    let namesLoop: Bool
    /// And several processes.
    let namesProcess: Bool
    /// Some stall in the list tells what it was serving.
    let hasRequests: Bool

    private static let time = 13
    private static let length = 8
    private var cause: Int { columns < 60 ? 10 : columns < 100 ? 16 : 24 }
    private var loop: Int {
        guard namesLoop, columns >= 90 else { return 0 }
        return (columns < 130 ? 16 : 20) + (namesProcess ? 6 : 0)
    }
    private var hasRequest: Bool { columns >= 110 && hasRequests }
    private var request: Int { hasRequest ? max(22, columns / 6) : 0 }
    private var function: Int { max(0, (rest * 3) / 5) }
    private var place: Int { max(0, rest - function - 1) }
    /// What is left for the culprit.
    private var rest: Int {
        let used = 2 + Self.time + Self.length + 2 + cause + 1 + (loop > 0 ? loop + 1 : 0)
        return max(0, columns - used - (hasRequest ? request + 1 : 0))
    }

    func titles() -> String {
        var text = glyphs.left("STARTED", Self.time) + glyphs.right("LASTED", Self.length) + "  "
        if loop > 0 { text += glyphs.left("LOOP", loop) + " " }
        text += glyphs.left("CAUSE", cause) + " "
        text += rest >= 8 ? glyphs.left("CULPRIT", rest) : ""
        if hasRequest { text += " REQUEST" }
        return text
    }

    func line(_ stall: LiveStall, isSelected: Bool, hasKeys: Bool) -> StyledLine {
        let mark = (isSelected ? glyphs.pointer : " ") + (stall.isOpen ? glyphs.open : " ")
        var spans = [Span(mark, stall.isOpen ? .bad : .plain)]
        spans.append(Span(glyphs.left(stall.isOpen ? "open" : stall.time, Self.time), stall.isOpen ? .bad : .plain))
        let length = PlainText.duration(nanoseconds: stall.lengthNS)
        spans.append(Span(glyphs.right(length, Self.length) + "  ", stall.isOpen ? .bad : .plain))
        if loop > 0 {
            spans.append(Span(glyphs.left(namesProcess ? "\(stall.pid) \(stall.loop)" : stall.loop, loop) + " "))
        }
        spans.append(Span(glyphs.left(StallWords.cause(stall.diagnosis), cause) + " "))
        if rest >= 8 { spans += culprit(stall) }
        if hasRequest, let request = stall.diagnosis.request {
            spans.append(Span(" " + glyphs.left("\(request.method) \(request.path)", self.request)))
        }
        return StyledLine(spans, isReversed: isSelected && hasKeys)
    }

    private func culprit(_ stall: LiveStall) -> [Span] {
        guard let culprit = stall.diagnosis.culprit else {
            return [Span(glyphs.left(stall.isOpen && stall.samples.isEmpty ? "" : "-", rest), .dim)]
        }
        let where_ = StackLines.place(culprit)
        if glyphs.width(culprit.function) <= function || place < 12 {
            return [
                Span(glyphs.left(culprit.function, function) + " ", .bold), Span(glyphs.left(where_, place)),
            ]
        }
        // A long name takes what a short place leaves.
        let short = min(place, glyphs.width(glyphs.shown(where_)))
        return [
            Span(glyphs.left(culprit.function, rest - short - 1) + " ", .bold), Span(glyphs.left(where_, short)),
        ]
    }
}

enum StallWords {
    /// "syscall nanosleep", "on_cpu".
    static func cause(_ diagnosis: StallDiagnosis) -> String {
        diagnosis.cause.rawValue + (diagnosis.syscall.map { " \($0)" } ?? "")
    }

    /// The numbers behind the cause, for the whole-screen view: "cpu_time 345 ms, looks 9".
    static func evidence(_ diagnosis: StallDiagnosis) -> String {
        diagnosis.evidence.sorted { $0.key < $1.key }.map { name, value in
            if name.hasSuffix("_ns") {
                let length = PlainText.duration(nanoseconds: Int64(min(9e18, max(0, value))))
                return "\(name.dropLast(3)) \(length)"
            }
            return "\(name) \(Int64(min(9e15, max(0, value))))"
        }.joined(separator: ", ")
    }
}
