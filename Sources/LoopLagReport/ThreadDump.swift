/// A dump: the stacks of a process's threads at one moment, as text for a person and as the report's threads.
///
/// Filled in by the `dump` verb, on any thread. Pure. Names of threads and functions come from a foreign process: they
/// are made printable here and not before.

import LoopLagDiagnosis
import LoopLagModel

public struct DumpedThread: Sendable {
    /// nil for a thread in which no loop was measured.
    public var loopID: LoopID?
    public var loop: LoopClass?
    public var tid: Int32
    public var name: String
    /// nil when nobody can say.
    public var activity: ReportThread.Activity?
    /// How long it has been busy or idle.
    public var since: Duration?
    /// It has been busy for longer than the threshold.
    public var isStalled: Bool
    public var syscallNumber: Int?
    public var sample: StackSample
    /// Of a busy thread.
    public var culprit: Frame?
    /// The slot of the pool whose worker it is.
    public var pool: Int?

    public init(
        loopID: LoopID?, loop: LoopClass?, tid: Int32, name: String, activity: ReportThread.Activity?,
        since: Duration?, isStalled: Bool, syscallNumber: Int?, sample: StackSample, culprit: Frame?
    ) {
        self.loopID = loopID
        self.loop = loop
        self.tid = tid
        self.name = name
        self.activity = activity
        self.since = since
        self.isStalled = isStalled
        self.syscallNumber = syscallNumber
        self.sample = sample
        self.culprit = culprit
    }

    private var syscall: String? { syscallNumber.map { syscallName($0) ?? "syscall_\($0)" } }

    func reported(prefix: String, index: (Frame) -> Int) -> ReportThread {
        var thread = ReportThread(
            loopID: loopID.map { ReportIDs.loop(prefix: prefix, $0) }, tid: tid,
            threadName: PlainText.printable(name), state: activity, sinceNS: since?.nanosecondCount,
            threadState: String(sample.threadState), syscall: syscall, stack: sample.frames.map(index),
            truncated: sample.isTruncated, method: sample.method,
            noStackReason: sample.noStackReason.map(PlainText.printable),
            culprit: culprit.map(FrameText.printable))
        thread.poolID = pool.map { ReportIDs.pool(prefix: prefix, $0) }
        thread.request = sample.request.map(ReportBuilder.printable)
        thread.task = sample.task.map(PlainText.printable)
        return thread
    }

    // MARK: Text

    /// "main · libuv  thread 4242  busy for 1.2 s in clock_nanosleep, stalled".
    var heading: String {
        var subject = "thread \(tid)"
        if let loop {
            let same = loop.name == subject
            subject = "\(loop.name) · \(loop.kind)" + (same ? "" : "  \(subject)")
            if loop.role == .helper { subject += "  (helper)" }
        }
        if !name.isEmpty, loop?.name != name { subject += " (\(name))" }
        return PlainText.printable("\(subject)  \(state)")
    }

    /// "busy for 1.2 s in clock_nanosleep, stalled".
    private var state: String {
        var state: String
        switch (activity, sample.threadState) {
        case (.busy, _): state = "busy"
        case (.idle, _): state = "idle"
        case (nil, "S"), (nil, "D"): state = "blocked"
        case (nil, "R"): state = "running"
        case (nil, "T"), (nil, "t"): state = "stopped"
        case (nil, let letter): state = "state \(letter)"
        }
        if let since { state += " for \(PlainText.duration(nanoseconds: since.nanosecondCount))" }
        if let syscall { state += " in \(syscall)" }
        if isStalled { state += ", stalled" }
        if let request = sample.request { state += ", \(request.method) \(request.path)" }
        return state
    }

    /// The heading, then one line a frame, leaf first.
    var lines: [String] { [heading] + stack }

    /// Whether both hold their slots with the same call, wherever that is called for.
    fileprivate func isAlike(_ other: DumpedThread) -> Bool {
        sample.frames == other.sample.frames && syscallNumber == other.syscallNumber
    }

