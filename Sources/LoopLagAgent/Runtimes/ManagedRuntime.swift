/// The interpreter in this process, if there is one: who knows its frames, its lock, its collector and its pools.
///
/// Watchdog only, in ordinary context. Nothing here may take the interpreter's lock, call into it, or read its memory in
/// any way that could fault: what the host's threads change at this moment is read through `lag_safe_read` and checked.

import CLoopLag

struct ManagedRuntime {
    private var python: CPython?

    init(_ segment: Segment) { python = CPython(segment) }

    func release() { python?.release() }

    /// Before a capture of the thread of loop `slot`: what of the interpreter's memory must be copied with its stack.
    func prepare(slot: Int) {
        lag_capture_wants_python(python?.threadState(ofLoop: slot) ?? 0)
    }

    /// Adds to one sample what the interpreter was doing at that moment. The native stack is in `capture` already.
    /// - Parameter look: where the thread was; a running one was copied inside the signal handler.
    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, of loop: UnsafeMutablePointer<lag_loop_slot>, look: ThreadLook,
        into section: inout ManagedSection, sample: inout lag_sample
    ) {
        python?.describe(capture, of: loop, look: look, into: &section, sample: &sample)
    }

    /// A number that differs when the interpreter's frames on that thread are others; 0 = no interpreter.
    func place(loop index: Int) -> UInt64 { python?.place(ofLoop: index) ?? 0 }

    /// What the interpreter knows better than the kernel of where a thread's time goes: a LAG_LOOK_* kind, or nil.
    func kind(_ look: ThreadLook, loop index: Int, _ loop: UnsafeMutablePointer<lag_loop_slot>) -> Int? {
        python?.kind(look, loop: index, loop)
    }

    /// When the runtime wants its next tick, however calm the loops are; UInt64.max = it does not mind.
    var nextLook: UInt64 { python?.nextLook ?? UInt64.max }

    /// At every tick of the watchdog, behind its look at the loops.
    mutating func tick(now: UInt64, loops: UnsafeMutablePointer<lag_loop_slot>, count: Int) {
        python?.tick(now: now, loops: loops, count: count)
    }
}
