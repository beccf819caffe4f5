/// Follows one segment: opens it under the rules of trust, and turns what lies there now into a `ProcessSnapshot`.
///
/// Called by the command line's verbs and by ProcessTelemetry, from one thread or task at a time (it keeps buffers and
/// the last good copies between looks, and is not Sendable). It costs the host nothing but the page cache. It refuses
/// to map the file, to trust any byte of it, and to write anything but its own lease.
///
/// A segment outlives its name: after a clean exit or an exec the file is unlinked, and an open reader still reads its
/// last state (see `isUnlinked`). A process that has started another program has another segment: discover it again.

import CLoopLagLayout
import Glibc
import LoopLagModel

public final class SegmentReader {
    public let source: SegmentSource
    let file: SegmentFile
    let layout: SegmentLayout
    let head = SegmentHead()
    private var life: ProcessLife
    private let loops: LoopTable
    private let pools: SequencedTable
    private let stalls: StallTable
    private let names: NameTable
    private var lease: ThresholdLease?
    /// Where the record after the last sample given ends; saves reading that sample again to learn its length.
    var lastSample: (position: UInt64, end: UInt64)?

    /// Opens the segment of a living or dead process, as discovery found it.
    public init(_ source: SegmentSource) throws(TelemetryError) {
        let status = source.isAlive ? ProcFS.status(source.pid) : nil
        let owner: SegmentFile.Owner
        if source.isAlive {
            guard let status else { throw .noSuchProcess(pid: source.pid) }
            owner = .process(users: status.users)
        } else {
            owner = .reader
        }
        let file = try SegmentFile(path: source.path, pid: source.pid, owner: owner)
        let condition = try file.condition()
        let bytes = condition.size
        // A segment gets its length, and at last its magic, while the agent starts.
        guard bytes >= SegmentLayout.headerBytes else {
            if source.isAlive { throw .noAgent(pid: source.pid) }
            throw .corrupt(path: source.path, reason: "\(bytes) bytes, less than a header")
        }
        try head.refresh(from: file)
        if head.header.pointee.magic == 0, source.isAlive { throw .noAgent(pid: source.pid) }
        layout = try SegmentLayout(head.header, fileBytes: bytes, path: source.path)
        if let status {
            try SegmentClaim(head.header, condition).check(of: source, status: status, path: source.path)
        }
        self.file = file
        self.source = source
        life = ProcessLife(source)
        loops = LoopTable(layout.loops)
        pools = SequencedTable(layout.pools, recordBytes: MemoryLayout<lag_pool_slot>.size, limit: SegmentLimit.pools)
        stalls = StallTable(layout.stalls)
        names = NameTable(modules: layout.modules, strings: layout.strings)
    }

    /// Opens a segment by its file, usually one that a killed process left. The process may also be alive.
    public convenience init(path: String) throws(TelemetryError) {
        try self.init(SegmentDiscovery.source(ofFile: path))
    }

    deinit { lease?.release() }

    /// The file has lost its name: its process has exited or started another program, and nothing more will come.
    public var isUnlinked: Bool {
        guard !file.isMemory, let condition = try? file.condition() else { return false }
        return condition.links == 0
    }

    /// Everything the segment says now. Well under 100 microseconds; throws once the file is damaged or cut short.
    public func snapshot() throws(TelemetryError) -> ProcessSnapshot {
        // Life first: when the process is dead now, everything read from here on is final.
        let isAlive = life.check()
        let links = try refreshHead()
        let header = head.header
        let state = Decode.state(header.pointee.state)
        let isFollowed =
            isAlive && (file.isMemory || links > 0) && state != .finished && state != .parked
            && life.hasWatchdog(heartbeat: header.pointee.heartbeat_ns)

        let loopSnapshots = try loops.snapshots(from: file, isWritten: isAlive)
        let now = monotonicNanoseconds()
        _ = try pools.refresh(from: file, isWritten: isAlive)
        try stalls.refresh(from: file, isWritten: isAlive)
        try names.refresh(from: file, header: header)

        let end =
            isFollowed ? Decode.time(now) : lastSign(Decode.time(header.pointee.heartbeat_ns), loops: loopSnapshots)
        return ProcessSnapshot(
            identity: ProcessIdentity(pid: source.pid, startTicks: source.startTicks),
            takenAt: end, isAlive: isAlive, state: state,
            runtime: Decode.runtime(header.pointee.runtime), runtimeVersion: names.runtimeVersion,
            executable: names.executable, command: names.command,
            anchor: Decode.anchor(header), startThreshold: Decode.duration(header.pointee.start_threshold_ns),
            captureThreshold: Decode.duration(header.pointee.capture_threshold_ns),
            loops: loopSnapshots, pools: decodedPools(),
            stalls: stalls.records(until: end, endsFrom: isFollowed ? nil : loops),
            modules: names.modules, agent: Decode.agent(header))
    }

