/// What this machine allows: versions, privileges, security settings, and the namespaces of processes.
///
/// Called by `doctor`, on the main thread. Reads /proc and asks the kernel; changes nothing. What it cannot find out is
/// nil, never a guess.

import CLoopLagTrace
import Glibc

public enum SystemFacts {
    /// Of the C library that we run with, like "2.36".
    public static var glibcVersion: String? {
        var buffer = [CChar](repeating: 0, count: 64)
        // _CS_GNU_LIBC_VERSION, "glibc 2.36".
        guard confstr(Int32(_CS_GNU_LIBC_VERSION), &buffer, buffer.count) > 0 else { return nil }
        let text = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return text.split(separator: " ").last.map(String.init)
    }

    public static var ownExecutable: String? { ProcFile.target(ofLink: "/proc/self/exe") }

    /// The calling thread as our own /proc shows it.
    public static var ownThread: Int32 {
        // "PID/task/TID"
        ProcFile.target(ofLink: "/proc/thread-self")?.split(separator: "/").last.flatMap { Int32($0) } ?? getpid()
    }

    public static var closeRangeRefusal: String? {
        let code = lag_trace_probe_close_range()
        return code == 0 ? nil : systemReason(code)
    }

    /// An event loop with no events: turns every 10 ms until `isOver`. False when there is no epoll to be had.
    public static func turnEmptyLoop(until isOver: () -> Bool) -> Bool {
        let descriptor = lag_trace_epoll_create()
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        while !isOver() { _ = lag_trace_epoll_wait(descriptor, 10) }
        return true
    }

    /// kernel.yama.ptrace_scope, 0...3; nil without Yama.
    public static var yamaScope: Int? {
        (try? ProcFile.read("/proc/sys/kernel/yama/ptrace_scope", limit: 16)).flatMap {
            Int(String(decoding: $0.prefix { $0 != 0x0a }, as: UTF8.self))
        }
    }

    /// File names of the libraries that we have loaded, with the versions in them.
    public static func mappedLibraries(beginning prefixes: [String]) -> [String] {
        guard let maps = try? ProcFile.read("/proc/self/maps", limit: 4 << 20) else { return [] }
        var result: [String] = []
        for mapping in MemoryMap.parse(maps) where mapping.isExecutable {
            let name = mapping.path.split(separator: "/").last.map(String.init) ?? ""
            if prefixes.contains(where: name.hasPrefix), !result.contains(name) { result.append(name) }
        }
        return result.sorted()
    }

    // MARK: Of a process

    public struct Privileges: Hashable, Sendable {
        /// Of the effective capabilities: CAP_SYS_PTRACE.
        public var canTrace: Bool
        /// 0 none, 1 strict, 2 filter; nil when the kernel does not say.
        public var seccompMode: Int?
        public var tracer: Int32?
        public var uids: [UInt32]
    }

    public static func privileges(pid: Int32) -> Privileges? {
        guard let bytes = try? ProcFile.read("/proc/\(pid)/status", limit: 16 << 10) else { return nil }
        var result = Privileges(canTrace: false, seccompMode: nil, tracer: nil, uids: [])
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
            let words = line.split(whereSeparator: \.isWhitespace)
            guard words.count > 1 else { continue }
            switch words[0] {
            case "CapEff:": result.canTrace = (UInt64(words[1], radix: 16) ?? 0) >> 19 & 1 == 1
            case "Seccomp:": result.seccompMode = Int(words[1])
            case "TracerPid:": result.tracer = Int32(words[1]).flatMap { $0 > 0 ? $0 : nil }
            case "Uid:": result.uids = words.dropFirst().compactMap { UInt32($0) }
            default: break
            }
        }
        return result
    }

    /// Whether the process lives in the same namespace of this kind (pid, mnt, user, net) as we do.
    public static func sharesNamespace(_ kind: String, pid: Int32) -> Bool? {
        guard let own = ProcFile.target(ofLink: "/proc/self/ns/\(kind)"),
            let other = ProcFile.target(ofLink: "/proc/\(pid)/ns/\(kind)")
        else { return nil }
        return own == other
    }

    /// False when the kernel keeps others of its own user out: its files in /proc then belong to root.
    public static func isDumpable(pid: Int32, uid: UInt32) -> Bool? {
        var status = stat()
        guard stat("/proc/\(pid)/stat", &status) == 0 else { return nil }
        return status.st_uid == uid
    }

    /// Where a mapped file of a process can be read from here; nil when it cannot.
    public static func readable(_ path: String, of pid: Int32, isExecutable: Bool) -> String? {
        let plain = path.hasSuffix(" (deleted)") ? String(path.dropLast(10)) : path
        let candidates =
            path == plain ? ["/proc/\(pid)/root\(plain)", plain] : isExecutable ? ["/proc/\(pid)/exe"] : []
        return candidates.first { access($0, R_OK) == 0 }
    }
}
