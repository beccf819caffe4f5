/// What goes wrong in Python servers and nowhere else: the interpreter's lock, its collector, its worker pools.
///
/// Called by `findings(for:)`. Pure. A loop that is slowed by threads without one long iteration is reported here, or a
/// report of it would look healthy.

import LoopLagModel

/// The loop waits for the interpreter's lock, whether or not any one iteration is long.
struct LockConvoy: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let loops = context.loops.filter { ($0.gilWaitNS ?? 0) > 0 }
        let waited = loops.reduce(0.0) { $0 + Double($1.gilWaitNS ?? 0) }
        let busy = loops.reduce(0.0) { $0 + Double(max(0, $1.busyNS)) }
        let stalls = context.stalls.filter { $0.cause == .gilWait }
        let isMuch = waited >= 100e6 && (waited >= busy / 5 || waited >= Double(context.durationNS) / 20)
        guard isMuch || !stalls.isEmpty else { return nil }
        let who = context.mainCulprit(of: stalls)
        let blocker = stalls.max { $0.durationNS < $1.durationNS }?.blockedBy?.threadName
        let holder = [who, blocker.map { "in thread \($0)" }].compactMap { $0 }.joined(separator: " ")
        var evidence =
            "\(context.subject): its loop waited \(Self.text(waited)) for the lock while it was busy for \(Self.text(busy))"
        evidence += stalls.isEmpty ? "; no single iteration need be long." : "; \(context.summary(of: stalls))."
        return context.finding(
            "gil-wait", isMuch ? context.severity(of: stalls) : .warning,
            "Threads keep Python's lock (GIL) from the event loop" + (holder.isEmpty ? "" : ": \(holder)"),
            evidence: evidence,
            advice:
                "CPU-bound Python in threads (plain `def` handlers, to_thread, executors) slows the loop: move it to a "
                + "process pool, or to code that releases the lock.", stalls: stalls)
    }

    private static func text(_ nanoseconds: Double) -> String {
        PlainText.duration(nanoseconds: Int64(min(9e18, max(0, nanoseconds))))
    }
}

/// Garbage collections hold the loop up.
struct CollectorPause: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        guard context.process.runtime?.name == .cpython else { return nil }
        let stalls = context.stalls.filter { $0.cause == .gc }
        guard !stalls.isEmpty else { return nil }
        return context.finding(
            "gc", context.severity(of: stalls), "Garbage collection holds the event loop up",
            evidence: "\(context.subject): \(context.summary(of: stalls)), in the collector.",
            advice:
                "Call gc.freeze() once everything is loaded, raise gc.set_threshold, or keep fewer objects that can "
                + "form cycles.", stalls: stalls)
    }
}

/// A pool whose threads are all busy while work waits: requests are slow although the loop is free.
struct FullPool: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let full = context.process.pools.filter { pool in
            guard pool.kind == "thread-pool-executor" || pool.kind == "anyio" else { return false }
            guard let depth = pool.queueDepth?.max, depth > 0, let wait = pool.queueWait?.maxNS else { return false }
            return wait >= context.thresholdNS
        }
        guard let worst = full.max(by: { ($0.queueWait?.maxNS ?? 0) < ($1.queueWait?.maxNS ?? 0) }) else { return nil }
        let wait = PlainText.duration(nanoseconds: worst.queueWait?.maxNS ?? 0)
        let name = worst.name.isEmpty ? worst.kind : worst.name
        let size = worst.threads.map { ", \($0) at a time" } ?? ""
        return context.finding(
            "pool-full", .warning, "Work waits for a free thread of `\(name)`",
            evidence:
                "\(context.subject): up to \(Int(worst.queueDepth?.max ?? 0)) items waited\(size), the longest about "
                + "\(wait).",
            advice: worst.kind == "anyio"
                ? "Plain `def` handlers share anyio's limiter: make them shorter, or raise its total_tokens."
                : "Give the executor more threads (max_workers), or the work a pool of its own.")
    }
}
