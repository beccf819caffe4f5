/// What the watchdog remembers of one loop between two of its ticks, and what it does about it: opens a stall while it
/// runs, looks at the thread, samples it, closes the record with the length that the loop measured.
///
/// Watchdog only; one per loop slot, in memory that is zero at first.

import CLoopLag

/// What all loops share: where records and samples go.
struct WatchContext {
    let segment: Segment
    let scratch: Scratch
    var book: StallBook
    var capture: Capture
    /// The smallest threshold asked for by anyone.
    var threshold: UInt64
    /// Raised while the agent is over its CPU budget: samples become rarer, looks stay.
    var backOff: UInt64 = 0
    var syscallReadable = true
    /// How late this tick was.
    var late: UInt64 = 0
    /// When the next running iteration reaches the threshold; UInt64.max = none in sight.
    var nextDeadline = UInt64.max
    /// A loop was born since the module table was last read: a reader wants to know who waits.
    var modulesWanted = false
}

struct LoopWatch {
    private static let maximumSamples = UInt32(LAG_STALL_SAMPLES)
    private static let denseSamples = UInt32(LAG_DENSE_SAMPLES)

    private var generation: UInt32
    /// recent_long entries already taken over.
    private var longTail: UInt32
    private var stall: UInt64
    private var stallStart: UInt64
    private var nextSample: UInt64
    private var sampleGap: UInt64
    private var nextLook: UInt64
    private var lastLook: UInt64
    private var samples: UInt32
    private var explained: UInt32
    private var lastKind: Int
    private var lastPlace: ThreadLook.Place
    private var lastSP: UInt64
    private var lastManagedPlace: UInt64
    /// Whether the scheduler's account has been read since the stall began.
    private var hasAccount: Bool
    private var firstRun: UInt64
    private var firstWait: UInt64
    private var lastRun: UInt64
    private var lastWait: UInt64
    private var firstFaults: UInt64
    private var worstLate: UInt64
    private var accountAt: UInt64

    static var zero: LoopWatch {
        LoopWatch(
            generation: 0, longTail: 0, stall: 0, stallStart: 0, nextSample: 0, sampleGap: 0, nextLook: 0, lastLook: 0,
            samples: 0, explained: 0, lastKind: 0, lastPlace: .blockedSomewhere, lastSP: 0,
            lastManagedPlace: 0, hasAccount: false,
            firstRun: 0, firstWait: 0, lastRun: 0, lastWait: 0, firstFaults: 0, worstLate: 0, accountAt: 0)
    }

    /// Whether a stall is open: its length will be known only if its loop goes on recording at today's threshold.
    var hasStall: Bool { stall != 0 }

    /// One tick for one slot.
    mutating func tick(
        _ index: Int, _ pointer: UnsafeMutablePointer<lag_loop_slot>, _ now: UInt64, _ context: inout WatchContext
    ) {
        var view = lag_loop_view()
        guard lag_loop_read(pointer, &view) else { return }
        if view.generation != generation {
            if stall != 0 { drop(&context) }
            self = .zero
            generation = view.generation
            context.modulesWanted = true
        }
        guard view.state != UInt32(LAG_LOOP_FREE) else { return }
        if context.late > worstLate { worstLate = context.late }
        takeOverLong(index, view, &context)
        guard view.state == UInt32(LAG_LOOP_LIVE) else {
            if stall != 0 { drop(&context) }
            return
        }
        readAccount(pointer, view.tid, now, &context)
        guard view.busy_since_ns != 0 else {
            // Ended, but its entry has fallen out of recent_long (stalls_missed counts it): its length is not known.
            if stall != 0 { drop(&context) }
            return
        }
        if stall != 0, stallStart != view.busy_since_ns { drop(&context) }
        let elapsed = now > view.busy_since_ns ? now &- view.busy_since_ns : 0
        guard elapsed >= context.threshold else {
            let deadline = view.busy_since_ns &+ context.threshold
            if deadline < context.nextDeadline { context.nextDeadline = deadline }
            return
        }
        if stall == 0 {
            guard open(index, view, now, &context) else { return }
        }
        if now >= nextLook { observe(index, pointer, view, now, &context) }
    }

    // MARK: - opening and closing

