/// One process's side of `doctor PID`: can it be looked at, can it be measured, what will its stacks show.
///
/// Main thread. It stops and loads nothing: the process does not notice. A process may end at any line; what cannot be
/// read any more is then left out.

import Glibc
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagTelemetry

enum ProcessChecks {
    static func run(pid: Int32, into checkup: inout Checkup) throws {
        let facts = try ProcessFacts.read(pid: pid)
        let name = serverName(command: facts.command, executable: facts.executable, runtime: nil)
        checkup.ok("process", "\(pid) is \(name) (\(facts.displayName)), of user \(ProcessFacts.userName(facts.uid))")
        if facts.isZombie {
            checkup.failed(
                "zombie", "it has ended and waits for its parent", "nothing runs any more; look at its parent")
            return
        }
        if facts.isKernelThread {
            checkup.failed("kernel-thread", "it is a thread of the kernel", "LoopLag measures programs")
            return
        }
        let mayLook = permission(facts, &checkup)
        surroundings(facts, &checkup)
        let program = ExecutableFacts.inspect(pid: pid)
        let agent = agent(facts, program, &checkup)
        guard mayLook else { return }
        executable(facts, program, agent != nil, &checkup)
        waits(facts, agent, &checkup)
        symbols(facts, &checkup)
    }

    // MARK: May we look

    private static func permission(_ facts: ProcessFacts, _ checkup: inout Checkup) -> Bool {
        let privileges = SystemFacts.privileges(pid: facts.pid)
        guard let reason = ThreadFacts.syscallRefusal(pid: facts.pid, tid: facts.pid) else {
            checkup.ok("permission", "its threads and memory may be read")
            if let tracer = privileges?.tracer {
                checkup.warning(
                    "tracer", "it is traced by \(tracer) (a debugger, or strace)",
                    "running threads show no stack until that lets go of it")
            }
            return true
        }
        let subject = "its threads may not be looked at: \(reason)"
        if privileges.map({ !$0.uids.contains(geteuid()) }) ?? false, geteuid() != 0 {
            checkup.failed(
                "permission", "\(subject) (it runs as uid \(facts.uid), you are \(geteuid()))",
                "run looplag as that user or with sudo")
        } else if SystemFacts.isDumpable(pid: facts.pid, uid: facts.uid) == false, facts.uid != 0 {
            checkup.failed(
                "permission", "\(subject): it is not dumpable (it changed its user or has capabilities)",
                "run looplag with sudo, or let the server call prctl(PR_SET_DUMPABLE, 1)")
        } else if let scope = SystemFacts.yamaScope, scope > 0 {
            checkup.failed(
                "permission", "\(subject): kernel.yama.ptrace_scope is \(scope)",
                "run looplag with sudo, start the server with 'looplag run', or 'sysctl kernel.yama.ptrace_scope=0'")
        } else {
            checkup.failed("permission", subject, "run looplag with sudo or with CAP_SYS_PTRACE")
        }
        return false
    }

    private static func surroundings(_ facts: ProcessFacts, _ checkup: inout Checkup) {
        let own = ["pid", "mnt"].filter { SystemFacts.sharesNamespace($0, pid: facts.pid) == false }
        if !own.isEmpty {
            let names = own.map { $0 == "mnt" ? "mount" : $0 }.joined(separator: " and ")
            checkup.note(
                "namespaces", "it lives in a \(names) namespace of its own (a container)",
                own.contains("mnt")
                    ? "its files are read through /proc/\(facts.pid)/root; 'run' inside needs the agent inside" : nil)
        }
        if let mode = SystemFacts.privileges(pid: facts.pid)?.seccompMode, mode > 0 {
            checkup.note(
                "seccomp", mode == 1 ? "it is in strict seccomp mode" : "a seccomp filter is in force for it",
                "calls that the agent needs may be refused: see the agent's own lines")
        }
    }

    // MARK: The agent

