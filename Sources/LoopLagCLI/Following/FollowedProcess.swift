/// One measured process over the time we watch it: its segment, its decoder, and every stall seen so far.
///
/// Owned by `Follower`, on the main thread. Keeps what the segment's rings will overwrite (stalls, decoded samples), up
/// to a limit, and the last snapshot of a process that has ended. Prints nothing.

import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagSymbols
import LoopLagTelemetry

final class FollowedProcess {
    /// Stalls kept for the report; beyond it the oldest short ones give way, counted in `stallsForgotten`.
    static let stallLimit = 5_000
    /// Samples kept for one stall: the watchdog bounds them too, but its word is not ours.
    static let sampleLimit = 64
    /// Loops that came and went, kept for the report.
    static let goneLoopLimit = 256

    enum Change {
        case opened(StallRecord)
        case sampled(StallRecord, StackSample)
        /// Ended, or dropped: `state` says which.
        case closed(StallRecord)
        /// Stalls that came and went in the ring between two looks.
        case missed(UInt64)

        /// When it happened, to order what one look found; nil for what has no moment of its own. A stall opens before
        /// anything else is told of it, whatever the samples of a reader with a lower threshold say.
        func moment(threshold: Duration) -> MonotonicTime? {
            switch self {
            case .opened(let stall): Self.opening(of: stall, threshold: threshold)
            case .sampled(let stall, let sample):
                max(
                    stall.start.advanced(by: max(sample.offset, .zero)),
                    Self.opening(of: stall, threshold: threshold))
            case .closed(let stall):
                max(stall.start.advanced(by: stall.duration), Self.opening(of: stall, threshold: threshold))
            case .missed: nil
            }
        }

        /// Seen when the watchdog looked, and never before it was long enough for us.
        static func opening(of stall: StallRecord, threshold: Duration) -> MonotonicTime {
            let due = stall.start.advanced(by: threshold)
            return max(due, stall.detectedAt ?? due)
        }
    }

    let identity: ProcessIdentity
    /// As /proc had it when we found the process; nil when it was gone or unreadable.
    let facts: ProcessFacts?
    let baseline: ProcessSnapshot
    /// Its stalls and counters count from the agent's start, not from when we came.
    let includesHistory: Bool
    private(set) var latest: ProcessSnapshot
    private(set) var isGone = false
    private(set) var stalls: [UInt64: StallRecord] = [:]
    private(set) var samples: [UInt64: [StackSample]] = [:]
    /// Last snapshots of loops whose slots others have taken since.
    private(set) var goneLoops: [LoopSnapshot] = []
    private(set) var stallsForgotten: UInt64 = 0
    /// Why its segment cannot be read any more.
    private(set) var failure: TelemetryError?

    private let telemetry: ProcessTelemetry
    private var decoder: StackDecoder
    private var decodedModules: [ModuleRecord]
    private var callers: [UInt64: Frame?] = [:]
    /// Stalls whose `opened` was given out.
    private var announced: Set<UInt64> = []
    /// Open ones still below our threshold: the agent captures at the smallest of all readers' thresholds.
    private var waiting: Set<UInt64> = []
    /// Samples read and not decoded yet.
    private var undecoded: [RawSample] = []
    /// Stalls that had ended before we came, until the first poll gives them out.
    private var history: [StallRecord] = []

    init(source: SegmentSource, includesHistory: Bool = false) throws(TelemetryError) {
        telemetry = try ProcessTelemetry(source)
        identity = ProcessIdentity(pid: source.pid, startTicks: source.startTicks)
        facts = source.isAlive ? try? ProcessFacts.read(pid: source.pid) : nil
        baseline = telemetry.baseline
        latest = telemetry.latest
        self.includesHistory = includesHistory
        decoder = StackDecoder(
            identity: source.isAlive ? identity : nil, modules: latest.modules, cacheDirectory: CacheFolder.path)
        decodedModules = latest.modules
        if includesHistory {
            history = baseline.stalls.filter { $0.state != .open }
            let ended = Set(history.map(\.id))
            // A reader of its own: the telemetry's place in the ring must not move.
            for raw in try SegmentReader(source).samples(after: nil) where ended.contains(raw.stallID) { keep(raw) }
        }
    }

    var name: String { serverName(latest) }

    /// Every stall kept, oldest first.
    var stallHistory: [StallRecord] { stalls.values.sorted { $0.id < $1.id } }

    /// The loops that serve, with their classes; helpers are left out.
    var serverLoops: [LoopSnapshot] { latest.loops.filter { $0.isLive && loopClass(of: $0).role == .server } }

    /// The same with those that have ended: of a dead process none is live.
    var allServerLoops: [LoopSnapshot] { latest.loops.filter { loopClass(of: $0).role == .server } }

    func loop(_ id: LoopID) -> LoopSnapshot? { (latest.loops + goneLoops).first { $0.id == id } }

    func loopClass(of loop: LoopSnapshot) -> LoopClass {
        classify(loop, process: latest, caller: caller(at: loop.callerPC))
    }

    /// The same without looking anything up, which can take a tenth of a second in a big program: where the caller is
    /// not known yet, its module has to do.
    func quickClass(of loop: LoopSnapshot) -> LoopClass {
        var caller = callers[loop.callerPC] ?? nil
        if caller == nil, loop.callerPC != 0,
            let module = latest.modules.first(where: { $0.start <= loop.callerPC && loop.callerPC < $0.end })
        {
            caller = Frame(function: "", kind: .native, module: PlainText.fileName(module.path))
        }
        return classify(loop, process: latest, caller: caller)
    }

