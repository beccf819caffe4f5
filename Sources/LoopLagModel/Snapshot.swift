/// What one look at a telemetry segment says: raw counters and records, not yet a report.
///
/// Made by LoopLagTelemetry, taken apart by LoopLagDiagnosis, LoopLagReport and LoopLagTop. All counters are totals
/// since the agent started; a window is the difference of two snapshots.

public enum Runtime: String, Hashable, Sendable, Codable {
    case swift, node, cpython, native
}

/// Names one process for as long as it lives: a pid alone is reused.
public struct ProcessIdentity: Hashable, Sendable {
    /// As the command line's own procfs shows it.
    public var pid: Int32
    /// Field 22 of /proc/PID/stat; unchanged by exec.
    public var startTicks: UInt64

    public init(pid: Int32, startTicks: UInt64) {
        self.pid = pid
        self.startTicks = startTicks
    }
}

public struct ProcessSnapshot: Sendable {
    public var identity: ProcessIdentity
    public var takenAt: MonotonicTime
    /// False for a segment whose process has ended (post-mortem).
    public var isAlive: Bool
    public var state: AgentState
    public var runtime: Runtime?
    public var runtimeVersion: String?
    public var executable: String?
    public var command: [String]
    public var anchor: ClockAnchor
    public var startThreshold: Duration
    public var captureThreshold: Duration
    public var loops: [LoopSnapshot]
    public var pools: [PoolSnapshot]
    /// Oldest first; open ones included.
    public var stalls: [StallRecord]
    public var modules: [ModuleRecord]
    public var agent: AgentSnapshot

    public init(
        identity: ProcessIdentity, takenAt: MonotonicTime, isAlive: Bool, state: AgentState, runtime: Runtime?,
        runtimeVersion: String?, executable: String?, command: [String], anchor: ClockAnchor,
        startThreshold: Duration, captureThreshold: Duration, loops: [LoopSnapshot], pools: [PoolSnapshot],
        stalls: [StallRecord], modules: [ModuleRecord], agent: AgentSnapshot
    ) {
        self.identity = identity
        self.takenAt = takenAt
        self.isAlive = isAlive
        self.state = state
        self.runtime = runtime
        self.runtimeVersion = runtimeVersion
        self.executable = executable
        self.command = command
        self.anchor = anchor
        self.startThreshold = startThreshold
        self.captureThreshold = captureThreshold
        self.loops = loops
        self.pools = pools
        self.stalls = stalls
        self.modules = modules
        self.agent = agent
    }
}

public enum AgentState: String, Hashable, Sendable { case starting, running, parked, finished }

public enum LoopRole: String, Hashable, Sendable, Codable { case server, helper }

public enum WaitKind: String, Hashable, Sendable {
    case epollWait = "epoll_wait"
    case epollPwait = "epoll_pwait"
    case epollPwait2 = "epoll_pwait2"
    case poll, ppoll, select, pselect
}

/// One loop is one (thread, primary descriptor); a slot of the segment is reused by later loops with a new generation.
public struct LoopID: Hashable, Sendable {
    public var slot: Int
    public var generation: UInt32

    public init(slot: Int, generation: UInt32) {
        self.slot = slot
        self.generation = generation
    }
}

public struct LoopSnapshot: Sendable {
    public var id: LoopID
    public var isLive: Bool
    public var tid: Int32
    public var threadName: String
    public var descriptor: Int32
    public var wait: WaitKind
    /// What the agent knew; nil leaves it to the reader (caller, thread name).
    public var agentRole: LoopRole?
    /// The return address of the wait that registered the loop.
    public var callerPC: UInt64
    public var registeredAt: MonotonicTime
    public var retiredAt: MonotonicTime?
    /// When the open iteration began; nil while the loop waits.
    public var busySince: MonotonicTime?
    /// When the open wait began; nil while the loop is busy.
    public var idleSince: MonotonicTime?
    public var iterations: UInt64
    public var busy: Duration
    public var idle: Duration
    public var events: UInt64
    public var stallCount: UInt64
    public var stalled: Duration
    public var longest: Duration?
    public var shortest: Duration?
    public var histogram: IterationHistogram
    /// Time runnable but not running since the agent first looked; nil when /proc did not say.
    public var runQueueWait: Duration?
    /// Time this thread waited for the interpreter's lock, closed waits only; nil where it is not measured.
    public var gilWait: Duration?
    /// Time of garbage collections on this loop's thread; nil where it is not measured.
    public var gc: Duration?

