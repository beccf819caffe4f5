/// Snapshots as Prometheus' text exposition format (0.0.4): the metrics of the contract, base units, totals since each
/// process's agent started.
///
/// Called for each scrape, on any thread. Pure. Names of processes and loops come in from LoopLagDiagnosis through
/// `Naming`. It refuses labels that hold arguments, and metrics it has no number for.

import LoopLagModel

public enum PrometheusText {
    public static let contentType = "text/plain; version=0.0.4; charset=utf-8"

    /// How processes and loops are called.
    public struct Naming: Sendable {
        public var process: @Sendable (ProcessSnapshot) -> String
        public var loop: @Sendable (ProcessSnapshot, LoopSnapshot) -> (name: String, kind: String, role: LoopRole)

        public init(
            process: @escaping @Sendable (ProcessSnapshot) -> String,
            loop: @escaping @Sendable (ProcessSnapshot, LoopSnapshot) -> (name: String, kind: String, role: LoopRole)
        ) {
            self.process = process
            self.loop = loop
        }
    }

    /// Every metric that `render` can write, without the suffixes of histograms.
    public static let metricNames: [String] = Metric.allCases.map(\.rawValue)

    /// The exposition of all living processes; dead ones and helper loops are left out.
    public static func render(_ processes: [ProcessSnapshot], naming: Naming, stalls: StallTally = StallTally())
        -> String
    {
        var page = Page()
        for process in processes where process.isAlive { page.add(process, naming: naming, stalls: stalls) }
        return page.text
    }

    /// Upper bounds in seconds, the same for every histogram so that they add up across hosts.
    static let bounds: [Double] = [
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
    ]
}

enum Metric: String, CaseIterable {
    case iteration = "looplag_loop_iteration_seconds"
    case delay = "looplag_loop_delay_seconds"
    case busy = "looplag_loop_busy_seconds_total"
    case idle = "looplag_loop_idle_seconds_total"
    case stalls = "looplag_loop_stalls_total"
    case stalled = "looplag_loop_stalled_seconds_total"
    case stallOpen = "looplag_loop_stall_open_seconds"
    case runQueueWait = "looplag_run_queue_wait_seconds_total"
    case poolThreads = "looplag_pool_threads"
    case poolBusy = "looplag_pool_threads_busy"
    case poolQueue = "looplag_pool_queue_depth"
    case poolWait = "looplag_pool_queue_wait_seconds"
    case agentCPU = "looplag_agent_cpu_seconds_total"
    case agentDropped = "looplag_agent_samples_dropped_total"
    case processInfo = "looplag_process_info"

    var type: String {
        switch self {
        case .iteration, .delay: "histogram"
        case .poolWait: "summary"
        case .stallOpen, .poolThreads, .poolBusy, .poolQueue, .processInfo: "gauge"
        case .busy, .idle, .stalls, .stalled, .runQueueWait, .agentCPU, .agentDropped: "counter"
        }
    }

    var help: String {
        switch self {
        case .iteration: "Length of closed loop iterations."
        case .delay:
            "What an arriving event waits until the loop is free, weighted by time: a bucket counts the seconds in which "
                + "an event would have waited at most that long."
        case .busy: "Time in callbacks, of closed iterations."
        case .idle: "Time inside the wait, of closed waits."
        case .stalls: "Closed iterations of at least the agent's threshold."
        case .stalled: "Total length of closed stalls."
        case .stallOpen: "How long the stall that is open now has lasted; 0 when none is."
        case .runQueueWait: "Time a loop's thread was ready to run but not running."
        case .poolThreads: "Threads of a pool."
        case .poolBusy: "Threads of a pool that work now."
        case .poolQueue: "Items waiting for a pool's thread now."
        case .poolWait: "How long items waited for a pool's thread."
        case .agentCPU: "CPU time of the agent itself."
        case .agentDropped: "Stacks that were wanted and not taken."
        case .processInfo: "Always 1; what the process is."
        }
    }
}

/// Samples collected metric by metric: the format wants all series of one metric together.
private struct Page {
    private var samples: [Metric: [String]] = [:]

    var text: String {
        var result = ""
        for metric in Metric.allCases {
            guard let lines = samples[metric], !lines.isEmpty else { continue }
            result += "# HELP \(metric.rawValue) \(metric.help)\n# TYPE \(metric.rawValue) \(metric.type)\n"
            for line in lines { result += line + "\n" }
        }
        return result
    }

    mutating func add(_ process: ProcessSnapshot, naming: PrometheusText.Naming, stalls: StallTally) {
        let base = [("pid", "\(process.identity.pid)"), ("process", naming.process(process))]
        for loop in Self.merged(process, naming: naming, stalls: stalls) {
            add(loop, labels: base + [("loop", loop.name), ("kind", loop.kind)])
        }
        for pool in process.pools {
            let labels = base + [("pool", pool.name), ("kind", pool.kind)]
            if let threads = pool.threads { add(.poolThreads, labels, Double(threads)) }
            if let busy = pool.busy { add(.poolBusy, labels, Double(busy.last)) }
            if let queue = pool.queueDepth { add(.poolQueue, labels, Double(queue.last)) }
            for (quantile, wait) in [("0.5", pool.queueWaitP50), ("0.99", pool.queueWaitP99), ("1", pool.queueWaitMax)]
            {
                if let wait { add(.poolWait, labels + [("quantile", quantile)], wait.secondsAsDouble) }
            }
        }
        add(.agentCPU, base, process.agent.cpu.secondsAsDouble)
        add(.agentDropped, base, Double(process.agent.samplesDropped.values.reduce(0, &+)))
        // The executable's name only: arguments hold secrets.
        let command = process.executable?.split(separator: "/").last.map(String.init) ?? naming.process(process)
        var info = base
        if let runtime = process.runtime { info.append(("runtime", runtime.rawValue)) }
        if let version = process.runtimeVersion { info.append(("version", version)) }
        add(.processInfo, info + [("command", command)], 1)
    }

