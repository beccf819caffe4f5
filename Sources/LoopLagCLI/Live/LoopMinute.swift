/// The last sixty seconds of one loop: what it was at their start, and what each second added.
///
/// Owned by `ProcessMinute`, on the main thread. A second is kept as the counters and the few histogram buckets that
/// moved: sixty whole histograms for each of hundreds of loops would be hundreds of megabytes.

import LoopLagModel
import LoopLagReport

struct LoopMinute {
    private struct Step {
        var time: MonotonicTime
        /// The loop at the end of the second, without its histogram.
        var light: LoopSnapshot
        var changes: [(bucket: Int, count: UInt64)]
        var worst: Int64
    }

    /// What the figures were computed for; a quiet loop is computed once a second.
    struct FiguresKey: Equatable {
        var step: MonotonicTime?
        var threshold: Duration
    }

    /// One empty histogram for all, shared by copy on write.
    private static let empty = IterationHistogram()

    /// The loop at the window's start, without its histogram; nil when it registered within the window.
    private var baseLight: LoopSnapshot?
    private var baseTime: MonotonicTime?
    /// The counts at the window's start.
    private var floor: IterationHistogram
    private var last: (iterations: UInt64, histogram: IterationHistogram)
    private var steps: [Step] = []
    var figures: (key: FiguresKey, value: LoopFigures)?
    /// Set by the owner, who knows the process.
    var name: (kind: String, role: LoopRole, name: String)?

    /// - Parameter isNew: it registered while we watched, so its whole life lies in the window.
    init(_ loop: LoopSnapshot, at time: MonotonicTime, isNew: Bool) {
        floor = isNew ? Self.empty : loop.histogram
        last = isNew ? (0, Self.empty) : (loop.iterations, loop.histogram)
        guard !isNew else { return }
        baseLight = loop
        baseLight?.histogram = Self.empty
        baseTime = time
    }

    /// The loop at the window's start; nil when it registered within the window.
    var base: LoopSnapshot? {
        guard var base = baseLight else { return nil }
        base.histogram = floor
        return base
    }

    var lastStep: MonotonicTime? { steps.last?.time }

    /// Ends a second; what is older than `limit` of them leaves the window.
    mutating func step(_ loop: LoopSnapshot, at now: MonotonicTime, limit: Int) {
        var changes: [(bucket: Int, count: UInt64)] = []
        if loop.iterations != last.iterations {
            let before = last.histogram.counts
            for (i, count) in loop.histogram.counts.enumerated() where count > before[i] {
                changes.append((i, count - before[i]))
            }
        }
        var light = loop
        light.histogram = Self.empty
        let closed = changes.last.map { Int64(clamping: IterationHistogram.middle($0.bucket)) } ?? 0
        steps.append(Step(time: now, light: light, changes: changes, worst: max(Self.open(loop, now), closed)))
        last = (loop.iterations, loop.histogram)
        while steps.count > limit {
            let gone = steps.removeFirst()
            for change in gone.changes {
                floor.record(IterationHistogram.lowerBound(change.bucket), count: change.count)
            }
            baseLight = gone.light
            baseTime = gone.time
        }
    }

    /// The longest iteration of each second, oldest first; a running one counts in the last.
    func history(_ loop: LoopSnapshot, at now: MonotonicTime) -> [Int64] {
        var result = steps.map(\.worst)
        let open = Self.open(loop, now)
        if let end = result.last { result[result.count - 1] = max(end, open) } else { result = [open] }
        return result
    }

    /// Busy share since the end of the second before the last: a figure that moves with what one sees.
    func utilization(_ loop: LoopSnapshot, at now: MonotonicTime) -> Double? {
        let to = Self.totals(loop, now)
        let from: (busy: Double, idle: Double)
        if steps.count >= 2 {
            let step = steps[steps.count - 2]
            from = Self.totals(step.light, step.time)
        } else if let baseLight, let baseTime {
            from = Self.totals(baseLight, baseTime)
        } else {
            from = (0, 0)
        }
        let busy = max(0, to.busy - from.busy)
        let all = busy + max(0, to.idle - from.idle)
        return all > 0 ? min(1, busy / all) : nil
    }

    private static func open(_ loop: LoopSnapshot, _ now: MonotonicTime) -> Int64 {
        loop.isLive ? loop.busySince.map { now.since($0).nanosecondCount } ?? 0 : 0
    }

    /// Busy and idle seconds, with what is open at `now`.
    private static func totals(_ loop: LoopSnapshot, _ now: MonotonicTime) -> (busy: Double, idle: Double) {
        var busy = loop.busy
        var idle = loop.idle
        if loop.isLive {
            if let since = loop.busySince { busy += now.since(since) }
            if let since = loop.idleSince { idle += now.since(since) }
        }
        return (busy.secondsAsDouble, idle.secondsAsDouble)
    }
}
