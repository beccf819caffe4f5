/// Turns what a follower saw into the stall events that StallLine writes, and into the report.
///
/// Called by the verbs between two polls. Decides what a person is spared (stalls of helper loops), and nothing else.

import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport

struct StallEvents {
    var threshold: Duration
    var userCode: [String] = []
    /// Also loops that serve nothing: libdispatch's manager, node's inspector.
    var showsHelpers = false

    /// The event behind a change; nil for one that is not shown.
    func event(_ process: FollowedProcess, _ change: FollowedProcess.Change) -> StallEvent? {
        switch change {
        case .opened(let stall):
            return event(
                process, stall, .opened, at: FollowedProcess.Change.opening(of: stall, threshold: threshold))
        case .sampled(let stall, let sample):
            var stall = stall
            stall.duration = max(sample.offset, .zero)
            return event(process, stall, .sampled, at: stall.start.advanced(by: stall.duration), stack: sample.frames)
        case .closed(let stall):
            return event(process, stall, .closed, at: stall.start.advanced(by: stall.duration))
        case .missed:
            return nil
        }
    }

    private func event(
        _ process: FollowedProcess, _ stall: StallRecord, _ kind: StallEvent.Kind, at time: MonotonicTime,
        stack: [Frame]? = nil
    ) -> StallEvent? {
        // The news of a stall does not wait for symbols.
        let loop = process.loop(stall.loop).map {
            kind == .opened ? process.quickClass(of: $0) : process.loopClass(of: $0)
        }
        if !showsHelpers, loop?.role == .helper { return nil }
        let samples = process.samples[stall.id] ?? []
        let diagnosis = diagnose(
            stall, samples: samples, executable: process.latest.executable, userCode: userCode)
        let newest = stack ?? samples.last { !$0.frames.isEmpty }?.frames
        return StallEvent(
            kind: kind, wallNanoseconds: Clock.wall(of: time), pid: process.identity.pid, server: process.name,
            loopID: stall.loop,
            loop: loop ?? LoopClass(kind: "epoll", role: .server, name: "thread \(stall.tid)"), stall: stall,
            threshold: threshold, diagnosis: diagnosis, stack: newest, request: diagnosis.request)
    }
}

/// The window of a report: both clocks at its start.
struct ReportWindow {
    let start = Clock.monotonic()
    let startWall = Clock.wall()

    func report(of follower: Follower, userCode: [String] = []) -> Report {
        let processes = follower.processes.map { process in
            var input = ReportInput.Process(
                from: process.includesHistory ? nil : process.baseline, to: process.latest,
                stalls: process.stallHistory, samples: process.samples.values.flatMap { $0 },
                callers: process.loopCallers, goneLoops: process.goneLoops,
                startedWallNanoseconds: process.facts?.startedWallNanoseconds)
            input.provisional = follower.provisionalStalls.filter { $0.identity == process.identity }.map(\.reported)
            return input
        }
        return ReportBuilder.build(
            ReportInput(
                processes: processes, start: start, end: Clock.monotonic(), startWallNanoseconds: startWall,
                endWallNanoseconds: Clock.wall(), threshold: follower.threshold, machine: MachineInfo.current(),
                version: Version.number, userCode: userCode))
    }
}

/// The one line that `run` and `record` end with.
enum Summary {
    static func line(of report: Report, output: String?) -> String {
        func length(_ nanoseconds: Int64) -> String { PlainText.duration(nanoseconds: nanoseconds) }
        let loops = report.processes.flatMap(\.loops).filter { $0.role == .server }
        let servers = Set(loops.map(\.id))
        let stalls = report.processes.flatMap(\.stalls).filter { servers.contains($0.loopID) }
        var line: String
        if loops.isEmpty {
            line = "no event loop was measured in \(length(report.recorded.durationNS))"
        } else {
            line =
                "measured \(Readiness.count(report.processes.count, "process", "processes"))"
                + ", \(Readiness.count(loops.count, "loop")) for \(length(report.recorded.durationNS)): "
            let threshold = length(report.settings.thresholdNS)
            // The counters know every stall; the list holds those that the segment still had.
            let count = max(Int64(stalls.count), loops.reduce(0) { $0 &+ max(0, $1.stallCount) })
            if count == 0 {
                line += "no stall of \(threshold) or more"
            } else {
                line += "\(Readiness.count(Int(clamping: count), "stall")) of \(threshold) or more"
                if let worst = stalls.max(by: { $0.durationNS < $1.durationNS }) {
                    line += ", the worst \(length(worst.durationNS)) (\(worst.cause.rawValue)"
                    line += worst.culprit.map { ", \(PlainText.printable($0.function))" } ?? ""
                    line += ")"
                }
            }
        }
        if let output, output != "-" { line += "; report in \(PlainText.printable(output))" }
        return line
    }
}
