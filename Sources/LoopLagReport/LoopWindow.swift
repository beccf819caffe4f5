/// One loop's numbers over a window: the difference of two snapshots, cut exactly at both ends.
///
/// Called by the report builder, on any thread. Pure. Snapshots count closed iterations and closed waits only, so an
/// iteration that was open at the window's start brings its earlier part along when it closes, and one that is open at
/// the end is not counted yet: both are set right here. It refuses to count a stall twice: one whose exact length is
/// known is taken out of the histogram's bucket.

import LoopLagModel

struct LoopWindow {
    /// Closed iterations.
    let iterations: UInt64
    let busy: Duration
    let idle: Duration
    let stallCount: Int
    /// The stalls' share of the window.
    let stalled: Duration
    let iteration: ReportLoop.Iteration
    let delay: ReportLoop.Delay
    let runQueueWait: Duration?

    var utilization: Double? {
        let busy = busy.secondsAsDouble
        let all = busy + idle.secondsAsDouble
        return all > 0 ? min(1, max(0, busy / all)) : nil
    }

    /// - Parameters:
    ///   - from: the loop at the window's start; nil when it registered later (or the report has no start).
    ///   - stalls: this loop's, any time, any threshold.
    ///   - startThreshold: at which the slot's own stall counters count.
    init(
        from: LoopSnapshot?, to: LoopSnapshot, start: MonotonicTime, end: MonotonicTime, stalls: [StallRecord],
        threshold: Duration, startThreshold: Duration
    ) {
        let start = from == nil ? to.registeredAt : max(start, to.registeredAt)
        var end = max(start, end)
        // A retired loop's open iteration was dropped; it is not known when the loop left off.
        let openSince = to.isLive ? to.busySince : nil
        if !to.isLive, let gone = [to.busySince, to.retiredAt].compactMap({ $0 }).min() {
            end = max(start, min(end, gone))
        }

        iterations = Self.difference(to.iterations, from?.iterations)
        var busy = Self.difference(to.busy, from?.busy)
        var idle = Self.difference(to.idle, from?.idle)
        if let since = from?.busySince, since < start, since != to.busySince { busy -= min(busy, start.since(since)) }
        if let since = from?.idleSince, since < start, since != to.idleSince { idle -= min(idle, start.since(since)) }
        let open = openSince.map { end.since(max($0, start)) }
        busy += open ?? .zero
        if to.isLive, let since = to.idleSince { idle += end.since(max(since, start)) }
        self.busy = busy
        self.idle = idle
        runQueueWait = to.runQueueWait.map { Self.difference($0, from?.runQueueWait) }

        let histogram = from.map { to.histogram.since($0.histogram) } ?? to.histogram
        var counts = histogram.counts
        var exact: [Duration] = []
        var whole: [Duration] = []
        var records: (count: Int, stalled: Duration) = (0, .zero)
        for stall in stalls where stall.state == .closed && stall.start != openSince {
            let stallEnd = stall.start.advanced(by: stall.duration)
            guard stallEnd > start, stallEnd <= end else { continue }
            let inWindow = stallEnd.since(max(stall.start, start))
            if stall.duration >= threshold {
                records.count += 1
                records.stalled += inWindow
            }
            guard Self.take(stall.duration, from: &counts) else { continue }
            exact.append(inWindow)
            whole.append(stall.duration)
        }
        for stall in stalls where stall.state == .open && stall.start != openSince {
            // Ended, but the record of its end was not seen: what is known of it counts as a stall, not for the delay,
            // where the histogram has it already.
            guard stall.duration >= threshold, stall.start.advanced(by: stall.duration) > start else { continue }
            records.count += 1
            records.stalled += min(stall.duration, end.since(max(stall.start, start)))
        }
        if let open, let openSince {
            exact.append(open)
            if end.since(openSince) >= threshold {
                records.count += 1
                records.stalled += open
            }
        }

        // Records can be lost (a full ring, a threshold that was higher until just now); the slot never forgets.
        let openCount = open != nil && end.since(openSince ?? end) >= threshold ? 1 : 0
        let counted = Self.counted(
            from: from, to: to, histogram: histogram, threshold: threshold, startThreshold: startThreshold)
        if counted.count + openCount > records.count {
            stallCount = counted.count + openCount
            stalled = min(busy, counted.stalled + (openCount > 0 ? open ?? .zero : .zero))
        } else {
            stallCount = records.count
            stalled = records.stalled
        }

        let rest = IterationHistogram(counts: counts)
        delay = Self.delay(DelayDistribution(histogram: rest, exact: exact, window: end.since(start)))
        iteration = Self.iteration(
            from: from, to: to, histogram: histogram, rest: rest, whole: whole, closed: iterations)
    }

