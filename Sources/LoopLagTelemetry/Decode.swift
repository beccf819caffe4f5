/// From the C records of the segment to the model, field by field.
///
/// Called by SegmentReader and its tables with records they have copied out of the file; pure, on any thread. It adds
/// nothing and judges nothing, but every number is brought into a range in which the rest of the command line may
/// calculate: lengths and times below 146 years, counts that can be summed.

import CLoopLagLayout
import LoopLagModel

enum Decode {
    /// 2^62: the sum of two still fits 64 bits, and so does its nearest floating-point number.
    private static let most: UInt64 = 1 << 62

    static func duration(_ nanoseconds: UInt64) -> Duration { Duration(nanosecondCount: min(nanoseconds, most)) }

    static func time(_ nanoseconds: UInt64) -> MonotonicTime { MonotonicTime(nanoseconds: min(nanoseconds, most)) }

    static func count(_ value: UInt64) -> UInt64 { min(value, most) }

    /// Zero stands for "not" in the segment.
    private static func timeIfAny(_ nanoseconds: UInt64) -> MonotonicTime? {
        nanoseconds == 0 ? nil : time(nanoseconds)
    }

    /// A fixed character array of a record.
    static func field<Characters>(_ characters: UnsafePointer<Characters>) -> String {
        Printable.field(UnsafeRawBufferPointer(start: characters, count: MemoryLayout<Characters>.size))
    }

    // -- header --------------------------------------------------------------------------------------------------

    static func state(_ raw: UInt32) -> AgentState {
        switch Int(raw) {
        case LAG_STATE_RUNNING: .running
        case LAG_STATE_PARKED: .parked
        case LAG_STATE_FINISHED: .finished
        default: .starting
        }
    }

    static func runtime(_ raw: UInt32) -> Runtime? {
        switch Int(raw) {
        case LAG_RUNTIME_SWIFT: .swift
        case LAG_RUNTIME_NODE: .node
        case LAG_RUNTIME_CPYTHON: .cpython
        case LAG_RUNTIME_NATIVE: .native
        default: nil
        }
    }

    static func anchor(_ header: UnsafePointer<lag_header>) -> ClockAnchor {
        ClockAnchor(
            monotonic: time(header.pointee.anchor_monotonic_ns),
            realtimeNanoseconds: count(header.pointee.anchor_realtime_ns))
    }

    static func agent(_ header: UnsafePointer<lag_header>) -> AgentSnapshot {
        let raw = header.pointee
        var dropped: [String: UInt64] = [:]
        withUnsafeBytes(of: raw.samples_dropped) { bytes in
            for reason in 1..<Int(LAG_DROPS) {
                let value = bytes.load(fromByteOffset: reason * 8, as: UInt64.self)
                if value > 0 { dropped[dropReason(UInt32(reason))] = count(value) }
            }
        }
        return AgentSnapshot(
            mode: mode(raw.mode), watchdogTID: raw.watchdog_tid > 0 ? raw.watchdog_tid : nil,
            heartbeat: time(raw.heartbeat_ns), cpu: duration(raw.watchdog_cpu_ns), ticks: count(raw.watchdog_ticks),
            lateMax: duration(raw.watchdog_late_max_ns), signalsSent: count(raw.signals_sent),
            samplesTaken: count(raw.samples_taken), samplesDropped: dropped, pauseMax: duration(raw.pause_max_ns),
            pauseTotal: duration(raw.pause_total_ns), stallsMissed: count(raw.stalls_missed),
            loopsRefused: count(raw.loops_refused), degraded: degraded(raw.degraded))
    }

    static func mode(_ raw: UInt32) -> String {
        switch Int(raw) {
        case LAG_MODE_LINKED: "linked"
        case LAG_MODE_PRELOAD: "preload"
        case LAG_MODE_ATTACHED: "attached"
        default: "unknown"
        }
    }

    static func dropReason(_ raw: UInt32) -> String {
        switch Int(raw) {
        case LAG_DROP_TIMEOUT: "timeout"
        case LAG_DROP_MOVED: "moved"
        case LAG_DROP_NO_EVIDENCE: "no-evidence"
        case LAG_DROP_NO_ROOM: "no-room"
        case LAG_DROP_READ_FAILED: "read-failed"
        case LAG_DROP_NO_SIGNAL: "no-signal"
        case LAG_DROP_DISABLED: "disabled"
        case LAG_DROP_BUDGET: "budget"
        case LAG_DROP_GONE: "gone"
        default: "unknown"
        }
    }

    private static let degradedNames = [
        "no-syscall-file", "no-signal", "no-safe-read", "small-segment", "no-private-fds", "budget", "modules-full",
        "loops-full", "no-task-dir", "memfd", "stacks-off", "no-python", "no-javascript", "no-pools",
        "python-fallback",
    ]

    /// By bit; a later agent's bits keep their number, so that nothing is hidden.
    static func degraded(_ bits: UInt64) -> [String] {
        (0..<64).filter { bits >> UInt64($0) & 1 == 1 }.map {
            $0 < degradedNames.count ? degradedNames[$0] : "bit-\($0)"
        }
    }

