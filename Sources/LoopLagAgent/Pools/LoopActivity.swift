/// What the loops did between two looks at the pools: whether they worked, and when work that has come meanwhile is likely
/// to have come. Loops hand out a pool's work, so it came while one of them was busy.
///
/// Watchdog only, the loops' own counters; it reads no memory of the interpreter.

import CLoopLag

struct LoopActivity {
    private struct Seen {
        var iterations: UInt64
        var busy: UInt64
    }

    /// So far from each other are looks only where nothing had happened: what has come since came with the first event.
    private static let calm: UInt64 = 50_000_000
    static let bytes: Int = Int(LAG_MAX_LOOPS) &* MemoryLayout<Seen>.stride

    private let seen: UnsafeMutablePointer<Seen>
    private var lastLook: UInt64 = 0
    /// A loop was busy, or had an event: it did more than to wake up by its clock.
    private(set) var hasWorked = false
    private(set) var arrival: UInt64 = 0

    init(_ memory: UnsafeMutableRawPointer) {
        seen = memory.bindMemory(to: Seen.self, capacity: Int(LAG_MAX_LOOPS))
    }

    mutating func look(_ loops: UnsafeMutablePointer<lag_loop_slot>, _ count: Int, now: UInt64) {
        let last = lastLook == 0 ? now : lastLook
        let middle = last &+ (now &- last) / 2
        var guess = middle
        var turned = 0
        hasWorked = false
        var i = 0
        while i < count, i < Int(LAG_MAX_LOOPS) {
            let loop = loops + i
            let iterations = lag_load_u64(&loop.pointee.iterations)
            let busy = lag_load_u64(&loop.pointee.busy_ns)
            let since = lag_load_u64(&loop.pointee.busy_since_ns)
            let idle = lag_load_u64(&loop.pointee.idle_since_ns)
            let steps = iterations &- seen[i].iterations
            let isBusy = since != 0 && since < now
            let event = lag_loop_take_event(UInt32(truncatingIfNeeded: i))
            if loop.pointee.state == UInt32(LAG_LOOP_LIVE), steps > 0 || isBusy {
                turned &+= 1
                if isBusy || event != 0 { hasWorked = true }
                let end = !isBusy && idle > last && idle < now ? idle : now
                if event > last, event < end {
                    guess = now &- last > Self.calm ? event : event &+ (end &- event) / 2
                } else if steps <= 1 {
                    let spent = busy &- seen[i].busy
                    guess = spent < end &- last ? end &- spent / 2 : middle
                }
            }
            seen[i] = Seen(iterations: iterations, busy: busy)
            i &+= 1
        }
        arrival = turned == 1 ? guess : middle
        lastLook = now
    }
}
