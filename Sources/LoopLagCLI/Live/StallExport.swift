/// A stall's JSON out of the live view: into the terminal's clipboard, or into a file of the current folder.
///
/// Called by the live view, on the main thread. It refuses to overwrite anything.

import Foundation
import Glibc

enum StallExport {
    /// What terminals take in one sequence: xterm's and tmux's bounds lie a little above.
    static let clipboardLimit = 74_000

    /// OSC 52, which writes the clipboard of the person's own terminal, also through ssh; nil when it is too long.
    static func clipboard(_ text: String) -> String? {
        let encoded = Data(text.utf8).base64EncodedString()
        guard encoded.utf8.count <= clipboardLimit else { return nil }
        return "\u{1b}]52;c;\(encoded)\u{7}"
    }

    /// Writes a new file that only its owner may read, and returns its name.
    static func save(_ text: String, stall: String) throws(Failure) -> String {
        let base = "looplag-stall-\(stall.filter { $0.isLetter || $0.isNumber || $0 == "." || $0 == "-" })"
        for attempt in 1...99 {
            let name = base + (attempt == 1 ? "" : "-\(attempt)") + ".json"
            let descriptor = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
            if descriptor < 0, errno == EEXIST { continue }
            guard descriptor >= 0 else { throw Failure("cannot write \(name): \(Console.reason(errno))") }
            let outcome = Console.Stream(descriptor: descriptor).write(text)
            // The last bytes may be refused only now.
            let closed = close(descriptor)
            switch outcome {
            case .written where closed == 0: return name
            case .failed(let code):
                unlink(name)
                throw Failure("cannot write \(name): \(Console.reason(code))")
            case .written, .closed:
                let code = errno
                unlink(name)
                throw Failure("cannot write \(name): \(Console.reason(code))")
            }
        }
        throw Failure("cannot write \(base).json: 99 of that name are there already")
    }
}
