/// Builds the JSON report's values from what was measured.
///
/// Called by the verbs that report, on any thread. Pure. It refuses to invent: what is not known is absent, and a
/// number is never zero because nobody looked.

import LoopLagDiagnosis
import LoopLagModel

public enum ReportBuilder {
    public static func build(_ input: ReportInput) -> Report {
        let clock = WallClock(monotonic: input.start, wallNanoseconds: input.startWallNanoseconds)
        var frames = FrameTable()
        let prefixes = ReportIDs.prefixes(input.processes.map(\.to.identity.pid))
        let processes = zip(input.processes, prefixes).map { process, prefix in
            build(process, prefix: prefix, input: input, clock: clock, frames: &frames)
        }
        let recorded = Report.Recorded(
            start: WallClock.timestamp(input.startWallNanoseconds), end: WallClock.timestamp(input.endWallNanoseconds),
            durationNS: input.end.since(input.start).nanosecondCount)
        var report = Report(
            looplagVersion: input.version, recorded: recorded, machine: input.machine,
            settings: Report.Settings(thresholdNS: input.threshold.nanosecondCount), processes: processes,
            frames: frames.frames, findings: [])
        report.findings = findings(for: report)
        return report
    }

    private static func build(
        _ process: ReportInput.Process, prefix: String, input: ReportInput, clock: WallClock, frames: inout FrameTable
    ) -> ReportProcess {
        let to = process.to
        let start = process.from?.takenAt ?? input.start
        let end = lastSignOfLife(to)
        let stalls = Dictionary(grouping: process.stalls, by: \.loop)
        let before = Dictionary(
            (process.from?.loops ?? []).map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })

