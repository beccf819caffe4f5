/// The JSON report, `looplag.report/1`, as Swift values. Unknown is nil and so absent from the JSON, never zero.
///
/// The field names are the schema's (snake_case by the coder's key strategy being explicit here): LoopLagReport encodes
/// and decodes these types as they stand. Times ending in `NS` are integer nanoseconds; wall-clock times are RFC 3339.

public struct Report: Hashable, Sendable, Codable {
    public static let schemaName = "looplag.report/1"

    public var schema: String
    public var looplagVersion: String
    public var recorded: Recorded
    public var machine: Machine
    public var settings: Settings
    public var processes: [ReportProcess]
    public var frames: [Frame]
    public var findings: [Finding]

    public struct Recorded: Hashable, Sendable, Codable {
        public var start: String
        public var end: String
        public var durationNS: Int64
        enum CodingKeys: String, CodingKey { case start, end, durationNS = "duration_ns" }
        public init(start: String, end: String, durationNS: Int64) {
            self.start = start
            self.end = end
            self.durationNS = durationNS
        }
    }

    public struct Machine: Hashable, Sendable, Codable {
        public var hostname: String
        public var kernel: String
        public var cpus: Int
        public var cgroupLimits: CgroupLimits?
        enum CodingKeys: String, CodingKey { case hostname, kernel, cpus, cgroupLimits = "cgroup_limits" }
        public init(hostname: String, kernel: String, cpus: Int, cgroupLimits: CgroupLimits?) {
            self.hostname = hostname
            self.kernel = kernel
            self.cpus = cpus
            self.cgroupLimits = cgroupLimits
        }
    }

    public struct CgroupLimits: Hashable, Sendable, Codable {
        /// Cores allowed by cpu.max; absent when unlimited.
        public var cpus: Double?
        public var memoryBytes: Int64?
        enum CodingKeys: String, CodingKey { case cpus, memoryBytes = "memory_bytes" }
        public init(cpus: Double?, memoryBytes: Int64?) {
            self.cpus = cpus
            self.memoryBytes = memoryBytes
        }
    }

    public struct Settings: Hashable, Sendable, Codable {
        public var thresholdNS: Int64
        enum CodingKeys: String, CodingKey { case thresholdNS = "threshold_ns" }
        public init(thresholdNS: Int64) { self.thresholdNS = thresholdNS }
    }

    enum CodingKeys: String, CodingKey {
        case schema, looplagVersion = "looplag_version", recorded, machine, settings, processes, frames, findings
    }

    public init(
        looplagVersion: String, recorded: Recorded, machine: Machine, settings: Settings, processes: [ReportProcess],
        frames: [Frame], findings: [Finding]
    ) {
        self.schema = Self.schemaName
        self.looplagVersion = looplagVersion
        self.recorded = recorded
        self.machine = machine
        self.settings = settings
        self.processes = processes
        self.frames = frames
        self.findings = findings
    }
}

public struct ReportProcess: Hashable, Sendable, Codable {
    public struct RuntimeInfo: Hashable, Sendable, Codable {
        public var name: Runtime
        public var version: String?
        public init(name: Runtime, version: String?) {
            self.name = name
            self.version = version
        }
    }

    public struct Agent: Hashable, Sendable, Codable {
        public var cpuNS: Int64
        /// CPU time over wall time of the window, 0...1 of one core.
        public var cpuShare: Double
        public var signalsSent: Int64
        public var pauseNSMax: Int64?
        public var samplesDropped: Int64
        /// Whether or not a reader came in time for them; nil in reports that are older.
        public var samplesTaken: Int64?
        public var degraded: [String]
        enum CodingKeys: String, CodingKey {
            case cpuNS = "cpu_ns", cpuShare = "cpu_share", signalsSent = "signals_sent", pauseNSMax = "pause_ns_max"
            case samplesDropped = "samples_dropped", samplesTaken = "samples_taken", degraded
        }
        public init(
            cpuNS: Int64, cpuShare: Double, signalsSent: Int64, pauseNSMax: Int64?, samplesDropped: Int64,
            samplesTaken: Int64? = nil, degraded: [String]
        ) {
            self.cpuNS = cpuNS
            self.cpuShare = cpuShare
            self.signalsSent = signalsSent
            self.pauseNSMax = pauseNSMax
            self.samplesDropped = samplesDropped
            self.samplesTaken = samplesTaken
            self.degraded = degraded
        }
    }

    public var pid: Int32
    public var command: [String]
    public var executable: String?
    public var runtime: RuntimeInfo?
    public var started: String?
    public var loops: [ReportLoop]
    public var pools: [ReportPool]
    public var stalls: [ReportStall]
    /// The threads of a `dump`; absent in other reports.
    public var dump: [ReportThread]?
    public var agent: Agent

