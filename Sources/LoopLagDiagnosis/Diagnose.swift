/// A stall's cause and culprit, from what the watchdog saw.
///
/// Called by the report builder, by `stalls --follow` and by `top`, on any thread. Pure. It refuses to blame without
/// evidence: a stall that nobody looked at is `unknown`, and a machine that did not let anybody run is not the user's
/// code.

import LoopLagModel

public struct StallDiagnosis: Hashable, Sendable {
    public var cause: Cause
    /// The numbers behind the cause, by name with unit; only what is known and not zero.
    public var evidence: [String: Double]
    /// The call the thread waited in, where the cause is a wait in the kernel.
    public var syscall: String?
    public var culprit: Frame?
    /// What most of the samples were serving; nil where none of them says.
    public var request: ReportStall.Request?
    public var task: String?
    public var phase: String?
    /// The thread that held what this one waited for.
    public var blockedBy: BlockingThread?

    public init(
        cause: Cause, evidence: [String: Double], syscall: String?, culprit: Frame?,
        request: ReportStall.Request? = nil, task: String? = nil, phase: String? = nil,
        blockedBy: BlockingThread? = nil
    ) {
        self.cause = cause
        self.evidence = evidence
        self.syscall = syscall
        self.culprit = culprit
        self.request = request
        self.task = task
        self.phase = phase
        self.blockedBy = blockedBy
    }
}

/// Names the cause of one stall.
/// - Parameters:
///   - samples: those of this stall, oldest first.
///   - executable: the host's executable (path or name); tells an interpreter's frames from a server's own.
///   - userCode: path prefixes or module names that are the user's code whatever the rules say.
public func diagnose(
    _ stall: StallRecord, samples: [StackSample], executable: String?, userCode: [String] = []
) -> StallDiagnosis {
    let evidence = stall.evidence
    var shares = CauseShares(evidence)
    if shares.isEmpty, evidence.looks > 0 { shares = CauseShares(states: samples, evidence: evidence) }
    var cause = evidence.looks > 0 ? shares.largest : .unknown
    // The loop's thread measured that itself, whether or not anybody looked just then.
    if cause != .processStopped, let waited = evidence.gilWaitTime, waited * 2 > stall.duration { cause = .gilWait }
    let rules = UserCode(executable: executable, prefixes: userCode)
    let smallShare = cause == .onCPU ? ManySmall.largestShare(evidence, samples: samples, rules: rules) : nil
    if smallShare != nil { cause = .manySmall }

    var numbers: [String: Double] = [:]
    func note(_ name: String, _ value: Double) { if value > 0 { numbers[name] = value } }
    for (cause, length) in shares.measured {
        note(cause == .processStopped ? "stopped_ns" : cause.rawValue + "_ns", length)
    }
    note("observed_ns", nanoseconds(evidence.observed))
    note("cpu_time_ns", nanoseconds(evidence.cpuTime))
    note("major_faults", Double(evidence.majorFaults))
    note("watchdog_late_ns", nanoseconds(evidence.watchdogLate))
    note("looks", Double(evidence.looks))
    note("gil_wait_time_ns", evidence.gilWaitTime.map(nanoseconds) ?? 0)
    note("gc_time_ns", evidence.gcTime.map(nanoseconds) ?? 0)
    note("events", evidence.events.map { Double($0) } ?? 0)
    note("largest_function_share", smallShare ?? 0)

    var syscall: String?
    if cause == .syscall || cause == .lock || cause == .pageFault, let number = evidence.syscallNumber, number >= 0 {
        syscall = syscallName(number) ?? "syscall_\(number)"
    }
    // Of many small callbacks none is the culprit.
    let culprit = cause == .manySmall ? nil : rules.culprit(of: samples)
    // Several callbacks can share an iteration: what is told of the stall is what its culprit was doing.
    let blamed = culprit.map { culprit in samples.filter { rules.leaf(of: $0)?.function == culprit.function } } ?? []
    let witnesses = blamed.isEmpty ? samples : blamed
    // A lock has one owner at a time, or none that is known; of several waits the longest is told.
    let blockedBy =
        cause == .lock
        ? longest(witnesses, until: stall.duration)?.blockedBy
        : witnesses.last { $0.blockedBy?.frames.isEmpty == false }?.blockedBy
            ?? witnesses.lazy.compactMap(\.blockedBy).first
    // Where the loop waits for the interpreter's lock, the code that holds it is to blame, and never the code that waits.
    let holder = blockedBy.flatMap { rules.leaf(of: $0.frames) }
    return StallDiagnosis(
        cause: cause, evidence: numbers, syscall: syscall,
        culprit: cause == .gilWait ? holder : culprit,
        request: request(of: witnesses),
        task: mostCommon(witnesses.compactMap(\.task)),
        phase: mostCommon(witnesses.compactMap(\.phase)), blockedBy: blockedBy)
}

/// The sample that stood for the longest time: a thread that has not moved is not sampled again.
private func longest(_ samples: [StackSample], until end: Duration) -> StackSample? {
    let ends = samples.dropFirst().map(\.offset) + [end]
    return zip(samples, ends).max { $0.1 - $0.0.offset < $1.1 - $1.0.offset }?.0
}

