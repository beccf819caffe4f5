/// Decides how a stalled thread's stack is taken, cheapest first, and writes it to the ring.
///
/// Watchdog only. The law: a thread that is blocked in the kernel is never signalled, whatever it is blocked in, because
/// its SP and PC are to be had from /proc and its stack by a fault-proof read, and its sleep must last as long as it asked
/// for. Only a running thread gets the one realtime signal. Blocked without evidence: nothing is done, and counted.

import CLoopLag

struct Capture {
    /// How long a running thread may take to serve the signal: it may be waiting for a CPU.
    private static let signalTimeout: UInt64 = 20_000_000

    let header: UnsafeMutablePointer<lag_header>
    let scratch: Scratch
    private let takesStacks: Bool
    private let firstSignal: Int32
    private let stackBytes: UInt32
    var ring: SampleRing
    private(set) var modules: ModuleTable
    var runtime: ManagedRuntime
    var section: ManagedSection

    init?(_ segment: Segment, _ settings: Settings, _ scratch: Scratch) {
        guard let ring = SampleRing(segment), let modules = ModuleTable(segment), let section = ManagedSection()
        else { return nil }
        header = segment.header
        self.scratch = scratch
        self.ring = ring
        self.modules = modules
        self.section = section
        runtime = ManagedRuntime(segment, scratch)
        firstSignal = settings.firstSignal != 0 ? settings.firstSignal : lag_signal_default()
        let isV8 = segment.header.pointee.runtime == UInt32(LAG_RUNTIME_NODE)
        stackBytes = UInt32(isV8 ? LAG_STACK_COPY_BYTES_V8 : LAG_STACK_COPY_BYTES)
        takesStacks = settings.takesStacks && segment.sampleBytes > 0
        if !takesStacks { header.pointee.degraded |= UInt64(LAG_DEGRADED_STACKS_OFF) }
        if !lag_safe_read_works() { header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_SAFE_READ) }
        lag_capture_prepare()
        // Early where libdispatch may have made the loops' threads: they let the signal in when they register.
        let runtime = segment.header.pointee.runtime
        if takesStacks, runtime == UInt32(LAG_RUNTIME_SWIFT) || runtime == UInt32(LAG_RUNTIME_NATIVE) {
            segment.header.pointee.signal_number = lag_capture_install(firstSignal)
        }
    }

    /// Whether capturing makes sense at all in this process.
    var isPossible: Bool { takesStacks && header.pointee.degraded & UInt64(LAG_DEGRADED_NO_SAFE_READ) == 0 }

    func release() {
        ring.release()
        modules.release()
        section.release()
        runtime.release()
    }

    /// Brings the module table up to date, at most once a second.
    mutating func refreshModules(now: UInt64) -> Bool { modules.refresh(now: now) }

    /// Takes one sample of a loop's thread. Returns the LAG_DROP_* reason when there is none.
    /// - Parameters:
    ///   - stall: what it is taken for, 0 = none.
    ///   - dump: the dump that asked for it, 0 = none.
    mutating func take(
        slot: Int, pointer: UnsafeMutablePointer<lag_loop_slot>, view: lag_loop_view, stall: UInt64, dump: UInt64 = 0,
        look: ThreadLook, now: UInt64
    ) -> UInt32 {
        guard takesStacks else { return drop(LAG_DROP_DISABLED) }
        guard isPossible else { return drop(LAG_DROP_READ_FAILED) }

        var sample = lag_sample()
        sample.stall_id = stall
        sample.dump = dump
        sample.loop_index = UInt32(truncatingIfNeeded: slot)
        sample.tid = view.tid
        sample.thread_state = look.state
        sample.syscall_nr = -1
        var native: UnsafePointer<lag_capture>?
        runtime.begin(tid: view.tid)

        switch look.place {
        case .gone: return drop(LAG_DROP_GONE)
        case .stopped, .blockedSomewhere: return drop(LAG_DROP_NO_EVIDENCE)
        case .inCall, .inFault:
            if case .inCall(let number) = look.place { sample.syscall_nr = number }
            guard look.stackPointer != 0 else { return drop(LAG_DROP_NO_EVIDENCE) }
            runtime.prepare(slot: slot)
            native = lag_capture_passive(
                look.stackPointer, look.programCounter, pointer.pointee.stack_high, stackBytes)
            // The copy is worth something only if the thread is where it was: same place, same iteration.
            let again = ThreadLook.place(of: view.tid, like: look, scratch)
            guard again.place == look.place, again.stackPointer == look.stackPointer,
                again.programCounter == look.programCounter
            else { return drop(LAG_DROP_MOVED) }
            sample.method = UInt8(LAG_SAMPLE_PASSIVE)
            sample.regs_valid = 1 &<< UInt32(LAG_REG_RSP) | 1 &<< UInt32(LAG_REG_RIP)
            withUnsafeMutablePointer(to: &sample.wait_channel) { channel in
                channel.withMemoryRebound(to: UInt8.self, capacity: 32) {
                    ThreadLook.waitChannel(view.tid, scratch, into: $0)
                }
            }
        case .running where passiveRunning(slot, pointer, view, &native):
            sample.method = UInt8(LAG_SAMPLE_PASSIVE)
            sample.regs_valid =
                1 &<< UInt32(LAG_REG_RBP) | 1 &<< UInt32(LAG_REG_RSP) | 1 &<< UInt32(LAG_REG_RIP)
        case .running:
            // It is on its way into its wait, or out of it.
            guard view.busy_since_ns != 0 else { return drop(LAG_DROP_MOVED) }
            let number = lag_capture_install(firstSignal)
            header.pointee.signal_number = number
            guard number != 0 else {
                header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_SIGNAL)
                return drop(LAG_DROP_NO_SIGNAL)
            }
            guard lag_loop_takes_signal(UInt32(truncatingIfNeeded: slot)),
                !ThreadLook.blocksSignal(view.tid, number, scratch)
            else { return drop(LAG_DROP_NO_SIGNAL) }
            runtime.prepare(slot: slot)
            // The last look before the signal: what has blocked or reached its wait meanwhile is not to be woken.
            guard ThreadLook.place(of: view.tid, like: look, scratch).place == .running,
                lag_load_u64(&pointer.pointee.busy_since_ns) == view.busy_since_ns
            else { return drop(LAG_DROP_MOVED) }
            let failure = lag_capture_signal(
                view.tid, pointer.pointee.stack_high, stackBytes, Self.signalTimeout, &native)
            header.pointee.signals_sent = lag_capture_signals_sent()
            guard failure == UInt32(LAG_DROP_NONE) else { return drop(Int(failure)) }
            sample.method = UInt8(LAG_SAMPLE_SIGNAL)
            sample.regs_valid = (1 &<< UInt32(LAG_REGS)) &- 1
        }

        guard let native, native.pointee.stack_bytes > 0 else { return drop(LAG_DROP_READ_FAILED) }
        let index = UInt32(truncatingIfNeeded: slot)
        let capture = runtime.refine(
            native, slot: index, generation: view.generation, of: pointer, look: look, sample: &sample)
        guard lag_load_u64(&pointer.pointee.busy_since_ns) == view.busy_since_ns,
            lag_load_u64(&pointer.pointee.iterations) == view.iterations
        else { return drop(LAG_DROP_MOVED) }
        sample.time_ns = capture.pointee.time_ns
        sample.offset_ns = view.busy_since_ns != 0 ? sample.time_ns &- view.busy_since_ns : 0
        sample.pause_ns = capture.pointee.pause_ns
        sample.regs = capture.pointee.regs
        sample.stack_base = capture.pointee.stack_base
        if capture.pointee.truncated != 0 { sample.flags |= UInt16(LAG_SAMPLE_TRUNCATED) }
        let bytes = Int(capture.pointee.stack_bytes)
        section.clear()
        runtime.describe(
            capture, of: pointer, slot: index, generation: view.generation, look: look, into: &section,
            sample: &sample)
        // Behind all reading: a first scan takes a millisecond, in which the thread would have moved on.
        _ = modules.refresh(now: now)
        let managed = section.assemble()
        // The native stack alone is better than nothing.
        let managedBytes = ring.hasRoom(stackBytes: bytes, managedBytes: managed.count) ? managed.count : 0
        guard ring.hasRoom(stackBytes: bytes, managedBytes: managedBytes) else { return drop(LAG_DROP_NO_ROOM) }
        ring.append(
            sample, stack: lag_capture_stack(capture), stackBytes: bytes, managed: managed.bytes,
            managedBytes: managedBytes)
        header.pointee.samples_taken &+= 1
        header.pointee.pause_total_ns &+= sample.pause_ns
        if sample.pause_ns > header.pointee.pause_max_ns { header.pointee.pause_max_ns = sample.pause_ns }
        return UInt32(LAG_DROP_NONE)
    }

    /// A running thread whose interpreter knows where it left for native code needs no signal: everything from there on
    /// stands still until that call returns.
    private mutating func passiveRunning(
        _ slot: Int, _ pointer: UnsafeMutablePointer<lag_loop_slot>, _ view: lag_loop_view,
        _ capture: inout UnsafePointer<lag_capture>?
    ) -> Bool {
        let index = UInt32(truncatingIfNeeded: slot)
        guard let place = runtime.nativeCall(index, view.generation, of: pointer) else { return false }
        capture = lag_capture_passive_frame(
            place.stackPointer, place.programCounter, place.framePointer, pointer.pointee.stack_high, stackBytes)
        return runtime.nativeCall(index, view.generation, of: pointer) == place
    }

    /// Says in the ring why a stall has no stack: a record without one.
    mutating func explain(slot: Int, view: lag_loop_view, stall: UInt64, look: ThreadLook, reason: UInt32, now: UInt64)
    {
        var sample = lag_sample()
        sample.stall_id = stall
        sample.loop_index = UInt32(truncatingIfNeeded: slot)
        sample.tid = view.tid
        sample.thread_state = look.state
        sample.syscall_nr = -1
        if case .inCall(let number) = look.place { sample.syscall_nr = number }
        sample.flags = UInt16(LAG_SAMPLE_NO_STACK)
        sample.no_stack_reason = reason
        sample.time_ns = now
        sample.offset_ns = now &- view.busy_since_ns
        ring.append(sample, stack: nil, stackBytes: 0)
    }

    private func drop(_ reason: Int) -> UInt32 {
        let drops = lag_header_drops(header)
        if reason >= 0, reason < Int(LAG_DROPS) { drops[reason] &+= 1 }
        return UInt32(truncatingIfNeeded: reason)
    }
}
