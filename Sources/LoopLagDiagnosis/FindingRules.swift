/// The rules themselves, one small type each: causes of stalls first, then what kept LoopLag from seeing.
///
/// Called by `findings(for:)`. Pure.

import LoopLagModel

enum FindingRules {
    static let all: [any FindingRule] = [
        BlockingCall(), BusyHandler(), CrowdedIteration(), LockedHandler(), LockConvoy(), CollectorPause(), FullPool(),
        NodeCollectorPause(), FullLibuvPool(),
        StarvedMachine(), StoppedProcess(), PagedOut(), NoLoop(),
        LoopsRefused(), SamplesLost(), DegradedAgent(),
    ]
}

/// The loop waits in the kernel for something other than events.
struct BlockingCall: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .syscall }
        guard !stalls.isEmpty else { return nil }
        let calls = Set(stalls.compactMap(\.syscall)).sorted()
        let who = context.mainCulprit(of: stalls) ?? "a handler"
        let called = calls.isEmpty ? "the kernel" : calls.prefix(3).joined(separator: ", ")
        return context.finding(
            "blocking-call", context.severity(of: stalls), "Blocking call on the event loop: \(who) waits in \(called)",
            evidence: "\(context.subject): \(context.summary(of: stalls)), blocked in \(called).",
            advice: Self.advice(context.kind(of: stalls)), stalls: stalls)
    }

    private static func advice(_ kind: String) -> String {
        switch kind {
        case "asyncio", "uvloop":
            "Use the awaitable version of the call, or await asyncio.to_thread(...); in FastAPI a plain `def` handler "
                + "runs on a worker thread."
        case "libuv": "Use the asynchronous version of the call (no ...Sync), or move it to a worker thread."
        case "nio": "Use the non-blocking API, or run the call on NIOThreadPool with runIfActive(eventLoop:)."
        default: "Move the call off the loop's thread, or give it to a thread pool; other clients wait meanwhile."
        }
    }
}

/// A handler computes for longer than the threshold.
struct BusyHandler: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .onCPU }
        guard !stalls.isEmpty else { return nil }
        let who = context.mainCulprit(of: stalls) ?? "a handler"
        return context.finding(
            "busy-handler", context.severity(of: stalls), "CPU-bound work on the event loop: \(who)",
            evidence: "\(context.subject): \(context.summary(of: stalls)), running on a CPU.",
            advice: Self.advice(context.kind(of: stalls)), stalls: stalls)
    }

    private static func advice(_ kind: String) -> String {
        switch kind {
        case "asyncio", "uvloop":
            "Move the work to a process pool (threads share the interpreter's lock), make it cheaper, or break it up "
                + "with await asyncio.sleep(0)."
        case "libuv": "Move the work to a worker_thread, make it cheaper, or break it up with setImmediate."
        case "nio": "Move the work off the loop (NIOThreadPool, a task of its own), or break it up with execute."
        default: "Make the work cheaper, break it up, or move it to another thread or process."
        }
    }
}

/// The loop waits for a lock that somebody else holds.
struct LockedHandler: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .lock }
        guard !stalls.isEmpty else { return nil }
        let who = context.mainCulprit(of: stalls) ?? "a handler"
        return context.finding(
            "lock", context.severity(of: stalls), "The event loop waits for a lock: \(who)",
            evidence: "\(context.subject): \(context.summary(of: stalls)), waiting for a lock.",
            advice: "Hold the lock for less time elsewhere, or do what needs it off the loop's thread.", stalls: stalls)
    }
}

/// The loop was ready to run and was not let: not the user's code.
struct StarvedMachine: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter {
            $0.cause == .runQueue || $0.cause == .cgroupThrottled
                || $0.durationNS > 0 && ($0.evidence["watchdog_late_ns"] ?? 0) >= Double($0.durationNS) / 2
        }
        if !stalls.isEmpty {
            return context.finding(
                "starved", .warning, "The machine did not let the loop run",
                evidence: "\(context.subject): \(context.summary(of: stalls)), ready to run but not running, or with "
                    + "LoopLag's own watchdog held up as well.",
                advice: "Look for other busy processes, a CPU limit of the container or a suspended machine before "
                    + "looking at the code.", stalls: stalls)
        }
        // Short waits add up without one long stall.
        let waited = context.loops.compactMap(\.runQueueWaitNS).reduce(0.0) { $0 + Double($1) }
        let busy = context.loops.reduce(0.0) { $0 + Double($1.busyNS) }
        guard waited >= 100e6, busy > 0, waited >= busy / 5 else { return nil }
        return context.finding(
            "starved", .info, "The loops often wait for a CPU",
            evidence: "\(context.subject): ready to run but not running for \(Self.text(waited)), busy for "
                + "\(Self.text(busy)).",
            advice:
                "More threads or processes want to run than there are CPUs: look for the busy ones, or for a CPU limit."
        )
    }

    private static func text(_ nanoseconds: Double) -> String {
        PlainText.duration(nanoseconds: Int64(min(9e18, max(0, nanoseconds))))
    }
}