    public init(
        id: LoopID, isLive: Bool, tid: Int32, threadName: String, descriptor: Int32, wait: WaitKind,
        agentRole: LoopRole?, callerPC: UInt64, registeredAt: MonotonicTime, retiredAt: MonotonicTime?,
        busySince: MonotonicTime?, idleSince: MonotonicTime?, iterations: UInt64, busy: Duration, idle: Duration,
        events: UInt64, stallCount: UInt64, stalled: Duration, longest: Duration?, shortest: Duration?,
        histogram: IterationHistogram, runQueueWait: Duration?, gilWait: Duration? = nil, gc: Duration? = nil
    ) {
        self.id = id
        self.isLive = isLive
        self.tid = tid
        self.threadName = threadName
        self.descriptor = descriptor
        self.wait = wait
        self.agentRole = agentRole
        self.callerPC = callerPC
        self.registeredAt = registeredAt
        self.retiredAt = retiredAt
        self.busySince = busySince
        self.idleSince = idleSince
        self.iterations = iterations
        self.busy = busy
        self.idle = idle
        self.events = events
        self.stallCount = stallCount
        self.stalled = stalled
        self.longest = longest
        self.shortest = shortest
        self.histogram = histogram
        self.runQueueWait = runQueueWait
        self.gilWait = gilWait
        self.gc = gc
    }
}

public enum MeasuringMethod: String, Hashable, Sendable, Codable { case exact, probe, estimate }

public struct Gauge: Hashable, Sendable, Codable {
    public var last: Int64
    public var mean: Double
    public var max: Int64

    public init(last: Int64, mean: Double, max: Int64) {
        self.last = last
        self.mean = mean
        self.max = max
    }
}

public struct PoolSnapshot: Hashable, Sendable {
    public var slot: Int
    public var kind: String
    public var name: String
    public var threads: Int?
    public var busy: Gauge?
    public var queueDepth: Gauge?
    public var inFlight: Gauge?
    public var queueWaitP50: Duration?
    public var queueWaitP99: Duration?
    public var queueWaitMax: Duration?
    public var method: MeasuringMethod
    /// How the waits were measured, where that is not as the rest; nil = not told.
    public var queueWaitMethod: MeasuringMethod?

    public init(
        slot: Int, kind: String, name: String, threads: Int?, busy: Gauge?, queueDepth: Gauge?, inFlight: Gauge?,
        queueWaitP50: Duration?, queueWaitP99: Duration?, queueWaitMax: Duration?, method: MeasuringMethod,
        queueWaitMethod: MeasuringMethod? = nil
    ) {
        self.slot = slot
        self.kind = kind
        self.name = name
        self.threads = threads
        self.busy = busy
        self.queueDepth = queueDepth
        self.inFlight = inFlight
        self.queueWaitP50 = queueWaitP50
        self.queueWaitP99 = queueWaitP99
        self.queueWaitMax = queueWaitMax
        self.method = method
        self.queueWaitMethod = queueWaitMethod
    }
}

public enum StallState: String, Hashable, Sendable {
    case open, closed
    /// The loop went away before the iteration ended: its length is not known.
    case dropped
}

/// What the watchdog's looks at the stalled thread added up to.
public struct StallEvidence: Hashable, Sendable {
    public var looks: Int
    /// From the first look to the last.
    public var observed: Duration
    public var onCPU: Duration
    public var inSyscall: Duration
    public var inLock: Duration
    public var stopped: Duration
    public var pageFault: Duration
    public var runQueueLooks: Duration
    public var unknown: Duration
    public var inGILWait: Duration
    public var inGC: Duration
    /// The scheduler's own account between the first look and the last.
    public var cpuTime: Duration
    public var runQueueTime: Duration
    public var majorFaults: UInt64
    /// The watchdog's own worst lateness during the stall: a starved machine, not the user's code.
    public var watchdogLate: Duration
    public var syscallNumber: Int?
    public var waitChannel: String?
    /// Within this iteration, as the loop's own thread or the runtime measured it; nil where nobody did.
    public var gilWaitTime: Duration?
    public var gcTime: Duration?
    /// What the wait that began the iteration returned; nil where it was not counted.
    public var events: UInt64?

