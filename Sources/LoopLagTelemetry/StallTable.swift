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

    /// - Parameters:
    ///   - end: up to when open stalls are known to have lasted.
    ///   - loops: given once the watchdog writes no more. An iteration that ended after its last look has no end in its
    ///     record, and an exact one in its loop's slot.
    func records(until end: MonotonicTime, endsFrom loops: LoopTable?) -> [StallRecord] {
        var records = ordered
        for i in records.indices where records[i].state == .open {
            if let ended = loops?.longIteration(of: records[i].loop, start: records[i].start) {
                records[i].state = .closed
                records[i].duration = ended.duration
            } else {
                records[i].duration = end.since(records[i].start)
            }
        }
        return records
    }
}