struct StoppedProcess: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .processStopped }
        guard !stalls.isEmpty else { return nil }
        return context.finding(
            "stopped", .info, "The process was stopped from outside",
            evidence: "\(context.subject): \(context.summary(of: stalls)), stopped by a signal, a debugger, a frozen "
                + "container or a suspended machine.",
            advice: "Nothing in the code did this; look for who stops it (SIGSTOP, a tracer, docker pause).",
            stalls: stalls)
    }
}

struct PagedOut: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .pageFault }
        guard !stalls.isEmpty else { return nil }
        return context.finding(
            "page-fault", context.severity(of: stalls), "The event loop waits for memory to be read from disk",
            evidence: "\(context.subject): \(context.summary(of: stalls)), in page faults.",
            advice: "The machine or the container is short of memory, or a mapped file is read on the loop.",
            stalls: stalls)
    }
}

struct NoLoop: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        guard context.loops.isEmpty else { return nil }
        return context.finding(
            "no-loop", .warning, "No event loop was seen",
            evidence: "\(context.subject): nothing waited in epoll while it was measured.",
            advice: "A server that waits in poll or select needs LOOPLAG_WAITS=epoll,poll; a statically linked one, a "
                + "Go program, or one that uses io_uring cannot be seen. `looplag doctor` says which.")
    }
}

struct LoopsRefused: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        guard context.process.agent.degraded.contains("loops-full") else { return nil }
        return context.finding(
            "loops-refused", .warning, "Not every loop is measured",
            evidence: "\(context.subject): more threads run a loop than the segment has room for.",
            advice: "Numbers of the loops shown are right; further loops are missing. Give /dev/shm more room if it is "
                + "small, or measure a server with fewer threads.")
    }
}

struct SamplesLost: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let dropped = context.process.agent.samplesDropped
        let without = context.stalls.filter { $0.samples.allSatisfy(\.stack.isEmpty) }
        guard dropped > 0, !without.isEmpty else { return nil }
        let reasons = Set(without.compactMap(\.noStackReason)).sorted().joined(separator: ", ")
        return context.finding(
            "samples-dropped", .info, "Some stalls have no stack",
            evidence: "\(context.subject): \(without.count) of \(context.stalls.count) stalls without a stack, "
                + "\(dropped) samples dropped\(reasons.isEmpty ? "" : " (\(reasons))").",
            advice: "Their times and causes are right all the same. `looplag doctor \(context.process.pid)` says what "
                + "keeps the agent from taking stacks.", stalls: without)
    }
}

struct DegradedAgent: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let names = context.process.agent.degraded.filter { $0 != "loops-full" }
        guard !names.isEmpty else { return nil }
        let reasons = names.map { Self.meaning[$0] ?? $0 }
        return context.finding(
            "degraded", .info, "The agent works with less than it would like",
            evidence: "\(context.subject): \(reasons.joined(separator: "; ")).",
            advice: "`looplag doctor \(context.process.pid)` names the remedy for each.")
    }

    /// In words, by the agent's own names.
    private static let meaning: [String: String] = [
        "no-syscall-file": "it may not read its own /proc/self/task/TID/syscall (a non-dumpable process), so it takes "
            + "no stacks of blocked threads",
        "no-signal": "no realtime signal is free, so running threads give no stack",
        "no-safe-read": "process_vm_readv is refused (a seccomp profile), so blocked threads give no stack",
        "small-segment": "there was little room for its segment, so it keeps counters and stalls only",
        "no-private-fds": "it shares the descriptor table with the host",
        "budget": "it went over its CPU budget and looks less often",
        "modules-full": "more libraries are loaded than it has room for; some frames stay unnamed",
        "no-task-dir": "/proc does not show its threads (a foreign pid namespace)",
        "memfd": "no directory took its segment, so nothing is left after the process dies",
        "no-python":
            "it does not know this version of CPython well enough to read its frames, so stacks are native only",
        "python-fallback":
            "it does not know this version of CPython, whose faulthandler gives the frames of a running main thread; "
            + "blocked threads give native frames only",
        "no-pools": "the runtime's pools cannot be read here",
        "stacks-off": "stacks are switched off (LOOPLAG_STACKS=0)",
    ]
}
