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
        ReportThread(
            loopID: loopID.map { ReportIDs.loop(prefix: prefix, $0) }, tid: tid,
            threadName: PlainText.printable(name), state: activity, sinceNS: since?.nanosecondCount,
            threadState: String(sample.threadState), syscall: syscall, stack: sample.frames.map(index),
            truncated: sample.isTruncated, method: sample.method,
            noStackReason: sample.noStackReason.map(PlainText.printable),
            culprit: culprit.map(FrameText.printable))
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
        return PlainText.printable("\(subject)  \(state)")
    }

    /// The heading, then one line a frame, leaf first.
    var lines: [String] {
        var result = [heading]
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
    /// Pools first, then the threads, a blank line between two.
    public static func text(title: String, pools: [PoolSnapshot], threads: [DumpedThread]) -> String {
        var blocks = [[PlainText.printable(title)] + pools.map(line)]
        for thread in threads { blocks.append(thread.lines) }
        return blocks.map { $0.joined(separator: "\n") + "\n" }.joined(separator: "\n")
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
            facts.append("wait p99 \(PlainText.duration(nanoseconds: wait.nanosecondCount))")
        }
        if pool.method == .estimate { facts.append("estimated") }
        return PlainText.printable("  pool \(name)  \(facts.joined(separator: ", "))")
    }
}
