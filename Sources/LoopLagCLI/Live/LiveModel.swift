/// From what the follower reads to what the screen shows: the last minute of every process, and the recent stalls.
///
/// Owned by `LiveSession`, on the main thread. It keeps the windows and the diagnoses, so that a refresh costs only what
/// has changed, and prints nothing.

import Glibc
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagTop

final class LiveModel {
    /// A process that has ended stays in sight for this long.
    static let fading: Duration = .seconds(10)
    /// Stalls in the list.
    static let stallLimit = 500
    /// Findings are worked out this often.
    static let findingInterval: Duration = .seconds(1)

    private let follower: Follower
    private let showsHelpers: Bool
    private let userCode: [String]
    private var minutes: [ProcessMinute] = []
    private var known: Set<ObjectIdentifier> = []
    private var stallViews: [StallKey: StallView] = [:]
    private var findings: (pid: Int32, newest: String?, at: MonotonicTime, list: [Finding])?
    private let start: MonotonicTime

    private struct StallKey: Hashable {
        var process: ObjectIdentifier
        var id: UInt64
    }

    /// A stall as it was shown last; made anew when its record or its samples have changed.
    private struct StallView {
        var record: StallRecord
        var samples: Int
        var view: LiveStall
        var isUsed: Bool
    }

    init(follower: Follower, showsHelpers: Bool, userCode: [String], now: MonotonicTime) {
        self.follower = follower
        self.showsHelpers = showsHelpers
        self.userCode = userCode
        start = now
    }

    /// To be called after each poll of the follower.
    /// - Parameter keepsLast: the last picture stays when nothing else is left to see.
    func update(now: MonotonicTime, keepsLast: Bool) {
        for process in follower.processes where known.insert(ObjectIdentifier(process)).inserted {
            // One that its baseline shows as old began before us; of what began under our eyes all counts.
            let isNew = process.baseline.loops.allSatisfy { $0.registeredAt > start }
            minutes.append(ProcessMinute(process, isNew: isNew))
        }
        for i in minutes.indices {
            if minutes[i].process.isGone { minutes[i].goneAt = minutes[i].goneAt ?? now } else { minutes[i].update() }
        }
        if keepsLast, minutes.allSatisfy({ $0.goneAt != nil }) { return }
        minutes.removeAll { $0.goneAt.map { now.since($0) >= Self.fading } ?? false }
    }

    // MARK: The picture

    /// - Parameter focus: the process that the findings should be about; nil is the first with any stall.
    func picture(threshold: Duration, now: MonotonicTime, focus: Int32?, wantsFindings: Bool = true) -> LivePicture {
        var picture = LivePicture(time: TimeOfDay.text(Clock.wall()), threshold: threshold)
        picture.stalls = stalls(threshold: threshold)
        let open = Dictionary(
            picture.stalls.lazy.filter(\.isOpen).map { ($0.loopID, $0) }, uniquingKeysWith: { first, _ in first })
        for i in minutes.indices {
            let process = minutes[i].process
            let loops = minutes[i].liveLoops(threshold: threshold, helpers: showsHelpers, open: open)
            picture.processes.append(
                LiveProcess(
                    pid: process.identity.pid, server: process.name, isGone: process.isGone, loops: loops,
                    pools: minutes[i].pools))
        }
        for stall in follower.provisionalStalls where stall.isOpen {
            let pid = stall.identity.pid
            guard !picture.processes.contains(where: { $0.pid == pid && !$0.isGone }) else { continue }
            picture.processes.append(LiveProcess(pid: pid, server: stall.server, isAwaited: true, loops: []))
        }
        guard wantsFindings else { return picture }
        picture.findings = findings(
            about: focus ?? picture.stalls.first?.pid ?? picture.processes.first?.pid,
            newest: picture.stalls.first?.id, threshold: threshold, now: now)
        return picture
    }

    private func stalls(threshold: Duration) -> [LiveStall] {
        for key in stallViews.keys { stallViews[key]?.isUsed = false }
        var open: [LiveStall] = []
        var closed: [(start: MonotonicTime, minute: Int, stall: StallRecord)] = []
        for (place, minute) in minutes.enumerated() {
            let process = minute.process
            // The record of an end can be overlooked in a full ring: only what is open in the segment now is open.
            let running = Set(process.isGone ? [] : process.latest.stalls.filter { $0.state == .open }.map(\.id))
            for stall in process.stalls.values where stall.duration >= threshold && stall.state != .dropped {
                guard isShown(stall, minute) else { continue }
                if running.contains(stall.id) {
                    open.append(view(of: stall, process, minute, isOpen: true))
                } else {
                    closed.append((stall.start, place, stall))
                }
            }
        }
        let outside = follower.provisionalStalls.map(view)
        open += outside.filter(\.isOpen)
        closed.sort { ($1.start, $1.stall.id) < ($0.start, $0.stall.id) }
        let recent = closed.prefix(Self.stallLimit).map { entry in
            view(of: entry.stall, minutes[entry.minute].process, minutes[entry.minute], isOpen: false)
        }
        stallViews = stallViews.filter(\.value.isUsed)
        // What was seen before the agent was there is older than anything that it measured.
        return open.sorted { ($1.lengthNS, $0.id) < ($0.lengthNS, $1.id) } + recent + outside.filter { !$0.isOpen }
    }

    private func view(of stall: ProvisionalStall) -> LiveStall {
        LiveStall(
            id: "\(stall.identity.pid).provisional", pid: stall.identity.pid, server: stall.server, loopID: "",
            loop: "not measured yet", isOpen: stall.isOpen, lengthNS: stall.record.duration.nanosecondCount,
            time: TimeOfDay.text(Clock.wall(of: stall.record.start), milliseconds: true),
            diagnosis: diagnose(
                stall.record, samples: stall.samples, executable: stall.executable, userCode: userCode),
            samples: stall.samples, userCode: UserCode(executable: stall.executable, prefixes: userCode))
    }