/// In node several requests can share an iteration, and of some samples none is known: what most of them do not show was
/// not served for most of the stall.
private func request(of samples: [StackSample]) -> ReportStall.Request? {
    let best = mostCommon(samples.compactMap(\.request))
    let scripts = samples.filter { sample in sample.frames.contains { $0.kind == .javascript } }
    guard let best, !scripts.isEmpty else { return best }
    let count = scripts.count { $0.request == best }
    let unknown = scripts.count { $0.request == nil }
    return unknown <= count && scripts.count - unknown - count < count ? best : nil
}

/// The first of those that occur most.
private func mostCommon<Value: Hashable>(_ values: [Value]) -> Value? {
    var counts: [Value: Int] = [:]
    for value in values { counts[value, default: 0] += 1 }
    let most = counts.values.max()
    return values.first { counts[$0] == most }
}

private func nanoseconds(_ duration: Duration) -> Double { max(0, Double(duration.nanosecondCount)) }

/// How much of the observed time belongs to each cause. Each instant counts once, for the first that matches in the
/// order of `precedence`.
private struct CauseShares {
    /// The order of the report's contract; also who wins a tie.
    static let precedence: [Cause] = [
        .processStopped, .cgroupThrottled, .runQueue, .gc, .gilWait, .lock, .pageFault, .syscall, .onCPU, .unknown,
    ]

    private var lengths: [Cause: Double] = [:]

    /// The scheduler accounts a running thread at its ticks (1...10 ms), so differences up to here say nothing.
    private static let accountingSlack = 20e6

    /// The looks add up to the whole stall: the first counts for the time before it. The scheduler's account, like
    /// `observed`, spans only the first look to the last.
    init(_ evidence: StallEvidence) {
        var stopped = nanoseconds(evidence.stopped)
        var unknown = nanoseconds(evidence.unknown)
        let runnable = nanoseconds(evidence.onCPU) + nanoseconds(evidence.runQueueLooks)
        let ran = nanoseconds(evidence.cpuTime)
        // A look cannot always tell running from waiting to run; the scheduler's own account can.
        let queued = min(runnable, max(nanoseconds(evidence.runQueueTime), nanoseconds(evidence.runQueueLooks)))
        var onCPU = runnable - queued
        let late = nanoseconds(evidence.watchdogLate)
        let accounted = min(runnable, nanoseconds(evidence.observed))
        let missing = accounted - ran - nanoseconds(evidence.runQueueTime)
        if ran > 0, missing > Self.accountingSlack, late >= missing / 2 {
            // Neither ran nor was queued, and the watchdog was held up just then: both were halted (SIGSTOP to the whole
            // process, a frozen cgroup, a suspended VM).
            let halted = min(missing, late, onCPU)
            stopped += halted
            onCPU -= halted
        } else if late > Self.accountingSlack, late >= runnable / 2, ran < accounted * 0.8 || accounted < runnable / 2 {
            // Mostly unseen: somebody kept the watchdog from looking, and what it saw afterwards says nothing of then.
            let unseen = min(onCPU, late)
            unknown += unseen
            onCPU -= unseen
        }
        // The runtime measures its collections to the end, where looks see one now and then.
        var gc = nanoseconds(evidence.inGC)
        var lock = nanoseconds(evidence.inLock)
        let unseenGC = max(0, (evidence.gcTime.map(nanoseconds) ?? 0) - gc)
        let fromCPU = min(unseenGC, onCPU)
        let fromLock = min(unseenGC - fromCPU, lock)
        gc += fromCPU + fromLock
        onCPU -= fromCPU
        lock -= fromLock
        lengths = [
            .processStopped: stopped, .runQueue: queued, .lock: lock,
            .pageFault: nanoseconds(evidence.pageFault), .syscall: nanoseconds(evidence.inSyscall), .onCPU: onCPU,
            .unknown: unknown, .gilWait: nanoseconds(evidence.inGILWait), .gc: gc,
        ]
    }

    /// For a stall with a single look, which spans no time: one vote for each sample's thread state.
    init(states samples: [StackSample], evidence: StallEvidence) {
        for sample in samples { lengths[Self.cause(of: sample.threadState, evidence), default: 0] += 1 }
        if samples.isEmpty, evidence.syscallNumber != nil { lengths[Self.cause(of: "S", evidence)] = 1 }
        isVote = true
    }

    /// Votes decide but are not nanoseconds: they stay out of the evidence.
    private var isVote = false

    private static func cause(of state: Character, _ evidence: StallEvidence) -> Cause {
        switch state {
        case "R": return .onCPU
        case "T", "t": return .processStopped
        case "S", "D":
            guard let number = evidence.syscallNumber, number >= 0 else { return .unknown }
            // futex, futex_waitv and the futex2 calls: what a contended lock comes down to.
            return [202, 449, 454, 455, 456].contains(number) ? .lock : .syscall
        default: return .unknown
        }
    }

    var isEmpty: Bool { lengths.values.allSatisfy { $0 <= 0 } }

    var measured: [Cause: Double] { isVote ? [:] : lengths }

    var largest: Cause {
        var best: (cause: Cause, length: Double) = (.unknown, 0)
        for cause in Self.precedence {
            if let length = lengths[cause], length > best.length { best = (cause, length) }
        }
        return best.cause
    }
}
