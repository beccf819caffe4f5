/// `looplag stalls`: one line or JSON object per stall, those still in the segment or, with --follow, as they happen.
///
/// Main thread. Lines go to stdout and leave at once; everything else goes to stderr. A reader that closes the pipe
/// ends it quietly. The command of --on-stall is run by StallCommand.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

struct StallsVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "stalls",
        abstract: "One line per stall: opened, then closed.",
        discussion: """
            Without --follow it prints what the processes' segments still hold, also those that killed processes left. \
            Without a PID it takes every process with an agent. A followed process that goes away ends it with status 3.
            """)

    @Argument(help: ArgumentHelp("Processes; none means all with an agent.", valueName: "pid"))
    var pids: [Int32] = []

    @Flag(name: .shortAndLong, help: "Wait, and print stalls as they open and close.")
    var follow = false

    @Flag(help: "One JSON object per line on standard output.")
    var json = false

    @OptionGroup var threshold: ThresholdOption

    @Option(
        help: ArgumentHelp("With --follow: end after this time.", valueName: "duration"),
        transform: DurationArgument.parse)
    var duration: Duration?

    @Flag(help: "Also show loops that serve nothing (libdispatch's manager, node's inspector).")
    var helpers = false

    @OptionGroup var attach: AttachOptions

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    @Option(
        name: .customLong("on-stall"),
        help: ArgumentHelp(
            "With --follow: run this shell command when a stall opens, with its JSON on standard input.",
            discussion: "One at a time, one a second, each for 10 s at most; its output goes to standard error.",
            valueName: "command"))
    var onStall: String?

    @Option(
        name: .customLong("on-stall-state"),
        help: ArgumentHelp(
            "Run it for stalls that open, or for those that closed, with their cause.", valueName: "state"))
    var onStallState: StallState = .open

    enum StallState: String, CaseIterable, ExpressibleByArgument { case open, closed }

    private var events: StallEvents {
        StallEvents(threshold: threshold.threshold, userCode: userCode, showsHelpers: helpers)
    }

    func validate() throws {
        try Targets.check(pids)
        if attach.noChildren && pids.isEmpty { throw ValidationError("--no-children needs a process id") }
        if duration != nil && !follow { throw ValidationError("--duration needs --follow") }
        if onStall != nil && !follow { throw ValidationError("--on-stall needs --follow") }
        if onStall?.isEmpty == true { throw ValidationError("--on-stall needs a command") }
    }

    func run() throws {
        threshold.noteLimits()
        if follow { try following() } else { try listing() }
    }

    // MARK: What is there

    private func listing() throws {
        var sources: [SegmentSource] = []
        if pids.isEmpty {
            sources = SegmentDiscovery.allLive() + SegmentDiscovery.leftovers()
            if sources.isEmpty {
                Console.error("no process with an agent; start one with 'looplag run -- ...'")
                return
            }
        }
        let leftovers = pids.isEmpty ? [] : SegmentDiscovery.leftovers()
        for pid in pids {
            let children = attach.noChildren ? [] : SegmentDiscovery.children(of: pid)
            let own = sources.count
            for child in children where !pids.contains(child) {
                if let source = try? SegmentDiscovery.live(pid: child), !sources.contains(source) {
                    sources.append(source)
                }
            }
            do throws(Failure) {
                sources.append(try Targets.source(of: pid))
            } catch {
                // A master of workers that has no loop itself.
                if sources.count > own { continue }
                // A dead process may have left its segment; the latest of a reused pid is the one meant. It says nothing
                // of a process that lives.
                guard error.status == Failure.gone,
                    let left = leftovers.filter({ $0.pid == pid }).max(by: { $0.startTicks < $1.startTicks })
                else { throw error }
                sources.append(left)
            }
        }
        var found: [(start: MonotonicTime, event: StallEvent)] = []
        for source in sources {
            do throws(TelemetryError) {
                let process = try FollowedProcess(source: source, includesHistory: true)
                for change in process.poll(threshold: threshold.threshold) {
                    if case .sampled = change { continue }
                    if let event = events.event(process, change) { found.append((event.stall.start, event)) }
                }
                if let failure = process.failure { throw failure }
            } catch {
                // One unreadable segment among many must not hide the others.
                if pids.isEmpty { Console.error(error.message) } else { throw Targets.failure(error, pid: source.pid) }
            }
        }
        for (_, event) in found.sorted(by: { $0.start < $1.start }) {
            guard try show(event) else { return }
        }
    }

    // MARK: What happens

    private func following() throws {
        let follower = Follower(
            scope: Targets.scope(pids, noChildren: attach.noChildren), threshold: threshold.threshold,
            includesHistory: false)
        let attaching = try Attaching.prepare(
            pids: pids, options: attach, threshold: threshold.threshold, userCode: userCode)
        defer { attaching.finish() }
        try follower.follow(attaching)
        let targets = attaching.targets
        var inbox = SignalInbox([SIGINT, SIGTERM, SIGHUP])
        var readiness = Readiness()
        let start = Clock.monotonic()
        var isFirst = true
        var command = onStall.map { StallCommand(command: $0, waitsForEnd: onStallState == .closed) }
        var isHurried = false
        defer { command?.finish(isHurried: isHurried, clock: Clock.monotonic) { usleep(10_000) } }
        while true {
            let now = Clock.monotonic()
            command?.poll(now: now)
            for event in follower.poll(now: now) {
                guard try tell(event, &command) else { return }
            }
            for event in attaching.takeProvisional() {
                guard try show(event) else { return }
            }
            for failure in attaching.takeFailures() {
                guard follower.processes.isEmpty, !attaching.isPending else {
                    Console.error(failure.message)
                    continue
                }
                throw failure
            }
            if isFirst, pids.isEmpty, follower.live.isEmpty {
                Console.error("no process with an agent yet; start one with 'looplag run -- ...'")
            }
            isFirst = false
            for line in readiness.lines(follower, now: now) { Console.error(line) }
            if let pid = pids.first,
                let line = readiness.silence(
                    of: follower, root: try? ProcessFacts.read(pid: pid), since: start, now: now)
            {
                Console.error(line)
            }
            if !targets.isEmpty, !attaching.isPending { try checkTargets(targets, follower) }
            if let duration, now.since(start) >= duration { return }
            if Console.out.isClosed { return }
            let rest = duration.map { max(.zero, $0 - Clock.monotonic().since(start)) } ?? follower.pollInterval
            if inbox.next(timeout: min(rest, follower.pollInterval))?.isStopRequest == true {
                isHurried = true
                return
            }
        }
    }

    /// Status 3 when every target is gone, 1 when the last one's segment went bad.
    private func checkTargets(_ targets: [Target], _ follower: Follower) throws {
        guard follower.live.isEmpty else { return }
        guard !targets.contains(where: \.isRunning) else {
            // Running, yet not followed: it executes another program, or its segment went bad, which was told.
            if let lost = follower.lost { throw ExitCode(Targets.failure(lost.error, pid: lost.pid).status) }
            return
        }
        let names = targets.map { "\($0.identity.pid) (\($0.name))" }.joined(separator: ", ")
        throw Failure("\(names) went away", status: Failure.gone)
    }

    /// False when nobody reads any more.
    private func tell(_ event: Follower.Event, _ command: inout StallCommand?) throws -> Bool {
        switch event {
        case .found, .gone: return true
        case .unreadable, .thresholdRefused:
            Notices.print(event)
            return true
        case .change(let process, let change):
            if case .missed = change { Notices.print(event) }
            if case .sampled = change, !json { return true }
            guard let event = events.event(process, change) else { return true }
            command?.take(event, now: Clock.monotonic())
            return try show(event)
        }
    }

    private func show(_ event: StallEvent) throws -> Bool {
        let line = json ? StallLine.json(event) : StallLine.text(event)
        switch Console.out.write(line + "\n") {
        case .written: return true
        case .closed: return false
        case .failed(let code): throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }
}

/// A process that the command line names, by more than its pid.
struct Target {
    let identity: ProcessIdentity
    let name: String

    var isRunning: Bool { ProcessFacts.isRunning(identity) }
}