    /// "thread 4243 in clock_nanosleep", or only the latter for several.
    fileprivate func holding(_ count: Int) -> String {
        var words = count == 1 ? ["thread \(tid)"] : []
        words.append(syscall.map { "in \($0)" } ?? (sample.threadState == "R" ? "running" : "blocked"))
        if count == 1, let request = sample.request { words.append("for \(request.method) \(request.path)") }
        return PlainText.printable(words.joined(separator: " "))
    }

    fileprivate var stack: [String] {
        var result: [String] = []
        if sample.frames.isEmpty {
            return result + ["    no stack: " + PlainText.printable(sample.noStackReason ?? "none was taken")]
        }
        // One wild name must not push all the others' places out of sight.
        let width = min(56, sample.frames.map { PlainText.columns(of: PlainText.printable($0.function)) }.max() ?? 0)
        var isMarked = false
        for frame in sample.frames {
            let isCulprit = !isMarked && frame == culprit
            isMarked = isMarked || isCulprit
            var line = (isCulprit ? "  ▸ " : "    ") + PlainText.left(FrameText.tag(frame.kind), 3)
            let function = PlainText.printable(frame.function)
            line += PlainText.columns(of: function) > width ? function : PlainText.left(function, width)
            line += "  " + FrameText.place(frame)
            if frame.inlined == true { line += "  (inlined)" }
            if isCulprit { line += "  ← your code" }
            while line.last == " " { line.removeLast() }
            result.append(line)
        }
        if sample.isTruncated { result.append("    ... the stack goes on, or cannot be followed further") }
        return result
    }
}

public enum DumpText {
    /// The threads, then each pool with the stacks that hold its slots; a blank line between two.
    public static func text(title: String, pools: [PoolSnapshot], threads: [DumpedThread]) -> String {
        var blocks = [[PlainText.printable(title)]]
        let rows = Set(pools.map(\.slot))
        for thread in threads where thread.pool.map({ !rows.contains($0) }) ?? true { blocks.append(thread.lines) }
        // Pools that nobody holds a slot of need no blank line between them.
        var idle: [String] = []
        for pool in pools {
            let holders = threads.filter { $0.pool == pool.slot }
            if holders.isEmpty { idle.append(line(pool)) } else { blocks.append([line(pool)] + folded(holders)) }
        }
        if !idle.isEmpty { blocks.append(idle) }
        return blocks.map { $0.joined(separator: "\n") + "\n" }.joined(separator: "\n")
    }

    /// Equal stacks once, the most frequent first.
    private static func folded(_ threads: [DumpedThread]) -> [String] {
        var groups: [[DumpedThread]] = []
        for thread in threads {
            if let place = groups.firstIndex(where: { $0[0].isAlike(thread) }) {
                groups[place].append(thread)
            } else {
                groups.append([thread])
            }
        }
        groups.sort { ($1.count, $0[0].tid) < ($0.count, $1[0].tid) }
        return groups.flatMap { group in
            ["  \(group.count) x \(group[0].holding(group.count))"] + group[0].stack
        }
    }

    /// "pool libuv  4 of 4 busy, 12 queued".
    private static func line(_ pool: PoolSnapshot) -> String {
        let name = pool.name.isEmpty || pool.name == pool.kind ? pool.kind : "\(pool.name) · \(pool.kind)"
        var facts: [String] = []
        switch (pool.busy, pool.threads) {
        case (let busy?, let threads?): facts.append("\(busy.last) of \(threads) busy")
        case (let busy?, nil): facts.append("\(busy.last) busy")
        case (nil, let threads?): facts.append("\(threads) threads")
        case (nil, nil): break
        }
        if let depth = pool.queueDepth { facts.append("\(depth.last) queued") }
        if let wait = pool.queueWaitP99 {
            let how = pool.queueWaitMethod == .estimate ? " (estimated)" : ""
            facts.append("wait p99 \(PlainText.duration(nanoseconds: wait.nanosecondCount))\(how)")
        }
        if pool.method == .estimate { facts.append("estimated") }
        return PlainText.printable("pool \(name)  \(facts.joined(separator: ", "))")
    }
}
