/// libuv's thread pool: threads, busy ones, what waits in its queue and for how long, read from libuv's own variables; where
/// those are not to be found, estimated from the requests that the loops have under way, and the wait by a job of no
/// length about once a second while the pool is full.
///
/// Watchdog only. libuv's lock is not taken: the queue may change while it is walked, so the walk is bounded and every
/// read is fault-proof. Nothing is submitted to a pool that can be read, or that is not full.

import CLoopLag

struct LibuvPool {
    private static let longestQueue = 1024
    private static let memoryBytes = longestQueue &* 8 &+ PoolWaits.bytes
    /// How often a queue is looked at while something waits in it.
    private static let busyPeriod: UInt64 = 20_000_000
    private static let probePeriod: UInt64 = 1_000_000_000

    private let header: UnsafeMutablePointer<lag_header>
    private let slot: UnsafeMutablePointer<lag_pool_slot>
    private let queue: UnsafeMutablePointer<UInt64>
    private let memory: UnsafeMutableRawPointer
    private var waits: PoolWaits
    private var statics: LibuvStatics?
    private var isSearched = false
    private var lastLook: UInt64 = 0
    private var threads: Int64 = 0
    private var lastCount: UInt64 = 0
    private var lastProbe: UInt64 = 0
    private var isLive = false
    private var reported: UInt64 = 0

    init?(_ header: UnsafeMutablePointer<lag_header>, _ slot: UnsafeMutablePointer<lag_pool_slot>) {
        guard let memory = lag_memory_zeroed(Self.memoryBytes) else { return nil }
        self.header = header
        self.slot = slot
        self.memory = memory
        queue = memory.bindMemory(to: UInt64.self, capacity: Self.longestQueue)
        waits = PoolWaits(memory + Self.longestQueue &* 8)
    }

    func release() { lag_memory_free(memory, Self.memoryBytes) }

    /// Looks at the pool; returns when it wants to look again, UInt64.max = whenever.
    mutating func tick(now: UInt64) -> UInt64 {
        if !isSearched {
            isSearched = true
            // With the host's own descriptor table a file that is no longer needed could not be closed safely.
            let isAlone = header.pointee.degraded & UInt64(LAG_DEGRADED_NO_PRIVATE_FDS) == 0
            statics = isAlone ? LibuvStatics.find() : nil
        }
        guard let statics else { return estimate(now: now) }
        guard let threads = number(statics.threads), let idle = number(statics.idle), threads > 0, threads <= 1024,
            idle <= threads
        else {
            // Not started yet: what is in the queue at the next look has come since this one.
            waits.look(queue, count: 0, now: now)
            return UInt64.max
        }
        var fast = -1
        var all = -1
        var tries = 3
        while all < 0, tries > 0 {
            tries &-= 1
            fast = walk(statics.queue, mark: statics.slowMark, from: 0)
            all = fast < 0 ? fast : walk(statics.slowQueue, mark: 0, from: fast)
        }
        guard all >= 0 else { return now &+ Self.busyPeriod }
        let depth = Int64(truncatingIfNeeded: all)
        waits.look(queue, count: fast, now: now)
        publish(
            now, method: LAG_METHOD_EXACT, threads: Int32(truncatingIfNeeded: threads), busy: threads &- idle,
            depth: depth)
        return depth > 0 ? now &+ Self.busyPeriod : UInt64.max
    }

    private func number(_ address: UInt64) -> Int64? {
        var value: UInt32 = 0
        return lag_safe_read(address, &value, 4) == 4 ? Int64(value) : nil
    }