    /// The callers of all loops, for the report.
    var loopCallers: [LoopID: Frame] {
        var result: [LoopID: Frame] = [:]
        for loop in latest.loops + goneLoops { result[loop.id] = caller(at: loop.callerPC) }
        return result
    }

    /// The function that waits in a loop. A module that was not mapped at the last look may be now, so a miss is asked
    /// again when the modules change.
    private func caller(at pc: UInt64) -> Frame? {
        guard pc != 0 else { return nil }
        if let known = callers[pc] { return known }
        // Without a module it is a bare number: the agent lists the modules a little after the loop.
        let frame = decoder.frames(at: pc, isReturnAddress: true).first.flatMap { $0.module == nil ? nil : $0 }
        callers[pc] = .some(frame)
        return frame
    }

    // MARK: Looking

    /// Reads what is new. A segment that cannot be read any more is told by `failure`.
    func poll(threshold: Duration) -> [Change] {
        guard !isGone, failure == nil else { return [] }
        let update: ProcessTelemetry.Update
        do throws(TelemetryError) {
            update = try telemetry.poll()
        } catch {
            failure = error
            return []
        }
        return take(update, threshold: threshold)
    }

    /// Keeps our threshold alive in the agent; false when the segment takes no lease from us (no write permission).
    @discardableResult
    func hold(threshold: Duration) -> Bool { telemetry.hold(threshold: threshold) }

    /// The process has ended, or runs another program now.
    var hasEnded: Bool { !latest.isAlive || telemetry.reader.isUnlinked }

    /// Takes a last look; the open descriptor reaches the segment also when its name is gone.
    func finish(threshold: Duration) -> [Change] {
        var changes = poll(threshold: threshold)
        // Whoever was told of a stall's beginning is told of its end too; how long it was nobody will know. The record
        // kept for the report stays open.
        if hasEnded || failure != nil {
            for id in announced.sorted() {
                guard var stall = stalls[id] else { continue }
                stall.state = .dropped
                changes.append(.closed(stall))
            }
            announced = []
        }
        isGone = true
        telemetry.releaseThreshold()
        return changes
    }

    private func take(_ update: ProcessTelemetry.Update, threshold: Duration) -> [Change] {
        noteGoneLoops(update.snapshot)
        latest = update.snapshot
        refreshModules()
        var changes: [Change] = []
        if update.overlooked > 0 { changes.append(.missed(update.overlooked)) }

        for stall in history {
            keep(stall)
            if stall.state == .closed && stall.duration >= threshold { changes.append(.closed(stall)) }
        }
        history = []

        undecoded += update.newSamples
        for stall in update.opened where stall.state == .open { waiting.insert(stall.id) }
        // The open records of a snapshot carry the time elapsed so far.
        for stall in latest.stalls where stall.state == .open {
            keep(stall)
            guard stall.duration >= threshold, waiting.remove(stall.id) != nil else { continue }
            announced.insert(stall.id)
            changes.append(.opened(stall))
        }
        // The news of a stall does not wait for its stack: the first one of a big program takes a while to decode.
        if !changes.isEmpty, update.closed.isEmpty, update.dropped.isEmpty { return changes }
        let fresh = undecoded.compactMap { keep($0) }
        undecoded = []
        for sample in fresh where announced.contains(sample.stallID) {
            if let stall = stalls[sample.stallID] { changes.append(.sampled(stall, sample)) }
        }
        for stall in update.closed + update.dropped {
            keep(stall)
            let wasAnnounced = announced.remove(stall.id) != nil
            waiting.remove(stall.id)
            // One that was never long enough for us is none of ours; a dropped one has no length to judge.
            if wasAnnounced || (stall.state == .closed && stall.duration >= threshold) {
                changes.append(.closed(stall))
            }
        }
        return changes
    }

    /// A loop's slot can be taken by a later loop; the report still wants the earlier one.
    private func noteGoneLoops(_ next: ProcessSnapshot) {
        for loop in latest.loops where goneLoops.count < Self.goneLoopLimit {
            if !next.loops.contains(where: { $0.id == loop.id }) { goneLoops.append(loop) }
        }
    }

    private func refreshModules() {
        guard latest.modules != decodedModules else { return }
        decodedModules = latest.modules
        decoder.update(modules: latest.modules)
        callers = callers.filter { $0.value != nil }
    }

    /// Decodes and keeps a sample; nil when the stall has enough already.
    @discardableResult
    private func keep(_ raw: RawSample) -> StackSample? {
        var list = samples[raw.stallID] ?? []
        guard list.count < Self.sampleLimit, !list.contains(where: { $0.position == raw.position }) else { return nil }
        let sample = decoder.decode(raw)
        list.append(sample)
        samples[raw.stallID] = list
        return sample
    }

    private func keep(_ stall: StallRecord) {
        stalls[stall.id] = stall
        guard stalls.count > Self.stallLimit else { return }
        // Half a table at once, so that the search is paid rarely: the shortest closed ones go first.
        let closed = stalls.values.filter { $0.state != .open }.sorted { $0.duration < $1.duration }
        for stall in closed.prefix(Self.stallLimit / 2) {
            stalls[stall.id] = nil
            samples[stall.id] = nil
            stallsForgotten &+= 1
        }
    }
}
