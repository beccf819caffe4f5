/// What a verb that names processes does first and last: sees that each is measured, and takes out what was put in.
///
/// One line for a verb: `let attaching = try Attaching.prepare(...)`, `attaching.finish()` at its end, and a follower
/// whose `attaching` it is, which calls `poll`. Main thread. A process that is stalled has no thread that could be
/// borrowed: then the verb goes on, stacks are taken from outside and given out as a provisional stall, and the agent
/// goes in at the next wait. Children that wait for events get an agent too, also those born later; shells and helpers
/// do not. It prints nothing but what --verbose asks for.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

final class Attaching {
    /// How long `prepare` tries before it goes on in the background.
    private static let firstTry: Duration = .milliseconds(60)
    private static let childInterval: Duration = .milliseconds(500)
    /// How long an inspector may hold up a verb that is at work already.
    private static let laterLimit: Duration = .seconds(3)

    let options: AttachOptions
    /// The processes that were named.
    private(set) var targets: [Target] = []
    /// Their segments, of those that are measured by now.
    private(set) var sources: [SegmentSource] = []
    /// Where no agent could be loaded in the given time; the verb shows it, once.
    private(set) var failures: [Failure] = []

    private let threshold: Duration
    private let userCode: [String]
    private var image: AgentImage?
    private var pending: [PendingAttach] = []
    private var loaded: [ProcessIdentity] = []
    private var tried: Set<ProcessIdentity> = []
    private var roots: [Int32] = []
    private var nextChildren: MonotonicTime?
    private var provisional: [StallEvent] = []
    /// All that were seen from outside, over or not.
    private(set) var provisionalStalls: [ProvisionalStall] = []

    /// Sees to all of them. Throws what no waiting would change.
    static func prepare(
        pids: [Int32], options: AttachOptions, threshold: Duration, userCode: [String] = []
    ) throws -> Attaching {
        if options.node.requests, pids.isEmpty { throw ValidationError("--requests needs a process id") }
        let attaching = Attaching(options: options, threshold: threshold, userCode: userCode)
        do {
            for pid in pids { try attaching.begin(pid) }
        } catch {
            attaching.finish()
            throw error
        }
        return attaching
    }

    private init(options: AttachOptions, threshold: Duration, userCode: [String]) {
        self.options = options
        self.threshold = threshold
        self.userCode = userCode
    }

    var isPending: Bool { !pending.isEmpty }

    /// Stalls that were seen from outside since the last call.
    func takeProvisional() -> [StallEvent] {
        defer { provisional = [] }
        return provisional
    }

    /// For verbs whose output is a report: what is seen meanwhile, on stderr.
    func showProvisional() {
        for event in takeProvisional() where event.kind != .sampled {
            _ = Console.err.write(StallLine.text(event) + "\n")
        }
    }

    func takeFailures() -> [Failure] {
        defer { failures = [] }
        return failures
    }

    // MARK: At the beginning

    private func begin(_ pid: Int32) throws {
        roots.append(pid)
        do throws(TelemetryError) {
            let source = try SegmentDiscovery.live(pid: pid)
            if !options.node.requests || options.noAttach { sources.append(source) }
            targets.append(
                Target(
                    identity: ProcessIdentity(pid: pid, startTicks: source.startTicks), name: LoopHost.name(pid)))
        } catch {
            guard case .noAgent = error else { throw Targets.failure(error, pid: pid) }
            // The master of a server's workers often waits for nothing itself.
            if !options.noChildren, let master = try? ProcessFacts.read(pid: pid),
                SegmentDiscovery.children(of: pid).contains(where: { (try? SegmentDiscovery.live(pid: $0)) != nil })
            {
                targets.append(Target(identity: master.identity, name: LoopHost.name(pid)))
                return
            }
            guard !options.noAttach else {
                throw Failure(
                    "no agent in \(pid) (\(LoopHost.name(pid))), and --no-attach forbids to load one; leave it out, or"
                        + " start the server with 'looplag run -- ...'")
            }
            try load(pid)
            if !options.noChildren { attachChildren(of: pid) }
            return
        }
        // One that is measured already is only told to follow its requests.
        if options.node.requests, !options.noAttach, !leavesOut(pid, after: nil) {
            try enter(pid, after: nil, within: options.wait)
        }
        if !options.noChildren && !options.noAttach { attachChildren(of: pid) }
    }

    private func agentImage() throws(Failure) -> AgentImage {
        if let image { return image }
        let image = try AgentLoading.image()
        self.image = image
        return image
    }

    private func load(_ pid: Int32) throws(Failure) {
        let image = try agentImage()
        let injector: Injector
        if options.node.requests, !leavesOut(pid, after: nil) {
            return target(try enter(pid, after: nil, within: options.wait))
        }
        do throws(InjectError) {
            injector = try AgentLoading.injector(pid: pid, image: image, threshold: threshold)
        } catch {
            if leavesOut(pid, after: error) { return }
            return target(try enter(pid, after: error, within: options.wait))
        }
        targets.append(Target(identity: injector.facts.identity, name: injector.name))
        tried.insert(injector.facts.identity)
        let attempt = PendingAttach(injector, threshold: threshold, limit: options.wait, userCode: userCode)
        let clock = ContinuousClock()
        let start = clock.now
        while true {
            if try step(attempt, now: Clock.monotonic()) { return }
            guard clock.now - start < Self.firstTry else { break }
            usleep(3_000)
        }
        // A prefork master waits for signals only and is no server itself.
        let hasServers = !options.noChildren && SegmentDiscovery.children(of: pid).contains(where: LoopHost.isLikely)
        if !hasServers { pending.append(attempt) }
    }

