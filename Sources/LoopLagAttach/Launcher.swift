/// Starts the command of `run` with the agent preloaded, and hands back its exit status.
///
/// Called by the command line on its main thread, once. The command is a direct child that inherits standard input,
/// output and error, the working folder, the process group, the signal mask and dispositions as we got them; only
/// LD_PRELOAD and LOOPLAG_* differ. Nothing ties its life to ours: if we are killed it goes on (no PDEATHSIG, no pipe).
/// posix_spawn and not fork: Swift cannot run code safely between fork and exec, and glibc reports exec's own errno.

@preconcurrency import Glibc

public struct LaunchRequest: Sendable {
    /// The command and its arguments, as bytes without a terminating NUL; arguments need not be UTF-8.
    public var command: [[UInt8]]
    public var agent: AgentObject
    /// Set in the child on top of our own environment.
    public var environment: [String: String]

    public init(command: [[UInt8]], agent: AgentObject, environment: [String: String]) {
        self.command = command
        self.agent = agent
        self.environment = environment
    }

    public init(command: [String], agent: AgentObject, environment: [String: String]) {
        self.init(command: command.map { Array($0.utf8) }, agent: agent, environment: environment)
    }
}

/// How a child ended.
public enum ChildStatus: Hashable, Sendable {
    case exited(Int32)
    case killed(signal: Int32)

    /// Decodes what waitpid wrote.
    init(wait status: Int32) {
        let signal = status & 0x7f
        self = signal == 0 ? .exited((status >> 8) & 0xff) : .killed(signal: signal)
    }

    /// As a shell shows it: the status, or 128 + n for a signal.
    public var shellStatus: Int32 {
        switch self {
        case .exited(let status): status
        case .killed(let signal): 128 &+ signal
        }
    }
}

public struct LaunchedProcess: Sendable {
    public let pid: Int32
    /// What will run in it; `obstacle` says when it cannot be measured.
    public let executable: ExecutableFacts

    /// The exit status once the child has ended, else nil. After it was given, the pid means nothing any more.
    public func reap() -> ChildStatus? {
        var status: Int32 = 0
        while true {
            let result = waitpid(pid, &status, WNOHANG)
            if result == pid { return ChildStatus(wait: status) }
            if result < 0 && errno == EINTR { continue }
            // ECHILD cannot happen while SIGCHLD has its default; if it does, nobody will ever tell us the status.
            return result < 0 ? .exited(1) : nil
        }
    }

    /// Passes a signal on. Only before `reap` has given a status: the pid is ours for as long as the child is a zombie.
    public func send(_ signal: Int32) {
        kill(pid, signal)
    }
}

public enum Launcher {
    /// What `run` takes in its inbox: passed on to the child, and SIGCHLD to notice its end at once.
    public static let signals: [Int32] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCHLD]

    /// Whether a signal that we got must be sent on. Ctrl-C, Ctrl-\ and a resize reach the child from the terminal
    /// itself: a second one would make servers abort their graceful stop.
    public static func isForwarded(_ signal: ReceivedSignal) -> Bool {
        switch signal.number {
        case SIGCHLD: false
        case SIGINT, SIGQUIT, SIGWINCH: !signal.isFromKernel
        default: signals.contains(signal.number)
        }
    }

    /// Starts the command.
    /// - Parameters:
    ///   - mask: the signal mask the child starts with, see `SignalInbox.inheritedMask`.
    public static func launch(
        _ request: LaunchRequest, mask: sigset_t, dispositions: InheritedDispositions
    ) throws(AttachError) -> LaunchedProcess {
        let name = String(decoding: request.command.first ?? [], as: UTF8.self)
        let path = try CommandLookup.find(name, searchPath: getenv("PATH").map { String(cString: $0) })
        let facts = ExecutableFacts.inspect(path)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        var mask = mask
        posix_spawnattr_setsigmask(&attributes, &mask)
        var defaults = sigset_t()
        sigemptyset(&defaults)
        if !dispositions.ignoredPipe { sigaddset(&defaults, SIGPIPE) }
        posix_spawnattr_setsigdefault(&attributes, &defaults)

        var arguments = CStringArray(request.command)
        var environment = CStringArray(
            childEnvironment(inherited: currentEnvironment(), agent: request.agent, extra: request.environment))
        defer {
            arguments.free()
            environment.free()
        }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, path, nil, &attributes, arguments.pointers, environment.pointers)
        guard code == 0 else { throw failure(name, path: path, code: code) }
        return LaunchedProcess(pid: pid, executable: facts)
    }

    /// exec's own verdict as ours. ENOENT here means that the file is there and its interpreter or linker is not.
    private static func failure(_ name: String, path: String, code: Int32) -> AttachError {
        switch code {
        case ENOENT where access(path, F_OK) != 0:
            .commandNotFound(name)
        case ENOENT:
            .commandNotExecutable(name, reason: "the interpreter that \(path) names is missing")
        case ENOEXEC:
            .commandNotExecutable(name, reason: "\(path) is no program this kernel can run; has it a #! line?")
        case EACCES, ELIBBAD, ETXTBSY, EISDIR, EINVAL, ELOOP, EPERM, E2BIG:
            .commandNotExecutable(name, reason: "\(path): \(systemReason(code))")
        default:
            .launchFailed(name, reason: systemReason(code))
        }
    }

    // MARK: Environment

    /// Our environment as `NAME=value` bytes.
    static func currentEnvironment() -> [[UInt8]] {
        var result: [[UInt8]] = []
        var entry = environ
        while let pointer = entry.pointee {
            result.append(UnsafeRawBufferPointer(start: pointer, count: strlen(pointer)).map { $0 })
            entry += 1
        }
        return result
    }

    /// The agent stands first in LD_PRELOAD, before whatever was there; entries that are not `NAME=value` are kept.
    static func childEnvironment(inherited: [[UInt8]], agent: AgentObject, extra: [String: String]) -> [[UInt8]] {
        let preload = Array("LD_PRELOAD=".utf8)
        let replaced = extra.keys.map { Array("\($0)=".utf8) }
        var earlier: [UInt8] = []
        var result = inherited.filter { entry in
            if entry.starts(with: preload) {
                // The dynamic linker uses the last of several; so do we.
                earlier = Array(entry.dropFirst(preload.count))
                return false
            }
            return !replaced.contains { entry.starts(with: $0) }
        }
        let own = Array(agent.path.utf8)
        let kept = earlier.split(whereSeparator: { $0 == UInt8(ascii: ":") || $0 == UInt8(ascii: " ") })
            .filter { !$0.elementsEqual(own) }
        result.append(preload + own + kept.flatMap { [UInt8(ascii: ":")] + $0 })
        for (name, value) in extra.sorted(by: { $0.key < $1.key }) { result.append(Array("\(name)=\(value)".utf8)) }
        return result
    }
}

/// A NULL-terminated array of C strings for exec; the strings are ours until `free`.
private struct CStringArray {
    var pointers: [UnsafeMutablePointer<CChar>?]

    init(_ strings: [[UInt8]]) {
        pointers = strings.map { bytes in
            // A NUL inside would cut the string; exec could not have given us one either.
            let content = bytes.prefix { $0 != 0 }
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: content.count + 1)
            for (i, byte) in content.enumerated() { copy[i] = CChar(bitPattern: byte) }
            copy[content.count] = 0
            return copy
        }
        pointers.append(nil)
    }

    mutating func free() {
        for pointer in pointers { pointer?.deallocate() }
        pointers = []
    }
}
