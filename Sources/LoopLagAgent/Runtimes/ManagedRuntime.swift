/// The interpreter in this process, if there is one: who knows its frames, its lock, its collector and its pools.
///
/// Watchdog only, in ordinary context. Nothing here may take the interpreter's lock, call into it, or read its memory in
/// any way that could fault: what the host's threads change at this moment is read through `lag_safe_read` and checked.
/// It decides nothing itself: each call goes to the one interpreter that is there.

import CLoopLag

/// The registers that a native call began with: what lies above them on the stack does not change until it returns.
struct NativeCall: Equatable {
    var stackPointer: UInt64
    var programCounter: UInt64
    var framePointer: UInt64
}

/// A thread that serves a pool.
struct PoolWorker {
    /// 0 = not known.
    var tid: Int32
    /// 1 + the index of the pool's row, 0 = it cannot be said.
    var pool: UInt32
}

struct ManagedRuntime {
    private var python: CPython?
    private let fallback: CPythonFallback?
    private let scratch: Scratch
    private var v8: V8Runtime?
    private var libuv: LibuvPool?
    /// What the sampled thread was at before its stack was copied.
    private var mark = lag_request_mark()

    init(_ segment: Segment, _ scratch: Scratch) {
        self.scratch = scratch
        python = CPython(segment)
        fallback = CPythonFallback(segment.header)
        let header = segment.header
        guard header.pointee.runtime == UInt32(LAG_RUNTIME_NODE) else { return }
        v8 = V8Runtime(header)
        let table = header.pointee.pools
        if table.count > 0 {
            let slots = UnsafeMutableRawPointer(header) + Int(table.offset)
            libuv = LibuvPool(header, slots.bindMemory(to: lag_pool_slot.self, capacity: Int(table.count)))
        }
    }

    func release() {
        python?.release()
        v8?.release()
        libuv?.release()
    }

    /// Before anything of a sample of this thread is read: which request it is at now, where `--requests` notes that.
    mutating func begin(tid: Int32) {
        guard v8 != nil else { return }
        mark = lag_request_now(tid)
    }

    /// Before a capture of the thread of loop `slot`: what of the interpreter's memory must be copied with its stack.
    func prepare(slot: Int) {
        lag_capture_wants_python(python?.threadState(ofLoop: slot) ?? 0)
        lag_capture_wants_fallback(usesFallback && (fallback?.covers(slot) ?? false))
    }

    private var usesFallback: Bool { !(python?.isTrusted ?? false) }

    /// Where a running thread is inside a native call that its interpreter made; nil = not known, or in no such call.
    mutating func nativeCall(_ slot: UInt32, _ generation: UInt32, of loop: UnsafeMutablePointer<lag_loop_slot>)
        -> NativeCall?
    {
        guard v8 != nil else { return nil }
        return v8?.nativeCall(slot, generation, of: loop)
    }

    /// Right after the native copy: what has to be known at once, and a better copy where the interpreter makes one.
    mutating func refine(
        _ capture: UnsafePointer<lag_capture>, slot: UInt32, generation: UInt32,
        of loop: UnsafeMutablePointer<lag_loop_slot>, look: ThreadLook, sample: inout lag_sample
    ) -> UnsafePointer<lag_capture> {
        guard v8 != nil else { return capture }
        let refined =
            v8?.refine(capture, slot: slot, generation: generation, of: loop, look: look, sample: &sample) ?? capture
        if refined != capture { mark = lag_v8_answer_request() }
        return refined
    }

