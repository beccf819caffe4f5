/// The one thing that a reader may ask of an agent beyond a threshold: to give every slot back and end.
///
/// Used by `detach` and by verbs that take out what they put in, on any thread. It writes eight bytes of the header,
/// which the agent compares with one value; whoever may not write the segment may not detach.

import CLoopLagLayout
import Glibc

public final class AgentControl {
    private let file: SegmentFile
    private let descriptor: Int32
    private let path: String

    public init(_ source: SegmentSource) throws(TelemetryError) {
        let status = ProcFS.status(source.pid)
        guard let status else { throw .noSuchProcess(pid: source.pid) }
        file = try SegmentFile(path: source.path, pid: source.pid, owner: .process(users: status.users))
        path = source.path
        let writable = file.openForWriting()
        guard writable >= 0 else {
            throw .notPermitted(pid: source.pid, path: source.path, detail: "its segment may not be written")
        }
        descriptor = writable
    }

    deinit { close(descriptor) }

    /// Leaves the wish; the agent sees it at its next look, a quarter of a second later at most.
    public func requestDetach() throws(TelemetryError) {
        guard let offset = MemoryLayout<lag_header>.offset(of: \lag_header.control) else {
            throw .io(path: path, errno: EINVAL)
        }
        var word = UInt64(LAG_CONTROL_DETACH)
        guard pwrite(descriptor, &word, 8, off_t(offset)) == 8 else { throw .io(path: path, errno: errno) }
    }

    /// True once the agent has given back all it held and its thread has ended.
    public var isParked: Bool {
        guard let offset = MemoryLayout<lag_header>.offset(of: \lag_header.state) else { return false }
        var word: UInt32 = 0
        return pread(descriptor, &word, 4, off_t(offset)) == 4 && word == UInt32(LAG_STATE_PARKED)
    }
}