    private static func agent(
        _ facts: ProcessFacts, _ program: ExecutableFacts, _ checkup: inout Checkup
    ) -> FollowedProcess? {
        let process: FollowedProcess
        do throws(TelemetryError) {
            process = try FollowedProcess(source: try SegmentDiscovery.live(pid: facts.pid))
        } catch {
            guard case .noAgent = error else {
                checkup.failed(
                    "agent", error.message, "see the line on permissions, and use command line and agent of one build")
                return nil
            }
            if ProcessFacts.hasMapped(fileName: AgentObject.fileName, pid: facts.pid) == true {
                checkup.warning(
                    "agent", "the agent is loaded and has not started: the process has not waited in epoll yet",
                    "LOOPLAG_DISABLE=1 keeps it off; a server that waits in poll or select needs"
                        + " LOOPLAG_WAITS=epoll,poll")
            } else if program.obstacle == nil {
                checkup.note("agent", "no agent is in it", "start it with 'looplag run -- ...' to measure it")
            }
            return nil
        }
        let agent = process.latest.agent
        checkup.ok("agent", "the agent is \(process.latest.state.rawValue) (\(agent.mode))")
        let loops = process.serverLoops.count
        if loops == 0 {
            checkup.warning(
                "loops", "it has no loop that serves", "one that waits in poll or select needs LOOPLAG_WAITS=epoll,poll"
            )
        } else {
            let stalls = process.serverLoops.reduce(0) { $0 &+ $1.stallCount }
            checkup.ok("loops", "\(Readiness.count(loops, "loop")) measured, \(stalls) stalls so far")
        }
        if agent.loopsRefused > 0 {
            checkup.warning(
                "loops-refused", "\(agent.loopsRefused) loops found no free slot",
                "measure fewer threads in one process")
        }
        Degradation.explain(agent, id: "agent", into: &checkup)
        Degradation.explainDrops(agent, into: &checkup)
        return process
    }

    // MARK: The program

    private static func executable(
        _ facts: ProcessFacts, _ program: ExecutableFacts, _ hasAgent: Bool, _ checkup: inout Checkup
    ) {
        let elf = ElfFacts(path: "/proc/\(facts.pid)/exe")
        if elf?.isGo == true {
            checkup.failed(
                "program", "it is a Go program: its loops wait in raw system calls",
                "no agent sees those; 'looplag dump' shows its threads")
            return
        }
        if let obstacle = program.obstacle {
            if hasAgent {
                checkup.note("program", obstacle)
            } else {
                checkup.failed(
                    "program", "it cannot be measured: \(obstacle)",
                    program.gainsPrivileges
                        ? "start it without raised privileges, as the user it is to run as"
                        : "a build of it for x86_64, linked dynamically with glibc, can be; 'looplag dump' works")
            }
            return
        }
        guard let map = MemoryMap.read(pid: facts.pid) else { return }
        let libc = map.executableFiles.first { $0.hasSuffix("/libc.so.6") || $0.contains("/libc-2.") }
        let have = libc.flatMap { SystemFacts.readable($0, of: facts.pid, isExecutable: false) }
            .flatMap { ElfFacts(path: $0)?.glibcProvided }
        let wanted = (try? AgentObject.locate()).flatMap { ElfFacts(path: $0.path)?.glibcNeeded }
        if let have, let wanted, VersionNumber.isOlder(have, than: wanted) {
            checkup.failed(
                "program", "its glibc is \(have), the agent needs \(wanted)",
                "build the agent on a machine with glibc \(have) or older")
        } else {
            checkup.ok("program", "a dynamic x86_64 program" + (have.map { " with glibc \($0)" } ?? ""))
        }
    }

    // MARK: What it waits in

