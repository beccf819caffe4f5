/// The loop slots: 64 of them, 8 KiB each, of which a server uses a handful.
///
/// Used by SegmentReader on its thread. It reads the small heads of the slots, then only the slots in use, and of those
/// the histogram only when an iteration has ended since; the rest comes from the last look. Agents fill slots from the
/// first on and never free them, so a look ends a few free slots behind the last one in use; now and then it goes on
/// to the end, for agents that do otherwise.

import CLoopLagLayout
import LoopLagModel

/// An iteration at or above the capture threshold, as the loop's own thread measured it.
struct LongIteration: Hashable {
    var start: MonotonicTime
    var duration: Duration
}

final class LoopTable {
    private let table: SegmentTable
    private let count: Int
    private let buffer = RecordBuffer(count: MemoryLayout<lag_loop_slot>.size)
    private var last: [LoopSnapshot?]
    /// The latest long iterations of each slot in use, as its thread saw them end.
    private var long: [Int: [LongIteration]] = [:]
    private var looks = 0

    /// Free slots in a row that end a look.
    private static let margin = 4
    /// Every so many looks goes to the end, the first one among them.
    private static let wholeLook = 32

    /// Everything of a slot before its histogram.
    private static let headBytes =
        MemoryLayout<lag_loop_slot>.offset(of: \lag_loop_slot.histogram)
        ?? MemoryLayout<lag_loop_slot>.size - 8 * IterationHistogram.bucketCount

    init(_ table: SegmentTable) {
        self.table = table
        count = min(table.count, SegmentLimit.loops)
        last = Array(repeating: nil, count: count)
    }

    /// Live and retired loops, in slot order.
    func snapshots(from file: SegmentFile, isWritten: Bool) throws(TelemetryError) -> [LoopSnapshot] {
        var result: [LoopSnapshot] = []
        let slot = UnsafePointer(buffer.start.assumingMemoryBound(to: lag_loop_slot.self))
        let isWhole = looks % Self.wholeLook == 0
        looks &+= 1
        var free = 0
        for i in 0..<count where isWhole || free < Self.margin || last[i] != nil {
            let position = table.position(of: i)
            try file.read(buffer.start, count: Self.headBytes, at: position)
            guard slot.pointee.state != UInt32(LAG_LOOP_FREE) else {
                last[i] = nil
                long[i] = nil
                free += 1
                continue
            }
            free = 0
            var known = knownHistogram(slot, i)
            let bytes = known == nil ? MemoryLayout<lag_loop_slot>.size : Self.headBytes
            // A loop that turns too fast to be caught between two iterations is taken as it is: every word has one
            // writer and is whole by itself, and counters one iteration apart are better than old ones.
            _ = try readSequenced(
                buffer.start, count: bytes, at: position, from: file, attempts: isWritten ? 24 : 1)
            if known != nil, knownHistogram(slot, i) == nil {
                // An iteration ended in between: the counts belong to these counters, one record later at most.
                try file.read(
                    buffer.start + Self.headBytes, count: MemoryLayout<lag_loop_slot>.size - Self.headBytes,
                    at: position + Self.headBytes)
                known = nil
            }
            // Claimed, and not yet filled in by its new thread.
            guard slot.pointee.state != UInt32(LAG_LOOP_FREE), slot.pointee.registered_ns != 0 else { continue }
            let loop = Decode.loop(slot, slot: i, histogram: known ?? Decode.histogram(slot))
            last[i] = loop
            long[i] = Decode.longIterations(slot)
            result.append(loop)
        }
        return result
    }

    /// How long the iteration of a loop that began at `start` was, if its thread still remembers; by the last look.
    func longIteration(of loop: LoopID, start: MonotonicTime) -> LongIteration? {
        guard last.indices.contains(loop.slot), last[loop.slot]?.id == loop else { return nil }
        return long[loop.slot]?.last { $0.start == start }
    }

    /// The histogram of the last look if no iteration has ended since.
    private func knownHistogram(_ slot: UnsafePointer<lag_loop_slot>, _ index: Int) -> IterationHistogram? {
        guard let old = last[index], old.id.generation == slot.pointee.generation,
            old.iterations == slot.pointee.iterations
        else { return nil }
        return old.histogram
    }
}
