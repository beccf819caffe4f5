/// What a report says in plain words: each rule looks for one thing and, where it finds it, says what it rests on and
/// what to do.
///
/// Called by the report builder, on any thread. Pure. It refuses to repeat numbers without a conclusion: a healthy
/// report has no findings.

import LoopLagModel

/// The findings of a report whose processes are filled in, most severe first.
public func findings(for report: Report) -> [Finding] {
    var result: [Finding] = []
    for process in report.processes {
        let context = FindingContext(process: process, report: report)
        result += FindingRules.all.compactMap { $0.check(context) }
    }
    // A stable sort by severity: rules stand in order of weight, processes in the report's order.
    return [Finding.Severity.critical, .warning, .info].flatMap { severity in result.filter { $0.severity == severity }
    }
}

/// One thing that may be wrong with one process.
protocol FindingRule: Sendable {
    func check(_ context: FindingContext) -> Finding?
}

/// What the rules look at: a process, with what several of them need worked out once.
struct FindingContext {
    let process: ReportProcess
    let thresholdNS: Int64
    let durationNS: Int64
    let server: String
    /// Loops that serve; helpers are nobody's problem.
    let loops: [ReportLoop]
    /// The process's pid, with a suffix where a report holds two processes of that pid.
    private let idPrefix: String

    init(process: ReportProcess, report: Report) {
        self.process = process
        self.thresholdNS = report.settings.thresholdNS
        self.durationNS = report.recorded.durationNS
        self.server = serverName(
            command: process.command, executable: process.executable, runtime: process.runtime?.name)
        self.loops = process.loops.filter { $0.role == .server }
        let sameID = report.processes.filter { $0.pid == process.pid }
        let place = sameID.firstIndex(of: process) ?? 0
        self.idPrefix = place == 0 ? "\(process.pid)" : "\(process.pid)-\(place + 1)"
    }

    /// Stalls of serving loops.
    var stalls: [ReportStall] {
        let ids = Set(loops.map(\.id))
        return process.stalls.filter { ids.contains($0.loopID) }
    }

    /// The process as a sentence names it.
    var subject: String { "\(server) (\(process.pid))" }

    func finding(
        _ name: String, _ severity: Finding.Severity, _ title: String, evidence: String, advice: String,
        stalls: [ReportStall] = []
    ) -> Finding {
        Finding(
            id: "\(idPrefix).\(name)", severity: severity, title: PlainText.printable(title),
            evidence: PlainText.printable(evidence), advice: PlainText.printable(advice), stalls: stalls.map(\.id))
    }

    /// A stall that lasts, or a loop that loses a twentieth of its time, hurts every client: critical.
    func severity(of stalls: [ReportStall]) -> Finding.Severity {
        let lost = stalls.reduce(0.0) { $0 + Double($1.durationNS) }
        let isLasting = stalls.contains { $0.open && Double($0.durationNS) >= 1e9 }
        return isLasting || durationNS > 0 && lost >= Double(durationNS) / 20 ? .critical : .warning
    }

    /// "12 stalls, 3.1 s in all, the worst 412 ms".
    func summary(of stalls: [ReportStall]) -> String {
        let total = stalls.reduce(Int64(0)) { $0.addingReportingOverflow(max(0, $1.durationNS)).partialValue }
        let worst = stalls.map(\.durationNS).max() ?? 0
        let count = stalls.count == 1 ? "1 stall of" : "\(stalls.count) stalls,"
        let text = "\(count) \(PlainText.duration(nanoseconds: total))"
        return stalls.count == 1 ? text : text + " in all, the worst \(PlainText.duration(nanoseconds: worst))"
    }

    /// The culprit most of these stalls share, as it stands in a sentence.
    func mainCulprit(of stalls: [ReportStall]) -> String? {
        var totals: [(name: String, length: Double)] = []
        for stall in stalls {
            guard let culprit = stall.culprit else { continue }
            let name = Self.describe(culprit)
            if let i = totals.firstIndex(where: { $0.name == name }) {
                totals[i].length += Double(stall.durationNS)
            } else {
                totals.append((name, Double(stall.durationNS)))
            }
        }
        return totals.max { $0.length < $1.length }?.name
    }

    /// "`charge` (billing.py:41)".
    static func describe(_ frame: Frame) -> String {
        var text = "`\(PlainText.clip(frame.function, to: 80))`"
        if let file = frame.file {
            text += " (\(PlainText.fileName(file))\(frame.line.map { ":\($0)" } ?? ""))"
        } else if let module = frame.module {
            text += " (\(module))"
        }
        return text
    }

    /// The kind of the loop that these stalls hold up most.
    func kind(of stalls: [ReportStall]) -> String {
        let id = stalls.max { $0.durationNS < $1.durationNS }?.loopID
        return loops.first { $0.id == id }?.kind ?? loops.first?.kind ?? "epoll"
    }
}
