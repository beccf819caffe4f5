/// The picture as plain lines, for a pipe or a terminal that cannot place text: one line a loop and pool, bounded,
/// without escapes.
///
/// Called by the live view once an interval, on any thread. Pure.

import LoopLagDiagnosis
import LoopLagModel

public enum PlainLines {
    /// Of each line: long names are cut, numbers never.
    public static let width = 160

    public static func lines(_ picture: LivePicture) -> [String] {
        var lines: [String] = []
        for process in picture.processes {
            let lead =
                "\(picture.time)  \(PlainText.right("\(process.pid)", 7)) \(PlainText.left(process.server, 14))  "
            if process.isGone {
                lines.append(lead + process.note)
                continue
            }
            for loop in process.loops { lines.append(lead + text(loop)) }
            for pool in process.pools { lines.append(lead + text(pool)) }
            if process.loops.isEmpty, process.pools.isEmpty { lines.append(lead + process.note) }
        }
        if picture.processes.isEmpty { lines.append("\(picture.time)  no process with an agent") }
        return lines.map { PlainText.clip($0, to: width) }.map { line in
            String(line.reversed().drop { $0 == " " }.reversed())
        }
    }

    private static func text(_ loop: LiveLoop) -> String {
        func length(_ nanoseconds: Int64?) -> String {
            PlainText.right(nanoseconds.map { PlainText.duration(nanoseconds: $0) } ?? "-", 6)
        }
        var text = PlainText.left("\(loop.name)·\(loop.kind)", 20)
        text += "  busy \(PlainText.right(loop.utilization.map(PlainText.percent) ?? "-", 5))"
        text += "  p50 \(length(loop.delay.p50NS))  p99 \(length(loop.delay.p99NS))  max \(length(loop.delay.maxNS))"
        text += "  stalls \(loop.stallCount)"
        if let open = loop.open {
            text += "  open \(PlainText.duration(nanoseconds: open.elapsedNS)) \(open.cause.rawValue)"
            if let culprit = open.culprit {
                let place = StackLines.place(culprit)
                text += "  \(culprit.function)" + (place.isEmpty ? "" : " \(place)")
            }
        }
        return text
    }

    private static func text(_ pool: ReportPool) -> String {
        var text = PlainText.left("pool \(pool.kind)", 20)
        if let busy = pool.busy {
            text += pool.threads.map { "  busy \(busy.last) of \($0)" } ?? "  busy \(busy.last)"
        }
        if let queue = pool.queueDepth { text += "  queued \(queue.last)" }
        if let wait = pool.queueWait?.p99NS { text += "  wait p99 \(PlainText.duration(nanoseconds: wait))" }
        return text
    }
}
