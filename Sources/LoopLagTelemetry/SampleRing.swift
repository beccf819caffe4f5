/// Raw samples: records of different lengths, one after another in a ring of bytes that the watchdog overwrites.
///
/// An extension of SegmentReader, on its thread. It copies the bytes between the reader's last position and the head,
/// walks them, and afterwards asks how far the writer has come: what it may have overwritten meanwhile is dropped.
/// Memory is bounded by the ring. A damaged record costs the walk its place, which the next record's own position
/// gives back.

import CLoopLagLayout
import LoopLagModel

extension SegmentReader {
    /// Samples after the one at `position` (all that are still there for nil), oldest first.
    public func samples(after position: UInt64?) throws(TelemetryError) -> [RawSample] {
        try refreshHead()
        let ring = layout.samples
        guard ring.count >= MemoryLayout<lag_sample>.size else { return [] }
        let size = UInt64(ring.count)
        let end = head.header.pointee.samples_head
        let tail = head.header.pointee.samples_tail
        guard end > tail, end % 8 == 0, tail % 8 == 0 else { return [] }
        var start = max(tail, end > size ? end - size : 0)
        if let position {
            if let lastSample, lastSample.position == position {
                start = max(start, lastSample.end)
            } else {
                start = max(start, position)
            }
        }
        guard start < end else { return [] }
        start &= ~7

        let bytes = try ringBytes(from: start, to: end)
        var walk = RingWalk(bytes: bytes, start: start, end: end, size: size)
        try refreshHead()
        let found = walk.samples(after: position, intactFrom: head.header.pointee.samples_tail)
        if let last = found.last { lastSample = (last.sample.position, last.end) }
        return found.map(\.sample)
    }

    /// The bytes [start, end) of the stream, out of the one or two pieces in which they lie.
    private func ringBytes(from start: UInt64, to end: UInt64) throws(TelemetryError) -> RecordBuffer {
        let size = layout.samples.count
        let count = Int(end - start)
        let buffer = RecordBuffer(count: count, isZeroed: false)
        let offset = Int(start % UInt64(size))
        let first = min(count, size - offset)
        try file.read(buffer.start, count: first, at: layout.samples.offset + offset)
        if count > first {
            try file.read(buffer.start + first, count: count - first, at: layout.samples.offset)
        }
        return buffer
    }
}

/// Goes from record to record through a copy of the stream.
struct RingWalk {
    let bytes: RecordBuffer
    /// Absolute positions of the copy.
    let start: UInt64
    let end: UInt64
    /// Of the ring.
    let size: UInt64
    private var position: UInt64

    private static let recordBytes = UInt64(MemoryLayout<lag_sample>.size)

    init(bytes: RecordBuffer, start: UInt64, end: UInt64, size: UInt64) {
        self.bytes = bytes
        self.start = start
        self.end = end
        self.size = size
        position = start
    }

    /// The samples after `position` of which nothing can have been overwritten while they were copied.
    /// - Parameter tail: what the header said after the copy was made. The writer raises it before it overwrites.
    mutating func samples(
        after position: UInt64?, intactFrom tail: UInt64
    ) -> [(sample: RawSample, end: UInt64)] {
        var result: [(sample: RawSample, end: UInt64)] = []
        while let record = next() {
            let place = record.pointee.position
            if let position, place <= position { continue }
            guard place >= tail, let sample = Self.decode(record) else { continue }
            result.append((sample, place &+ UInt64(record.pointee.total_bytes)))
        }
        return result
    }

    /// The next sample that is whole, in its place, and ends within the ring's lap and the copy.
    mutating func next() -> UnsafePointer<lag_sample>? {
        while position < end {
            let lap = size - position % size
            let left = min(lap, end - position)
            // A record never wraps: where none fits, the lap is over.
            guard lap >= Self.recordBytes else {
                position += left
                continue
            }
            guard left >= Self.recordBytes else { return nil }
            let record = bytes.start.advanced(by: Int(position - start)).assumingMemoryBound(to: lag_sample.self)
            let total = UInt64(record.pointee.total_bytes)
            switch Int(record.pointee.magic) {
            case LAG_SAMPLE_FILLER where total % 8 == 0 && total == lap:
                position += left
            case LAG_SAMPLE_MAGIC
            where total % 8 == 0 && total >= Self.recordBytes && total <= left && record.pointee.position == position:
                position += total
                return UnsafePointer(record)
            default:
                // Overwritten, damaged, or not the beginning of a record: records are 8-aligned and know their place.
                position += 8
            }
        }
        return nil
    }

