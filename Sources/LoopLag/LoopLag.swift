/// LoopLag inside a Swift server: measures every event loop of this process and lets `looplag` watch it.
///
/// ```swift
/// import LoopLag
/// try LoopLag.start()
/// ```
/// The agent hooks `epoll_wait` and its relatives in every loaded object, writes exact counters to a private file in
/// /dev/shm, and runs one mostly sleeping thread (about 0.1 % of a core). Nothing is served, nothing is printed.

import LoopLagAgent

public enum LoopLag {
    public struct Configuration: Sendable {
        /// An iteration of at least this length is a stall. nil = LOOPLAG_THRESHOLD, else 100 ms. At least 1 ms.
        public var threshold: Duration?

        public init(threshold: Duration? = nil) { self.threshold = threshold }
    }

    /// Begins measuring. Call it before the first event loop starts, or at any time later: loops that already wait are
    /// seen from their next wait on. Starting twice is the same as once.
    ///
    /// Cost: 1-2 ms once; then two clock reads (about 50 ns) per loop iteration. Any thread.
    /// - Throws: ``LoopLagError`` when this process cannot be measured. The server runs on unharmed.
    public static func start(_ configuration: Configuration = Configuration()) throws(LoopLagError) {
        var nanoseconds: UInt64 = 0
        if let threshold = configuration.threshold {
            let (seconds, attoseconds) = threshold.components
            guard seconds >= 0, attoseconds >= 0, seconds < 3_600, threshold >= .milliseconds(1) else {
                throw .thresholdOutOfRange(threshold)
            }
            nanoseconds = UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
        }
        switch Agent.startLinked(threshold: nanoseconds) {
        case .running, .alreadyMeasured, .disabled: return
        case .noWaitFound: throw .noWaitFound
        case .failed: throw .noResources
        }
    }

    /// Ends measuring, restores what was patched and removes the segment. Any thread.
    public static func stop() { Agent.stop() }
}

/// Why a process cannot be measured.
public enum LoopLagError: Error, Hashable, Sendable, CustomStringConvertible {
    /// No loaded object calls epoll_wait through a slot that can be redirected: a fully static executable.
    case noWaitFound
    /// No memory, file or thread was to be had for the agent.
    case noResources
    /// Thresholds lie between 1 ms and 1 h.
    case thresholdOutOfRange(Duration)

    public var description: String {
        switch self {
        case .noWaitFound:
            "LoopLag cannot measure this process: no call of epoll_wait can be redirected (a fully static executable?)"
        case .noResources:
            "LoopLag cannot start: neither /dev/shm, LOOPLAG_DIR nor memory has room for its segment, or no thread"
        case .thresholdOutOfRange(let threshold):
            "LoopLag cannot use the threshold \(threshold): it must lie between 1 ms and 1 h"
        }
    }
}