    // -- loops ---------------------------------------------------------------------------------------------------

    static func loop(
        _ slot: UnsafePointer<lag_loop_slot>, slot index: Int, histogram: IterationHistogram
    ) -> LoopSnapshot {
        let isLive = slot.pointee.state == UInt32(LAG_LOOP_LIVE)
        var busy = timeIfAny(slot.pointee.busy_since_ns)
        var idle = timeIfAny(slot.pointee.idle_since_ns)
        if let began = busy, let rested = idle {
            // Caught between two words of an update: the later one is where the loop is now.
            if began < rested { busy = nil } else { idle = nil }
        }
        let hasIterated = slot.pointee.iterations > 0
        return LoopSnapshot(
            id: LoopID(slot: index, generation: slot.pointee.generation), isLive: isLive, tid: slot.pointee.tid,
            threadName: withUnsafePointer(to: slot.pointee.thread_name) { field($0) },
            descriptor: slot.pointee.epfd, wait: waitKind(slot.pointee.wait_kind), agentRole: role(slot.pointee.role),
            callerPC: slot.pointee.caller_pc, registeredAt: time(slot.pointee.registered_ns),
            retiredAt: isLive ? nil : timeIfAny(slot.pointee.retired_ns),
            busySince: isLive ? busy : nil, idleSince: isLive ? idle : nil, iterations: count(slot.pointee.iterations),
            busy: duration(slot.pointee.busy_ns), idle: duration(slot.pointee.idle_ns),
            events: count(slot.pointee.events), stallCount: count(slot.pointee.stall_count),
            stalled: duration(slot.pointee.stalled_ns),
            longest: hasIterated ? duration(slot.pointee.max_ns) : nil,
            shortest: hasIterated && slot.pointee.min_ns != .max ? duration(slot.pointee.min_ns) : nil,
            histogram: histogram, runQueueWait: runQueueWait(slot), gilWait: gilWait(slot),
            gc: isKnown(slot.pointee.known, LAG_KNOWN_GC) ? duration(slot.pointee.gc_ns) : nil)
    }

    static func histogram(_ slot: UnsafePointer<lag_loop_slot>) -> IterationHistogram {
        let offset = MemoryLayout<lag_loop_slot>.size - 8 * IterationHistogram.bucketCount
        let start = UnsafeRawPointer(slot).advanced(by: offset).assumingMemoryBound(to: UInt64.self)
        // 2^50 in each of 928 buckets can still be summed; no loop turns that often.
        let counts = UnsafeBufferPointer(start: start, count: IterationHistogram.bucketCount).map { min($0, 1 << 50) }
        return IterationHistogram(counts: counts)
    }

    /// Oldest first; the ring's place of each follows from how many there ever were.
    static func longIterations(_ slot: UnsafePointer<lag_loop_slot>) -> [LongIteration] {
        let head = slot.pointee.long_head
        let capacity = UInt32(LAG_RECENT_LONG)
        return withUnsafeBytes(of: slot.pointee.recent_long) { bytes in
            (0..<min(head, capacity)).reversed().map { age in
                let place = Int((head &- 1 &- age) % capacity)
                let entry = bytes.loadUnaligned(
                    fromByteOffset: place * MemoryLayout<lag_long_iteration>.stride, as: lag_long_iteration.self)
                return LongIteration(start: time(entry.start_ns), duration: duration(entry.duration_ns))
            }
        }
    }

    private static func runQueueWait(_ slot: UnsafePointer<lag_loop_slot>) -> Duration? {
        guard slot.pointee.sched_at_ns != 0 else { return nil }
        let (wait, first) = (slot.pointee.sched_wait_ns, slot.pointee.sched_first_wait_ns)
        return wait > first ? duration(wait - first) : .zero
    }

    private static func isKnown(_ known: UInt64, _ bit: Int) -> Bool { known & UInt64(bit) != 0 }

    /// Of closed waits: how long the open one will last is the later snapshots' to say.
    private static func gilWait(_ slot: UnsafePointer<lag_loop_slot>) -> Duration? {
        isKnown(slot.pointee.known, LAG_KNOWN_GIL_WAIT) ? duration(slot.pointee.gil_wait_ns) : nil
    }

    private static func waitKind(_ raw: UInt32) -> WaitKind {
        switch Int(raw) {
        case LAG_WAIT_EPOLL_PWAIT: .epollPwait
        case LAG_WAIT_EPOLL_PWAIT2: .epollPwait2
        case LAG_WAIT_POLL: .poll
        case LAG_WAIT_PPOLL: .ppoll
        case LAG_WAIT_SELECT: .select
        case LAG_WAIT_PSELECT: .pselect
        default: .epollWait
        }
    }

    private static func role(_ raw: UInt32) -> LoopRole? {
        switch Int(raw) {
        case LAG_ROLE_SERVER: .server
        case LAG_ROLE_HELPER: .helper
        default: nil
        }
    }

