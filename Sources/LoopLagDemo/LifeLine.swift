/// Ties the demo's life to that of whoever started it: standard input is a pipe that nobody writes to, and its end is
/// ours.
///
/// Called by: Demo with --end-with-input, as `looplag demo` starts it. Thread: one of its own that only reads. However
/// the other side ends, also by SIGKILL, the kernel closes its end of the pipe. Not PR_SET_PDEATHSIG, which follows the
/// death of the parent's thread and misses a parent that died before the call.

import Glibc
import LoopLag

enum LifeLine {
    /// Only once the agent has started, or its segment would outlive us.
    static func hold() {
        let isHeld = PlainThread.start {
            var byte: UInt8 = 0
            while true {
                let count = read(STDIN_FILENO, &byte, 1)
                if count == 0 || (count < 0 && errno != EINTR) { break }
            }
            // At once: nobody waits for its answers. Not by SIGTERM, which before the server listens would be the
            // kernel's own end of us, and the segment would stay.
            LoopLag.stop()
            _exit(0)
        }
        // Without it nobody would end us.
        if !isHeld { _exit(1) }
    }
}
