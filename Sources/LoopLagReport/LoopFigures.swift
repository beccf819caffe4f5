/// One loop's numbers over any window, for a view that keeps windows of its own (`top`, the last minute).
///
/// Called by the live view, on any thread. Pure: the report's own arithmetic, so that the two can never disagree.

import LoopLagModel

public struct LoopFigures: Sendable {
    public let stallCount: Int
    public let delay: ReportLoop.Delay

    /// - Parameters:
    ///   - from: the loop at the window's start; nil when it registered later.
    ///   - stalls: this loop's, any time, any threshold; an open one with the time elapsed at `end`.
    ///   - startThreshold: at which the slot's own stall counters count.
    public init(
        from: LoopSnapshot?, to: LoopSnapshot, start: MonotonicTime, end: MonotonicTime, stalls: [StallRecord],
        threshold: Duration, startThreshold: Duration
    ) {
        let window = LoopWindow(
            from: from, to: to, start: start, end: end, stalls: stalls, threshold: threshold,
            startThreshold: startThreshold)
        stallCount = window.stallCount
        delay = window.delay
    }
}