    private mutating func open(_ index: Int, _ view: lag_loop_view, _ now: UInt64, _ context: inout WatchContext)
        -> Bool
    {
        // A thread that ran a loop once and now waits elsewhere is not stalled: its descriptor is gone.
        guard DescriptorCheck.isStillEpoll(view, context.scratch) else {
            lag_loop_retire(UInt32(truncatingIfNeeded: index), view.generation)
            return false
        }
        stall = context.book.open(
            slot: index, view: view, start: view.busy_since_ns, detected: now, events: view.iteration_events)
        stallStart = view.busy_since_ns
        nextSample = now
        let half = context.threshold / 2
        sampleGap = LAG_SAMPLES_ALWAYS == 0 && half > UInt64(LAG_TICK_NS) ? half : UInt64(LAG_TICK_NS)
        nextLook = now
        lastLook = 0
        samples = 0
        explained = 0
        hasAccount = false
        worstLate = context.late
        return true
    }

    /// Takes over the iterations that ended at or above the threshold since the last tick: the open stall gets its exact
    /// length, one that began and ended between two ticks becomes a record at once.
    private mutating func takeOverLong(_ index: Int, _ view: lag_loop_view, _ context: inout WatchContext) {
        let capacity = UInt32(LAG_RECENT_LONG)
        if view.long_head &- longTail > capacity {
            context.segment.header.pointee.stalls_missed &+= UInt64(view.long_head &- longTail &- capacity)
            longTail = view.long_head &- capacity
        }
        var entries = view.recent_long
        withUnsafePointer(to: &entries) { tuple in
            tuple.withMemoryRebound(to: lag_long_iteration.self, capacity: Int(capacity)) { list in
                while longTail != view.long_head {
                    let entry = list[Int(longTail % capacity)]
                    let events = recentEvents(view, Int(longTail % capacity))
                    let gilWait = recentGILWait(view, Int(longTail % capacity))
                    longTail &+= 1
                    if stall != 0, entry.start_ns == stallStart, close(entry, index, view, gilWait, &context) {
                        continue
                    }
                    // Began and ended between two ticks; or its record gave way to newer ones while it was open.
                    let id = context.book.open(
                        slot: index, view: view, start: entry.start_ns, detected: 0, events: events,
                        state: Int(LAG_STALL_CLOSED), duration: entry.duration_ns)
                    let late = worstLate
                    context.book.change(id) {
                        $0.pointee.watchdog_late_ns = late
                        Self.note(view.known, gilWait, in: $0)
                    }
                }
            }
        }
        if stall == 0 { worstLate = context.late }
    }

    private func recentEvents(_ view: lag_loop_view, _ index: Int) -> UInt64 {
        var events = view.recent_events
        return withUnsafePointer(to: &events) { tuple in
            tuple.withMemoryRebound(to: UInt32.self, capacity: Int(LAG_RECENT_LONG)) { UInt64($0[index]) }
        }
    }

    private func recentGILWait(_ view: lag_loop_view, _ index: Int) -> UInt64 {
        var waits = view.recent_gil_wait
        return withUnsafePointer(to: &waits) { tuple in
            tuple.withMemoryRebound(to: UInt64.self, capacity: Int(LAG_RECENT_LONG)) { $0[index] }
        }
    }

    /// What the interpreter's side of a closed iteration was, as far as this loop knows.
    private static func note(_ known: UInt64, _ gilWait: UInt64, in record: UnsafeMutablePointer<lag_stall>) {
        if known & UInt64(LAG_KNOWN_GIL_WAIT) != 0 {
            record.pointee.gil_wait_ns = gilWait
            record.pointee.known |= UInt64(LAG_KNOWN_GIL_WAIT)
        }
        if known & UInt64(LAG_KNOWN_GC) != 0, record.pointee.looks > 0 {
            record.pointee.gc_ns = lag_stall_looks(record)[Int(LAG_LOOK_GC)]
            record.pointee.known |= UInt64(LAG_KNOWN_GC)
        }
    }