    public init(
        pid: Int32, command: [String], executable: String?, runtime: RuntimeInfo?, started: String?,
        loops: [ReportLoop], pools: [ReportPool], stalls: [ReportStall], agent: Agent
    ) {
        self.pid = pid
        self.command = command
        self.executable = executable
        self.runtime = runtime
        self.started = started
        self.loops = loops
        self.pools = pools
        self.stalls = stalls
        self.agent = agent
    }
}

public struct ReportLoop: Hashable, Sendable, Codable {
    public struct Iteration: Hashable, Sendable, Codable {
        public var minNS: Int64?
        public var meanNS: Int64?
        public var p50NS: Int64?
        public var p90NS: Int64?
        public var p99NS: Int64?
        public var p999NS: Int64?
        public var maxNS: Int64?
        /// HdrHistogram V2, base64.
        public var hdr: String?
        enum CodingKeys: String, CodingKey {
            case minNS = "min_ns", meanNS = "mean_ns", p50NS = "p50_ns", p90NS = "p90_ns", p99NS = "p99_ns"
            case p999NS = "p999_ns", maxNS = "max_ns", hdr
        }
        public init() {}
    }

    public struct Delay: Hashable, Sendable, Codable {
        public var meanNS: Int64?
        public var p50NS: Int64?
        public var p90NS: Int64?
        public var p99NS: Int64?
        public var p999NS: Int64?
        public var maxNS: Int64?
        enum CodingKeys: String, CodingKey {
            case meanNS = "mean_ns", p50NS = "p50_ns", p90NS = "p90_ns", p99NS = "p99_ns", p999NS = "p999_ns"
            case maxNS = "max_ns"
        }
        public init() {}
    }

    public var id: String
    public var tid: Int32
    public var threadName: String
    /// libuv, asyncio, uvloop, nio, swift-concurrency, dispatch, epoll, poll ...
    public var kind: String
    public var role: LoopRole
    public var iterations: Int64
    public var busyNS: Int64
    public var idleNS: Int64
    /// Absent when the loop was neither busy nor idle within the window.
    public var utilization: Double?
    public var stallCount: Int64
    public var stalledNS: Int64
    public var iteration: Iteration
    public var delay: Delay
    public var runQueueWaitNS: Int64?
    public var gilWaitNS: Int64?
    public var gcNS: Int64?

    enum CodingKeys: String, CodingKey {
        case id, tid, threadName = "thread_name", kind, role, iterations, busyNS = "busy_ns", idleNS = "idle_ns"
        case utilization, stallCount = "stall_count", stalledNS = "stalled_ns", iteration, delay
        case runQueueWaitNS = "run_queue_wait_ns", gilWaitNS = "gil_wait_ns", gcNS = "gc_ns"
    }

    public init(
        id: String, tid: Int32, threadName: String, kind: String, role: LoopRole, iterations: Int64, busyNS: Int64,
        idleNS: Int64, utilization: Double?, stallCount: Int64, stalledNS: Int64, iteration: Iteration, delay: Delay,
        runQueueWaitNS: Int64?, gilWaitNS: Int64? = nil, gcNS: Int64? = nil
    ) {
        self.id = id
        self.tid = tid
        self.threadName = threadName
        self.kind = kind
        self.role = role
        self.iterations = iterations
        self.busyNS = busyNS
        self.idleNS = idleNS
        self.utilization = utilization
        self.stallCount = stallCount
        self.stalledNS = stalledNS
        self.iteration = iteration
        self.delay = delay
        self.runQueueWaitNS = runQueueWaitNS
        self.gilWaitNS = gilWaitNS
        self.gcNS = gcNS
    }
}

public struct ReportPool: Hashable, Sendable, Codable {
    public struct QueueWait: Hashable, Sendable, Codable {
        public var p50NS: Int64?
        public var p99NS: Int64?
        public var maxNS: Int64?
        /// Where it is not the pool's own: a probe can measure the wait in a queue whose depth is an estimate.
        public var method: MeasuringMethod?
        enum CodingKeys: String, CodingKey { case p50NS = "p50_ns", p99NS = "p99_ns", maxNS = "max_ns", method }
        public init(p50NS: Int64?, p99NS: Int64?, maxNS: Int64?, method: MeasuringMethod? = nil) {
            self.p50NS = p50NS
            self.p99NS = p99NS
            self.maxNS = maxNS
            self.method = method
        }

        /// Of a pool's figures so far; nil = none was seen.
        public init?(_ pool: PoolSnapshot) {
            guard pool.queueWaitP50 != nil || pool.queueWaitP99 != nil || pool.queueWaitMax != nil else { return nil }
            self.init(
                p50NS: pool.queueWaitP50?.nanosecondCount, p99NS: pool.queueWaitP99?.nanosecondCount,
                maxNS: pool.queueWaitMax?.nanosecondCount,
                method: pool.queueWaitMethod == pool.method ? nil : pool.queueWaitMethod)
        }
    }

