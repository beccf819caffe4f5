import Glibc
import Testing

@testable import LoopLagAttach

@Suite("Launching a command")
struct LauncherTests {
    static let agent = AgentObject(path: "/opt/looplag/liblooplag-agent.so")

    /// Starts a command without an agent that would have to exist, and waits for its end.
    private func run(_ command: [String]) throws -> ChildStatus {
        var mask = sigset_t()
        pthread_sigmask(SIG_BLOCK, nil, &mask)
        // An empty preload: the dynamic linker warns about an object that it cannot open.
        let process = try Launcher.launch(
            LaunchRequest(command: command, agent: AgentObject(path: ""), environment: ["LOOPLAG_DISABLE": "1"]),
            mask: mask, dispositions: InheritedDispositions(ignoredPipe: false))
        while true {
            if let status = process.reap() { return status }
            // Blocks until the child can be reaped, and leaves it for `reap`.
            var info = siginfo_t()
            waitid(P_PID, id_t(process.pid), &info, WEXITED | WNOWAIT)
        }
    }

    @Test("The command's own status comes back")
    func status() throws {
        #expect(try run(["true"]) == .exited(0))
        #expect(try run(["sh", "-c", "exit 3"]) == .exited(3))
        #expect(try run(["sh", "-c", "kill -9 $$"]) == .killed(signal: 9))
        #expect(ChildStatus.killed(signal: 9).shellStatus == 137)
        #expect(ChildStatus.exited(255).shellStatus == 255)
    }

    @Test("A missing command is 'not found', with and without a path")
    func notFound() throws {
        #expect(throws: AttachError.commandNotFound("no-such-command-here")) { try run(["no-such-command-here"]) }
        #expect(throws: AttachError.commandNotFound("/no/such/file")) { try run(["/no/such/file"]) }
        #expect(throws: AttachError.commandNotFound("''")) { try run([""]) }
    }

    @Test("A file without permission, a folder, and a file of no format are 'not executable'")
    func notExecutable() throws {
        let folder = try TemporaryFolder()
        let plain = try folder.file("plain", Array("hello".utf8), mode: 0o644)
        let noise = try folder.file("noise", Array("hello".utf8), mode: 0o755)
        let orphan = try folder.file("orphan", Array("#!/no/such/interpreter\n".utf8), mode: 0o755)
        for path in [plain, noise, orphan, folder.path] {
            #expect {
                try run([path])
            } throws: { error in
                guard case .commandNotExecutable(path, _) = error as? AttachError else { return false }
                return true
            }
        }
    }

    @Test("PATH is searched in order, past what cannot be run, and an empty entry is the working folder")
    func searchPath() throws {
        let folder = try TemporaryFolder()
        try folder.folder("a")
        try folder.folder("b")
        try folder.folder("c")
        try folder.folder("a/tool")
        try folder.file("b/tool", [], mode: 0o644)
        let found = try folder.file("c/tool", [], mode: 0o755)
        let all = ["a", "b", "c"].map { "\(folder.path)/\($0)" }.joined(separator: ":")
        #expect(try CommandLookup.find("tool", searchPath: all) == found)
        #expect {
            try CommandLookup.find("tool", searchPath: "\(folder.path)/a:\(folder.path)/b")
        } throws: { error in
            guard case .commandNotExecutable("tool", _) = error as? AttachError else { return false }
            return true
        }
        #expect(throws: AttachError.commandNotFound("tool")) {
            try CommandLookup.find("tool", searchPath: ":/no/such/folder")
        }
        #expect(try CommandLookup.find("sh", searchPath: nil).hasSuffix("/sh"))
    }

    @Test("The agent stands first in LD_PRELOAD, once, and what was there stays behind it")
    func preload() {
        func preload(_ earlier: String?) -> [String] {
            let inherited = (earlier.map { ["LD_PRELOAD=\($0)"] } ?? []) + ["A=1", "odd", "LOOPLAG_THRESHOLD=5ms"]
            return Launcher.childEnvironment(
                inherited: inherited.map { Array($0.utf8) }, agent: Self.agent,
                extra: ["LOOPLAG_THRESHOLD": "100ms"]
            ).map { String(decoding: $0, as: UTF8.self) }
        }
        #expect(preload(nil) == ["A=1", "odd", "LD_PRELOAD=\(Self.agent.path)", "LOOPLAG_THRESHOLD=100ms"])
        #expect(preload("").contains("LD_PRELOAD=\(Self.agent.path)"))
        #expect(preload("/x/a.so b.so").contains("LD_PRELOAD=\(Self.agent.path):/x/a.so:b.so"))
        #expect(preload("\(Self.agent.path):/x/a.so").contains("LD_PRELOAD=\(Self.agent.path):/x/a.so"))
    }

    @Test("Our environment reaches the child byte for byte")
    func environmentBytes() {
        let inherited: [[UInt8]] = [[0x41, 0x3d, 0xff, 0xfe], Array("B=".utf8)]
        let result = Launcher.childEnvironment(inherited: inherited, agent: Self.agent, extra: [:])
        #expect(result.contains([0x41, 0x3d, 0xff, 0xfe]))
        #expect(result.contains(Array("B=".utf8)))
        #expect(Launcher.currentEnvironment().contains { $0.starts(with: Array("PATH=".utf8)) })
    }

    @Test("Ctrl-C and a resize from the terminal are not sent twice; a signal from a process is passed on")
    func forwarding() {
        func forwarded(_ number: Int32, kernel: Bool) -> Bool {
            Launcher.isForwarded(ReceivedSignal(number: number, isFromKernel: kernel, wasIgnored: false))
        }
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH] {
            #expect(forwarded(number, kernel: false))
        }
        for number in [SIGINT, SIGQUIT, SIGWINCH] { #expect(!forwarded(number, kernel: true)) }
        #expect(forwarded(SIGHUP, kernel: true))
        #expect(!forwarded(SIGCHLD, kernel: false))
        #expect(!forwarded(SIGKILL, kernel: false))
    }

    @Test("nohup and background jobs keep what they ignore, yet an explicit kill -INT ends them")
    func stopRequests() {
        func stops(_ number: Int32, kernel: Bool, ignored: Bool) -> Bool {
            ReceivedSignal(number: number, isFromKernel: kernel, wasIgnored: ignored).isStopRequest
        }
        #expect(stops(SIGINT, kernel: true, ignored: false))
        #expect(!stops(SIGINT, kernel: true, ignored: true))
        #expect(stops(SIGINT, kernel: false, ignored: true))
        #expect(!stops(SIGHUP, kernel: false, ignored: true))
        #expect(stops(SIGHUP, kernel: false, ignored: false))
        #expect(stops(SIGTERM, kernel: false, ignored: true))
    }

    @Test("A blocked signal arrives as a value, and a quiet inbox answers within its time-out")
    func inbox() {
        var before = sigset_t()
        pthread_sigmask(SIG_BLOCK, nil, &before)
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        var inbox = SignalInbox([SIGUSR1])
        // To this thread alone: the test runner's others do not block it.
        pthread_kill(pthread_self(), SIGUSR1)
        #expect(
            inbox.next(timeout: .seconds(10)) == ReceivedSignal(number: SIGUSR1, isFromKernel: false, wasIgnored: false)
        )
        #expect(inbox.next(timeout: .zero) == nil)
        #expect(inbox.next(timeout: .seconds(-5)) == nil)
    }
}

