/// What `top` shows at one moment: processes with their loops and pools, and the recent stalls, as plain values.
///
/// Made by the command line several times a second, drawn by `Screen` and `PlainLines`. Numbers are those of a report
/// over the last 60 s; what is not known is nil. Names may hold anything: whoever draws them makes them printable.

import LoopLagDiagnosis
import LoopLagModel

public struct LivePicture: Sendable {
    public var processes: [LiveProcess]
    /// Open ones first, the longest first; then the latest first.
    public var stalls: [LiveStall]
    /// Most severe first.
    public var findings: [Finding]
    /// The time of day, "12:03:22".
    public var time: String
    public var threshold: Duration
    /// What a person has to know of the whole: "4242 (redis-server) went away".
    public var notice: String?

    public init(
        processes: [LiveProcess] = [], stalls: [LiveStall] = [], findings: [Finding] = [], time: String = "",
        threshold: Duration = .milliseconds(100), notice: String? = nil
    ) {
        self.processes = processes
        self.stalls = stalls
        self.findings = findings
        self.time = time
        self.threshold = threshold
        self.notice = notice
    }
}

public struct LiveProcess: Sendable {
    public var pid: Int32
    public var server: String
    /// It has ended and is shown a little longer.
    public var isGone: Bool
    public var loops: [LiveLoop]
    public var pools: [ReportPool]
    /// Why there are no loops.
    public var note: String { isGone ? "gone" : isAwaited ? Self.awaited : "no event loop seen yet" }
    /// It has not come to a wait yet, where the agent could be loaded.
    public var isAwaited: Bool

    private static let awaited = "not measured yet: the agent goes in at its next wait"

    public init(
        pid: Int32, server: String, isGone: Bool = false, isAwaited: Bool = false, loops: [LiveLoop],
        pools: [ReportPool] = []
    ) {
        self.pid = pid
        self.server = server
        self.isGone = isGone
        self.isAwaited = isAwaited
        self.loops = loops
        self.pools = pools
    }
}

public struct LiveLoop: Sendable {
    /// The stall that is open in it now.
    public struct Open: Sendable {
        public var elapsedNS: Int64
        public var cause: Cause
        /// The letter of /proc/PID/stat, from the last sample.
        public var threadState: Character?
        public var culprit: Frame?

        public init(elapsedNS: Int64, cause: Cause, threadState: Character? = nil, culprit: Frame? = nil) {
            self.elapsedNS = elapsedNS
            self.cause = cause
            self.threadState = threadState
            self.culprit = culprit
        }
    }

    public var id: String
    public var name: String
    public var kind: String
    public var role: LoopRole
    /// Busy share of the last second or two.
    public var utilization: Double?
    public var delay: ReportLoop.Delay
    public var stallCount: Int
    public var open: Open?
    /// Longest iteration of each second of the last minute, oldest first, nanoseconds.
    public var history: [Int64]

    public init(
        id: String, name: String, kind: String, role: LoopRole = .server, utilization: Double? = nil,
        delay: ReportLoop.Delay = ReportLoop.Delay(), stallCount: Int = 0, open: Open? = nil, history: [Int64] = []
    ) {
        self.id = id
        self.name = name
        self.kind = kind
        self.role = role
        self.utilization = utilization
        self.delay = delay
        self.stallCount = stallCount
        self.open = open
        self.history = history
    }
}

public struct LiveStall: Sendable {
    public var id: String
    public var pid: Int32
    public var server: String
    public var loopID: String
    public var loop: String
    public var isOpen: Bool
    /// Elapsed so far while it is open.
    public var lengthNS: Int64
    /// The time of day at which it began, "12:03:20.114".
    public var time: String
    public var diagnosis: StallDiagnosis
    /// In the order they were taken.
    public var samples: [StackSample]
    public var noStackReason: String?
    /// Whose code a frame is.
    public var userCode: UserCode

    public init(
        id: String, pid: Int32, server: String, loopID: String, loop: String, isOpen: Bool, lengthNS: Int64,
        time: String, diagnosis: StallDiagnosis, samples: [StackSample] = [],
        noStackReason: String? = nil, userCode: UserCode = UserCode(executable: nil)
    ) {
        self.id = id
        self.pid = pid
        self.server = server
        self.loopID = loopID
        self.loop = loop
        self.isOpen = isOpen
        self.lengthNS = lengthNS
        self.time = time
        self.diagnosis = diagnosis
        self.samples = samples
        self.noStackReason = noStackReason
        self.userCode = userCode
    }
}
