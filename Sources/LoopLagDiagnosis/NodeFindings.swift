/// What goes wrong in node servers and nowhere else: V8's collector, and libuv's four threads.
///
/// Called by `findings(for:)`. Pure.

import LoopLagModel

/// Garbage collections hold the loop up.
struct NodeCollectorPause: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        guard context.process.runtime?.name == .node else { return nil }
        let stalls = context.stalls.filter { $0.cause == .gc }
        guard !stalls.isEmpty else { return nil }
        let who = context.mainCulprit(of: stalls)
        return context.finding(
            "gc", context.severity(of: stalls),
            "Garbage collection holds the event loop up" + (who.map { ": it ran in \($0)" } ?? ""),
            evidence: "\(context.subject): \(context.summary(of: stalls)), in V8's collector.",
            advice:
                "Keep less alive (caches, large arrays, buffers of results), stream instead of collecting, or give V8 "
                + "room with --max-old-space-size and --max-semi-space-size.", stalls: stalls)
    }
}

/// libuv's threads are all busy while work waits: files, DNS, crypto and zlib are slow although the loop is free.
struct FullLibuvPool: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        guard let pool = context.process.pools.first(where: { $0.kind == "libuv" }), let depth = pool.queueDepth?.max,
            depth > 0, let wait = pool.queueWait?.maxNS, wait >= context.thresholdNS
        else { return nil }
        let threads = pool.threads.map { "all \($0) threads" } ?? "all threads"
        return context.finding(
            "pool-full", .warning,
            "libuv's thread pool is full: work waits up to "
                + PlainText.duration(nanoseconds: wait),
            evidence: "\(context.subject): \(threads) busy, up to \(Int(depth)) waiting, the longest for "
                + "\(PlainText.duration(nanoseconds: wait)).",
            advice:
                "File access, DNS lookups, crypto and zlib share these threads: set UV_THREADPOOL_SIZE (before node "
                + "starts) to what they need, and do not start more of it at once.", stalls: [])
    }
}
