/// The agent's one thread: looks at every live loop whenever one could have reached the threshold, every quarter of it
/// while a stall is open, and keeps the agent's own account.
///
/// Runs with all signals blocked and with a descriptor table of its own. After its start it calls neither dlsym nor
/// dladdr, and dl_iterate_phdr only under the scan lock that fork takes.

import CLoopLag

struct Watchdog {
    private static let shortestPeriod = UInt64(LAG_TICK_NS)
    private static let shortestWait = min(shortestPeriod, 1_000_000)
    private static let longestPeriod: UInt64 = 250_000_000
    private static let second: UInt64 = 1_000_000_000
    private static let hundredth = UInt64(LAG_BUDGET_NS)

    private var context: WatchContext
    private var leases: Leases
    private var dump = Dump()
    private let settings: Settings
    private let watches: UnsafeMutablePointer<LoopWatch>
    /// The start that this watchdog belongs to.
    private let epoch: UInt32
    private var selfCheckedAt: UInt64 = 0
    private var budgetedAt: UInt64 = 0
    private var cpuAtBudget: UInt64 = 0

    /// Everything the watchdog needs, allocated before its thread exists; the pointer goes to `run`.
    static func make(segment: Segment, settings: Settings) -> UnsafeMutableRawPointer? {
        guard let scratch = Scratch.make(), let capture = Capture(segment, settings, scratch),
            let leases = Leases(segment.header),
            let memory = lag_memory_zeroed(MemoryLayout<Watchdog>.stride),
            let table = lag_memory_zeroed(MemoryLayout<LoopWatch>.stride &* segment.loopCount)
        else { return nil }
        let watches = table.bindMemory(to: LoopWatch.self, capacity: segment.loopCount)
        var i = 0
        while i < segment.loopCount {
            (watches + i).initialize(to: .zero)
            i &+= 1
        }
        let watchdog = memory.bindMemory(to: Watchdog.self, capacity: 1)
        watchdog.initialize(
            to: Watchdog(
                context: WatchContext(
                    segment: segment, scratch: scratch, book: StallBook(segment), capture: capture,
                    threshold: settings.threshold),
                leases: leases, settings: settings, watches: watches))
        return memory
    }

    private init(
        context: WatchContext, leases: Leases, settings: Settings, watches: UnsafeMutablePointer<LoopWatch>
    ) {
        self.context = context
        self.leases = leases
        self.settings = settings
        self.watches = watches
        epoch = lag_life_epoch()
    }

    /// The thread's body. Returns when the agent is parked.
    static func run(_ raw: UnsafeMutableRawPointer?) {
        guard let raw else { return }
        raw.assumingMemoryBound(to: Watchdog.self).pointee.watch()
        lag_memory_free(raw, MemoryLayout<Watchdog>.stride)
    }

    /// False once the agent has been stopped, also if it has been started anew since.
    private var isWanted: Bool { lag_life_state() != UInt32(LAG_LIFE_PARKED) && lag_life_epoch() == epoch }

    private mutating func watch() {
        var isOnDuty = lag_thread_go_on_duty()
        while !isOnDuty, isWanted {
            lag_sleep_until(lag_clock_now() &+ Self.shortestPeriod)
            isOnDuty = lag_thread_go_on_duty()
        }
        if isOnDuty {
            keepWatch()
            lag_thread_go_off_duty()
        }
        lag_store_u32(&context.segment.header.pointee.state, UInt32(LAG_STATE_PARKED))
        release()
    }

