/// Ties the demo's life to that of whoever started it: standard input is a pipe that nobody writes to, and its end is
/// ours.
///
/// Called by: Demo with --end-with-input, as `looplag demo` starts it. Thread: one of its own that only reads. However
/// the other side ends, also by SIGKILL, the kernel closes its end of the pipe. Not PR_SET_PDEATHSIG, which follows the
/// death of the parent's thread and misses a parent that died before the call.

import Glibc

enum LifeLine {
    /// How long a request may still run.
    private static let patience: UInt32 = 5

    static func hold() {
        let isHeld = PlainThread.start {
            var byte: UInt8 = 0
            while true {
                let count = read(STDIN_FILENO, &byte, 1)
                if count == 0 || (count < 0 && errno != EINTR) { break }
            }
            // A clean end takes the segment away, too.
            kill(getpid(), SIGTERM)
            sleep(patience)
            _exit(0)
        }
        // Without it nobody would end us.
        if !isHeld { _exit(1) }
    }
}