    // -- pools ---------------------------------------------------------------------------------------------------

    static func pool(_ slot: UnsafePointer<lag_pool_slot>, slot index: Int) -> PoolSnapshot? {
        let raw = slot.pointee
        guard raw.state == 1 else { return nil }
        let hasWaits = raw.wait_count > 0
        return PoolSnapshot(
            slot: index, kind: poolKind(raw.kind), name: withUnsafePointer(to: raw.name) { field($0) },
            threads: raw.threads >= 0 ? Int(raw.threads) : nil,
            busy: gauge(raw.busy), queueDepth: gauge(raw.queue_depth), inFlight: gauge(raw.in_flight),
            queueWaitP50: hasWaits ? duration(raw.wait_p50_ns) : nil,
            queueWaitP99: hasWaits ? duration(raw.wait_p99_ns) : nil,
            queueWaitMax: hasWaits ? duration(raw.wait_max_ns) : nil,
            method: method(raw.method),
            queueWaitMethod: hasWaits && raw.wait_method != 0 ? method(raw.wait_method) : nil)
    }

    private static func gauge(_ raw: lag_gauge) -> Gauge? {
        guard raw.last != .min else { return nil }
        let mean = raw.count > 0 ? Double(raw.sum) / Double(raw.count) : Double(raw.last)
        return Gauge(last: raw.last, mean: mean, max: max(raw.max, raw.last))
    }

    private static func poolKind(_ raw: UInt32) -> String {
        switch Int(raw) {
        case LAG_POOL_LIBUV: "libuv"
        case LAG_POOL_ANYIO: "anyio"
        case LAG_POOL_EXECUTOR: "thread-pool-executor"
        case LAG_POOL_NIO: "nio"
        case LAG_POOL_SWIFT_CONCURRENCY: "swift-concurrency"
        default: "unknown"
        }
    }

    private static func method(_ raw: UInt32) -> MeasuringMethod {
        switch Int(raw) {
        case LAG_METHOD_EXACT: .exact
        case LAG_METHOD_PROBE: .probe
        default: .estimate
        }
    }

    // -- stalls --------------------------------------------------------------------------------------------------

    /// An open stall's length is left to the caller, who knows until when it has lasted.
    static func stall(_ record: UnsafePointer<lag_stall>) -> StallRecord? {
        let raw = record.pointee
        guard raw.id != 0, let state = stallState(raw.state) else { return nil }
        return StallRecord(
            id: raw.id, loop: LoopID(slot: Int(raw.loop_index), generation: raw.loop_generation), tid: raw.tid,
            state: state, start: time(raw.start_ns), duration: state == .open ? .zero : duration(raw.duration_ns),
            detectedAt: timeIfAny(raw.detected_ns), sampleCount: Int(raw.samples), evidence: evidence(raw))
    }

    private static func stallState(_ raw: UInt32) -> StallState? {
        switch Int(raw) {
        case LAG_STALL_OPEN: .open
        case LAG_STALL_CLOSED: .closed
        case LAG_STALL_DROPPED: .dropped
        default: nil
        }
    }

    private static func evidence(_ raw: lag_stall) -> StallEvidence {
        let channel = withUnsafePointer(to: raw.wait_channel) { field($0) }
        return withUnsafeBytes(of: raw.look_ns) { looks in
            func look(_ kind: Int) -> Duration { duration(looks.load(fromByteOffset: kind * 8, as: UInt64.self)) }
            return StallEvidence(
                looks: Int(raw.looks), observed: duration(raw.observed_ns), onCPU: look(Int(LAG_LOOK_ON_CPU)),
                inSyscall: look(Int(LAG_LOOK_SYSCALL)), inLock: look(Int(LAG_LOOK_LOCK)),
                stopped: look(Int(LAG_LOOK_STOPPED)), pageFault: look(Int(LAG_LOOK_PAGE_FAULT)),
                runQueueLooks: look(Int(LAG_LOOK_RUN_QUEUE)), unknown: look(Int(LAG_LOOK_UNKNOWN)),
                cpuTime: duration(raw.cpu_ns), runQueueTime: duration(raw.run_queue_ns),
                majorFaults: count(raw.major_faults), watchdogLate: duration(raw.watchdog_late_ns),
                syscallNumber: raw.syscall_nr >= 0 ? Int(raw.syscall_nr) : nil,
                waitChannel: channel.isEmpty ? nil : channel, inGILWait: look(Int(LAG_LOOK_GIL_WAIT)),
                inGC: look(Int(LAG_LOOK_GC)),
                gilWaitTime: isKnown(raw.known, LAG_KNOWN_GIL_WAIT) ? duration(raw.gil_wait_ns) : nil,
                gcTime: isKnown(raw.known, LAG_KNOWN_GC) ? duration(raw.gc_ns) : nil,
                events: isKnown(raw.known, LAG_KNOWN_EVENTS) ? count(raw.events) : nil)
        }
    }
}