    private func isShown(_ stall: StallRecord, _ minute: ProcessMinute) -> Bool {
        guard !showsHelpers else { return true }
        return minute.process.loop(stall.loop).map { minute.loopClass(of: $0).role == .server } ?? true
    }

    private func view(
        of stall: StallRecord, _ process: FollowedProcess, _ minute: ProcessMinute, isOpen: Bool
    ) -> LiveStall {
        let key = StallKey(process: ObjectIdentifier(process), id: stall.id)
        let samples = process.samples[stall.id] ?? []
        if let old = stallViews[key], old.samples == samples.count, old.view.isOpen == isOpen,
            old.record.evidence == stall.evidence, old.record.state == stall.state
        {
            stallViews[key]?.isUsed = true
            var view = old.view
            view.lengthNS = stall.duration.nanosecondCount
            return view
        }
        let executable = process.latest.executable
        let loop = process.loop(stall.loop).map { minute.loopClass(of: $0) }
        let reason =
            samples.lazy.compactMap(\.noStackReason).first
            ?? (stall.detectedAt == nil && !isOpen ? "it had ended before the watchdog looked" : nil)
        let view = LiveStall(
            id: ReportIDs.stall(pid: process.identity.pid, stall.id), pid: process.identity.pid, server: process.name,
            loopID: ReportIDs.loop(pid: process.identity.pid, stall.loop), loop: loop?.name ?? "thread \(stall.tid)",
            isOpen: isOpen, lengthNS: stall.duration.nanosecondCount,
            time: stallViews[key]?.view.time ?? TimeOfDay.text(Clock.wall(of: stall.start), milliseconds: true),
            diagnosis: diagnose(stall, samples: samples, executable: executable, userCode: userCode), samples: samples,
            noStackReason: reason, userCode: UserCode(executable: executable, prefixes: userCode))
        stallViews[key] = StallView(record: stall, samples: samples.count, view: view, isUsed: true)
        return view
    }

    // MARK: Reports

    /// - Parameter newest: the stall that heads the list; another one may mean another finding at once.
    private func findings(
        about pid: Int32?, newest: String?, threshold: Duration, now: MonotonicTime
    ) -> [Finding] {
        guard let pid, let minute = minutes.last(where: { $0.process.identity.pid == pid }) else { return [] }
        if let findings, findings.pid == pid, findings.newest == newest, now.since(findings.at) < Self.findingInterval {
            return findings.list
        }
        let list = report(of: [minute], threshold: threshold, now: now).findings
        findings = (pid, newest, now, list)
        return list
    }

    /// The last minute of all living processes as a report.
    func report(threshold: Duration, now: MonotonicTime) -> Report {
        report(of: minutes.filter { $0.goneAt == nil }, threshold: threshold, now: now)
    }

    private func report(of minutes: [ProcessMinute], threshold: Duration, now: MonotonicTime) -> Report {
        let processes = minutes.map { minute in
            let start = minute.start
            let process = minute.process
            let recent = process.stalls.values.filter { $0.start.advanced(by: $0.duration) > start.takenAt }
            return ReportInput.Process(
                from: start, to: process.latest, stalls: recent.sorted { $0.id < $1.id },
                samples: recent.flatMap { process.samples[$0.id] ?? [] }, callers: process.loopCallers,
                startedWallNanoseconds: process.facts?.startedWallNanoseconds)
        }
        let from = processes.compactMap { $0.from?.takenAt }.min() ?? now
        return build(processes, from: from, threshold: threshold, now: now)
    }

    private func build(
        _ processes: [ReportInput.Process], from: MonotonicTime, threshold: Duration, now: MonotonicTime
    ) -> Report {
        ReportBuilder.build(
            ReportInput(
                processes: processes, start: from, end: now, startWallNanoseconds: Clock.wall(of: from),
                endWallNanoseconds: Clock.wall(), threshold: threshold, machine: machine, version: Version.number,
                userCode: userCode))
    }

    private lazy var machine = MachineInfo.current()

    /// One stall as a report of its own, with its loop's figures since that registered; nil when it is forgotten.
    func report(ofStall id: String, threshold: Duration, now: MonotonicTime) -> Report? {
        for minute in minutes {
            let process = minute.process
            guard
                let stall = process.stalls.values.first(where: {
                    ReportIDs.stall(pid: process.identity.pid, $0.id) == id
                })
            else { continue }
            let input = ReportInput.Process(
                from: nil, to: process.latest, stalls: [stall], samples: process.samples[stall.id] ?? [],
                callers: process.loopCallers, goneLoops: process.goneLoops,
                startedWallNanoseconds: process.facts?.startedWallNanoseconds)
            let first = process.latest.loops.map(\.registeredAt).min() ?? now
            return build([input], from: first, threshold: min(threshold, stall.duration), now: now)
        }
        return nil
    }
}

/// The time of day in the person's own time zone.
enum TimeOfDay {
    static func text(_ wallNanoseconds: UInt64, milliseconds: Bool = false) -> String {
        var seconds = time_t(wallNanoseconds / 1_000_000_000)
        var parts = tm()
        localtime_r(&seconds, &parts)
        func two(_ value: Int32) -> String { value < 10 ? "0\(value)" : "\(value)" }
        let text = "\(two(parts.tm_hour)):\(two(parts.tm_min)):\(two(parts.tm_sec))"
        guard milliseconds else { return text }
        let rest = String(wallNanoseconds / 1_000_000 % 1000)
        return text + "." + String(repeating: "0", count: 3 - rest.count) + rest
    }
}
