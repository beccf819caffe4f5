/// The little of /proc that finding a segment needs.
///
/// Called by discovery and by a reader's check for life, on any thread; holds no state. Nothing here throws a message
/// for people: a missing file is nil or a `SystemError`, and the callers know what that means.

import Glibc

/// The fields of /proc/PID/stat that identify a process and say whether it lives.
struct ProcessStat: Hashable {
    var state: UInt8
    var parent: Int32
    var threads: Int
    var startTicks: UInt64

    /// A leader that called pthread_exit (dispatchMain does) is a zombie while its other threads serve on.
    var isAlive: Bool { !leaderHasExited || threads > 1 }

    var leaderHasExited: Bool { state == UInt8(ascii: "Z") || state == UInt8(ascii: "X") }

    /// The name in parentheses may hold spaces and parentheses of its own: fields count from the last one.
    init?(_ bytes: UnsafeRawBufferPointer) {
        guard let close = bytes.lastIndex(of: UInt8(ascii: ")")) else { return nil }
        var at = close + 1
        /// The next field's bytes, without its spaces.
        func field() -> Range<Int>? {
            while at < bytes.count, bytes[at] == UInt8(ascii: " ") { at += 1 }
            let start = at
            while at < bytes.count, bytes[at] > UInt8(ascii: " ") { at += 1 }
            return start < at ? start..<at : nil
        }
        func number() -> UInt64? {
            guard let range = field() else { return nil }
            var value: UInt64 = 0
            for byte in bytes[range] {
                guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
                value = value &* 10 &+ UInt64(byte &- UInt8(ascii: "0"))
            }
            return value
        }
        guard let first = field(), let parent = number() else { return nil }
        for _ in 5..<20 where field() == nil { return nil }
        guard let threads = number(), field() != nil, let startTicks = number() else { return nil }
        state = bytes[first.lowerBound]
        self.parent = Int32(truncatingIfNeeded: parent)
        self.threads = Int(truncatingIfNeeded: threads)
        self.startTicks = startTicks
    }
}

/// The fields of /proc/PID/status that tell whose a segment may be, and under which pid the agent wrote it.
struct ProcessStatus: Hashable {
    /// Real, effective, saved, file system.
    var users: [UInt32]
    /// The pid in every namespace that this procfs can see, the process's own last.
    var namespacePIDs: [Int32]

    init?(_ bytes: [UInt8]) {
        var users: [UInt32] = []
        var pids: [Int32] = []
        for line in bytes.split(separator: UInt8(ascii: "\n")) {
            let fields = line.split(whereSeparator: { $0 == 0x09 || $0 == 0x20 })
            guard let name = fields.first else { continue }
            if name.elementsEqual("Uid:".utf8) {
                users = fields.dropFirst().compactMap { UInt32(String(decoding: $0, as: UTF8.self)) }
            } else if name.elementsEqual("NSpid:".utf8) {
                pids = fields.dropFirst().compactMap { Int32(String(decoding: $0, as: UTF8.self)) }
            }
        }
        guard users.count == 4 else { return nil }
        self.users = users
        self.namespacePIDs = pids
    }
}

