/// What /proc says of one thread at this moment: its name, its state, and where it is blocked if it is.
///
/// Called by the stack capture and by `doctor`, on the main thread. Reads only; the thread runs on and may be elsewhere
/// before the answer is back, so whoever relies on an answer asks twice.

import Glibc

/// What /proc/PID/task/TID/syscall shows.
public enum SyscallLook: Hashable, Sendable {
    /// On a processor, or ready for one; the kernel shows no registers.
    case running
    /// Off the processor. Without a number it is blocked outside of any call: a page fault, a stop.
    case blocked(number: Int?, arguments: [UInt64], stackPointer: UInt64, pc: UInt64)

    /// `running`, `-1 SP PC`, or `NR A1 A2 A3 A4 A5 A6 SP PC`.
    init?(_ bytes: [UInt8]) {
        let words = String(decoding: bytes, as: UTF8.self).split(whereSeparator: \.isWhitespace)
        if words.first == "running" {
            self = .running
            return
        }
        func hex(_ word: Substring) -> UInt64? { UInt64(word.hasPrefix("0x") ? word.dropFirst(2) : word, radix: 16) }
        guard let first = words.first, let number = Int(first) else { return nil }
        let rest = words.dropFirst().compactMap(hex)
        if number < 0 {
            guard rest.count == 2 else { return nil }
            self = .blocked(number: nil, arguments: [], stackPointer: rest[0], pc: rest[1])
        } else {
            guard rest.count == 8 else { return nil }
            self = .blocked(number: number, arguments: Array(rest[..<6]), stackPointer: rest[6], pc: rest[7])
        }
    }

    public var number: Int? {
        if case .blocked(let number, _, _, _) = self { return number }
        return nil
    }
}

public struct ThreadFacts: Hashable, Sendable {
    public var tid: Int32
    /// The number that the process itself knows the thread by; differs in a pid namespace of its own.
    public var innerTID: Int32
    public var name: String
    public var state: Character

    /// nil when the thread has ended.
    public static func read(pid: Int32, tid: Int32) -> ThreadFacts? {
        let folder = "/proc/\(pid)/task/\(tid)"
        guard let bytes = try? ProcFile.read(folder + "/stat", limit: 4096), let stat = ProcessFacts.parseStat(bytes)
        else { return nil }
        let status = (try? ProcFile.read(folder + "/status", limit: 16 << 10)).map(ProcessFacts.parseStatus)
        return ThreadFacts(
            tid: tid, innerTID: status?.namespacePIDs.last ?? tid, name: stat.name, state: stat.state)
    }

    public static func all(pid: Int32) -> [ThreadFacts] {
        ProcFile.numbers(in: "/proc/\(pid)/task").sorted().compactMap { read(pid: pid, tid: $0) }
    }

    /// nil when the kernel does not tell: an old kernel, or a process that this user may not trace.
    public static func syscall(pid: Int32, tid: Int32) -> SyscallLook? {
        (try? ProcFile.read("/proc/\(pid)/task/\(tid)/syscall", limit: 1024)).flatMap { SyscallLook($0) }
    }

    /// Why `syscall` cannot be read; nil when it can.
    public static func syscallRefusal(pid: Int32, tid: Int32) -> String? {
        do throws(FileError) {
            _ = try ProcFile.read("/proc/\(pid)/task/\(tid)/syscall", limit: 1024)
            return nil
        } catch {
            return error.isForbidden ? "not permitted to trace it" : error.reason
        }
    }

    /// The function of the kernel in which the thread is blocked; nil when it is not, or nobody may know.
    static func waitChannel(pid: Int32, tid: Int32) -> String? {
        guard let bytes = try? ProcFile.read("/proc/\(pid)/task/\(tid)/wchan", limit: 256), !bytes.isEmpty,
            bytes != [UInt8(ascii: "0")]
        else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Time on a processor, time waiting for one, and how often it got one: unchanged means that it has not run.
    static func schedule(pid: Int32, tid: Int32) -> [UInt8]? {
        try? ProcFile.read("/proc/\(pid)/task/\(tid)/schedstat", limit: 256)
    }
}

/// System calls of x86_64 by what they are for; the numbers are the kernel's ABI.
public enum WaitCall {
    /// epoll_wait, epoll_pwait, epoll_pwait2.
    public static let epoll: Set<Int> = [232, 281, 441]
    /// poll, select, pselect6, ppoll.
    public static let poll: Set<Int> = [7, 23, 270, 271]
    /// io_uring_enter, and the older io_getevents and io_pgetevents.
    public static let ring: Set<Int> = [426, 208, 333]

    /// A loop waits here.
    public static func isLoopWait(_ number: Int) -> Bool { epoll.contains(number) || poll.contains(number) }
}
