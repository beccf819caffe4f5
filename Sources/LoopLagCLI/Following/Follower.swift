/// Follows a set of processes: finds them, reads them, tells what happened. The engine behind `run`, `stalls`,
/// `record`, and later `top` and `export`.
///
/// Single-threaded: its owner calls `poll` every 20-50 ms and does with the events what it likes. Prints nothing, exits
/// never, holds no clock of its own beyond the one it is given, and costs a head read per process when nothing happens.

import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

final class Follower {
    /// Which processes.
    enum Scope {
        /// These and whatever they fork or execute.
        case trees([Int32])
        /// These alone, whatever they execute.
        case these([Int32])
        /// Every process with an agent that we may read.
        case everything
        /// None but those that were added.
        case only
    }

    enum Event {
        case found(FollowedProcess)
        case change(FollowedProcess, FollowedProcess.Change)
        /// Ended, executed another program, or was detached; its last snapshot is in `latest`.
        case gone(FollowedProcess)
        /// A process with an agent whose segment we cannot use, told once.
        case unreadable(pid: Int32, error: TelemetryError)
        /// The agent captures at a higher threshold than ours and cannot be asked for less; told once.
        case thresholdRefused(FollowedProcess)
    }

    /// Between two searches for new processes at first, and once things have settled: a search lists /proc.
    static let eagerInterval: Duration = .milliseconds(50)
    static let calmInterval: Duration = .milliseconds(500)
    /// A search of the whole machine looks at every thread's name.
    static let wideInterval: Duration = .seconds(1)
    /// A process that has had no agent for this long is looked at less often.
    static let patience: Duration = .seconds(5)
    /// A lease dies after five seconds without a beat.
    static let leaseInterval: Duration = .seconds(1)
    /// Ended processes that are kept for the report; a server that replaces its workers for days has many more.
    static let endedLimit = 512

    /// What counts as a stall for us; `change(threshold:)` sets another.
    private(set) var threshold: Duration
    /// Loads agents into what our targets start, and into targets that could not take one at first.
    private var attaching: Attaching?
    /// In the order they were found, also the ended ones.
    private(set) var processes: [FollowedProcess] = []
    /// Ended ones that are no longer among them.
    private(set) var endedForgotten = 0

    private let scope: Scope
    private let includesHistory: Bool
    private var reported: Set<Int32> = []
    /// Members of our trees without an agent, with when each was first seen and is to be looked at again.
    private var candidates: [Int32: Candidate] = [:]
    private var refused: Set<ObjectIdentifier> = []
    private var census: (members: Set<Int32>, lastPID: Int32?, taken: MonotonicTime)?

    private struct Candidate {
        var identity: ProcessIdentity?
        var since: MonotonicTime
        var next: MonotonicTime
    }

    private var started: MonotonicTime?
    private var nextDiscovery: MonotonicTime?
    private var nextLease: MonotonicTime?

    /// - Parameters:
    ///   - includesHistory: stalls that had ended before we found their process count too.
    init(scope: Scope, threshold: Duration, includesHistory: Bool) {
        self.scope = scope
        self.threshold = threshold
        self.includesHistory = includesHistory
    }

    /// How long to wait between two polls: one process costs some 0.5 % of a core at 25 ms, and a stall must be seen
    /// within 50 ms of the agent's own notice.
    var pollInterval: Duration { .milliseconds(live.count > 4 ? 50 : 25) }

    var live: [FollowedProcess] { processes.filter { !$0.isGone } }

    /// The last process whose segment went bad under us, when none is followed any more.
    var lost: (pid: Int32, error: TelemetryError)? {
        guard live.isEmpty, let process = processes.last, let failure = process.failure else { return nil }
        if case .gone = failure { return nil }
        return (process.identity.pid, failure)
    }

