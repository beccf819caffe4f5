/// The interpreter in this process, if there is one: who knows its frames, its lock, its collector and its pools.
///
/// Watchdog only, in ordinary context. Nothing here may take the interpreter's lock, call into it, or read its memory in
/// any way that could fault: what the host's threads change at this moment is read through `lag_safe_read` and checked.

import CLoopLag

/// The registers that a native call began with: what lies above them on the stack does not change until it returns.
struct NativeCall: Equatable {
    var stackPointer: UInt64
    var programCounter: UInt64
    var framePointer: UInt64
}

struct ManagedRuntime {
    private let header: UnsafeMutablePointer<lag_header>
    private var v8: V8Runtime?
    private var libuv: LibuvPool?

    init(_ header: UnsafeMutablePointer<lag_header>) {
        self.header = header
        if header.pointee.runtime == UInt32(LAG_RUNTIME_NODE) {
            v8 = V8Runtime(header)
            let table = header.pointee.pools
            if table.count > 0 {
                let slots = UnsafeMutableRawPointer(header) + Int(table.offset)
                libuv = LibuvPool(header, slots.bindMemory(to: lag_pool_slot.self, capacity: Int(table.count)))
            }
        }
    }

    func release() {
        v8?.release()
        libuv?.release()
    }

    /// Every tick: looks at the pools. Returns when it wants the next one, UInt64.max = whenever.
    mutating func tick(now: UInt64) -> UInt64 { libuv?.tick(now: now) ?? UInt64.max }

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
        return v8?.refine(capture, slot: slot, generation: generation, of: loop, look: look, sample: &sample)
            ?? capture
    }

    /// Adds to one sample what the interpreter was doing at that moment. The native stack is in `capture` already.
    /// - Parameter look: where the thread was; a running one was copied inside the signal handler.
    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, of loop: UnsafeMutablePointer<lag_loop_slot>, slot: UInt32,
        generation: UInt32, look: ThreadLook, into section: inout ManagedSection, sample: inout lag_sample
    ) {
        v8?.describe(capture, slot: slot, generation: generation, of: loop, into: &section, sample: &sample)
    }

    /// What a look at the thread counts for: a thread that works for the collector, or waits for its helpers, is neither
    /// on its own business nor in anybody's lock.
    func kind(_ kind: Int, _ slot: Int, _ generation: UInt32) -> Int {
        guard v8 != nil, kind == Int(LAG_LOOK_ON_CPU) || kind == Int(LAG_LOOK_LOCK) else { return kind }
        var view = lag_v8_loop()
        let isKnown = lag_v8_loop_read(UInt32(truncatingIfNeeded: slot), generation, &view)
        return isKnown && view.gc_since_ns != 0 ? Int(LAG_LOOK_GC) : kind
    }

    /// Time of garbage collections in the iteration that began at `start`; nil = not measured here.
    func collected(_ slot: Int, _ generation: UInt32, since start: UInt64) -> UInt64? {
        var total: UInt64 = 0
        guard v8 != nil, lag_v8_gc_within(UInt32(truncatingIfNeeded: slot), generation, start, &total) else {
            return nil
        }
        return total
    }
}
