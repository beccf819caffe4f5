/// The interpreter in this process, if there is one: who knows its frames, its lock, its collector and its pools.
///
/// Watchdog only, in ordinary context. Nothing here may take the interpreter's lock, call into it, or read its memory in
/// any way that could fault: what the host's threads change at this moment is read through `lag_safe_read` and checked.

import CLoopLag

struct ManagedRuntime {
    private let header: UnsafeMutablePointer<lag_header>
    private var v8: V8Runtime?

    init(_ header: UnsafeMutablePointer<lag_header>) {
        self.header = header
        if header.pointee.runtime == UInt32(LAG_RUNTIME_NODE) { v8 = V8Runtime(header) }
    }

    func release() { v8?.release() }

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
}