    public var id: String
    public var kind: String
    public var name: String
    public var threads: Int?
    public var busy: Gauge?
    public var queueDepth: Gauge?
    public var inFlight: Gauge?
    public var queueWait: QueueWait?
    public var method: MeasuringMethod

    enum CodingKeys: String, CodingKey {
        case id, kind, name, threads, busy, queueDepth = "queue_depth", inFlight = "in_flight"
        case queueWait = "queue_wait", method
    }

    public init(
        id: String, kind: String, name: String, threads: Int?, busy: Gauge?, queueDepth: Gauge?, inFlight: Gauge?,
        queueWait: QueueWait?, method: MeasuringMethod
    ) {
        self.id = id
        self.kind = kind
        self.name = name
        self.threads = threads
        self.busy = busy
        self.queueDepth = queueDepth
        self.inFlight = inFlight
        self.queueWait = queueWait
        self.method = method
    }
}

public enum Cause: String, Hashable, Sendable, Codable, CaseIterable {
    case onCPU = "on_cpu"
    case syscall, lock, gc, unknown
    case gilWait = "gil_wait"
    case runQueue = "run_queue"
    case cgroupThrottled = "cgroup_throttled"
    case processStopped = "process_stopped"
    case pageFault = "page_fault"
    case manySmall = "many_small"
}

public struct ReportStall: Hashable, Sendable, Codable {
    public struct Sample: Hashable, Sendable, Codable {
        public var offsetNS: Int64
        public var threadState: String
        /// Indices into the report's `frames`, leaf first.
        public var stack: [Int]
        public var truncated: Bool
        public var late: Bool
        public var method: CaptureMethod
        /// What was served at that moment: several requests can share one long iteration.
        public var request: Request?
        public var task: String?
        enum CodingKeys: String, CodingKey {
            case offsetNS = "offset_ns", threadState = "thread_state", stack, truncated, late, method, request, task
        }
        public init(
            offsetNS: Int64, threadState: String, stack: [Int], truncated: Bool, late: Bool, method: CaptureMethod,
            request: Request? = nil, task: String? = nil
        ) {
            self.offsetNS = offsetNS
            self.threadState = threadState
            self.stack = stack
            self.truncated = truncated
            self.late = late
            self.method = method
            self.request = request
            self.task = task
        }
    }

    public struct Request: Hashable, Sendable, Codable {
        public var method: String
        public var path: String
        public init(method: String, path: String) {
            self.method = method
            self.path = path
        }
    }

    public struct BlockedBy: Hashable, Sendable, Codable {
        public var tid: Int32
        public var threadName: String
        public var stack: [Int]
        enum CodingKeys: String, CodingKey { case tid, threadName = "thread_name", stack }
        public init(tid: Int32, threadName: String, stack: [Int]) {
            self.tid = tid
            self.threadName = threadName
            self.stack = stack
        }
    }

    public var id: String
    public var loopID: String
    public var start: String
    public var durationNS: Int64
    public var open: Bool
    public var cause: Cause
    /// The numbers behind the cause; only what is known.
    public var evidence: [String: Double]
    public var syscall: String?
    public var phase: String?
    public var request: Request?
    public var task: String?
    public var culprit: Frame?
    public var samples: [Sample]
    /// Why there are no stacks, when there are none.
    public var noStackReason: String?
    public var provisional: Bool?
    public var blockedBy: BlockedBy?

    enum CodingKeys: String, CodingKey {
        case id, loopID = "loop_id", start, durationNS = "duration_ns", open, cause, evidence, syscall, phase
        case request, task, culprit, samples, noStackReason = "no_stack_reason", provisional, blockedBy = "blocked_by"
    }

    public init(
        id: String, loopID: String, start: String, durationNS: Int64, open: Bool, cause: Cause,
        evidence: [String: Double], syscall: String?, culprit: Frame?, samples: [Sample], noStackReason: String?
    ) {
        self.id = id
        self.loopID = loopID
        self.start = start
        self.durationNS = durationNS
        self.open = open
        self.cause = cause
        self.evidence = evidence
        self.syscall = syscall
        self.culprit = culprit
        self.samples = samples
        self.noStackReason = noStackReason
    }
}

public struct Finding: Hashable, Sendable, Codable {
    public enum Severity: String, Hashable, Sendable, Codable { case info, warning, critical }
    public var id: String
    public var severity: Severity
    public var title: String
    public var evidence: String
    public var advice: String
    /// Ids of the stalls it rests on.
    public var stalls: [String]

    public init(id: String, severity: Severity, title: String, evidence: String, advice: String, stalls: [String]) {
        self.id = id
        self.severity = severity
        self.title = title
        self.evidence = evidence
        self.advice = advice
        self.stalls = stalls
    }
}
