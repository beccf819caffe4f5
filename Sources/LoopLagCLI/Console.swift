/// The three standard streams as the command line uses them: every line leaves at once, also into a pipe.
///
/// Main thread only by convention; each write is one system call, so lines of several processes on one pipe stay whole
/// up to PIPE_BUF. No stdio: its buffers would delay lines and print them twice round a fork.

import Glibc

enum Console {
    static let out = Stream(descriptor: STDOUT_FILENO)
    static let err = Stream(descriptor: STDERR_FILENO)

    /// Somebody may start us with a standard stream closed. The next file opened would take its number, and our error
    /// lines would go into that file: into a server's segment. The stand-ins close at exec, so a child finds the
    /// streams as we did.
    static func reserveStandardDescriptors() {
        for descriptor in STDIN_FILENO...STDERR_FILENO where fcntl(descriptor, F_GETFD) < 0 {
            _ = open("/dev/null", O_RDWR | O_CLOEXEC)
        }
    }

    /// `looplag: ...` on stderr. Failing to say it is no error of its own.
    static func error(_ message: String) {
        _ = err.write("looplag: \(message)\n")
    }

    struct Stream: Sendable {
        let descriptor: Int32

        enum Outcome: Equatable {
            case written
            /// Nobody reads any more.
            case closed
            case failed(Int32)
        }

        /// Writes all of it, or says why not.
        func write(_ text: String) -> Outcome {
            let bytes = Array(text.utf8)
            var done = 0
            while done < bytes.count {
                let count = bytes.withUnsafeBytes {
                    Glibc.write(descriptor, $0.baseAddress.map { $0 + done }, $0.count - done)
                }
                if count >= 0 {
                    done += count
                } else if errno == EAGAIN {
                    // Somebody made the shared description non-blocking (a node parent does): wait for room.
                    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                    _ = poll(&entry, 1, 1000)
                } else if errno != EINTR {
                    return errno == EPIPE ? .closed : .failed(errno)
                }
            }
            return .written
        }

        /// True once the reading end of a pipe is closed, so that a quiet follower ends with its reader.
        var isClosed: Bool {
            var entry = pollfd(fd: descriptor, events: 0, revents: 0)
            return poll(&entry, 1, 0) > 0 && Int32(entry.revents) & (POLLERR | POLLNVAL) != 0
        }

        var isTerminal: Bool { isatty(descriptor) == 1 }

        /// How wide the terminal is, or what COLUMNS asks for; nil on a pipe, where nobody has to see it on one line.
        var columns: Int? {
            var size = winsize()
            if isTerminal, ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 { return Int(size.ws_col) }
            guard let value = getenv("COLUMNS"), let columns = Int(String(cString: value)), columns > 0 else {
                return isTerminal ? 80 : nil
            }
            return columns
        }
    }

    /// A reason from the C library for the end of a sentence.
    static func reason(_ code: Int32) -> String {
        strerror(code).map { String(cString: $0) }?.lowercased() ?? "error \(code)"
    }
}