    /// nil for a record whose parts do not fit each other. The stack's bytes follow the record in memory.
    static func decode(_ record: UnsafePointer<lag_sample>) -> RawSample? {
        let raw = record.pointee
        let room = UInt64(raw.total_bytes) - recordBytes
        guard UInt64(raw.stack_bytes) <= room, let method = method(raw.method) else { return nil }
        let stack = UnsafeRawBufferPointer(
            start: UnsafeRawPointer(record).advanced(by: MemoryLayout<lag_sample>.size), count: Int(raw.stack_bytes))
        let registers = withUnsafeBytes(of: raw.regs) { bytes in
            (0..<Int(LAG_REGS)).map { i -> UInt64? in
                raw.regs_valid >> UInt32(i) & 1 == 1 ? bytes.load(fromByteOffset: i * 8, as: UInt64.self) : nil
            }
        }
        let channel = withUnsafePointer(to: raw.wait_channel) { Decode.field($0) }
        let hasStack = Int(raw.flags) & Int(LAG_SAMPLE_NO_STACK) == 0 && raw.stack_bytes > 0
        return RawSample(
            position: raw.position, stallID: raw.stall_id, loopSlot: raw.loop_index == .max ? -1 : Int(raw.loop_index),
            tid: raw.tid,
            time: Decode.time(raw.time_ns), offset: Decode.duration(raw.offset_ns),
            pause: Decode.duration(raw.pause_ns), method: method, threadState: letter(raw.thread_state),
            syscallNumber: raw.syscall_nr >= 0 ? Int(raw.syscall_nr) : nil,
            waitChannel: channel.isEmpty ? nil : channel,
            isTruncated: Int(raw.flags) & Int(LAG_SAMPLE_TRUNCATED) != 0,
            noStackReason: hasStack ? nil : Decode.dropReason(raw.no_stack_reason),
            registers: registers, stackBase: raw.stack_base, stack: hasStack ? Array(stack) : [],
            managed: managed(record), isInGC: Int(raw.flags) & Int(LAG_SAMPLE_IN_GC) != 0,
            isLate: Int(raw.flags) & Int(LAG_SAMPLE_LATE) != 0, dump: raw.dump != 0 ? raw.dump : nil,
            pool: raw.pool > 0 && raw.pool <= UInt32(LAG_MAX_POOLS) ? Int(raw.pool) - 1 : nil)
    }

    /// The interpreter's section behind the stack copy; nil when there is none or it does not fit.
    private static func managed(_ record: UnsafePointer<lag_sample>) -> ManagedStack? {
        let room = Int(record.pointee.total_bytes) - MemoryLayout<lag_sample>.size
        let offset = (Int(record.pointee.stack_bytes) + 7) & ~7
        let count = Int(record.pointee.managed_bytes)
        guard count > 0, offset <= room, count <= room - offset else { return nil }
        let start = UnsafeRawPointer(record).advanced(by: MemoryLayout<lag_sample>.size + offset)
        return ManagedSection.decode(UnsafeRawBufferPointer(start: start, count: count))
    }

    private static func method(_ raw: UInt8) -> CaptureMethod? {
        switch Int(raw) {
        case LAG_SAMPLE_SIGNAL: .signal
        case LAG_SAMPLE_PASSIVE: .passive
        case LAG_SAMPLE_INTERRUPT: .interrupt
        default: nil
        }
    }

    private static func letter(_ raw: UInt8) -> Character {
        let isLetter = (0x41...0x5a).contains(raw) || (0x61...0x7a).contains(raw)
        return isLetter ? Character(Unicode.Scalar(raw)) : "?"
    }
}