    /// False when the record is not in the ring any more.
    private mutating func close(
        _ entry: lag_long_iteration, _ index: Int, _ view: lag_loop_view, _ gilWait: UInt64,
        _ context: inout WatchContext
    ) -> Bool {
        let known = view.known
        let collected = context.capture.runtime.collected(index, view.generation, since: stallStart)
        let end = entry.start_ns &+ entry.duration_ns
        let rest = lastLook != 0 && end > lastLook ? end &- lastLook : 0
        let kind = lastKind
        let late = worstLate
        let isThere = context.book.change(stall) { record in
            record.pointee.duration_ns = entry.duration_ns
            record.pointee.watchdog_late_ns = late
            if let collected {
                record.pointee.gc_ns = collected
                record.pointee.known |= UInt64(LAG_KNOWN_GC)
            }
            let looks = lag_stall_looks(record)
            if kind >= 0, kind < Int(LAG_LOOKS) { looks[kind] &+= rest }
            Self.note(known, gilWait, in: record)
            record.pointee.state = UInt32(LAG_STALL_CLOSED)
        }
        stall = 0
        return isThere
    }

    private mutating func drop(_ context: inout WatchContext) {
        context.book.change(stall) { $0.pointee.state = UInt32(LAG_STALL_DROPPED) }
        stall = 0
    }

    // MARK: - looking and sampling

    private mutating func observe(
        _ index: Int, _ pointer: UnsafeMutablePointer<lag_loop_slot>, _ view: lag_loop_view, _ now: UInt64,
        _ context: inout WatchContext
    ) {
        let look = ThreadLook.at(view.tid, context.scratch, syscallReadable: &context.syscallReadable)
        // The stall may be the loop's last iteration: its thread has gone on to something else, or has ended.
        if look.place == .gone || !DescriptorCheck.isStillEpoll(view, context.scratch) {
            lag_loop_retire(UInt32(truncatingIfNeeded: index), view.generation)
            drop(&context)
            return
        }
        // The iteration ended before this look: it says nothing about it, and the loop's own entry closes it.
        guard lag_load_u64(&pointer.pointee.busy_since_ns) == view.busy_since_ns else { return }
        let kind = context.capture.runtime.kind(look, loop: index, generation: view.generation, pointer)
        account(look, kind, index, view, now, &context)
        // Short stalls are looked at every tick; one that lasts for minutes does not need that.
        let elapsed = now &- view.busy_since_ns
        nextLook = now &+ (elapsed > 10_000_000_000 ? elapsed / 64 : 0) &+ context.backOff &* 20_000_000
        guard now >= nextSample, samples < Self.maximumSamples else { return }
        nextSample = now &+ sampleGap &* (1 &+ context.backOff)
        if samples >= Self.denseSamples { sampleGap &+= sampleGap / 2 }
        if LAG_SAMPLES_ALWAYS == 0, samples > 0, look.place != .running, look.place == lastPlace,
            look.stackPointer == lastSP
        {
            // Still the same wait; or, in an interpreter, one just like it in the next callback.
            let managed = context.capture.runtime.place(loop: index)
            if managed == lastManagedPlace { return }
        }

        let reason = context.capture.take(
            slot: index, pointer: pointer, view: view, stall: stall, look: look, now: now)
        if reason == UInt32(LAG_DROP_NONE) {
            samples &+= 1
            lastPlace = look.place
            lastSP = look.stackPointer
            lastManagedPlace = context.capture.runtime.place(loop: index)
            let count = samples
            context.book.change(stall) { $0.pointee.samples = count }
        } else if reason == UInt32(LAG_DROP_MOVED) {
            if context.backOff == 0 { nextSample = now }
        } else if samples == 0, explained != reason {
            explained = reason
            context.capture.explain(slot: index, view: view, stall: stall, look: look, reason: reason, now: now)
        }
    }