        var loops: [ReportLoop] = []
        var reported: [ReportStall] = []
        var seen: Set<LoopID> = []
        let samples = Dictionary(grouping: process.samples, by: \.stallID)
        for loop in to.loops + process.goneLoops.map(retired) where seen.insert(loop.id).inserted {
            if let retired = loop.retiredAt, !loop.isLive, process.from != nil, retired <= start { continue }
            let own = (stalls[loop.id] ?? []).map { elapsed($0, of: loop, end: end) }
            let window = LoopWindow(
                from: before[loop.id], to: loop, start: start, end: end, stalls: own, threshold: input.threshold,
                startThreshold: to.startThreshold)
            let kind = classify(loop, process: to, caller: process.callers[loop.id])
            let id = ReportIDs.loop(prefix: prefix, loop.id)
            loops.append(
                ReportLoop(
                    id: id, tid: loop.tid, threadName: PlainText.printable(loop.threadName), kind: kind.kind,
                    role: kind.role, iterations: Int64(clamping: window.iterations),
                    busyNS: window.busy.nanosecondCount, idleNS: window.idle.nanosecondCount,
                    utilization: window.utilization, stallCount: Int64(window.stallCount),
                    stalledNS: window.stalled.nanosecondCount, iteration: window.iteration, delay: window.delay,
                    runQueueWaitNS: window.runQueueWait?.nanosecondCount,
                    gilWaitNS: since(\.gilWait, loop, before[loop.id])?.nanosecondCount,
                    gcNS: since(\.gc, loop, before[loop.id])?.nanosecondCount))
            let from = process.from == nil ? loop.registeredAt : start
            for stall in own where isReported(stall, threshold: input.threshold, from: from, end: end) {
                reported.append(
                    build(
                        stall, id: ReportIDs.stall(prefix: prefix, stall.id), loopID: id,
                        samples: samples[stall.id] ?? [], executable: to.executable, userCode: input.userCode,
                        clock: clock, frames: &frames))
            }
        }
        // The loop that it stalled was found on the same thread afterwards; without one nobody knows what stalled.
        for (number, provisional) in process.provisional.enumerated() {
            guard let loop = loops.last(where: { $0.tid == provisional.stall.tid }) else { continue }
            var stall = build(
                provisional.stall, id: "\(prefix).provisional\(number + 1)", loopID: loop.id,
                samples: provisional.samples, executable: to.executable, userCode: input.userCode, clock: clock,
                frames: &frames)
            stall.provisional = true
            reported.append(stall)
        }
        reported.sort { ($0.start, $0.id.count, $0.id) < ($1.start, $1.id.count, $1.id) }
        var result = ReportProcess(
            pid: to.identity.pid, command: to.command, executable: to.executable,
            runtime: to.runtime.map { ReportProcess.RuntimeInfo(name: $0, version: to.runtimeVersion) },
            started: process.startedWallNanoseconds.map(WallClock.timestamp), loops: loops,
            pools: to.pools.map { build($0, prefix: prefix) }, stalls: reported,
            agent: agent(from: process.from, to: to, window: end.since(start)))
        result.dump = process.dump?.map { thread in
            thread.reported(prefix: prefix) { frames.index(of: $0) }
        }
        return result
    }

    /// How much a counter has grown within the window; nil where it is not measured.
    private static func since(
        _ counter: (LoopSnapshot) -> Duration?, _ loop: LoopSnapshot, _ before: LoopSnapshot?
    ) -> Duration? {
        guard let now = counter(loop) else { return nil }
        return max(.zero, now - (before.flatMap(counter) ?? .zero))
    }

    /// A dead process's counters stand still at its death, not at the moment its segment was read.
    private static func lastSignOfLife(_ process: ProcessSnapshot) -> MonotonicTime {
        guard !process.isAlive else { return process.takenAt }
        var last = process.agent.heartbeat
        for loop in process.loops {
            for time in [loop.busySince, loop.idleSince, loop.retiredAt] { last = max(last, time ?? last) }
        }
        for stall in process.stalls where stall.state == .closed {
            last = max(last, stall.start.advanced(by: stall.duration))
        }
        return min(last, process.takenAt)
    }

    /// An open stall has lasted until the window's end: its record is a little older, or (of a dead process) says how
    /// long ago it began.
    private static func elapsed(_ stall: StallRecord, of loop: LoopSnapshot, end: MonotonicTime) -> StallRecord {
        guard stall.state == .open, loop.isLive, loop.busySince == stall.start else { return stall }
        var stall = stall
        stall.duration = end.since(stall.start)
        return stall
    }

    /// The last snapshot of a loop that went away unseen: what was open in it ended at an unknown time.
    private static func retired(_ loop: LoopSnapshot) -> LoopSnapshot {
        var loop = loop
        loop.isLive = false
        loop.retiredAt = loop.retiredAt ?? loop.busySince ?? loop.idleSince
        return loop
    }

    private static func isReported(
        _ stall: StallRecord, threshold: Duration, from: MonotonicTime, end: MonotonicTime
    ) -> Bool {
        // The length of a dropped one is not known: the thread left its loop, which is no stall.
        guard stall.state != .dropped, stall.duration >= threshold else { return false }
        return stall.start.advanced(by: stall.duration) > from && stall.start < end
    }

    private static func build(
        _ stall: StallRecord, id: String, loopID: String, samples: [StackSample], executable: String?,
        userCode: [String], clock: WallClock, frames: inout FrameTable
    ) -> ReportStall {
        let samples = samples.sorted { $0.offset < $1.offset }
        let diagnosis = diagnose(stall, samples: samples, executable: executable, userCode: userCode)
        var stacks: [ReportStall.Sample] = []
        for sample in samples where !sample.frames.isEmpty {
            stacks.append(
                ReportStall.Sample(
                    offsetNS: sample.offset.nanosecondCount, threadState: String(sample.threadState),
                    stack: sample.frames.map { frames.index(of: $0) }, truncated: sample.isTruncated,
                    late: sample.isLate, method: sample.method, request: sample.request.map(printable),
                    task: sample.task.map(PlainText.printable)))
        }
        var reason: String?
        if stacks.isEmpty {
            reason =
                samples.lazy.compactMap(\.noStackReason).first
                ?? (stall.detectedAt == nil ? "it had ended before the watchdog looked" : nil)
        }
        var result = ReportStall(
            id: id, loopID: loopID, start: clock.timestamp(stall.start), durationNS: stall.duration.nanosecondCount,
            open: stall.state == .open, cause: diagnosis.cause, evidence: diagnosis.evidence,
            syscall: diagnosis.syscall, culprit: diagnosis.culprit.map(FrameText.printable), samples: stacks,
            noStackReason: reason.map(PlainText.printable))
        result.request = diagnosis.request.map(printable)
        result.task = diagnosis.task.map(PlainText.printable)
        result.phase = diagnosis.phase.map(PlainText.printable)
        result.blockedBy = diagnosis.blockedBy.map { blocker in
            ReportStall.BlockedBy(
                tid: blocker.tid, threadName: PlainText.printable(blocker.name),
                stack: blocker.frames.map { frames.index(of: $0) })
        }
        return result
    }

    static func printable(_ request: ReportStall.Request) -> ReportStall.Request {
        ReportStall.Request(method: PlainText.printable(request.method), path: PlainText.printable(request.path))
    }

    private static func build(_ pool: PoolSnapshot, prefix: String) -> ReportPool {
        ReportPool(
            id: ReportIDs.pool(prefix: prefix, pool.slot), kind: PlainText.printable(pool.kind),
            name: PlainText.printable(pool.name),
            threads: pool.threads, busy: pool.busy, queueDepth: pool.queueDepth, inFlight: pool.inFlight,
            queueWait: ReportPool.QueueWait(pool), method: pool.method)
    }

    private static func agent(from: ProcessSnapshot?, to: ProcessSnapshot, window: Duration) -> ReportProcess.Agent {
        func since(_ value: (AgentSnapshot) -> UInt64) -> UInt64 {
            let later = value(to.agent)
            let earlier = from.map { value($0.agent) } ?? 0
            return later > earlier ? later - earlier : 0
        }
        func dropped(_ agent: AgentSnapshot) -> UInt64 { agent.samplesDropped.values.reduce(0, &+) }
        let cpu = max(.zero, to.agent.cpu - (from?.agent.cpu ?? .zero))
        var degraded = to.agent.degraded.map(PlainText.printable)
        if since(\.loopsRefused) > 0, !degraded.contains("loops-full") { degraded.append("loops-full") }
        return ReportProcess.Agent(
            cpuNS: cpu.nanosecondCount,
            cpuShare: window > .zero ? cpu.secondsAsDouble / window.secondsAsDouble : 0,
            signalsSent: Int64(clamping: since(\.signalsSent)),
            pauseNSMax: to.agent.samplesTaken > 0 ? to.agent.pauseMax.nanosecondCount : nil,
            samplesDropped: Int64(clamping: since(dropped)), samplesTaken: Int64(clamping: since(\.samplesTaken)),
            degraded: degraded)
    }
}

