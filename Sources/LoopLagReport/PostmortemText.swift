/// What a dead process left, for a person: how it ended, the report, and its last stalls with their stacks.
///
/// Called by `postmortem`, on any thread. Pure. It refuses to say why a process died: the segment does not know.

import LoopLagDiagnosis
import LoopLagModel

public enum PostmortemText {
    /// Stalls shown with their stacks.
    public static let usualStalls = 10
    private static let deepest = 40

    /// - Parameter report: of the one process.
    public static func render(_ report: Report, lastStalls: Int = usualStalls, width: Int = 100) -> String {
        let width = max(60, width)
        guard let process = report.processes.first else { return TextReport.render(report, width: width) }
        let name = serverName(
            command: process.command, executable: process.executable, runtime: process.runtime?.name)
        var lines = TextTable.wrap(title(process, name, report), width: width, hanging: 2)
        for stall in process.stalls where stall.open {
            lines += TextTable.wrap("It died in a stall: " + describe(stall, process), width: width, hanging: 2)
        }
        lines.append(contentsOf: ["", ""])
        var text = lines.dropLast().map { $0 + "\n" }.joined()
        text += TextReport.render(report, width: width)
        let last = process.stalls.sorted { $0.start > $1.start }.prefix(max(0, lastStalls))
        guard !last.isEmpty else { return text }
        text += "\nLAST STALLS, the newest first\n"
        for stall in last {
            let head = TextTable.wrap("  " + describe(stall, process), width: width, indent: 2, hanging: 4)
            text += (head + stack(of: stall, report.frames, width: width)).map { $0 + "\n" }.joined()
        }
        return text
    }

    private static func title(_ process: ReportProcess, _ name: String, _ report: Report) -> String {
        let lasted = PlainText.duration(nanoseconds: report.recorded.durationNS)
        var agent = "its agent took \(PlainText.duration(nanoseconds: process.agent.cpuNS)) of processor time"
        agent += ", sent \(process.agent.signalsSent) signals, dropped \(process.agent.samplesDropped) samples"
        if !process.agent.degraded.isEmpty { agent += " (\(process.agent.degraded.joined(separator: ", ")))" }
        return "\(process.pid) \(name) ended without a clean exit, last seen \(moment(report.recorded.end)) after"
            + " \(lasted) of measuring; \(agent)."
    }

    private static func describe(_ stall: ReportStall, _ process: ReportProcess) -> String {
        let loop = process.loops.first { $0.id == stall.loopID }
        let place = loop.map { loopName(tid: $0.tid, main: process.pid, threadName: $0.threadName) } ?? stall.loopID
        let length = PlainText.duration(nanoseconds: stall.durationNS)
        var text = "\(moment(stall.start))  \(place)  " + (stall.open ? "open since \(length)" : "lasted \(length)")
        text += "  " + [stall.cause.rawValue, stall.syscall].compactMap { $0 }.joined(separator: " ")
        if let culprit = stall.culprit { text += "  " + FrameText.short(culprit) }
        return text
    }

    /// Of the fullest sample, leaf first.
    private static func stack(of stall: ReportStall, _ frames: [Frame], width: Int) -> [String] {
        let fullest = stall.samples.enumerated().max { a, b in
            (a.element.stack.count, -a.offset) < (b.element.stack.count, -b.offset)
        }
        guard let sample = fullest?.element, !sample.stack.isEmpty else {
            return [PlainText.clip("    no stack: \(stall.noStackReason ?? "none was taken")", to: width)]
        }
        var isMarked = false
        var lines: [String] = []
        for index in sample.stack.prefix(deepest) where frames.indices.contains(index) {
            let frame = frames[index]
            let isCulprit = !isMarked && frame == stall.culprit
            isMarked = isMarked || isCulprit
            let place = FrameText.place(frame)
            let line =
                (isCulprit ? "  ▸ " : "    ") + PlainText.left(FrameText.tag(frame.kind), 3)
                + PlainText.printable(frame.function) + (place.isEmpty ? "" : "  " + place)
            lines.append(PlainText.clip(line, to: width))
        }
        if sample.stack.count > deepest { lines.append("    ... \(sample.stack.count - deepest) more frames") }
        if sample.truncated { lines.append("    ... the stack goes on, or cannot be followed further") }
        return lines
    }

    /// "2026-03-01 12:03:22.410 UTC" of the report's own form; anything else as it stands.
    private static func moment(_ timestamp: String) -> String {
        let parts = timestamp.split(separator: "T")
        guard parts.count == 2, parts[0].count == 10, parts[1].hasSuffix("Z") else { return timestamp }
        return "\(parts[0]) \(parts[1].dropLast().prefix(12)) UTC"
    }
}