@Suite("Finding the agent object")
struct AgentObjectTests {
    static let object = SmallAgent.object()

    @Test("It is found beside the executable, else in ../lib")
    func besideOrLib() throws {
        let folder = try TemporaryFolder()
        try folder.folder("bin")
        try folder.folder("lib")
        let library = try folder.file("lib/\(AgentObject.fileName)", Self.object)
        let executable = "\(folder.path)/bin/looplag"
        #expect(try AgentObject.locate(named: nil, executable: executable).path == library)
        let beside = try folder.file("bin/\(AgentObject.fileName)", Self.object)
        #expect(try AgentObject.locate(named: nil, executable: executable).path == beside)
        #expect(try AgentObject.locate(named: "", executable: executable).path == beside)
    }

    @Test("LOOPLAG_AGENT wins, and a wrong one is an error instead of a silent other")
    func named() throws {
        let folder = try TemporaryFolder()
        let beside = try folder.file(AgentObject.fileName, Self.object)
        let other = try folder.file("other.so", Self.object)
        #expect(try AgentObject.locate(named: other, executable: beside).path == other)
        #expect(throws: AttachError.agentMissing(searched: ["/no/agent.so"])) {
            try AgentObject.locate(named: "/no/agent.so", executable: beside)
        }
    }

    @Test("A path that LD_PRELOAD cannot express and a file that is no object are refused")
    func unusable() throws {
        let folder = try TemporaryFolder()
        for (name, bytes) in [("a b.so", Self.object), ("a:b.so", Self.object), ("text.so", Array("hello".utf8))] {
            let path = try folder.file(name, bytes)
            #expect {
                try AgentObject.locate(named: path, executable: nil)
            } throws: { error in
                guard case .agentUnusable(path, _) = error as? AttachError else { return false }
                return true
            }
        }
        #expect(throws: AttachError.self) { try AgentObject.locate(named: folder.path, executable: nil) }
        // Of another release, and cut off anywhere.
        var others = [SmallAgent.object(layout: AgentObject.layoutVersion + 1)]
        others += stride(from: 0, to: Self.object.count, by: 7).map { Array(Self.object.prefix($0)) }
        for (number, bytes) in others.enumerated() {
            let path = try folder.file("other-\(number).so", bytes)
            #expect(throws: AttachError.self) { try AgentObject.locate(named: path, executable: nil) }
        }
        #expect(throws: AttachError.agentMissing(searched: [])) {
            try AgentObject.locate(named: nil, executable: nil)
        }
    }
}