    /// A cluster's primary is entered by tracing or not at all, as long as its workers are.
    private func leavesOut(_ pid: Int32, after refusal: InjectError?) -> Bool {
        guard !options.noChildren else { return false }
        guard let refusal else { return InspectorLoading.isPrimary(pid) }
        guard case .notPermitted = refusal, InspectorLoading.leavesOut(pid) else { return false }
        if let facts = try? ProcessFacts.read(pid: pid) {
            targets.append(Target(identity: facts.identity, name: LoopHost.name(pid)))
        }
        return true
    }

    private func target(_ entry: InspectorLoading.Entry) {
        targets.append(Target(identity: entry.identity, name: entry.name))
    }

    /// By node's inspector, or not at all.
    @discardableResult
    private func enter(
        _ pid: Int32, after refusal: InjectError?, within limit: Duration
    ) throws(Failure) -> InspectorLoading.Entry {
        let entry = try InspectorLoading(options: options.node, threshold: threshold).enter(
            pid, after: refusal, within: limit)
        tried.insert(entry.identity)
        if !entry.wasRunning { loaded.append(entry.identity) }
        sources.append(entry.source)
        return entry
    }

    /// True when it is done with.
    private func step(_ attempt: PendingAttach, now: MonotonicTime) throws(Failure) -> Bool {
        let pid = attempt.injector.pid
        let success: Injector.Success
        do throws(InjectError) {
            guard let found = try attempt.attempt(now: now) else { return false }
            success = found
        } catch {
            if leavesOut(pid, after: error) { return true }
            try enter(pid, after: error, within: Self.laterLimit)
            return true
        }
        if options.verbose { AgentLoading.tell(success, pid: pid, name: attempt.injector.name) }
        // A preloaded agent, or another command line's, is not ours to take out.
        if !success.wasRunning { loaded.append(attempt.injector.facts.identity) }
        sources.append(try AgentLoading.source(of: attempt.injector))
        return true
    }

    // MARK: Later

    /// Goes on with what could not be done yet, and looks for new children.
    func poll(now: MonotonicTime) {
        for attempt in pending where attempt.isDue(now) {
            do throws(Failure) {
                if try step(attempt, now: now) { attempt.isDone = true }
            } catch {
                attempt.isDone = true
                failures.append(error)
            }
            provisional += attempt.takeEvents()
            attempt.refreshStall(now: now)
            keep(attempt.stall)
        }
        pending.removeAll { $0.isDone }
        guard !options.noChildren, !options.noAttach, nextChildren.map({ now >= $0 }) ?? true else { return }
        nextChildren = now.advanced(by: Self.childInterval)
        for root in roots { attachChildren(of: root) }
    }

    private func keep(_ stall: ProvisionalStall?) {
        guard let stall else { return }
        if let place = provisionalStalls.firstIndex(where: {
            $0.identity == stall.identity && $0.record.start == stall.record.start
        }) {
            provisionalStalls[place] = stall
        } else {
            provisionalStalls.append(stall)
        }
    }

    /// A fork of a measured process has the agent; what it has executed has not.
    private func attachChildren(of root: Int32) {
        for child in SegmentDiscovery.children(of: root) {
            guard let facts = try? ProcessFacts.read(pid: child), !tried.contains(facts.identity) else { continue }
            if (try? SegmentDiscovery.live(pid: child)) != nil {
                tried.insert(facts.identity)
                continue
            }
            guard LoopHost.isLikely(child) else { continue }
            do throws(Failure) {
                let image = try agentImage()
                tried.insert(facts.identity)
                if options.node.requests, InspectorRoute.isNode(facts) {
                    try enter(child, after: nil, within: Self.laterLimit)
                    continue
                }
                let injector: Injector
                do throws(InjectError) {
                    injector = try AgentLoading.injector(pid: child, image: image, threshold: threshold)
                } catch {
                    try enter(child, after: error, within: Self.laterLimit)
                    continue
                }
                let attempt = PendingAttach(injector, threshold: threshold, limit: options.wait, userCode: userCode)
                if try !step(attempt, now: Clock.monotonic()) { pending.append(attempt) }
            } catch {
                // One that cannot take an agent, or ended: the others are no worse for it.
                if options.verbose { Console.error(error.message) }
            }
        }
    }

    // MARK: At the end

    /// Takes out what was put in, children that inherited it included. May be called twice.
    func finish() {
        pending = []
        defer { loaded = [] }
        guard !options.keep else { return }
        for identity in loaded where ProcessFacts.isRunning(identity) {
            for pid in [identity.pid] + SegmentDiscovery.children(of: identity.pid) {
                guard let source = try? SegmentDiscovery.live(pid: pid) else { continue }
                do throws(Failure) {
                    try AgentLoading.detach(source)
                } catch {
                    if ProcessFacts.isRunning(identity) { Console.error(error.message) }
                }
            }
        }
    }
}
