/// Finds the segments of this machine: of one process, of all, and those that dead processes have left.
///
/// Called by every verb of the command line before it opens a SegmentReader, on any thread; keeps nothing. What it
/// gives back has passed the reader's rules of trust once; the reader applies them again. It refuses to guess: a
/// segment counts as a process's only when its name or its holder, its owner and its own head say so.
///
/// The agent puts its segment into the host's /dev/shm, else into the host's LOOPLAG_DIR, else into a memory file. The
/// host may live in other mount and pid namespaces, so all three are looked for from the inside: through the process's
/// root, its mappings, and the descriptors of the agent's thread.

import CLoopLagLayout
import Glibc

/// Where one segment is, and whose.
public struct SegmentSource: Hashable, Sendable {
    /// As the command line's own procfs shows it.
    public var pid: Int32
    public var startTicks: UInt64
    /// What to open.
    public var path: String
    public var isAlive: Bool

    public init(pid: Int32, startTicks: UInt64, path: String, isAlive: Bool) {
        self.pid = pid
        self.startTicks = startTicks
        self.path = path
        self.isAlive = isAlive
    }
}

public enum SegmentDiscovery {
    static let sharedMemory = "/dev/shm"
    /// A watchdog's heart beats many times a second; after this long its thread is looked for.
    static let staleHeartbeat: UInt64 = 3_000_000_000

    /// The segment of one living process.
    public static func live(pid: Int32) throws(TelemetryError) -> SegmentSource {
        try find(pid, looksEverywhere: true)
    }

    /// The segments of all processes that this user may look into, by pid.
    public static func allLive() -> [SegmentSource] {
        ProcFS.processes().compactMap { pid in
            // Reading every process's mappings would cost milliseconds each: the agent's thread says where to.
            try? find(pid, looksEverywhere: !ProcFS.watchdogThreads(of: pid).isEmpty)
        }
    }

    /// All living descendants of a process, parents before their children.
    public static func children(of pid: Int32) -> [Int32] {
        var byParent: [Int32: [Int32]] = [:]
        for process in ProcFS.processes() {
            guard let stat = ProcFS.process(process), stat.isAlive, process != stat.parent else { continue }
            byParent[stat.parent, default: []].append(process)
        }
        var result: [Int32] = []
        var next = 0
        var parent = pid
        // The table was not read at one moment: a pid taken anew in between could even close a circle.
        var seen: Set<Int32> = [pid]
        while true {
            for child in byParent[parent] ?? [] where seen.insert(child).inserted { result.append(child) }
            guard next < result.count else { return result }
            parent = result[next]
            next += 1
        }
    }

    /// LOOPLAG_DIR of this process, which is usually also its servers'.
    static func ownFolder() -> String? {
        guard let value = getenv("LOOPLAG_DIR") else { return nil }
        let folder = String(cString: value)
        return folder.hasPrefix("/") ? folder : nil
    }

    // -- one process ---------------------------------------------------------------------------------------------

    private static func find(_ pid: Int32, looksEverywhere: Bool) throws(TelemetryError) -> SegmentSource {
        guard pid > 0, let stat = ProcFS.process(pid), stat.isAlive, let status = ProcFS.status(pid) else {
            throw .noSuchProcess(pid: pid)
        }
        var search = Search(pid: pid, stat: stat, status: status)
        // A leader that has exited has no root and no mappings left; any other thread shows them.
        var base = "/proc/\(pid)"
        if stat.leaderHasExited, let thread = ProcFS.threads(of: pid).first(where: { $0 != pid }) {
            base += "/task/\(thread)"
        }
        let name = SegmentName(pid: search.innerPID, startTicks: stat.startTicks).fileName
        if let found = search.look(at: "\(base)/root\(sharedMemory)/\(name)") { return found }
        if looksEverywhere {
            for path in mappedSegments(base, pid: search.innerPID) {
                if let found = search.look(at: "\(base)/root\(path)") { return found }
                // Mappings of a process with another root are shown from ours.
                if let found = search.look(at: path) { return found }
            }
            for path in memorySegments(pid) {
                if let found = search.look(at: path) { return found }
            }
        }
        // A process that may not be dumped hides its root even from its own user, but shares our folders.
        if search.wasRefused {
            for folder in [sharedMemory, ownFolder()].compactMap({ $0 }) {
                if let found = search.look(at: "\(folder)/\(name)") { return found }
            }
        }
        throw search.failure
    }

    /// Files that the process has mapped under a segment's name, where the agent's own folder is.
    private static func mappedSegments(_ base: String, pid: Int32) -> [String] {
        guard let maps = try? ProcFS.read("\(base)/maps", limit: 32 << 20) else { return [] }
        var result: [String] = []
        for line in maps.split(separator: UInt8(ascii: "\n")) {
            guard let slash = line.firstIndex(of: UInt8(ascii: "/")),
                let last = line.lastIndex(of: UInt8(ascii: "/")),
                line[(last + 1)...].starts(with: "looplag-".utf8)
            else { continue }
            let path = String(decoding: line[slash...], as: UTF8.self)
            guard let name = SegmentName(String(decoding: line[(last + 1)...], as: UTF8.self)), name.pid == pid,
                !result.contains(path)
            else { continue }
            result.append(path)
        }
        return result
    }