/// Ids that a report and the stall events share: "4242.0.1" is slot 0's first tenant, "4242.s17" the 17th stall.
public enum ReportIDs {
    public static func loop(pid: Int32, _ id: LoopID) -> String { loop(prefix: "\(pid)", id) }
    public static func stall(pid: Int32, _ id: UInt64) -> String { stall(prefix: "\(pid)", id) }

    static func loop(prefix: String, _ id: LoopID) -> String { "\(prefix).\(id.slot).\(id.generation)" }
    static func stall(prefix: String, _ id: UInt64) -> String { "\(prefix).s\(id)" }
    static func pool(prefix: String, _ slot: Int) -> String { "\(prefix).p\(slot)" }

    /// A pid that two processes of one report had one after the other gets a suffix, so that ids stay unique.
    static func prefixes(_ pids: [Int32]) -> [String] {
        var seen: [Int32: Int] = [:]
        return pids.map { pid in
            let place = seen[pid, default: 0] + 1
            seen[pid] = place
            return place == 1 ? "\(pid)" : "\(pid)-\(place)"
        }
    }
}

/// Every distinct frame once, in order of appearance.
private struct FrameTable {
    private(set) var frames: [Frame] = []
    private var indices: [Frame: Int] = [:]

    mutating func index(of frame: Frame) -> Int {
        let frame = FrameText.printable(frame)
        if let index = indices[frame] { return index }
        indices[frame] = frames.count
        frames.append(frame)
        return frames.count - 1
    }
}
