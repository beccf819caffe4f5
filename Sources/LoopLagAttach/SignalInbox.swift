/// Receives signals as values instead of interrupts: they are blocked, and `next` waits for one.
///
/// Used by every verb that runs until something happens (`run`, `stalls --follow`, `record`), on the main thread, which
/// makes it before any other thread exists so that all inherit the block. No handler, so nothing of ours ever runs in
/// signal context; dispositions stay as inherited, so a child started with `inheritedMask` gets exactly what we got.

import Glibc

public struct ReceivedSignal: Hashable, Sendable {
    public var number: Int32
    /// Sent by the kernel itself, as the terminal driver does for Ctrl-C: the whole foreground group got it.
    public var isFromKernel: Bool
    /// Whoever started us ignored it: nohup does for SIGHUP, a script's shell for SIGINT in its background jobs.
    public var wasIgnored: Bool

    /// Whether it asks us to end. A terminal's Ctrl-C is not meant for a background job; a `kill -INT` is.
    public var isStopRequest: Bool { !(wasIgnored && (isFromKernel || number == SIGHUP)) }
}

public struct SignalInbox: ~Copyable {
    private var awaited: sigset_t
    /// The mask as it was before; what a child must start with.
    public let inheritedMask: sigset_t
    private let ignored: Set<Int32>

    public init(_ numbers: [Int32]) {
        var set = sigset_t()
        sigemptyset(&set)
        for number in numbers { sigaddset(&set, number) }
        var old = sigset_t()
        sigemptyset(&old)
        pthread_sigmask(SIG_BLOCK, &set, &old)
        awaited = set
        inheritedMask = old
        // A blocked signal is queued even where its disposition is to be ignored.
        ignored = Set(numbers.filter(InheritedDispositions.isIgnored))
    }

    /// The next signal, or nil when none came within `timeout`. Never longer than the time-out, also when interrupted.
    public mutating func next(timeout: Duration) -> ReceivedSignal? {
        let (seconds, attoseconds) = max(timeout, .zero).components
        var limit = timespec(tv_sec: Int(seconds), tv_nsec: Int(attoseconds / 1_000_000_000))
        var info = siginfo_t()
        let number = sigtimedwait(&awaited, &info, &limit)
        guard number > 0 else { return nil }
        return ReceivedSignal(
            number: number, isFromKernel: info.si_code == SI_KERNEL, wasIgnored: ignored.contains(number))
    }
}

/// What the process was started with and does not want to pass on changed.
public struct InheritedDispositions: Sendable {
    /// SIGPIPE was ignored by whoever started us (an init system may), so the child keeps that too.
    public let ignoredPipe: Bool

    /// Ignores SIGPIPE for us, so that a closed pipe is an error of `write`; and takes SIGCHLD back to its default,
    /// because a parent that ignored it would make the kernel discard our child's exit status.
    public static func prepare() -> InheritedDispositions {
        var action = sigaction()
        let ignored = isIgnored(SIGPIPE)
        action.__sigaction_handler.sa_handler = SIG_IGN
        sigaction(SIGPIPE, &action, nil)
        action.__sigaction_handler.sa_handler = SIG_DFL
        sigaction(SIGCHLD, &action, nil)
        return InheritedDispositions(ignoredPipe: ignored)
    }

    static func isIgnored(_ number: Int32) -> Bool {
        var action = sigaction()
        sigaction(number, nil, &action)
        return unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self)
            == unsafeBitCast(SIG_IGN, to: Int.self)
    }
}