    /// The memory files that the agent's thread holds in a descriptor table of its own.
    private static func memorySegments(_ pid: Int32) -> [String] {
        // An agent has one thread and keeps few descriptors; a process that pretends to many is not searched for ever.
        ProcFS.watchdogThreads(of: pid).prefix(4).flatMap { thread -> [String] in
            let folder = "/proc/\(pid)/task/\(thread)/fd"
            return ProcFS.numbers(in: folder, limit: 4096).map { "\(folder)/\($0)" }.filter {
                ProcFS.link($0) == "/memfd:looplag (deleted)"
            }
        }
    }
}

/// Tries one place after another for one process, and remembers the most telling reason why not.
private struct Search {
    let pid: Int32
    let stat: ProcessStat
    let status: ProcessStatus
    private(set) var wasRefused = false
    private var worst: TelemetryError?

    init(pid: Int32, stat: ProcessStat, status: ProcessStatus) {
        self.pid = pid
        self.stat = stat
        self.status = status
    }

    /// The pid under which the agent knows itself.
    var innerPID: Int32 { status.namespacePIDs.last ?? pid }

    var failure: TelemetryError {
        // The process may have ended while we looked.
        guard let now = ProcFS.process(pid), now.isAlive, now.startTicks == stat.startTicks else {
            return .noSuchProcess(pid: pid)
        }
        return worst ?? .noAgent(pid: pid)
    }

    mutating func look(at path: String) -> SegmentSource? {
        let source = SegmentSource(pid: pid, startTicks: stat.startTicks, path: path, isAlive: true)
        do throws(TelemetryError) {
            let look = try Look(source, owner: .process(users: status.users))
            try look.claim.check(of: source, status: status, path: path)
            // After an exec the old file stays until the new program waits for the first time, if it ever does.
            if look.isStale, ProcFS.watchdogThreads(of: pid).isEmpty { throw .noAgent(pid: pid) }
            return source
        } catch {
            remember(error)
            return nil
        }
    }

    private mutating func remember(_ error: TelemetryError) {
        if case .io(_, let code) = error, SystemError(code: code).isAbsence { return }
        if case .notPermitted(_, let path, let detail) = error {
            wasRefused = true
            if worst == nil { worst = .notPermitted(pid: pid, path: path, detail: refusal ?? detail) }
            return
        }
        switch worst {
        case nil, .notPermitted, .noAgent: worst = error
        default: break
        }
    }

    /// Why /proc would not let us in, as far as /proc says.
    private var refusal: String? {
        guard status.users.count == 4 else { return nil }
        let (owner, user) = (status.users[1], geteuid())
        return owner == user
            ? "it may not be looked into (it is not dumpable, or has more rights than you)"
            : "not permitted (it runs as uid \(owner), you are \(user))"
    }
}

/// What the head of a segment says, read once without keeping the file open.
struct Look {
    var pid: Int32
    var startTicks: UInt64
    var pidNamespace: UInt64
    /// The watchdog has not been heard of for a while.
    var isStale: Bool
    var fileBytes: Int
    var claim: SegmentClaim

    init(_ source: SegmentSource, owner: SegmentFile.Owner) throws(TelemetryError) {
        let file = try SegmentFile(path: source.path, pid: source.pid > 0 ? source.pid : nil, owner: owner)
        let condition = try file.condition()
        let bytes = condition.size
        fileBytes = bytes
        let head = SegmentHead()
        guard bytes >= SegmentLayout.headerBytes else {
            if source.isAlive { throw .noAgent(pid: source.pid) }
            throw .corrupt(path: source.path, reason: "\(bytes) bytes, less than a header")
        }
        try head.refresh(from: file)
        let header = head.header
        if header.pointee.magic == 0, source.isAlive { throw .noAgent(pid: source.pid) }
        _ = try SegmentLayout(header, fileBytes: bytes, path: source.path)
        guard let pid = Int32(exactly: header.pointee.pid), pid > 0 else {
            throw .corrupt(path: source.path, reason: "pid \(header.pointee.pid)")
        }
        self.pid = pid
        startTicks = header.pointee.start_ticks
        pidNamespace = header.pointee.pid_namespace
        claim = SegmentClaim(header, condition)
        let (now, heartbeat) = (monotonicNanoseconds(), header.pointee.heartbeat_ns)
        isStale = heartbeat > 0 && now > heartbeat && now - heartbeat > SegmentDiscovery.staleHeartbeat
    }
}

/// `looplag-PID-STARTTICKS`.
struct SegmentName: Hashable {
    var pid: Int32
    var startTicks: UInt64

    var fileName: String { "looplag-\(pid)-\(startTicks)" }

    init(pid: Int32, startTicks: UInt64) {
        self.pid = pid
        self.startTicks = startTicks
    }

    init?(_ fileName: String) {
        let parts = fileName.split(separator: "-", omittingEmptySubsequences: false)
        guard parts.count == 3, parts[0] == "looplag", let pid = Int32(parts[1]), pid > 0,
            let ticks = UInt64(parts[2])
        else { return nil }
        self.init(pid: pid, startTicks: ticks)
        // One spelling only: "+7" and "007" are no pids.
        guard self.fileName == fileName else { return nil }
    }

    /// In our own pid namespace.
    var isOfLivingProcess: Bool {
        // /proc can hide a process (hidepid), the kernel's own answer cannot.
        guard let stat = ProcFS.process(pid) else { return kill(pid, 0) == 0 || errno == EPERM }
        return stat.isAlive && stat.startTicks == startTicks
    }
}