    private mutating func keepWatch() {
        let header = context.segment.header
        header.pointee.watchdog_tid = lag_gettid()
        if !lag_thread_private_descriptors(context.segment.descriptor) {
            header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_PRIVATE_FDS)
        }
        let isLinked = lag_life_mode() != UInt32(LAG_MODE_PRELOAD)
        // What the start found the runtime to be adds a call to hook, and the start had patched before.
        if isLinked, header.pointee.runtime == UInt32(LAG_RUNTIME_CPYTHON) {
            header.pointee.slots_patched &+= lag_got_patch()
        }
        var due = lag_clock_now()
        while isWanted {
            let now = lag_clock_now()
            context.late = now > due ? now &- due : 0
            if context.late > header.pointee.watchdog_late_max_ns { header.pointee.watchdog_late_max_ns = context.late }
            header.pointee.watchdog_late_total_ns &+= context.late

            let threshold = leases.smallest(settings.threshold, now: now)
            // While a stall is open it is not raised: the loop records the length only at or above it.
            if threshold < context.threshold || (threshold > context.threshold && !hasStall) {
                context.threshold = threshold
                lag_loops_set_capture_threshold(threshold)
                header.pointee.capture_threshold_ns = threshold
            }
            context.nextDeadline = UInt64.max
            let used = Int(lag_loops_used())
            var i = 0
            while i < context.segment.loopCount, i < used {
                watches[i].tick(i, context.segment.loops + i, now, &context)
                i &+= 1
            }
            let managed = context.capture.runtime.tick(now: now, loops: context.segment.loops, count: i)
            dump.serve(&context, loops: i, now: now)
            if context.modulesWanted, context.capture.refreshModules(now: now) { context.modulesWanted = false }
            if now &- selfCheckedAt >= Self.second { checkSelf(now, isLinked) }
            // Whoever may write the segment may end the agent. It is asked for by name: no other value means anything.
            if lag_load_u64(&header.pointee.control) == UInt64(LAG_CONTROL_DETACH) {
                Agent.stop()
                break
            }
            lag_store_u64(&header.pointee.heartbeat_ns, now)
            header.pointee.watchdog_ticks &+= 1

            // What has not begun yet cannot reach the threshold before a whole one has passed.
            let wish = hasStall ? context.threshold / 4 : context.threshold
            let period =
                wish < Self.shortestPeriod
                ? Self.shortestPeriod : (wish > Self.longestPeriod ? Self.longestPeriod : wish)
            due = now &+ period
            // An iteration that runs now is looked at when it reaches the threshold, not up to a period later.
            if context.nextDeadline < due {
                due = context.nextDeadline > now &+ Self.shortestWait ? context.nextDeadline : now &+ Self.shortestWait
            }
            if managed < due { due = managed }
            // What this tick itself took is not lateness.
            let done = lag_clock_now()
            if due < done { due = done }
            lag_sleep_until(due)
        }
    }

    private var hasStall: Bool {
        var i = 0
        while i < context.segment.loopCount {
            if watches[i].hasStall { return true }
            i &+= 1
        }
        return false
    }

    /// Gives everything back: a server may be measured now and then.
    private func release() {
        context.capture.release()
        leases.release()
        context.scratch.release()
        let segment = context.segment
        lag_memory_free(watches, MemoryLayout<LoopWatch>.stride &* segment.loopCount)
        lag_segment_abandon(segment.base, segment.bytes)
    }

    /// Once a second: what the agent costs, whether it must back off, whether new objects wait to be patched.
    private mutating func checkSelf(_ now: UInt64, _ isLinked: Bool) {
        let header = context.segment.header
        let cpu = lag_clock_thread_cpu()
        selfCheckedAt = now
        if budgetedAt == 0 {
            budgetedAt = now
            cpuAtBudget = cpu
        }
        // Over four seconds: the first look at the modules, or one long stall, is no habit.
        let elapsed = now &- budgetedAt
        if elapsed >= 4 &* Self.second {
            let spent = (cpu &- cpuAtBudget) &* 1000 / (elapsed / 1_000_000 &+ 1)
            let budget = settings.budget &* Self.hundredth
            if spent > budget {
                context.backOff = context.backOff < 16 ? context.backOff &* 2 &+ 1 : context.backOff
                header.pointee.degraded |= UInt64(LAG_DEGRADED_BUDGET)
            } else if spent < budget / 4 &* 3 {
                context.backOff /= 2
                if context.backOff == 0 { header.pointee.degraded &= ~UInt64(LAG_DEGRADED_BUDGET) }
            }
            budgetedAt = now
            cpuAtBudget = cpu
        }
        header.pointee.watchdog_cpu_ns = cpu
        if !context.syscallReadable { header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_SYSCALL_FILE) }
        if header.pointee.loops_refused > 0 { header.pointee.degraded |= UInt64(LAG_DEGRADED_LOOPS_FULL) }
        if isLinked, lag_got_is_stale() { header.pointee.slots_patched &+= lag_got_patch() }
    }
}