    /// Adds what this look says to the record: the time since the look before counts for what is seen now.
    private mutating func account(
        _ look: ThreadLook, _ managedKind: Int?, _ index: Int, _ view: lag_loop_view, _ now: UInt64,
        _ context: inout WatchContext
    ) {
        let isFirst = lastLook == 0
        if isFirst || !hasAccount {
            hasAccount = look.hasAccount
            firstRun = look.runTime
            firstWait = look.waitTime
            lastRun = look.runTime
            lastWait = look.waitTime
            firstFaults = look.majorFaults
        }
        let interval = now &- (isFirst ? view.busy_since_ns : lastLook)
        var waited = look.hasAccount && look.waitTime > lastWait ? look.waitTime &- lastWait : 0
        if waited > interval { waited = interval }
        let ran = look.hasAccount && look.runTime > lastRun ? look.runTime &- lastRun : 0
        var kind = managedKind ?? look.kind
        // Neither ran nor wanted to, and yet is not blocked: the whole process stood still.
        if !isFirst, kind == Int(LAG_LOOK_ON_CPU), look.hasAccount, ran &+ waited < interval / 10,
            context.late > interval / 2
        {
            kind = Int(LAG_LOOK_STOPPED)
        }
        let collected = context.capture.runtime.collected(index, view.generation, since: stallStart)
        lastRun = look.runTime
        lastWait = look.waitTime
        lastLook = now
        lastKind = kind
        let first = (run: firstRun, wait: firstWait, faults: firstFaults)
        let observed = now &- view.busy_since_ns
        let scratch = context.scratch
        let late = worstLate
        var channel = lag_stall().wait_channel
        if case .inCall = look.place {
            withUnsafeMutablePointer(to: &channel) {
                $0.withMemoryRebound(to: UInt8.self, capacity: 32) {
                    ThreadLook.waitChannel(view.tid, scratch, into: $0)
                }
            }
        }
        context.book.change(stall) { record in
            let looks = lag_stall_looks(record)
            let queued = kind == Int(LAG_LOOK_ON_CPU) || kind == Int(LAG_LOOK_GC) ? waited : 0
            looks[kind] &+= interval &- queued
            looks[Int(LAG_LOOK_RUN_QUEUE)] &+= queued
            record.pointee.looks &+= 1
            let waiting =
                view.gil_wait_since_ns != 0 && view.gil_wait_since_ns < now ? now &- view.gil_wait_since_ns : 0
            Self.note(view.known, view.iteration_gil_wait &+ waiting, in: record)
            record.pointee.observed_ns = isFirst ? 0 : observed &- (record.pointee.detected_ns &- view.busy_since_ns)
            if look.hasAccount {
                record.pointee.cpu_ns = look.runTime &- first.run
                record.pointee.run_queue_ns = look.waitTime &- first.wait
            }
            if let collected {
                record.pointee.gc_ns = collected
                record.pointee.known |= UInt64(LAG_KNOWN_GC)
            }
            record.pointee.major_faults = look.majorFaults &- first.faults
            record.pointee.watchdog_late_ns = late
            if case .inCall(let number) = look.place {
                record.pointee.syscall_nr = number
                record.pointee.wait_channel = channel
            }
        }
    }

    /// The loop thread's scheduler account, about once a second.
    private mutating func readAccount(
        _ pointer: UnsafeMutablePointer<lag_loop_slot>, _ tid: Int32, _ now: UInt64, _ context: inout WatchContext
    ) {
        guard accountAt == 0 || now &- accountAt >= 1_000_000_000 else { return }
        let isFirst = accountAt == 0
        accountAt = now
        // Loops that are born by the hundred cost too much: their first account is a second late.
        if isFirst, context.backOff > 0 { return }
        let count = context.scratch.read(task: tid, "schedstat")
        guard count > 0 else {
            if count == ThreadLook.noEntry, lag_thread_exists(tid) {
                context.segment.header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_TASK_DIR)
            }
            return
        }
        var fields = ByteParser(context.scratch.text, count: count)
        guard let run = fields.decimal() else { return }
        fields.skip(UInt8(ascii: " "))
        guard let wait = fields.decimal() else { return }
        if pointer.pointee.sched_at_ns == 0 { pointer.pointee.sched_first_wait_ns = wait }
        pointer.pointee.sched_run_ns = run
        pointer.pointee.sched_wait_ns = wait
        pointer.pointee.sched_at_ns = now
    }
}

/// Whether a loop's primary descriptor still is what it was.
enum DescriptorCheck {
    /// False only when /proc surely says otherwise; what it will not tell counts as alive.
    static func isStillEpoll(_ view: lag_loop_view, _ scratch: Scratch) -> Bool {
        guard view.epfd >= 0 else { return true }
        var path = scratch.taskPath(view.tid, "fd/")
        path.append(decimal: UInt64(truncatingIfNeeded: view.epfd))
        let count = lag_link_read(path.path, scratch.text, 128)
        if count == ThreadLook.noEntry {
            // Closed, if the thread's own directory is there at all.
            return lag_thread_exists(view.tid) && scratch.read(task: view.tid, "stat") <= 0
        }
        guard count > 0 else { return true }
        var link = ByteParser(scratch.text, count: count)
        return link.take("anon_inode:[eventpoll]")
    }
}
