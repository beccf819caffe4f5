/// One pool's row in the segment: gauges, and how long its queued items waited.
///
/// Watchdog only, the row's single writer. Waits are seen from outside, tick by tick: an item that comes and goes between
/// two ticks is not among them, and a wait is right to within one tick; so the row says `estimate`.

import CLoopLag

struct PoolSlot {
    static let itemsTracked = 64
    private static let buckets = Int(LAG_HISTOGRAM_BUCKETS)
    /// For the table of items and the histogram of waits.
    static let memoryBytes = itemsTracked &* 24 &+ buckets &* 4

    private struct Item {
        var identity: UInt64
        var since: UInt64
        var seen: UInt64
    }

    private let row: UnsafeMutablePointer<lag_pool_slot>
    private let items: UnsafeMutablePointer<Item>
    private let histogram: UnsafeMutablePointer<UInt32>
    /// What the row stands for: the address of a queue or of a limiter; 0 = free.
    private(set) var identity: UInt64 = 0
    var lastSeen: UInt64 = 0
    /// Of a limiter: its borrowers, its queue and its number of tokens, as objects.
    var parts: (borrowers: UInt64, queue: UInt64, tokens: UInt64) = (0, 0, 0)
    private var count = 0

    init(_ row: UnsafeMutablePointer<lag_pool_slot>, _ memory: UnsafeMutableRawPointer) {
        self.row = row
        items = memory.bindMemory(to: Item.self, capacity: Self.itemsTracked)
        histogram = (memory + Self.itemsTracked &* 24).bindMemory(to: UInt32.self, capacity: Self.buckets)
    }

    /// The depth as last read, 0 when unknown.
    var depth: Int64 { row.pointee.queue_depth.last > 0 ? row.pointee.queue_depth.last : 0 }
    var kind: UInt32 { row.pointee.kind }

    /// Gives the row to a pool.
    mutating func begin(
        _ identity: UInt64, kind: Int, name: UnsafePointer<UInt8>, count length: Int, now: UInt64
    ) {
        self.identity = identity
        lastSeen = now
        count = 0
        lag_zero(histogram, Self.buckets &* 4)
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

    /// - Parameter depth: nil where it cannot be read.
    func update(threads: Int64, busy: Int64, depth: Int64?) {
        change { row in
            row.pointee.threads = Int32(truncatingIfNeeded: threads)
            Self.add(busy, to: &row.pointee.busy)
            if let depth { Self.add(depth, to: &row.pointee.queue_depth) }
        }
    }

    private static func add(_ value: Int64, to gauge: inout lag_gauge) {
        gauge.last = value
        if value > gauge.max || gauge.count == 0 { gauge.max = value }
        gauge.sum &+= UInt64(truncatingIfNeeded: value)
        gauge.count &+= 1
    }

    // MARK: - waits

    /// An item that lies in the queue at this tick; `since` is when it can first have come.
    mutating func see(_ item: UInt64, now: UInt64, lastTick: UInt64) {
        var i = 0
        while i < count {
            if items[i].identity == item {
                items[i].seen = now
                return
            }
            i &+= 1
        }
        guard count < Self.itemsTracked else { return }
        // Somewhere since the tick before: half-way is the best guess.
        items[count] = Item(identity: item, since: now &- (now &- lastTick) / 2, seen: now)
        count &+= 1
    }

    /// Counts the waits of the items that this tick did not see any more.
    mutating func settle(now: UInt64, lastTick: UInt64) {
        var kept = 0
        var i = 0
        var hasEnded = false
        while i < count {
            if items[i].seen == now {
                items[kept] = items[i]
                kept &+= 1
            } else {
                let left = now &- (now &- lastTick) / 2
                record(left > items[i].since ? left &- items[i].since : 0)
                hasEnded = true
            }
            i &+= 1
        }
        count = kept
        if hasEnded { publish() }
    }

    private func record(_ wait: UInt64) {
        let bucket = Int(lag_histogram_index(wait))
        guard bucket < Self.buckets else { return }
        histogram[bucket] &+= 1
        change { row in
            row.pointee.wait_count &+= 1
            if wait > row.pointee.wait_max_ns { row.pointee.wait_max_ns = wait }
        }
    }

    private func publish() {
        let total = row.pointee.wait_count
        change { row in
            row.pointee.method = UInt32(LAG_METHOD_ESTIMATE)
            row.pointee.wait_p50_ns = quantile((total &+ 1) / 2, row.pointee.wait_max_ns)
            row.pointee.wait_p99_ns = quantile(total &- total / 100, row.pointee.wait_max_ns)
        }
    }

    private func quantile(_ rank: UInt64, _ largest: UInt64) -> UInt64 {
        var seen: UInt64 = 0
        var i = 0
        while i < Self.buckets {
            seen &+= UInt64(histogram[i])
            if seen >= rank, seen > 0 {
                let upper = lag_histogram_lower(UInt32(truncatingIfNeeded: i &+ 1))
                return upper < largest ? upper : largest
            }
            i &+= 1
        }
        return largest
    }

    private func change(_ body: (UnsafeMutablePointer<lag_pool_slot>) -> Void) {
        let seq = row.pointee.seq | 1
        lag_store_u32(&row.pointee.seq, seq)
        body(row)
        lag_store_u32(&row.pointee.seq, seq &+ 1)
    }
}