    /// Takes one iteration of this length out; false if the histogram does not have it (it closed outside the window).
    private static func take(_ duration: Duration, from counts: inout [UInt64]) -> Bool {
        let index = IterationHistogram.index(of: UInt64(clamping: duration.nanosecondCount))
        // The record and the counter may have read the clock a moment apart.
        for candidate in [index, index - 1, index + 1] where counts.indices.contains(candidate) && counts[candidate] > 0
        {
            counts[candidate] -= 1
            return true
        }
        return false
    }

    /// Closed stalls by the slot's counters, or by the histogram where the threshold is not the counters' own.
    private static func counted(
        from: LoopSnapshot?, to: LoopSnapshot, histogram: IterationHistogram, threshold: Duration,
        startThreshold: Duration
    ) -> (count: Int, stalled: Duration) {
        if threshold == startThreshold {
            return (
                Int(clamping: difference(to.stallCount, from?.stallCount)), difference(to.stalled, from?.stalled)
            )
        }
        // The bucket that the threshold divides is left out: rather one too few than one that was no stall.
        let limit = UInt64(clamping: threshold.nanosecondCount)
        var count: UInt64 = 0
        var stalled = 0.0
        for (i, n) in histogram.counts.enumerated() where n > 0 && IterationHistogram.lowerBound(i) >= limit {
            count &+= n
            stalled += Double(n) * Double(IterationHistogram.middle(i))
        }
        return (Int(clamping: count), .nanoseconds(Int64(min(9e18, stalled))))
    }

    private static func delay(_ distribution: DelayDistribution) -> ReportLoop.Delay {
        var delay = ReportLoop.Delay()
        delay.meanNS = distribution.mean?.nanosecondCount
        delay.p50NS = distribution.delay(atQuantile: 0.5)?.nanosecondCount
        delay.p90NS = distribution.delay(atQuantile: 0.9)?.nanosecondCount
        delay.p99NS = distribution.delay(atQuantile: 0.99)?.nanosecondCount
        delay.p999NS = distribution.delay(atQuantile: 0.999)?.nanosecondCount
        delay.maxNS = distribution.maximum?.nanosecondCount
        return delay
    }

    /// Of the iterations that closed in the window, at their full lengths.
    private static func iteration(
        from: LoopSnapshot?, to: LoopSnapshot, histogram: IterationHistogram, rest: IterationHistogram,
        whole: [Duration], closed: UInt64
    ) -> ReportLoop.Iteration {
        var result = ReportLoop.Iteration()
        guard closed > 0, let first = histogram.counts.firstIndex(where: { $0 > 0 }),
            let last = histogram.counts.lastIndex(where: { $0 > 0 })
        else { return result }
        // The slot knows the extremes of its whole life: they are the window's where it set them, and bounds otherwise.
        let shortest = to.shortest.map { Int64(clamping: $0.nanosecondCount) }
        if let shortest, from == nil || from?.shortest.map({ Int64(clamping: $0.nanosecondCount) > shortest }) ?? true {
            result.minNS = shortest
        } else {
            result.minNS = max(shortest ?? 0, Int64(clamping: IterationHistogram.lowerBound(first)))
        }
        let longest = to.longest.map { Int64(clamping: $0.nanosecondCount) }
        if let longest, from == nil || from?.longest.map({ Int64(clamping: $0.nanosecondCount) < longest }) ?? true {
            result.maxNS = longest
        } else {
            let known = whole.map(\.nanosecondCount).max() ?? 0
            let other = rest.counts.lastIndex { $0 > 0 }.map { Int64(clamping: IterationHistogram.middle($0)) } ?? 0
            let highest = Int64(clamping: IterationHistogram.lowerBound(last + 1))
            result.maxNS = min(max(known, other), max(known, longest ?? highest))
        }
        let total = difference(to.busy, from?.busy)
        result.meanNS = total.nanosecondCount / Int64(clamping: closed)
        func quantile(_ share: Double) -> Int64? {
            histogram.value(atQuantile: share).map {
                min(max(Int64(clamping: $0), result.minNS ?? 0), result.maxNS ?? .max)
            }
        }
        result.p50NS = quantile(0.5)
        result.p90NS = quantile(0.9)
        result.p99NS = quantile(0.99)
        result.p999NS = quantile(0.999)
        result.hdr = HdrHistogram(rest, exact: whole).base64
        return result
    }

    private static func difference(_ later: UInt64, _ earlier: UInt64?) -> UInt64 {
        let earlier = earlier ?? 0
        return later > earlier ? later - earlier : 0
    }

    private static func difference(_ later: Duration, _ earlier: Duration?) -> Duration {
        max(.zero, later - (earlier ?? .zero))
    }
}