    /// Adds to one sample what the interpreter was doing at that moment. The native stack is in `capture` already.
    /// - Parameter look: where the thread was; a running one was copied inside the signal handler.
    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, of loop: UnsafeMutablePointer<lag_loop_slot>, slot: UInt32,
        generation: UInt32, look: ThreadLook, into section: inout ManagedSection, sample: inout lag_sample
    ) {
        python?.describe(capture, of: loop, look: look, into: &section, sample: &sample)
        if capture.pointee.fallback_bytes > 0 { fallback?.describe(capture, into: &section) }
        v8?.describe(capture, slot: slot, generation: generation, of: loop, into: &section, sample: &sample)
        // Any runtime's, also that of native code in an interpreter.
        if section.header.blocker_tid == 0, let owner = MutexOwner.of(look, tid: sample.tid) {
            section.header.blocker_tid = owner
            if !(python?.describeThread(owner, into: &section) ?? false) {
                MutexOwner.name(owner, scratch, into: &section)
            }
        }
        nameRequest(loop.pointee.tid, &section)
    }

    /// The noted request comes before the one that the stack shows: code that runs for another one can be called by it.
    @inline(never)
    private func nameRequest(_ tid: Int32, _ section: inout ManagedSection) {
        guard mark.current != 0 else { return }
        var request = lag_request()
        guard lag_request_read(mark, tid, &request) else { return }
        let text = lag_request_text(&request)
        section.header.method = section.text(text, Int(request.method_bytes))
        section.header.path = section.text(text + Int(request.method_bytes), Int(request.path_bytes))
    }

    /// A number that differs when the interpreter's frames on that thread are others; 0 = no interpreter.
    func place(loop index: Int) -> UInt64 { python?.place(ofLoop: index) ?? 0 }

    /// What the interpreter knows better than the kernel of where a thread's time goes: a LAG_LOOK_* kind, or nil.
    func kind(
        _ look: ThreadLook, loop index: Int, generation: UInt32, _ loop: UnsafeMutablePointer<lag_loop_slot>
    ) -> Int? {
        // Measured by the thread itself, whatever is known of its interpreter.
        if lag_load_u64(&loop.pointee.gil_wait_since_ns) != 0 { return Int(LAG_LOOK_GIL_WAIT) }
        if let kind = python?.kind(look, loop: index, loop) { return kind }
        // A thread that works for V8's collector, or waits for its helpers, is neither on its own business nor in
        // anybody's lock.
        guard v8 != nil, look.kind == Int(LAG_LOOK_ON_CPU) || look.kind == Int(LAG_LOOK_LOCK) else { return nil }
        var view = lag_v8_loop()
        let isKnown = lag_v8_loop_read(UInt32(truncatingIfNeeded: index), generation, &view)
        return isKnown && view.gc_since_ns != 0 ? Int(LAG_LOOK_GC) : nil
    }

    /// Time of V8's garbage collections in the iteration that began at `start`; nil = not measured here.
    func collected(_ slot: Int, _ generation: UInt32, since start: UInt64) -> UInt64? {
        var total: UInt64 = 0
        guard v8 != nil, lag_v8_gc_within(UInt32(truncatingIfNeeded: slot), generation, start, &total) else {
            return nil
        }
        return total
    }

    /// At every tick of the watchdog, behind its look at the loops: pools, and what else changes by itself.
    /// - Returns: when it wants the next one, however calm the loops are; UInt64.max = it does not mind.
    mutating func tick(now: UInt64, loops: UnsafeMutablePointer<lag_loop_slot>, count: Int) -> UInt64 {
        python?.tick(now: now, loops: loops, count: count)
        if usesFallback { fallback?.announce() }
        let wanted = python?.nextLook ?? UInt64.max
        let pools = libuv?.tick(now: now) ?? UInt64.max
        let check = v8?.tick(now: now, loops: loops, count: count) ?? UInt64.max
        let sooner = check < pools ? check : pools
        return wanted < sooner ? wanted : sooner
    }

    // MARK: - dumps

    /// Brings the pools up to date, new ones and new threads of theirs included.
    mutating func lookAtPools(loops: UnsafeMutablePointer<lag_loop_slot>, count: Int) {
        python?.lookAtPools(lag_clock_now(), loops, count, isFull: true)
    }

    /// The pools' workers one by one; nil behind the last one.
    func worker(_ index: Int) -> PoolWorker? { python?.worker(index) }

    /// The frames of one of them; false when it is not busy, or not known to be.
    mutating func describeWorker(_ index: Int, into section: inout ManagedSection, sample: inout lag_sample) -> Bool {
        python?.describeWorker(index, into: &section, sample: &sample) ?? false
    }
}
