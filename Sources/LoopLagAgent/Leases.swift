/// The thresholds that readers ask for. The agent captures at the smallest live one; a reader that stopped beating is
/// forgotten after five seconds by the agent's own clock.
///
/// Watchdog only. Everything in the table was written by another process: it is clamped before use.

import CLoopLag

struct Leases {
    private struct Entry {
        var beat: UInt64 = 0
        var seenAt: UInt64 = 0
    }

    private let table: UnsafeMutablePointer<lag_lease>
    private let entries: UnsafeMutablePointer<Entry>

    init?(_ header: UnsafeMutablePointer<lag_header>) {
        let count = Int(LAG_MAX_LEASES)
        guard let memory = lag_memory_zeroed(count &* MemoryLayout<Entry>.stride) else { return nil }
        entries = memory.bindMemory(to: Entry.self, capacity: count)
        table = lag_header_leases(header)
    }

    func release() { lag_memory_free(entries, Int(LAG_MAX_LEASES) &* MemoryLayout<Entry>.stride) }

    /// The smallest threshold of the start's own and every live lease.
    func smallest(_ own: UInt64, now: UInt64) -> UInt64 {
        var smallest = own
        var i = 0
        while i < Int(LAG_MAX_LEASES) {
            let threshold = lag_load_u64(&table[i].threshold_ns)
            let beat = lag_load_u64(&table[i].beat)
            if beat != entries[i].beat {
                entries[i].beat = beat
                entries[i].seenAt = now
            }
            let isLive = entries[i].seenAt != 0 && now &- entries[i].seenAt < UInt64(LAG_LEASE_SECONDS) &* 1_000_000_000
            if threshold != 0, isLive {
                let wanted = Settings.clamp(threshold)
                if wanted < smallest { smallest = wanted }
            }
            i &+= 1
        }
        return smallest
    }
}
