/// Chooses the thread that an attach borrows: one that sits in a wait for events, where it holds no lock of the loader
/// or of malloc and expects to come back after any time.
///
/// Reads procfs only; the thread may be elsewhere a moment later, so the injector looks again once it is stopped.
/// Never a thread in a futex or any other call, and never the main thread by assumption: a NIO server's sits in
/// sigsuspend.

import Glibc

struct SafeThread: Hashable {
    var tid: Int32
    var name: String
    var call: Int

    /// The threads that wait now, best first.
    static func candidates(pid: Int32) -> [SafeThread] {
        var found: [(rank: Int, thread: SafeThread)] = []
        for tid in ProcFile.numbers(in: "/proc/\(pid)/task").sorted() {
            guard case .blocked(let number?, let arguments, _, _)? = ThreadFacts.syscall(pid: pid, tid: tid),
                WaitCall.isLoopWait(number), let thread = ThreadFacts.read(pid: pid, tid: tid), thread.state == "S",
                // Its watchdog, and what it has forked off.
                thread.name != "looplag"
            else { continue }
            found.append((rank(number, arguments), SafeThread(tid: tid, name: thread.name, call: number)))
        }
        return found.sorted { ($0.rank, $0.thread.tid) < ($1.rank, $1.thread.tid) }.map(\.thread)
    }

    /// A thread on a processor, the main thread first.
    static func running(pid: Int32) -> SafeThread? {
        for tid in [pid] + ProcFile.numbers(in: "/proc/\(pid)/task").sorted() {
            guard ThreadFacts.syscall(pid: pid, tid: tid) == .running,
                let thread = ThreadFacts.read(pid: pid, tid: tid), thread.name != "looplag", thread.state == "R"
            else { continue }
            return SafeThread(tid: tid, name: thread.name, call: -1)
        }
        return nil
    }

    /// A wait without a time-out is begun anew as it was; one with a time-out has to be given its rest.
    private static func rank(_ number: Int, _ arguments: [UInt64]) -> Int {
        switch number {
        case 232, 281:
            guard arguments.count > 3 else { return 3 }
            return Int32(truncatingIfNeeded: arguments[3]) < 0 ? 0 : 1
        case 7:
            guard arguments.count > 2 else { return 3 }
            return Int32(truncatingIfNeeded: arguments[2]) < 0 ? 2 : 4
        case 23, 270, 271: return 2
        default: return 3
        }
    }

    /// What stands in the way when none waits: what the threads do instead.
    static func whyNone(pid: Int32) -> String {
        let main = ThreadFacts.syscall(pid: pid, tid: pid)
        let doing =
            switch main {
            case .running?: "its main thread is on a processor"
            case .blocked(let number?, _, _, _)?: "its main thread is in system call \(number)"
            case .blocked(nil, _, _, _)?: "its main thread is blocked outside of any call"
            case nil: "its main thread cannot be looked at"
            }
        return "no thread of it waits for events, and elsewhere it is not safe to stop one (\(doing))"
    }
}