    /// Puts the addresses of what waits into `queue`, behind the `from` that are there; the new count, or -1 where a job
    /// was taken out of the queue under the walk: it points at itself then, and what was behind it has not been seen.
    private func walk(_ head: UInt64, mark: UInt64, from: Int) -> Int {
        guard head != 0 else { return from }
        var count = from
        var node: UInt64 = 0
        guard lag_safe_read(head, &node, 8) == 8 else { return -1 }
        var left = Self.longestQueue
        while node != head, count < Self.longestQueue, left > 0 {
            // The mark stands for the queue of slow work, which is counted by itself.
            if node != mark {
                queue[count] = node
                count &+= 1
            }
            let before = node
            guard lag_safe_read(before, &node, 8) == 8, node != before, node != 0 else { return -1 }
            left &-= 1
        }
        return count
    }

    /// Without libuv's variables: everything the loops wait for, which is a little more than the pool's work.
    private mutating func estimate(now: UInt64) -> UInt64 {
        var active: UInt64 = 0
        // A loop that is not known yet, at the start above all, may be by the next look.
        guard lag_v8_active_requests(&active), active < 1 << 20 else {
            if !isLive { header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_POOLS) }
            return UInt64.max
        }
        header.pointee.degraded &= ~UInt64(LAG_DEGRADED_NO_POOLS)
        let wait = lag_uv_probe_take()
        if wait != 0 { waits.record(wait) }
        guard isLive || active > 0 else { return UInt64.max }
        if now &- lastCount >= Self.probePeriod {
            lastCount = now
            threads = Int64(lag_uv_threads())
        }
        let requests = Int64(truncatingIfNeeded: active) &- (lag_uv_probe_is_out() && active > 0 ? 1 : 0)
        let busy = requests < threads ? requests : threads
        let depth = requests &- busy
        publish(
            now, method: LAG_METHOD_ESTIMATE, threads: Int32(truncatingIfNeeded: threads), busy: busy, depth: depth)
        guard depth > 0 else { return UInt64.max }
        if now &- lastProbe >= Self.probePeriod, lag_uv_probe_ask(UInt32(truncatingIfNeeded: threads)) {
            lastProbe = now
        }
        return now &+ Self.busyPeriod
    }

    private mutating func publish(_ now: UInt64, method: Int, threads: Int32, busy: Int64, depth: Int64) {
        // Gauges are weighted by time: looks come more often while something waits.
        let weight = lastLook == 0 ? 1 : (now &- lastLook) / 1_000_000
        lastLook = now
        let sequence = slot.pointee.seq
        lag_store_u32(&slot.pointee.seq, sequence &+ 1)
        if !isLive {
            isLive = true
            slot.pointee.kind = UInt32(LAG_POOL_LIBUV)
            withUnsafeMutablePointer(to: &slot.pointee.name) {
                $0.withMemoryRebound(to: UInt8.self, capacity: 32) {
                    var name = ByteBuilder($0, capacity: 32)
                    name.append("libuv")
                }
            }
            slot.pointee.state = 1
        }
        slot.pointee.method = UInt32(truncatingIfNeeded: method)
        slot.pointee.threads = threads
        set(&slot.pointee.busy, busy, weight)
        set(&slot.pointee.queue_depth, depth, weight)
        set(&slot.pointee.in_flight, busy &+ depth, weight)
        if waits.count != reported {
            reported = waits.count
            let found = waits.percentiles()
            slot.pointee.wait_p50_ns = found.median
            slot.pointee.wait_p99_ns = found.p99
            slot.pointee.wait_max_ns = waits.longest
            slot.pointee.wait_count = waits.count
            // Looks are right to within the time between two of them.
            slot.pointee.wait_method = UInt32(method == LAG_METHOD_EXACT ? LAG_METHOD_ESTIMATE : LAG_METHOD_PROBE)
        }
        lag_store_u32(&slot.pointee.seq, sequence &+ 2)
    }

    private func set(_ gauge: inout lag_gauge, _ value: Int64, _ weight: UInt64) {
        gauge.last = value
        if value > gauge.max { gauge.max = value }
        gauge.sum &+= UInt64(truncatingIfNeeded: value) &* weight
        gauge.count &+= weight
    }
}
