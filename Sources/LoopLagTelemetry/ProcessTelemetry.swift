/// One process as the command line follows it: a reader, what it said first, and what has happened since.
///
/// Used by `stalls --follow`, `record`, `run` and `top`, from one thread or task at a time. Every stall is announced
/// once as opened and once as closed or dropped, however seldom the caller polls; stalls that had ended before the
/// baseline are history and no events. It filters nothing: thresholds are the caller's.
/// Memory is bounded by what the segment holds.

import LoopLagModel

public final class ProcessTelemetry {
    /// What one poll found.
    public struct Update: Sendable {
        public var snapshot: ProcessSnapshot
        /// Seen for the first time, as they are now: perhaps already closed.
        public var opened: [StallRecord]
        /// Ended since the last poll, with their exact length.
        public var closed: [StallRecord]
        /// Their loop went away before they ended.
        public var dropped: [StallRecord]
        public var newSamples: [RawSample]
        /// Stalls that came and fell out of the segment's ring between two polls.
        public var overlooked: UInt64

        public init(
            snapshot: ProcessSnapshot, opened: [StallRecord], closed: [StallRecord], dropped: [StallRecord],
            newSamples: [RawSample], overlooked: UInt64
        ) {
            self.snapshot = snapshot
            self.opened = opened
            self.closed = closed
            self.dropped = dropped
            self.newSamples = newSamples
            self.overlooked = overlooked
        }
    }

    public let source: SegmentSource
    public let reader: SegmentReader
    /// The first snapshot: a report's counters are differences to it.
    public private(set) var baseline: ProcessSnapshot
    public private(set) var latest: ProcessSnapshot

    /// Ids that have been announced as opened, with whether their end has been announced too.
    private var announced: [UInt64: Bool] = [:]
    private var highestID: UInt64

    /// How many stalls are remembered, for the tests of its bound.
    var remembered: Int { announced.count }
    /// Samples of stalls that were open at the baseline, for the first poll.
    private var pending: [RawSample]
    private var position: UInt64?

    /// Opens the segment and takes the baseline.
    public init(_ source: SegmentSource) throws(TelemetryError) {
        let reader = try SegmentReader(source)
        let first = try reader.snapshot()
        let samples = try reader.samples(after: nil)
        self.source = source
        self.reader = reader
        baseline = first
        latest = first
        highestID = first.stalls.last?.id ?? 0
        position = samples.last?.position
        var open: Set<UInt64> = []
        for stall in first.stalls {
            if stall.state == .open { open.insert(stall.id) } else { announced[stall.id] = true }
        }
        pending = samples.filter { open.contains($0.stallID) }
    }

    /// Looks again. Those stalls that were open at the baseline count as opened in the first poll.
    public func poll() throws(TelemetryError) -> Update {
        // Samples first: a sample's stall is then always in the snapshot, unless it is older than the ring.
        var samples = pending
        pending = []
        samples += try newSamples()
        let snapshot = try reader.snapshot()
        // Of a process that ended meanwhile this may be the last look.
        if !snapshot.isAlive || snapshot.state == .finished { samples += try newSamples() }
        var update = Update(
            snapshot: snapshot, opened: [], closed: [], dropped: [], newSamples: samples, overlooked: 0)
        var fresh: UInt64 = 0
        for stall in snapshot.stalls {
            let known = announced[stall.id]
            if known == nil {
                update.opened.append(stall)
                if stall.id > highestID { fresh += 1 }
            }
            switch stall.state {
            case .open:
                announced[stall.id] = known ?? false
            case .closed:
                if known != true { update.closed.append(stall) }
                announced[stall.id] = true
            case .dropped:
                if known != true { update.dropped.append(stall) }
                announced[stall.id] = true
            }
        }
        if let last = snapshot.stalls.last?.id, last > highestID {
            update.overlooked = last - highestID - min(fresh, last - highestID)
            highestID = last
        }
        forget(snapshot)
        latest = snapshot
        return update
    }

    private func newSamples() throws(TelemetryError) -> [RawSample] {
        let samples = try reader.samples(after: position)
        position = samples.last?.position ?? position
        // What a dump asked for is no news of a stall.
        return samples.filter { $0.dump == nil }
    }

    /// See `SegmentReader.hold(threshold:)`.
    public func hold(threshold: Duration) -> Bool { reader.hold(threshold: threshold) }

    public func releaseThreshold() { reader.releaseThreshold() }

    /// Keeps what is still in the segment, and a margin for a record that was unreadable for one look.
    private func forget(_ snapshot: ProcessSnapshot) {
        guard announced.count > 4 * SegmentLimit.stalls else { return }
        let present = Set(snapshot.stalls.map(\.id))
        announced = announced.filter { present.contains($0.key) }
    }
}
