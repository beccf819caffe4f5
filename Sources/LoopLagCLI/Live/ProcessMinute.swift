/// The last sixty seconds of one followed process.
///
/// Owned by `LiveModel`, on the main thread. It takes what the follower has read and reads nothing itself. A percentile
/// that counted from the server's start would hide what happens now, so every figure is of this window.

import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagTop

struct ProcessMinute {
    static let window = 60
    static let second: Duration = .seconds(1)

    let process: FollowedProcess
    /// When it was seen to be gone.
    var goneAt: MonotonicTime?
    private(set) var loops: [LoopID: LoopMinute] = [:]
    /// The process at the window's start; its own `loops` are of no use.
    private var base: ProcessSnapshot
    private var steps: [(time: MonotonicTime, agent: AgentSnapshot)] = []

    /// - Parameter isNew: it started while we watched, so its whole life lies in the window.
    init(_ process: FollowedProcess, isNew: Bool) {
        self.process = process
        base = process.baseline
        for loop in process.baseline.loops {
            loops[loop.id] = LoopMinute(loop, at: process.baseline.takenAt, isNew: isNew)
        }
    }

    /// Takes note of the latest snapshot; ends a second when one has passed.
    mutating func update() {
        let latest = process.latest
        for loop in latest.loops where loop.isLive && loops[loop.id] == nil {
            loops[loop.id] = LoopMinute(loop, at: latest.takenAt, isNew: true)
        }
        let last = steps.last?.time ?? base.takenAt
        guard latest.takenAt.since(last) >= Self.second else { return }
        steps.append((latest.takenAt, latest.agent))
        while steps.count > Self.window {
            let gone = steps.removeFirst()
            base.takenAt = gone.time
            base.agent = gone.agent
        }
        for loop in latest.loops where loop.isLive {
            // In place: a copy would have all its histograms copied.
            loops[loop.id]?.step(loop, at: latest.takenAt, limit: Self.window)
            let name = process.loopClass(of: loop)
            loops[loop.id]?.name = (name.kind, name.role, name.name)
        }
        let present = Set(latest.loops.lazy.filter(\.isLive).map(\.id))
        for id in loops.keys where !present.contains(id) { loops[id] = nil }
    }

    /// The snapshot that a report of the window begins with.
    var start: ProcessSnapshot {
        var start = base
        start.loops = loops.values.compactMap(\.base)
        return start
    }

    func loopClass(of loop: LoopSnapshot) -> LoopClass {
        if let name = loops[loop.id]?.name { return LoopClass(kind: name.kind, role: name.role, name: name.name) }
        return process.quickClass(of: loop)
    }

    /// The loops as the screen shows them.
    /// - Parameter open: the stalls that are open now, by the id of their loop.
    mutating func liveLoops(threshold: Duration, helpers: Bool, open: [String: LiveStall]) -> [LiveLoop] {
        let latest = process.latest
        let now = latest.takenAt
        var grouped: [LoopID: [StallRecord]]?
        var result: [LiveLoop] = []
        for loop in latest.loops where loop.isLive {
            let name = loopClass(of: loop)
            guard helpers || name.role == .server else { continue }
            let id = ReportIDs.loop(pid: process.identity.pid, loop.id)
            let stall = open[id]
            let key = LoopMinute.FiguresKey(step: loops[loop.id]?.lastStep, threshold: threshold)
            let figures: LoopFigures
            if stall == nil, let cached = loops[loop.id]?.figures, cached.key == key {
                figures = cached.value
            } else {
                if grouped == nil { grouped = Dictionary(grouping: process.stalls.values, by: \.loop) }
                figures = LoopFigures(
                    from: loops[loop.id]?.base, to: loop, start: base.takenAt, end: now,
                    stalls: grouped?[loop.id] ?? [], threshold: threshold, startThreshold: latest.startThreshold)
                // What an open stall adds is of this moment only.
                loops[loop.id]?.figures = stall == nil ? (key, figures) : nil
            }
            result.append(
                LiveLoop(
                    id: id, name: name.name, kind: name.kind,
                    role: name.role, utilization: loops[loop.id]?.utilization(loop, at: now), delay: figures.delay,
                    stallCount: figures.stallCount,
                    open: stall.map { stall in
                        LiveLoop.Open(
                            elapsedNS: stall.lengthNS, cause: stall.diagnosis.cause,
                            threadState: stall.samples.last?.threadState, culprit: stall.diagnosis.culprit)
                    }, history: loops[loop.id]?.history(loop, at: now) ?? []))
        }
        return result
    }

    var pools: [ReportPool] {
        process.latest.pools.map { pool in
            ReportPool(
                id: "\(process.identity.pid).p\(pool.slot)", kind: pool.kind, name: pool.name, threads: pool.threads,
                busy: pool.busy, queueDepth: pool.queueDepth, inFlight: pool.inFlight,
                queueWait: ReportPool.QueueWait(pool), method: pool.method)
        }
    }
}
