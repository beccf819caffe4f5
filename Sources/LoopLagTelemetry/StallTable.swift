/// The stall ring, as records of the model.
///
/// Used by SegmentReader on its thread. A hundred stalls that ended long ago are decoded once, not at every look.

import CLoopLagLayout
import LoopLagModel

final class StallTable {
    private let table: SequencedTable
    private var decoded: [StallRecord?]
    /// Those that are there, oldest first.
    private var ordered: [StallRecord] = []

    init(_ layout: SegmentTable) {
        table = SequencedTable(layout, recordBytes: MemoryLayout<lag_stall>.size, limit: SegmentLimit.stalls)
        decoded = Array(repeating: nil, count: table.count)
    }

    func refresh(from file: SegmentFile, isWritten: Bool) throws(TelemetryError) {
        let changed = try table.refresh(from: file, isWritten: isWritten)
        guard !changed.isEmpty else { return }
        let modulus = UInt64(max(1, table.table.count))
        for i in changed {
            // An id out of its place was not written by an agent.
            if let record = table.record(i, as: lag_stall.self), record.pointee.id % modulus == UInt64(i) {
                decoded[i] = Decode.stall(record)
            } else {
                decoded[i] = nil
            }
        }
        ordered = decoded.compactMap { $0 }.sorted { $0.id < $1.id }
    }

    /// - Parameter end: up to when open stalls are known to have lasted.
    func records(until end: MonotonicTime) -> [StallRecord] {
        for i in ordered.indices where ordered[i].state == .open { ordered[i].duration = end.since(ordered[i].start) }
        return ordered
    }
}