    private static func waits(_ facts: ProcessFacts, _ agent: FollowedProcess?, _ checkup: inout Checkup) {
        let measured = Set((agent?.latest.loops ?? []).filter(\.isLive).map(\.tid))
        var polls = 0
        var rings = 0
        var unmeasured = 0
        for thread in ThreadFacts.all(pid: facts.pid) {
            guard let number = ThreadFacts.syscall(pid: facts.pid, tid: thread.tid)?.number,
                !measured.contains(thread.innerTID)
            else { continue }
            if WaitCall.poll.contains(number) { polls += 1 }
            if WaitCall.ring.contains(number) { rings += 1 }
            if WaitCall.epoll.contains(number) { unmeasured += 1 }
        }
        if agent != nil, unmeasured > 0 {
            checkup.warning(
                "raw-epoll", "\(Readiness.count(unmeasured, "thread")) in epoll that the agent does not see",
                "it calls the kernel directly (a statically linked runtime, Go, inline assembly); 'looplag dump' shows it"
            )
        }
        if polls > 0 {
            checkup.note(
                "poll-waits",
                "\(Readiness.count(polls, "thread")) in poll or select, which are not measured by default",
                "if that is its event loop, start it with LOOPLAG_WAITS=epoll,poll")
        }
        if rings > 0 {
            checkup.warning(
                "ring-waits", "\(Readiness.count(rings, "thread")) in io_uring or kernel aio, which no agent sees",
                "let the server's loop use epoll (libuv: UV_USE_IO_URING=0); 'looplag dump' shows the threads")
        }
    }

    // MARK: What its stacks will show

    private static func symbols(_ facts: ProcessFacts, _ checkup: inout Checkup) {
        guard let map = MemoryMap.read(pid: facts.pid) else { return }
        var stripped: [String] = []
        var bare = 0
        var lost: [String] = []
        for module in map.modules(memory: ProcessMemory(pid: facts.pid)) where !module.isVDSO {
            let name = module.path.split(separator: "/").last.map(String.init) ?? module.path
            let isMain = facts.executable == module.path
            guard let path = SystemFacts.readable(module.path, of: facts.pid, isExecutable: isMain),
                let elf = ElfFacts(path: path)
            else {
                lost.append(name)
                continue
            }
            let debug = debugFile(of: module, elf, pid: facts.pid)
            let kind: String
            if elf.hasDebugInfo || debug.map({ ElfFacts(path: $0)?.hasDebugInfo ?? false }) == true {
                kind = "functions, files and lines"
            } else if elf.hasSymbolTable || debug != nil {
                kind = "functions, no lines"
            } else {
                kind = "exported functions only"
            }
            if isMain {
                let text = "\(name): \(kind)" + (debug.map { " (from \($0))" } ?? "")
                let isInterpreter = ["python", "node"].contains { name.hasPrefix($0) }
                if kind == "exported functions only", !isInterpreter {
                    checkup.note(
                        "symbols-main", text,
                        "keep its symbols (no strip), or install its debug package"
                            + (module.buildID.isEmpty ? "" : " for build ID \(hex(module.buildID))"))
                } else {
                    checkup.ok("symbols-main", text)
                }
                if module.buildID.isEmpty {
                    checkup.note("build-id", "\(name) has no build ID", "link it with --build-id to find its symbols")
                }
            } else if kind == "exported functions only" {
                bare += 1
                if stripped.count < 4 { stripped.append(name) }
            }
        }
        if bare > 0 {
            let more = bare > stripped.count ? " and \(bare - stripped.count) more" : ""
            checkup.note(
                "symbols-libraries",
                "exported functions only in \(stripped.joined(separator: ", "))\(more)",
                "their debug packages (Debian: NAME-dbgsym, libc6-dbg) name the rest")
        }
        if !lost.isEmpty {
            checkup.warning(
                "symbols-lost",
                "\(lost.prefix(4).joined(separator: ", ")) changed or deleted since the start, or not readable",
                "frames in them are bare addresses; start the server again after an upgrade")
        }
    }

    private static func debugFile(of module: ModuleRecord, _ elf: ElfFacts, pid: Int32) -> String? {
        guard module.buildID.count > 1 else { return nil }
        let id = hex(module.buildID)
        let path = "/usr/lib/debug/.build-id/\(id.prefix(2))/\(id.dropFirst(2)).debug"
        return [path, "/proc/\(pid)/root\(path)"].first { access($0, R_OK) == 0 }
    }

    private static func hex(_ bytes: [UInt8]) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}
