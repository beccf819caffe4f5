/// What /proc says of one process: the value behind `ps`, `run` and every message that names a process.
///
/// Called by the command line on its main thread. Reads only; never stops, signals or traces anything. A process can
/// end, exec or change its name at any byte of this, and comm and cmdline are whatever the process wants them to be:
/// they are data for people, cleaned of control characters where they are shown.

import Glibc
import LoopLagModel

public struct ProcessFacts: Hashable, Sendable {
    public var pid: Int32
    public var parentPID: Int32
    /// Effective.
    public var uid: UInt32
    /// The kernel's name of the main thread, at most 15 bytes.
    public var name: String
    /// Empty for kernel threads and zombies.
    public var command: [String]
    /// Where /proc/PID/exe points; nil when it may not be read.
    public var executable: String?
    /// Field 22 of /proc/PID/stat, in clock ticks since boot.
    public var startTicks: UInt64
    /// The state letter: R, S, D, T, t, Z, X, I.
    public var state: Character
    public var isKernelThread: Bool
    public var threadCount: Int
    /// The pid in each nested namespace, outermost first; one entry outside containers, empty on old kernels.
    public var namespacePIDs: [Int32]

    /// Ended, waiting to be reaped. A main thread that called pthread_exit (dispatchMain does) looks the same while the
    /// other threads serve on: that is no zombie.
    public var isZombie: Bool { (state == "Z" || state == "X") && threadCount <= 1 }
    public var identity: ProcessIdentity { ProcessIdentity(pid: pid, startTicks: startTicks) }

    /// What to call the process in a line for people: the file name of the executable, else the kernel's name.
    public var displayName: String {
        let path = executable ?? ""
        let file = path.split(separator: "/").last.map(String.init) ?? name
        let plain = file.hasSuffix(" (deleted)") ? String(file.dropLast(10)) : file
        return Self.printable(plain.isEmpty ? name : plain)
    }

    /// Reads one process.
    public static func read(pid: Int32) throws(AttachError) -> ProcessFacts {
        guard pid > 0 else { throw .noSuchProcess(pid: pid) }
        let folder = "/proc/\(pid)"
        let stat = try entry(pid, "stat")
        guard let parsed = parseStat(stat) else { throw .unreadable(pid: pid, reason: "stat has an unknown form") }
        let status = try entry(pid, "status")
        let fields = parseStatus(status)
        guard let uid = fields.uid else { throw .unreadable(pid: pid, reason: "status names no user") }
        // A zombie or a kernel thread has no command line; one that we may not read is no reason to hide the process.
        let command = (try? ProcFile.read(folder + "/cmdline")).map(parseCommand) ?? []
        let executable = parsed.isKernelThread ? nil : ProcFile.target(ofLink: folder + "/exe")
        return ProcessFacts(
            pid: pid, parentPID: parsed.parent, uid: uid, name: parsed.name, command: command, executable: executable,
            startTicks: parsed.startTicks, state: parsed.state, isKernelThread: parsed.isKernelThread,
            threadCount: parsed.threads, namespacePIDs: fields.namespacePIDs)
    }

    /// Every process that procfs shows, by pid; those that vanish or refuse while we look are left out.
    public static func all() -> [ProcessFacts] {
        ProcFile.numbers(in: "/proc").sorted().compactMap { try? read(pid: $0) }
    }

    /// True while this very process (not a later one with its number) exists and is not a zombie.
    public static func isRunning(_ identity: ProcessIdentity) -> Bool {
        guard let bytes = try? ProcFile.read("/proc/\(identity.pid)/stat", limit: 4096),
            let stat = parseStat(bytes)
        else { return false }
        return stat.startTicks == identity.startTicks
            && !((stat.state == "Z" || stat.state == "X") && stat.threads <= 1)
    }