enum ProcFS {
    /// The whole of a small file; `limit` bounds what a hostile one can cost.
    static func read(_ path: String, limit: Int = 1 << 16) throws(SystemError) -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard descriptor >= 0 else { throw .last }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: min(limit, 1 << 16))
        while bytes.count < limit {
            let count = Glibc.read(descriptor, &chunk, min(chunk.count, limit - bytes.count))
            if count < 0 {
                if errno == EINTR { continue }
                throw .last
            }
            if count == 0 { break }
            bytes.append(contentsOf: chunk[..<count])
        }
        return bytes
    }

    static func process(_ pid: Int32) -> ProcessStat? {
        guard let bytes = try? read("/proc/\(pid)/stat", limit: 4096) else { return nil }
        return bytes.withUnsafeBytes { ProcessStat($0) }
    }

    static func status(_ pid: Int32) -> ProcessStatus? {
        guard let bytes = try? read("/proc/\(pid)/status") else { return nil }
        return ProcessStatus(bytes)
    }

    static func processes() -> [Int32] { numbers(in: "/proc") }

    static func threads(of pid: Int32) -> [Int32] { numbers(in: "/proc/\(pid)/task") }

    /// The thread's name, as the process set it.
    static func name(of thread: Int32, in pid: Int32) -> [UInt8]? {
        guard var bytes = try? read("/proc/\(pid)/task/\(thread)/comm", limit: 64) else { return nil }
        if bytes.last == UInt8(ascii: "\n") { bytes.removeLast() }
        return bytes
    }

    /// The threads that the agent calls its own. Names are free to choose: a hint, never proof.
    static func watchdogThreads(of pid: Int32) -> [Int32] {
        threads(of: pid).filter { name(of: $0, in: pid)?.elementsEqual("looplag".utf8) == true }
    }

    static func link(_ path: String) -> String? {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let capacity = bytes.count
        let count = bytes.withUnsafeMutableBytes { buffer in
            buffer.baseAddress.map { readlink(path, $0.assumingMemoryBound(to: CChar.self), capacity) } ?? -1
        }
        guard count > 0, count < capacity else { return nil }
        return String(decoding: bytes[..<count], as: UTF8.self)
    }

    /// The file names of a folder, as bytes, `limit` of them at most; empty when it cannot be listed.
    static func names(in folder: String, limit: Int = .max) -> [[UInt8]] {
        guard let directory = opendir(folder) else { return [] }
        defer { closedir(directory) }
        var names: [[UInt8]] = []
        while names.count < limit, let entry = readdir(directory) {
            // A dirent is only as long as its name: project the bytes, never copy the declared 256.
            let offset = MemoryLayout<dirent>.offset(of: \.d_name) ?? 19
            let start = UnsafeRawPointer(entry).advanced(by: offset)
            let length = strlen(start.assumingMemoryBound(to: CChar.self))
            names.append(Array(UnsafeRawBufferPointer(start: start, count: length)))
        }
        return names
    }

    static func numbers(in folder: String, limit: Int = .max) -> [Int32] {
        names(in: folder, limit: limit).compactMap { name in
            guard let first = name.first, first >= 0x30, first <= 0x39 else { return nil }
            return Int32(String(decoding: name, as: UTF8.self))
        }.sorted()
    }

    /// The inode that names this process's pid namespace, as in the segment's header; nil where /proc does not say.
    static func ownPIDNamespace() -> UInt64? { namespace("pid", of: "self") }

    /// - Parameter process: a pid, or `self`.
    static func namespace(_ kind: String, of process: String) -> UInt64? {
        guard let text = link("/proc/\(process)/ns/\(kind)"), text.hasPrefix("\(kind):["), text.hasSuffix("]") else {
            return nil
        }
        return UInt64(text.dropFirst(kind.utf8.count + 2).dropLast())
    }

    /// Whether /proc counts processes as we do: a procfs of another pid namespace would call the living dead.
    static var showsOwnNumbers: Bool { link("/proc/self") == "\(getpid())" }
}

/// This machine's CLOCK_MONOTONIC, which the agents stamp everything with.
func monotonicNanoseconds() -> UInt64 {
    // As two words: the module that declares the members of `timespec` is nobody's to import.
    withUnsafeTemporaryAllocation(of: Int64.self, capacity: 2) { words in
        words.initialize(repeating: 0)
        guard let start = words.baseAddress else { return 0 }
        clock_gettime(CLOCK_MONOTONIC, UnsafeMutableRawPointer(start).assumingMemoryBound(to: timespec.self))
        return UInt64(bitPattern: words[0]) &* 1_000_000_000 &+ UInt64(bitPattern: words[1])
    }
}
