/// A table whose records begin with a 32-bit sequence number that is odd while its writer is at work.
///
/// Used by SegmentReader for stalls and pools, on its thread. One pread brings the whole table; only when a record has
/// changed since the last look are there two more, and a record counts as read when the sequence before, within and
/// after is the same even number. What a busy writer spoils is retried one by one, a bounded number of times, and then
/// the last good copy stands: a writer that was killed half-way can hide nothing but its last touch.

import Glibc

final class SequencedTable {
    let table: SegmentTable
    /// How many records are looked at.
    let count: Int
    private let recordBytes: Int
    private let stable: RecordBuffer
    private var state: [State]

    private enum State {
        case never
        /// Its writer never let go: what lies there, word by word.
        case torn
        case whole
    }

    /// - Parameter recordBytes: what this reader knows of a record; the stride may be larger.
    init(_ table: SegmentTable, recordBytes: Int, limit: Int) {
        self.table = table
        count = min(table.count, limit)
        self.recordBytes = recordBytes
        stable = RecordBuffer(count: count * recordBytes)
        state = Array(repeating: .never, count: count)
    }

    /// Brings the records up to date, and tells which of them may say something else than at the last look.
    /// - Parameter isWritten: false once nobody writes any more: then waiting is pointless.
    func refresh(from file: SegmentFile, isWritten: Bool) throws(TelemetryError) -> [Int] {
        guard count > 0 else { return [] }
        let bytes = count * table.stride
        // Kept no longer than this look: a command line that follows hundreds of workers has one set of them.
        let before = RecordBuffer(count: bytes, isZeroed: false)
        try file.read(before.start, count: bytes, at: table.offset)
        var changed: [Int] = []
        for i in 0..<count {
            let now = sequence(before.start + i * table.stride)
            if state[i] != .whole || now != sequence(record(i)) { changed.append(i) }
        }
        guard !changed.isEmpty else { return [] }
        let within = RecordBuffer(count: bytes, isZeroed: false)
        let after = RecordBuffer(count: bytes, isZeroed: false)
        try file.read(within.start, count: bytes, at: table.offset)
        try file.read(after.start, count: bytes, at: table.offset)
        for i in changed {
            let offset = i * table.stride
            let now = sequence(before.start + offset)
            if now & 1 == 0, now == sequence(within.start + offset), now == sequence(after.start + offset) {
                keep(i, from: within.start + offset, as: .whole)
            } else {
                try retry(i, into: within.start + offset, from: file, isWritten: isWritten)
            }
        }
        return changed
    }

    /// The last good copy of record `index`; nil when there never was one.
    func record<Record>(_ index: Int, as: Record.Type) -> UnsafePointer<Record>? {
        guard index >= 0, index < count, state[index] != .never else { return nil }
        return UnsafePointer(record(index).assumingMemoryBound(to: Record.self))
    }

    private func retry(
        _ index: Int, into target: UnsafeMutableRawPointer, from file: SegmentFile, isWritten: Bool
    ) throws(TelemetryError) {
        let position = table.position(of: index)
        let whole = try readSequenced(
            target, count: recordBytes, at: position, from: file, attempts: isWritten ? 100 : 1)
        if whole {
            keep(index, from: target, as: .whole)
        } else if state[index] != .whole {
            keep(index, from: target, as: .torn)
        }
    }

    private func keep(_ index: Int, from source: UnsafeMutableRawPointer, as new: State) {
        record(index).copyMemory(from: source, byteCount: recordBytes)
        state[index] = new
    }

    private func record(_ index: Int) -> UnsafeMutableRawPointer { stable.start + index * recordBytes }
}

/// The sequence number that a record begins with.
func sequence(_ record: UnsafeMutableRawPointer) -> UInt32 { record.load(as: UInt32.self) }

/// Reads one record until its writer leaves it alone; false when that did not happen, with the last copy in `target`.
func readSequenced(
    _ target: UnsafeMutableRawPointer, count: Int, at position: Int, from file: SegmentFile, attempts: Int
) throws(TelemetryError) -> Bool {
    var edge: UInt32 = 0
    for attempt in 0..<attempts {
        try file.read(&edge, count: 4, at: position)
        let before = edge
        try file.read(target, count: count, at: position)
        try file.read(&edge, count: 4, at: position)
        if before & 1 == 0, before == edge, before == sequence(target) { return true }
        // A writer that was preempted between its two marks needs this processor more than we do.
        if attempt > 8 { sched_yield() }
    }
    return false
}
