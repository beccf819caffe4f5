/// The machine's side of `doctor`: processor, kernel, C library, the agent's object, /dev/shm, what /proc and the
/// tracing calls allow, and the terminal.
///
/// Main thread. What can be tried is tried, not deduced: it reads its own stack's memory, traces a child of its own and
/// has that child measured. Leaves nothing behind.

import Foundation
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

enum MachineChecks {
    static func run(into checkup: inout Checkup) {
        checkup.ok("version", Version.text)
        platform(&checkup)
        agent(&checkup)
        demo(&checkup)
        sharedMemory(&checkup)
        tracing(&checkup)
        libraries(&checkup)
        terminal(&checkup)
    }

    // MARK: Platform and agent

    private static func platform(_ checkup: inout Checkup) {
        var name = utsname()
        uname(&name)
        func text<Field>(_ field: Field) -> String {
            withUnsafeBytes(of: field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }
        let machine = text(name.machine)
        if machine == "x86_64" {
            checkup.ok("platform", "Linux \(text(name.release)) on \(machine)")
        } else {
            checkup.failed("platform", "this machine is \(machine)", "LoopLag measures x86_64 programs only")
        }
        if let glibc = SystemFacts.glibcVersion { checkup.ok("glibc", "glibc \(glibc)") }
    }

    private static func agent(_ checkup: inout Checkup) {
        let object: AgentObject
        do throws(AttachError) {
            object = try AgentObject.locate()
        } catch {
            checkup.failed("agent", error.message, "build it with 'swift build', or set LOOPLAG_AGENT to its path")
            return
        }
        guard let facts = ElfFacts(path: object.path) else {
            checkup.failed("agent", "\(object.path) cannot be read as an ELF object", "build or install it again")
            return
        }
        let others = facts.needed.filter { $0 != "libc.so.6" }
        if others.isEmpty {
            checkup.ok(
                "agent",
                "agent \(object.path), needs libc only"
                    + (facts.glibcNeeded.map { " (glibc \($0) or later)" } ?? ""))
        } else {
            checkup.failed(
                "agent", "the agent needs more than libc: \(others.joined(separator: ", "))",
                "a server may lack these; build it with 'swift build' from an unchanged checkout")
        }
        if let wanted = facts.glibcNeeded, let have = SystemFacts.glibcVersion,
            VersionNumber.isOlder(have, than: wanted)
        {
            checkup.failed(
                "agent-glibc", "the agent needs glibc \(wanted), this machine has \(have)",
                "build the agent on this machine, or on one with a glibc as old")
            return
        }
        probe(object, &checkup)
    }

    private static func demo(_ checkup: inout Checkup) {
        do throws(Failure) {
            checkup.ok("demo", "'looplag demo' runs \(try DemoServer.locate())")
        } catch {
            checkup.note("demo", "'looplag demo' does not work: \(error.message)", "nothing else needs it")
        }
    }

    /// Starts a process with the agent and reads what it measures.
    private static func probe(_ object: AgentObject, _ checkup: inout Checkup) {
        guard let executable = SystemFacts.ownExecutable else { return }
        let inbox = SignalInbox([SIGCHLD])
        let child: LaunchedProcess
        do throws(AttachError) {
            child = try Launcher.launch(
                LaunchRequest(command: [executable, "doctor", "--probe"], agent: object, environment: [:]),
                mask: inbox.inheritedMask, dispositions: Entry.dispositions)
        } catch {
            checkup.failed("measuring", error.message, "see the line above")
            return
        }
        let start = Clock.monotonic()
        var seen: FollowedProcess?
        var reason = "its agent has not started"
        while Clock.monotonic().since(start) < Probe.patience {
            do throws(TelemetryError) {
                let process = try FollowedProcess(source: try SegmentDiscovery.live(pid: child.pid))
                if process.latest.loops.contains(where: \.isLive) {
                    seen = process
                    break
                }
                reason = "its loop was not seen"
            } catch {
                if case .noAgent = error {} else { reason = error.message }
            }
            usleep(5_000)
        }
        trace(child.pid, &checkup)
        child.send(SIGTERM)
        var ended = child.reap()
        while ended == nil, Clock.monotonic().since(start) < Probe.patience * 2 {
            usleep(5_000)
            ended = child.reap()
        }
        if ended == nil {
            child.send(SIGKILL)
            while child.reap() == nil { usleep(5_000) }
        }
        guard let seen else {
            checkup.failed(
                "measuring", "a process started with the agent was not measured: \(reason)",
                "unset LOOPLAG_DISABLE and LOOPLAG_DIR, check /dev/shm, and that agent and command line are of one build"
            )
            return
        }
        checkup.ok("measuring", "a process started with the agent is measured")
        Degradation.explain(seen.latest.agent, id: "measuring", into: &checkup)
    }

    // MARK: Memory, tracing

    private static func sharedMemory(_ checkup: inout Checkup) {
        let folder = getenv("LOOPLAG_DIR").map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 } ?? "/dev/shm"
        let remedy = "give servers another folder with LOOPLAG_DIR=/path, best on tmpfs"
        var status = statvfs()
        guard statvfs(folder, &status) == 0 else {
            return checkup.failed("shared-memory", "\(folder): \(Console.reason(errno))", remedy)
        }
        guard access(folder, W_OK | X_OK) == 0 else {
            return checkup.failed("shared-memory", "\(folder) may not be written: \(Console.reason(errno))", remedy)
        }
        let free = UInt64(status.f_bavail) &* UInt64(status.f_frsize)
        let size = "\(folder) has \(free >> 20) MiB free"
        // A process takes at most 1 MiB, at least 256 KiB.
        if free < 256 << 10 {
            checkup.failed("shared-memory", "\(size), less than one segment", "free some, or set LOOPLAG_DIR")
        } else if free < 16 << 20 {
            checkup.warning("shared-memory", "\(size), each measured process takes up to 1 MiB", "docker: --shm-size")
        } else {
            checkup.ok("shared-memory", size)
        }
    }

