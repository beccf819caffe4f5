/// What a reader may ask of an agent beyond a threshold: to give every slot back and end, or for a dump.
///
/// Used by `detach`, by verbs that take out what they put in and by `dump`, on any thread. It writes eight bytes of the
/// header; whoever may not write the segment may not ask.

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
        try write(UInt64(LAG_CONTROL_DETACH), at: MemoryLayout<lag_header>.offset(of: \lag_header.control))
    }

    /// Asks for a dump, served at the agent's next look like any wish. Another reader's wish may take its place.
    /// - Parameter number: not 0, and never asked for before.
    public func requestDump(_ number: UInt64) throws(TelemetryError) {
        try write(number, at: MemoryLayout<lag_header>.offset(of: \lag_header.dump_request))
    }

    /// True once all samples of that dump are in the ring.
    public func hasServed(_ number: UInt64) -> Bool {
        guard let offset = MemoryLayout<lag_header>.offset(of: \lag_header.dump_served) else { return false }
        var word: UInt64 = 0
        return pread(descriptor, &word, 8, off_t(offset)) == 8 && word == number
    }

    private func write(_ word: UInt64, at offset: Int?) throws(TelemetryError) {
        var word = word
        guard let offset else { throw .io(path: path, errno: EINVAL) }
        guard pwrite(descriptor, &word, 8, off_t(offset)) == 8 else { throw .io(path: path, errno: errno) }
    }

    /// True once the agent has given back all it held and its thread has ended.
    public var isParked: Bool {
        guard let offset = MemoryLayout<lag_header>.offset(of: \lag_header.state) else { return false }
        var word: UInt32 = 0
        return pread(descriptor, &word, 4, off_t(offset)) == 4 && word == UInt32(LAG_STATE_PARKED)
    }
}