    /// When the process started, in nanoseconds since 1970, to a hundredth of a second; nil when it makes no sense.
    public var startedWallNanoseconds: UInt64? {
        var now = timespec()
        var uptime = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        clock_gettime(CLOCK_BOOTTIME, &uptime)
        func nanoseconds(_ time: timespec) -> UInt64 {
            UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec)
        }
        let rate = UInt64(clamping: max(1, sysconf(Int32(_SC_CLK_TCK))))
        let (started, overflow) = startTicks.multipliedReportingOverflow(by: 1_000_000_000 / rate)
        guard !overflow, started <= nanoseconds(uptime) else { return nil }
        let age = nanoseconds(uptime) - started
        return nanoseconds(now) > age ? nanoseconds(now) - age : nil
    }

    /// The pid given out last in this pid namespace: while it stands still, no process was born. nil where /proc does
    /// not say.
    public static func lastPID() -> Int32? {
        guard let bytes = try? ProcFile.read("/proc/loadavg", limit: 256) else { return nil }
        let words = bytes.split(whereSeparator: { $0 == 0x20 || $0 == 0x0a })
        return words.count > 4 ? Int32(text(words[4])) : nil
    }

    /// The variables that a process was started with; empty when it may not be seen.
    public static func environment(pid: Int32) -> [String: String] {
        guard let bytes = try? ProcFile.read("/proc/\(pid)/environ", limit: 4 << 20) else { return [:] }
        var found: [String: String] = [:]
        for entry in bytes.split(separator: 0) {
            let parts = entry.split(separator: UInt8(ascii: "="), maxSplits: 1, omittingEmptySubsequences: false)
            if parts.count == 2 { found[text(parts[0])] = text(parts[1]) }
        }
        return found
    }

    /// Whether the process has mapped a file of this name; nil when its mappings may not be read.
    public static func hasMapped(fileName: String, pid: Int32) -> Bool? {
        guard let maps = try? ProcFile.read("/proc/\(pid)/maps", limit: 4 << 20) else { return nil }
        let wanted = Array("/\(fileName)".utf8)
        return maps.split(separator: 0x0a).contains { $0.suffix(wanted.count).elementsEqual(wanted) }
    }

    /// The name of a user, or its number where the system does not know it.
    public static func userName(_ uid: UInt32) -> String {
        var entry = passwd()
        var found: UnsafeMutablePointer<passwd>?
        var buffer = [CChar](repeating: 0, count: 4096)
        guard getpwuid_r(uid, &entry, &buffer, buffer.count, &found) == 0, found != nil, let name = entry.pw_name
        else { return String(uid) }
        return printable(String(cString: name))
    }

    /// Text from a foreign process, safe for a terminal: control characters become `?`.
    public static func printable(_ text: String) -> String {
        guard text.unicodeScalars.contains(where: isControl) else { return text }
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars { result.append(isControl(scalar) ? "?" : scalar) }
        return String(result)
    }

    private static func isControl(_ scalar: Unicode.Scalar) -> Bool {
        // C0, DEL, C1, and the bidirectional overrides that can reorder a line.
        scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || (0x202a...0x202e).contains(scalar.value)
            || (0x2066...0x2069).contains(scalar.value)
    }

    private static func entry(_ pid: Int32, _ name: String) throws(AttachError) -> [UInt8] {
        do {
            let bytes = try ProcFile.read("/proc/\(pid)/\(name)")
            // A process that ends between open and read yields nothing.
            if bytes.isEmpty { throw AttachError.noSuchProcess(pid: pid) }
            return bytes
        } catch let error as FileError {
            if error.isMissing { throw .noSuchProcess(pid: pid) }
            if error.isForbidden { throw .notPermitted(pid: pid, action: "look at", reason: error.reason) }
            throw .unreadable(pid: pid, reason: error.reason)
        } catch {
            throw .noSuchProcess(pid: pid)
        }
    }
}

// MARK: - Parsing, apart from the files so that tests can feed it anything

extension ProcessFacts {
    struct Stat: Hashable {
        var name: String
        var state: Character
        var parent: Int32
        var isKernelThread: Bool
        var threads: Int
        var startTicks: UInt64
    }

    /// `pid (comm) S ppid ...`: comm may itself hold spaces and parentheses, so its end is the last `)`.
    static func parseStat(_ bytes: [UInt8]) -> Stat? {
        guard let open = bytes.firstIndex(of: UInt8(ascii: "(")), let close = bytes.lastIndex(of: UInt8(ascii: ")")),
            open < close
        else { return nil }
        let name = String(decoding: bytes[(open + 1)..<close], as: UTF8.self)
        let fields = bytes[(close + 1)...].split(whereSeparator: { $0 == 0x20 || $0 == 0x0a })
        // Field numbers of proc(5) less 3: state 0, ppid 1, flags 6, num_threads 17, starttime 19.
        guard fields.count > 19, let letter = fields[0].first, let parent = Int32(text(fields[1])),
            let flags = UInt64(text(fields[6])), let threads = Int(text(fields[17])),
            let start = UInt64(text(fields[19]))
        else { return nil }
        return Stat(
            name: name, state: Character(Unicode.Scalar(letter)), parent: parent,
            isKernelThread: flags & 0x0020_0000 != 0, threads: threads, startTicks: start)
    }

    static func parseStatus(_ bytes: [UInt8]) -> (uid: UInt32?, namespacePIDs: [Int32]) {
        var uid: UInt32?
        var pids: [Int32] = []
        for line in bytes.split(separator: 0x0a) {
            let words = line.split(whereSeparator: { $0 == 0x09 || $0 == 0x20 })
            guard let key = words.first.map(text) else { continue }
            // Uid: real effective saved filesystem
            if key == "Uid:", words.count > 2 { uid = UInt32(text(words[2])) }
            if key == "NSpid:" { pids = words.dropFirst().prefix(32).compactMap { Int32(text($0)) } }
        }
        return (uid, pids)
    }

    /// NUL between arguments; a process that rewrote its title may leave spaces and a tail of NULs.
    static func parseCommand(_ bytes: [UInt8]) -> [String] {
        var content = bytes[...]
        while content.last == 0 { content = content.dropLast() }
        guard !content.isEmpty else { return [] }
        return content.split(separator: 0, maxSplits: 4095, omittingEmptySubsequences: false).map { text($0) }
    }

    private static func text(_ bytes: ArraySlice<UInt8>) -> String { String(decoding: bytes, as: UTF8.self) }
}