    public init(
        looks: Int = 0, observed: Duration = .zero, onCPU: Duration = .zero, inSyscall: Duration = .zero,
        inLock: Duration = .zero, stopped: Duration = .zero, pageFault: Duration = .zero,
        runQueueLooks: Duration = .zero, unknown: Duration = .zero, cpuTime: Duration = .zero,
        runQueueTime: Duration = .zero, majorFaults: UInt64 = 0, watchdogLate: Duration = .zero,
        syscallNumber: Int? = nil, waitChannel: String? = nil, inGILWait: Duration = .zero, inGC: Duration = .zero,
        gilWaitTime: Duration? = nil, gcTime: Duration? = nil, events: UInt64? = nil
    ) {
        self.looks = looks
        self.observed = observed
        self.onCPU = onCPU
        self.inSyscall = inSyscall
        self.inLock = inLock
        self.stopped = stopped
        self.pageFault = pageFault
        self.runQueueLooks = runQueueLooks
        self.unknown = unknown
        self.cpuTime = cpuTime
        self.runQueueTime = runQueueTime
        self.majorFaults = majorFaults
        self.watchdogLate = watchdogLate
        self.syscallNumber = syscallNumber
        self.waitChannel = waitChannel
        self.inGILWait = inGILWait
        self.inGC = inGC
        self.gilWaitTime = gilWaitTime
        self.gcTime = gcTime
        self.events = events
    }
}

public struct StallRecord: Hashable, Sendable {
    /// Unique within the segment, rising.
    public var id: UInt64
    public var loop: LoopID
    public var tid: Int32
    public var state: StallState
    public var start: MonotonicTime
    /// Exact once closed; for an open one the time elapsed when the snapshot was taken.
    public var duration: Duration
    /// When the watchdog saw it; nil if it had ended before.
    public var detectedAt: MonotonicTime?
    public var sampleCount: Int
    public var evidence: StallEvidence

    public init(
        id: UInt64, loop: LoopID, tid: Int32, state: StallState, start: MonotonicTime, duration: Duration,
        detectedAt: MonotonicTime?, sampleCount: Int, evidence: StallEvidence
    ) {
        self.id = id
        self.loop = loop
        self.tid = tid
        self.state = state
        self.start = start
        self.duration = duration
        self.detectedAt = detectedAt
        self.sampleCount = sampleCount
        self.evidence = evidence
    }
}

/// A mapped ELF file of the host.
public struct ModuleRecord: Hashable, Sendable {
    public var path: String
    public var buildID: [UInt8]
    /// Run-time address minus the ELF file's own address.
    public var loadBias: UInt64
    public var start: UInt64
    public var end: UInt64
    public var isDeleted: Bool
    public var isVDSO: Bool
    public var isMapped: Bool
    public var device: UInt64
    public var inode: UInt64

    public init(
        path: String, buildID: [UInt8], loadBias: UInt64, start: UInt64, end: UInt64, isDeleted: Bool, isVDSO: Bool,
        isMapped: Bool, device: UInt64, inode: UInt64
    ) {
        self.path = path
        self.buildID = buildID
        self.loadBias = loadBias
        self.start = start
        self.end = end
        self.isDeleted = isDeleted
        self.isVDSO = isVDSO
        self.isMapped = isMapped
        self.device = device
        self.inode = inode
    }
}

public struct AgentSnapshot: Hashable, Sendable {
    public var mode: String
    public var watchdogTID: Int32?
    public var heartbeat: MonotonicTime
    public var cpu: Duration
    public var ticks: UInt64
    public var lateMax: Duration
    public var signalsSent: UInt64
    public var samplesTaken: UInt64
    /// By reason, only those that occurred.
    public var samplesDropped: [String: UInt64]
    public var pauseMax: Duration
    public var pauseTotal: Duration
    public var stallsMissed: UInt64
    public var loopsRefused: UInt64
    /// Names of what the agent cannot do here, e.g. `no-safe-read`.
    public var degraded: [String]

    public init(
        mode: String, watchdogTID: Int32?, heartbeat: MonotonicTime, cpu: Duration, ticks: UInt64, lateMax: Duration,
        signalsSent: UInt64, samplesTaken: UInt64, samplesDropped: [String: UInt64], pauseMax: Duration,
        pauseTotal: Duration, stallsMissed: UInt64, loopsRefused: UInt64, degraded: [String]
    ) {
        self.mode = mode
        self.watchdogTID = watchdogTID
        self.heartbeat = heartbeat
        self.cpu = cpu
        self.ticks = ticks
        self.lateMax = lateMax
        self.signalsSent = signalsSent
        self.samplesTaken = samplesTaken
        self.samplesDropped = samplesDropped
        self.pauseMax = pauseMax
        self.pauseTotal = pauseTotal
        self.stallsMissed = stallsMissed
        self.loopsRefused = loopsRefused
        self.degraded = degraded
    }
}