    /// Asks the agent to capture stacks from `threshold` on. Renew at least once a second: it lapses after five.
    /// False when there is no room for the wish: the file may not be written, or sixteen readers have theirs.
    public func hold(threshold: Duration) -> Bool {
        let nanoseconds = UInt64(max(1, threshold.nanosecondCount))
        if let lease, lease.renew(nanoseconds) { return true }
        lease?.release()
        lease = ThresholdLease(file, threshold: nanoseconds)
        return lease != nil
    }

    public func releaseThreshold() {
        lease?.release()
        lease = nil
    }

    /// Reads the head again and holds it to what it said when the file was opened; the file's number of names.
    @discardableResult
    func refreshHead() throws(TelemetryError) -> Int {
        let condition = try file.condition()
        guard condition.size >= layout.totalBytes else {
            if condition.links == 0, !file.isMemory { throw .gone(path: file.path) }
            throw .corrupt(path: file.path, reason: "cut to \(condition.size) of \(layout.totalBytes) bytes")
        }
        try head.refresh(from: file)
        guard try SegmentLayout(head.header, fileBytes: condition.size, path: file.path) == layout else {
            throw .corrupt(path: file.path, reason: "its tables moved")
        }
        return condition.links
    }

    /// Of a process that is gone nothing is known after the watchdog's last look, or what its loops did since.
    private func lastSign(_ heartbeat: MonotonicTime, loops: [LoopSnapshot]) -> MonotonicTime {
        loops.reduce(heartbeat) { last, loop in
            [loop.busySince, loop.idleSince, loop.retiredAt].compactMap { $0 }.reduce(last, max)
        }
    }

    private func decodedPools() -> [PoolSnapshot] {
        (0..<pools.count).compactMap { i in
            pools.record(i, as: lag_pool_slot.self).flatMap { Decode.pool($0, slot: i) }
        }
    }
}

/// Whether the segment's process and its watchdog are still there.
private struct ProcessLife {
    private let source: SegmentSource
    /// /proc/PID/stat, held open: it names this process and no later one with its pid.
    private let stat: StatFile?
    private var watchdog: (asked: UInt64, isThere: Bool)?

    private final class StatFile {
        let descriptor: Int32

        init?(_ pid: Int32) {
            descriptor = open("/proc/\(pid)/stat", O_RDONLY | O_CLOEXEC)
            if descriptor < 0 { return nil }
        }

        deinit { close(descriptor) }

        func read() -> ProcessStat? {
            withUnsafeTemporaryAllocation(byteCount: 1024, alignment: 8) { buffer in
                let count = pread(descriptor, buffer.baseAddress, buffer.count, 0)
                guard count > 0 else { return nil }
                return ProcessStat(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            }
        }
    }

    init(_ source: SegmentSource) {
        self.source = source
        stat = source.isAlive ? StatFile(source.pid) : nil
    }

    func check() -> Bool {
        guard let now = stat?.read() else { return false }
        return now.isAlive && now.startTicks == source.startTicks
    }

    /// False after an exec into a program that never waits: the pid and its start time stay, the watchdog is gone.
    /// Threads are looked at only when the heartbeat is old, and then once a second.
    mutating func hasWatchdog(heartbeat: UInt64) -> Bool {
        let now = monotonicNanoseconds()
        guard heartbeat > 0, now > heartbeat, now - heartbeat > SegmentDiscovery.staleHeartbeat else { return true }
        if let watchdog, now &- watchdog.asked < 1_000_000_000 { return watchdog.isThere }
        let isThere = !ProcFS.watchdogThreads(of: source.pid).isEmpty
        watchdog = (now, isThere)
        return isThere
    }
}
