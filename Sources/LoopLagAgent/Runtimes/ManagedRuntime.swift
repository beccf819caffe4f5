/// The interpreter in this process, if there is one: who knows its frames, its lock, its collector and its pools.
///
/// Watchdog only, in ordinary context. Nothing here may take the interpreter's lock, call into it, or read its memory in
/// any way that could fault: what the host's threads change at this moment is read through `lag_safe_read` and checked.

import CLoopLag

struct ManagedRuntime {
    private let header: UnsafeMutablePointer<lag_header>

    init(_ header: UnsafeMutablePointer<lag_header>) { self.header = header }

    /// Adds to one sample what the interpreter was doing at that moment. The native stack is in `capture` already.
    /// - Parameter look: where the thread was; a running one was copied inside the signal handler.
    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, of loop: UnsafeMutablePointer<lag_loop_slot>, look: ThreadLook,
        into section: inout ManagedSection, sample: inout lag_sample
    ) {
        _ = header
    }
}
