/// Writes stall records: opened by the watchdog while the stall runs, closed with the exact length that the loop's own
/// thread measured.
///
/// Watchdog only. A record's `seq` is odd while it is written; the reader retries.

import CLoopLag

struct StallBook {
    private let segment: Segment
    private var lastID: UInt64 = 0

    init(_ segment: Segment) { self.segment = segment }

    /// Begins a record and returns its id.
    mutating func open(
        slot: Int, view: lag_loop_view, start: UInt64, detected: UInt64, events: UInt64,
        state: Int = Int(LAG_STALL_OPEN), duration: UInt64 = 0
    ) -> UInt64 {
        lastID &+= 1
        let record = entry(lastID)
        let seq = record.pointee.seq | 1
        lag_store_u32(&record.pointee.seq, seq)
        var fresh = lag_stall()
        fresh.seq = seq
        fresh.state = UInt32(truncatingIfNeeded: state)
        fresh.id = lastID
        fresh.loop_index = UInt32(truncatingIfNeeded: slot)
        fresh.loop_generation = view.generation
        fresh.tid = view.tid
        fresh.start_ns = start
        fresh.duration_ns = duration
        fresh.detected_ns = detected
        fresh.syscall_nr = -1
        fresh.known = UInt64(LAG_KNOWN_EVENTS)
        fresh.events = events
        record.pointee = fresh
        lag_store_u32(&record.pointee.seq, seq &+ 1)
        lag_store_u64(&segment.header.pointee.stalls_opened, lastID)
        return lastID
    }

    /// Changes a record that is still in the ring; false for one that newer stalls have overwritten.
    @discardableResult
    func change(_ id: UInt64, _ body: (UnsafeMutablePointer<lag_stall>) -> Void) -> Bool {
        let record = entry(id)
        guard id != 0, record.pointee.id == id else { return false }
        let seq = record.pointee.seq | 1
        lag_store_u32(&record.pointee.seq, seq)
        body(record)
        lag_store_u32(&record.pointee.seq, seq &+ 1)
        return true
    }

    private func entry(_ id: UInt64) -> UnsafeMutablePointer<lag_stall> {
        segment.stalls + Int(truncatingIfNeeded: lag_remainder(id, UInt64(truncatingIfNeeded: segment.stallCount)))
    }
}
