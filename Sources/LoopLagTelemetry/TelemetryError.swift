/// Why a segment could not be found, trusted or read.
///
/// Thrown by everything in this target, shown by the command line as its one line on standard error, on any thread.
/// Every case names what it is about, so that no caller needs a second look-up; it never carries bytes of the segment.

import Glibc

public enum TelemetryError: Error, Hashable, Sendable {
    case noSuchProcess(pid: Int32)
    case notPermitted(pid: Int32?, path: String, detail: String)
    /// Also while the agent is still starting: ask again.
    case noAgent(pid: Int32)
    /// Somebody other than the agent may have put the file there.
    case untrusted(path: String, reason: String)
    /// The file breaks the layout: cut short, or damaged.
    case corrupt(path: String, reason: String)
    case otherVersion(path: String, found: UInt32, known: UInt32)
    /// The segment was taken away while it was being opened or read.
    case gone(path: String)
    case io(path: String, errno: Int32)

    /// One line: what failed, on what, why, and what to do.
    public var message: String {
        switch self {
        case .noSuchProcess(let pid):
            return "no process \(pid): it has ended or never was; `looplag ps` lists the processes with an agent"
        case .notPermitted(let pid, let path, let detail):
            let subject = pid.map { "the telemetry of \($0)" } ?? Printable.text(path)
            return "cannot read \(subject): \(Printable.text(detail)); run as that user or as root"
        case .noAgent(let pid):
            return "no agent in \(pid): start it with `looplag run`, or load one with `looplag attach \(pid)`"
        case .untrusted(let path, let reason):
            return "will not read \(Printable.text(path)): \(Printable.text(reason)), so it may not be the agent's; "
                + "remove it and restart the server"
        case .corrupt(let path, let reason):
            return "cannot read \(Printable.text(path)): the segment is damaged (\(Printable.text(reason))); "
                + "restart the server to get a new one"
        case .otherVersion(let path, let found, let known):
            return "cannot read \(Printable.text(path)): its agent writes layout version \(found), "
                + "this looplag reads \(known); use the looplag that came with the agent"
        case .gone(let path):
            return "the segment \(Printable.text(path)) is gone: its process has ended or started another program; "
                + "look for it again with `looplag ps`"
        case .io(let path, let code):
            return "cannot read \(Printable.text(path)): \(SystemError(code: code).text); check the file and its folder"
        }
    }
}

extension TelemetryError: CustomStringConvertible {
    public var description: String { message }
}

/// A failed system call, before it is known what it means for the caller.
struct SystemError: Error, Hashable {
    var code: Int32

    /// The error of the call that failed just now on this thread.
    static var last: SystemError { SystemError(code: errno) }

    var text: String {
        guard let text = strerror(code) else { return "error \(code)" }
        return String(cString: text)
    }

    /// There is nothing under that name (any more).
    var isAbsence: Bool { code == ENOENT || code == ESRCH || code == ENOTDIR }

    var isRefusal: Bool { code == EACCES || code == EPERM }
}