    /// Starts with a segment that was found already, so that its error can be the verb's.
    @discardableResult
    func add(_ source: SegmentSource) throws(TelemetryError) -> FollowedProcess {
        // What our own targets fork while we watch began under our eyes.
        let process = try FollowedProcess(source: source, includesHistory: includesHistory || started != nil)
        process.hold(threshold: threshold)
        processes.append(process)
        return process
    }

    /// From the next look on; the agents are asked for it at once.
    func change(threshold: Duration) {
        self.threshold = threshold
        refused = []
        nextLease = nil
    }

    /// Follows what was attached, and lets the rest be attached between the looks.
    /// What was seen from outside of processes into which no agent could be loaded yet.
    var provisionalStalls: [ProvisionalStall] { attaching?.provisionalStalls ?? [] }

    func follow(_ attaching: Attaching) throws(Failure) {
        self.attaching = attaching
        for source in attaching.sources {
            do throws(TelemetryError) {
                try add(source)
            } catch {
                throw Targets.failure(error, pid: source.pid)
            }
        }
    }

    /// Looks at everything once.
    func poll(now: MonotonicTime) -> [Event] {
        var events: [Event] = []
        let measured = attaching?.sources.count
        attaching?.poll(now: now)
        if attaching?.sources.count != measured { takeAttached(into: &events) }
        if nextDiscovery.map({ now >= $0 }) ?? true {
            discover(now: now, into: &events)
            let isEager = now.since(started ?? now) < Self.patience
            nextDiscovery = now.advanced(by: interval(isEager: isEager))
        }
        started = started ?? now
        if nextLease.map({ now >= $0 }) ?? true {
            nextLease = now.advanced(by: Self.leaseInterval)
            for process in live where !process.hold(threshold: threshold) && threshold < process.latest.startThreshold {
                if refused.insert(ObjectIdentifier(process)).inserted { events.append(.thresholdRefused(process)) }
            }
        }
        var changes: [(FollowedProcess, FollowedProcess.Change)] = []
        for process in live {
            for change in process.poll(threshold: threshold) { changes.append((process, change)) }
            guard process.hasEnded || process.failure != nil else { continue }
            for change in process.finish(threshold: threshold) { changes.append((process, change)) }
            // An ended process's own come out before its end.
            events += inOrder(changes)
            changes = []
            if let failure = process.failure { note(failure, pid: process.identity.pid, into: &events) }
            // What it executed instead is worth a prompt look.
            candidates[process.identity.pid] = nil
            nextDiscovery = now
            events.append(.gone(process))
        }
        forgetEnded()
        return events + inOrder(changes)
    }

    /// The oldest of those that had no stall go first.
    private func forgetEnded() {
        let ended = processes.filter(\.isGone)
        guard ended.count > Self.endedLimit else { return }
        let order = ended.filter(\.stalls.isEmpty) + ended.filter { !$0.stalls.isEmpty }
        let forgotten = Set(order.prefix(ended.count - Self.endedLimit * 3 / 4).map(ObjectIdentifier.init))
        processes.removeAll { forgotten.contains(ObjectIdentifier($0)) }
        refused.subtract(forgotten)
        endedForgotten += forgotten.count
    }

    /// What one look found, in the order of time: the end of a stall before the beginning of the next.
    private func inOrder(_ changes: [(FollowedProcess, FollowedProcess.Change)]) -> [Event] {
        var moment = MonotonicTime(nanoseconds: 0)
        let timed = changes.enumerated().map { i, change in
            // What has no moment of its own stays behind what came before it.
            moment = change.1.moment(threshold: threshold) ?? moment
            return (moment: moment, place: i, change: change)
        }
        return timed.sorted { ($0.moment, $0.place) < ($1.moment, $1.place) }.map { .change($0.change.0, $0.change.1) }
    }

