/// One pool's row in the segment: gauges, and how long its queued items waited.
///
/// Watchdog only, the row's single writer. Gauges are weighted by time, since looks come more often while something
/// happens. Waits are seen from outside, look by look (see PoolWaits), and say so: the gauges are exact, they are estimates.

import CLoopLag

struct PoolSlot {
    private let row: UnsafeMutablePointer<lag_pool_slot>
    var waits: PoolWaits
    /// What the row stands for: the address of a queue or of a limiter; 0 = free.
    private(set) var identity: UInt64 = 0
    var lastSeen: UInt64 = 0
    /// Of a limiter: its borrowers, its queue and its number of tokens, as objects. Of an executor: its queue's type.
    var parts: (borrowers: UInt64, queue: UInt64, tokens: UInt64) = (0, 0, 0)
    private var updatedAt: UInt64 = 0
    private var published: UInt64 = 0

    /// - Parameter memory: `PoolWaits.bytes` of it.
    init(_ row: UnsafeMutablePointer<lag_pool_slot>, _ memory: UnsafeMutableRawPointer) {
        self.row = row
        waits = PoolWaits(memory)
    }

    var kind: UInt32 { row.pointee.kind }
    /// Something waits or is being worked on, as last seen.
    var isInUse: Bool { identity != 0 && (row.pointee.queue_depth.last > 0 || row.pointee.busy.last > 0) }

    /// A number that differs when anything has moved.
    var change: UInt64 {
        UInt64(bitPattern: row.pointee.busy.last &+ row.pointee.queue_depth.last &* 65_537) &+ waits.count &<< 32
    }

    /// Gives the row to a pool.
    /// - Parameter since: when there was no such pool yet; 0 = not known.
    mutating func begin(
        _ identity: UInt64, kind: Int, name: UnsafePointer<UInt8>, count length: Int, now: UInt64, since: UInt64
    ) {
        self.identity = identity
        lastSeen = now
        updatedAt = 0
        published = 0
        waits.clear(since: since)
        change { row in
            let seq = row.pointee.seq
            row.pointee = lag_pool_slot()
            row.pointee.seq = seq
            row.pointee.state = 1
            row.pointee.kind = UInt32(truncatingIfNeeded: kind)
            row.pointee.method = UInt32(LAG_METHOD_EXACT)
            row.pointee.threads = -1
            row.pointee.in_flight.last = Int64.min
            row.pointee.queue_depth.last = Int64.min
            row.pointee.busy.last = Int64.min
            withUnsafeMutablePointer(to: &row.pointee.name) {
                $0.withMemoryRebound(to: UInt8.self, capacity: 32) { text in
                    var builder = ByteBuilder(text, capacity: 32)
                    builder.append(name, count: length < 31 ? length : 31)
                }
            }
        }
    }

    mutating func end() {
        identity = 0
        change { $0.pointee.state = 0 }
    }

    /// What the pool is at this look, and what its waits have come to.
    /// - Parameter depth: nil where it cannot be read.
    mutating func update(threads: Int64, busy: Int64, depth: Int64?, now: UInt64) {
        lastSeen = now
        let weight = updatedAt == 0 ? 1 : (now &- updatedAt) / 1_000_000
        updatedAt = now
        var found: (median: UInt64, p99: UInt64)?
        if waits.count != published {
            published = waits.count
            found = waits.percentiles()
        }
        change { row in
            row.pointee.threads = Int32(truncatingIfNeeded: threads)
            Self.set(&row.pointee.busy, busy, weight)
            if let depth { Self.set(&row.pointee.queue_depth, depth, weight) }
            if let found {
                row.pointee.wait_method = UInt32(LAG_METHOD_ESTIMATE)
                row.pointee.wait_p50_ns = found.median
                row.pointee.wait_p99_ns = found.p99
                row.pointee.wait_max_ns = waits.longest
                row.pointee.wait_count = waits.count
            }
        }
    }

    private static func set(_ gauge: inout lag_gauge, _ value: Int64, _ weight: UInt64) {
        gauge.last = value
        if value > gauge.max || gauge.count == 0 { gauge.max = value }
        gauge.sum &+= UInt64(truncatingIfNeeded: value) &* weight
        gauge.count &+= weight
    }

    private func change(_ body: (UnsafeMutablePointer<lag_pool_slot>) -> Void) {
        let seq = row.pointee.seq | 1
        lag_store_u32(&row.pointee.seq, seq)
        body(row)
        lag_store_u32(&row.pointee.seq, seq &+ 1)
    }
}
