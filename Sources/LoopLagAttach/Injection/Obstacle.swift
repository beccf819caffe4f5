/// Looks before anything is touched: what a process is, who may trace it, and what guards it. Throws the first reason
/// why no agent can be brought into it.
///
/// Called on any thread; reads procfs only.

import Glibc

enum Obstacle {
    /// - Parameter traces: false for a way in that needs no tracing.
    static func check(pid: Int32, traces: Bool = true) throws(InjectError) -> ProcessFacts {
        let facts: ProcessFacts
        do throws(AttachError) {
            facts = try ProcessFacts.read(pid: pid)
        } catch {
            switch error {
            case .noSuchProcess: throw .gone
            case .notPermitted(_, _, let reason): throw .notPermitted(reason)
            default: throw .failed(error.message)
            }
        }
        if facts.isZombie { throw .gone }
        if facts.isKernelThread { throw .unfit("it is a thread of the kernel") }
        let fields = status(pid)
        if let tracer = fields["TracerPid"].flatMap({ Int32($0) }), tracer > 0 {
            let name = (try? ProcessFacts.read(pid: tracer)).map { " (\($0.displayName))" } ?? ""
            throw .failed("it is being traced by \(tracer)\(name) already; let that end first")
        }
        if facts.state == "T" || facts.state == "t" {
            throw .failed("it is stopped; let it go on with 'kill -CONT \(pid)' first")
        }
        if traces, let refusal = traceRefusal(facts) { throw .notPermitted(refusal) }
        let program = ExecutableFacts.inspect(pid: pid)
        switch program.kind {
        case .dynamic, .unknown: break
        case .statically: throw .unfit("it is linked statically and has no loader that could take an agent in")
        case .musl: throw .unfit("it uses musl, and the agent needs glibc")
        case .thirtyTwoBit: throw .unfit("it is a 32-bit program, and the agent is x86_64")
        case .otherMachine: throw .unfit("it is built for another machine, and the agent is x86_64")
        }
        if program.gainsPrivileges {
            throw .unfit("it runs with raised privileges (setuid, setgid or file capabilities)")
        }
        if fields["x86_Thread_features"]?.contains("shstk") == true {
            throw .unfit("it runs under a shadow stack; start it with 'looplag run -- ...'")
        }
        if fields["Seccomp"] == "1" { throw .unfit("it runs under strict seccomp, where every new call is fatal") }
        return facts
    }

    static func status(_ pid: Int32, tid: Int32? = nil) -> [String: String] {
        let path = tid.map { "/proc/\(pid)/task/\($0)/status" } ?? "/proc/\(pid)/status"
        guard let bytes = try? ProcFile.read(path, limit: 16 << 10) else { return [:] }
        var fields: [String: String] = [:]
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n") {
            guard let colon = line.firstIndex(of: ":") else { continue }
            fields[String(line[..<colon])] =
                line[line.index(after: colon)...].drop { $0 == "\t" || $0 == " " }
                .description
        }
        return fields
    }

    /// Why the kernel would not let us trace it; nil when it would. The `syscall` file asks the same question.
    private static func traceRefusal(_ facts: ProcessFacts) -> String? {
        guard let tid = ProcFile.numbers(in: "/proc/\(facts.pid)/task").first,
            ThreadFacts.syscallRefusal(pid: facts.pid, tid: tid) != nil
        else { return nil }
        let own = geteuid()
        if facts.uid != own {
            return "not permitted to trace it (uid \(facts.uid), you are \(own)); run as that user or with"
                + " CAP_SYS_PTRACE"
        }
        if let scope = try? ProcFile.read("/proc/sys/kernel/yama/ptrace_scope", limit: 8), scope.first != 0x30 {
            return "not permitted to trace it: kernel.yama.ptrace_scope is"
                + " \(String(decoding: scope.prefix(1), as: UTF8.self)); run as root or with CAP_SYS_PTRACE"
        }
        return "not permitted to trace it: it has more rights than you, or is not dumpable; run as root or with"
            + " CAP_SYS_PTRACE"
    }
}