    /// The last look at all that still live; afterwards every process counts as ended for us.
    func finish(now: MonotonicTime) -> [Event] {
        var events: [Event] = []
        candidates = [:]
        discover(now: now, into: &events)
        var changes: [(FollowedProcess, FollowedProcess.Change)] = []
        for process in live {
            for change in process.finish(threshold: threshold) { changes.append((process, change)) }
        }
        return events + inOrder(changes)
    }

    // MARK: Finding

    /// Those that were attached since: the census of a tree does not know that they have an agent now.
    private func takeAttached(into events: inout [Event]) {
        for source in attaching?.sources ?? []
        where !processes.contains(where: {
            $0.identity.pid == source.pid && $0.identity.startTicks == source.startTicks
        }) {
            take(source, into: &events)
        }
    }

    private func discover(now: MonotonicTime, into events: inout [Event]) {
        switch scope {
        case .only:
            return
        case .everything:
            for source in SegmentDiscovery.allLive() { take(source, into: &events) }
        case .trees(let roots):
            search(members(roots, now: now), now: now, into: &events)
        case .these(let pids):
            search(Set(pids), now: now, into: &events)
        }
    }

    private func search(_ members: Set<Int32>, now: MonotonicTime, into events: inout [Event]) {
        let known = Set(live.map(\.identity.pid))
        candidates = candidates.filter { members.contains($0.key) && !known.contains($0.key) }
        for pid in members where !known.contains(pid) {
            if let candidate = candidates[pid], candidate.next > now { continue }
            do throws(TelemetryError) {
                take(try SegmentDiscovery.live(pid: pid), into: &events)
                candidates[pid] = nil
            } catch {
                var candidate =
                    candidates[pid]
                    ?? Candidate(identity: try? ProcessFacts.read(pid: pid).identity, since: now, next: now)
                let isNew = now.since(candidate.since) < Self.patience
                candidate.next = now.advanced(by: isNew ? .zero : .seconds(1))
                candidates[pid] = candidate
                note(error, pid: pid, into: &events)
            }
        }
    }

    private func interval(isEager: Bool) -> Duration {
        if case .everything = scope { return Self.wideInterval }
        return isEager ? Self.eagerInterval : Self.calmInterval
    }

    /// The roots and all their descendants. A process that outlives its parent (a daemon in the making) is no
    /// descendant any more, so everything once met is asked too, unless it was met already: each question lists /proc.
    private func members(_ roots: [Int32], now: MonotonicTime) -> Set<Int32> {
        // Only a birth can add a member; the dead are noticed by whoever reads them.
        let lastPID = ProcessFacts.lastPID()
        if let census, lastPID != nil, lastPID == census.lastPID, now.since(census.taken) < Self.wideInterval {
            return census.members
        }
        var result: Set<Int32> = []
        defer { census = (result, lastPID, now) }
        let orphans = candidates.values.compactMap(\.identity)
        for pid in roots + live.map(\.identity.pid) where result.insert(pid).inserted {
            result.formUnion(SegmentDiscovery.children(of: pid))
        }
        for orphan in orphans where !result.contains(orphan.pid) && ProcessFacts.isRunning(orphan) {
            result.insert(orphan.pid)
            result.formUnion(SegmentDiscovery.children(of: orphan.pid))
        }
        return result
    }

    private func take(_ source: SegmentSource, into events: inout [Event]) {
        guard
            !live.contains(where: { $0.identity.pid == source.pid && $0.identity.startTicks == source.startTicks })
        else { return }
        do throws(TelemetryError) {
            events.append(.found(try add(source)))
        } catch {
            note(error, pid: source.pid, into: &events)
        }
    }

    /// Having no agent yet, or ending while we look, is the normal course of things.
    private func note(_ error: TelemetryError, pid: Int32, into events: inout [Event]) {
        switch error {
        case .noSuchProcess, .noAgent, .gone: return
        case .notPermitted, .untrusted, .corrupt, .otherVersion, .io:
            if reported.insert(pid).inserted { events.append(.unreadable(pid: pid, error: error)) }
        }
    }
}