    private mutating func add(_ loop: MergedLoop, labels: [(String, String)]) {
        var cumulative: UInt64 = 0
        var bucket = 0
        for bound in PrometheusText.bounds {
            let limit = UInt64(bound * 1e9)
            while bucket < loop.histogram.counts.count, IterationHistogram.middle(bucket) <= limit {
                cumulative &+= loop.histogram.counts[bucket]
                bucket += 1
            }
            add(.iteration, labels + [("le", Self.number(bound))], Double(cumulative), suffix: "_bucket")
        }
        let total = Double(loop.histogram.total)
        add(.iteration, labels + [("le", "+Inf")], total, suffix: "_bucket")
        add(.iteration, labels, loop.busy, suffix: "_sum")
        add(.iteration, labels, total, suffix: "_count")

        // Of an iteration d, arrivals in its last x seconds wait at most x: it gives min(d, x) seconds to bucket x.
        var weighted = 0.0
        var lengths: [(length: Double, count: Double)] = []
        for (i, count) in loop.histogram.counts.enumerated() where count > 0 {
            lengths.append((Double(IterationHistogram.middle(i)) / 1e9, Double(count)))
        }
        for (length, count) in lengths { weighted += length * length / 2 * count }
        for bound in [0] + PrometheusText.bounds {
            let within = lengths.reduce(0) { $0 + min($1.length, bound) * $1.count }
            add(.delay, labels + [("le", Self.number(bound))], loop.idle + within, suffix: "_bucket")
        }
        // The histogram's own sum of lengths, not the exact busy time: the last bucket must not be below the others.
        let observed = loop.idle + lengths.reduce(0) { $0 + $1.length * $1.count }
        add(.delay, labels + [("le", "+Inf")], observed, suffix: "_bucket")
        add(.delay, labels, weighted, suffix: "_sum")
        add(.delay, labels, observed, suffix: "_count")

        add(.busy, labels, loop.busy)
        add(.idle, labels, loop.idle)
        for cause in Cause.allCases {
            if let count = loop.stalls[cause] { add(.stalls, labels + [("cause", cause.rawValue)], Double(count)) }
        }
        add(.stalled, labels, loop.stalled)
        add(.stallOpen, labels, loop.stallOpen)
        if let wait = loop.runQueueWait { add(.runQueueWait, labels, wait) }
    }

    private mutating func add(_ metric: Metric, _ labels: [(String, String)], _ value: Double, suffix: String = "") {
        let pairs = labels.map { "\($0.0)=\"\(Self.escaped($0.1))\"" }.joined(separator: ",")
        samples[metric, default: []].append("\(metric.rawValue)\(suffix){\(pairs)} \(Self.number(value))")
    }

    /// Loops with the same labels are one series: a second `asyncio.run` goes on where the first left off.
    private struct MergedLoop {
        var name: String
        var kind: String
        var histogram = IterationHistogram()
        var busy = 0.0
        var idle = 0.0
        var stalled = 0.0
        var stallOpen = 0.0
        var stalls: [Cause: UInt64] = [:]
        var runQueueWait: Double?
    }

    private static func merged(
        _ process: ProcessSnapshot, naming: PrometheusText.Naming, stalls: StallTally
    ) -> [MergedLoop] {
        var loops: [MergedLoop] = []
        for loop in process.loops {
            let label = naming.loop(process, loop)
            guard label.role == .server else { continue }
            let place = loops.firstIndex { $0.name == label.name && $0.kind == label.kind } ?? loops.count
            if place == loops.count { loops.append(MergedLoop(name: label.name, kind: label.kind)) }
            loops[place].histogram.add(loop.histogram)
            loops[place].busy += loop.busy.secondsAsDouble
            loops[place].idle += loop.idle.secondsAsDouble
            loops[place].stalled += loop.stalled.secondsAsDouble
            loops[place].stalls.merge(stalls.counts(process.identity, loop.id)) { $0 &+ $1 }
            if let wait = loop.runQueueWait {
                loops[place].runQueueWait = (loops[place].runQueueWait ?? 0) + wait.secondsAsDouble
            }
            if loop.isLive, let since = loop.busySince {
                let elapsed = process.takenAt.since(since)
                if elapsed >= process.startThreshold {
                    loops[place].stallOpen = max(loops[place].stallOpen, elapsed.secondsAsDouble)
                }
            }
        }
        return loops
    }

    /// Whole numbers without a fraction, as clients write them; never an exponent that a parser could miss.
    private static func number(_ value: Double) -> String {
        if value.rounded() == value, abs(value) < 1e15 { return "\(Int64(value))" }
        return "\(value)"
    }

    /// Backslash, quote and line feed as the format demands; other control characters have no business in a label.
    private static func escaped(_ text: String) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\": result += "\\\\"
            case "\"": result += "\\\""
            case "\n": result += "\\n"
            case let other where other.value < 0x20 || other.value == 0x7f: result += "\u{fffd}"
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
