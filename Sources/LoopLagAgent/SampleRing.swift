/// The ring of raw samples: records of different lengths, one behind the other, the oldest overwritten first.
///
/// Written by the watchdog alone. A reader takes head and tail, copies, and asks for the tail again: what the tail has
/// passed meanwhile may be overwritten and is dropped by it. So the tail is raised before anything is written. The
/// positions of the records are kept privately: the ring itself could be changed by a reader of the same user.

import CLoopLag

struct SampleRing {
    private static let trackedRecords = 512

    private let header: UnsafeMutablePointer<lag_header>
    private let bytes: UnsafeMutableRawPointer
    private let size: UInt64
    private var head: UInt64 = 0
    /// Start positions of the records in the ring, oldest at `oldest % trackedRecords`.
    private let positions: UnsafeMutablePointer<UInt64>
    private var oldest = 0
    private var newest = 0

    init?(_ segment: Segment) {
        guard let memory = lag_memory_zeroed(Self.trackedRecords &* 8) else { return nil }
        header = segment.header
        bytes = segment.samples
        size = UInt64(truncatingIfNeeded: segment.sampleBytes)
        positions = memory.bindMemory(to: UInt64.self, capacity: Self.trackedRecords)
    }

    func release() { lag_memory_free(positions, Self.trackedRecords &* 8) }

    /// Whether a record with this much stack fits at all.
    func hasRoom(stackBytes: Int, managedBytes: Int) -> Bool { Self.total(stackBytes &+ managedBytes) <= size / 2 }

    private static func total(_ stackBytes: Int) -> UInt64 {
        (UInt64(truncatingIfNeeded: MemoryLayout<lag_sample>.stride) &+ UInt64(truncatingIfNeeded: stackBytes) &+ 7)
            & ~7
    }

    /// Writes one record; `sample` has everything but magic, lengths and position. `stackBytes` is a multiple of 8.
    mutating func append(
        _ sample: lag_sample, stack: UnsafeRawPointer?, stackBytes: Int, managed: UnsafeRawPointer? = nil,
        managedBytes: Int = 0
    ) {
        let total = Self.total(stackBytes &+ managedBytes)
        guard total <= size / 2 else { return }
        var offset = lag_remainder(head, size)
        if offset &+ total > size {
            let rest = size &- offset
            makeRoom(upTo: head &+ rest)
            if rest >= 16 {
                let filler = (bytes + Int(truncatingIfNeeded: offset)).assumingMemoryBound(to: lag_sample.self)
                filler.pointee.magic = UInt32(LAG_SAMPLE_FILLER)
                filler.pointee.total_bytes = UInt32(truncatingIfNeeded: rest)
                filler.pointee.position = head
            }
            head &+= rest
            offset = 0
        }
        makeRoom(upTo: head &+ total)
        var record = sample
        record.magic = UInt32(LAG_SAMPLE_MAGIC)
        record.total_bytes = UInt32(truncatingIfNeeded: total)
        record.position = head
        record.stack_bytes = UInt32(truncatingIfNeeded: stackBytes)
        record.managed_bytes = UInt32(truncatingIfNeeded: managedBytes)
        let place = bytes + Int(truncatingIfNeeded: offset)
        place.assumingMemoryBound(to: lag_sample.self).pointee = record
        if let stack, stackBytes > 0 {
            lag_copy(place + MemoryLayout<lag_sample>.stride, stack, stackBytes)
        }
        if let managed, managedBytes > 0 {
            lag_copy(place + (MemoryLayout<lag_sample>.stride &+ stackBytes), managed, managedBytes)
        }
        positions[newest % Self.trackedRecords] = head
        newest &+= 1
        head &+= total
        lag_store_u64(&header.pointee.samples_head, head)
    }

    /// Gives up the oldest records until the ring can be written to up to `end`.
    private mutating func makeRoom(upTo end: UInt64) {
        var tail = oldest < newest ? positions[oldest % Self.trackedRecords] : head
        while oldest < newest, end &- tail > size || newest &- oldest >= Self.trackedRecords {
            oldest &+= 1
            tail = oldest < newest ? positions[oldest % Self.trackedRecords] : head
        }
        lag_store_u64(&header.pointee.samples_tail, tail)
    }
}