    private static func tracing(_ checkup: inout Checkup) {
        let own = SystemFacts.ownThread
        if let reason = ThreadFacts.syscallRefusal(pid: getpid(), tid: own) {
            checkup.failed(
                "proc-syscall", "/proc/self/task/TID/syscall cannot be read: \(reason)",
                "blocked threads are shown without a stack; mount /proc, or use a kernel with CONFIG_HAVE_ARCH_TRACEHOOK"
            )
        } else {
            checkup.ok("proc-syscall", "/proc shows where a blocked thread is")
        }
        var mark: UInt64 = 0
        let refusal = withUnsafePointer(to: &mark) {
            ProcessMemory(pid: getpid()).refusal(at: UInt64(UInt(bitPattern: $0)))
        }
        if let refusal {
            checkup.failed(
                "safe-read", "process_vm_readv on ourselves fails: \(refusal)",
                "no stack can be copied; allow process_vm_readv in the container's seccomp profile")
        } else {
            checkup.ok("safe-read", "process_vm_readv works")
        }
        if let reason = SystemFacts.closeRangeRefusal {
            checkup.warning(
                "close-range", "close_range is refused: \(reason)",
                "the agent then shares its server's descriptor table; Linux 5.9 or a later seccomp profile has the call"
            )
        } else {
            checkup.ok("close-range", "close_range works")
        }
        permission(&checkup)
    }

    /// May we trace processes that are not our children, as `dump` and `attach` need?
    private static func permission(_ checkup: inout Checkup) {
        let privileges = SystemFacts.privileges(pid: getpid())
        let who = geteuid() == 0 ? "root" : "uid \(geteuid())"
        let traces = privileges?.canTrace == true
        let seccomp = privileges?.seccompMode ?? 0
        switch SystemFacts.yamaScope {
        case 0, nil:
            checkup.ok(
                "trace-permission",
                traces ? "\(who) may look into every process" : "\(who) may look into its own processes")
        case 1 where !traces:
            checkup.warning(
                "trace-permission", "kernel.yama.ptrace_scope is 1: 'dump' reaches only what you started yourself",
                "run looplag with CAP_SYS_PTRACE (sudo), or 'sysctl kernel.yama.ptrace_scope=0'; 'run' needs neither")
        case 2 where !traces:
            checkup.warning(
                "trace-permission", "kernel.yama.ptrace_scope is 2: only CAP_SYS_PTRACE may trace",
                "run looplag with sudo for 'dump'; 'run' needs neither")
        case 3:
            checkup.warning(
                "trace-permission", "kernel.yama.ptrace_scope is 3: nobody may trace until the next boot",
                "use 'looplag run'; its agent needs no tracing")
        default: checkup.ok("trace-permission", "\(who) has CAP_SYS_PTRACE and may look into every process")
        }
        if seccomp == 2 { checkup.note("seccomp", "a seccomp filter is in force for looplag (a container's, mostly)") }
    }

    /// The stop of a running thread, tried on the probe.
    private static func trace(_ pid: Int32, _ checkup: inout Checkup) {
        if let reason = StackCapture.stopRefusal(tid: pid) {
            checkup.warning(
                "ptrace", "ptrace on a child of ours fails: \(reason)",
                "'dump' shows no stacks of running threads; docker: --cap-add SYS_PTRACE or a seccomp profile with ptrace"
            )
        } else {
            checkup.ok("ptrace", "ptrace can stop a running thread and let it go")
        }
    }

    // MARK: Libraries and terminal

    private static func libraries(_ checkup: inout Checkup) {
        let files = SystemFacts.mappedLibraries(beginning: ["libunwind", "libdw", "libelf"])
        if !files.isEmpty { checkup.ok("libraries", "stacks and symbols by \(files.joined(separator: ", "))") }
    }

    private static func terminal(_ checkup: inout Checkup) {
        setlocale(LC_CTYPE, "")
        let codeset = nl_langinfo(Int32(CODESET)).map { String(cString: $0) } ?? "?"
        setlocale(LC_CTYPE, "C")
        let terminal = getenv("TERM").map { String(cString: $0) } ?? ""
        if !Console.out.isTerminal {
            checkup.note("terminal", "standard output is no terminal: plain text, no live view")
        } else if terminal.isEmpty || terminal == "dumb" {
            checkup.warning("terminal", "TERM is '\(terminal)': no live view", "set TERM, e.g. TERM=xterm-256color")
        } else {
            checkup.ok("terminal", "terminal \(terminal), characters \(codeset)")
        }
        if codeset != "UTF-8" {
            checkup.note("locale", "the locale's characters are \(codeset)", "set LC_ALL=C.UTF-8 for bars and boxes")
        }
    }
}
