/// A child process of the command line's own: the demo's server, the command of --on-stall, strip.
///
/// Main thread. Always in a process group of its own, so that a Ctrl-C of the terminal is ours to pass on and a kill
/// reaches what the child started; with clean signal masks. The command of `run` is no such child: it is the user's
/// process, see LoopLagAttach's Launcher.

import Glibc
import LoopLagAttach

final class Subprocess {
    let pid: Int32
    private var ending: Ending?

    private init(pid: Int32) { self.pid = pid }

    /// What it gets as its standard streams; they stay open on our side.
    struct Streams {
        var input: Int32
        var output: Int32
        var errors: Int32
    }

    /// Starts `path` with `arguments` (the name first). `environment` is set on top of our own.
    /// - Throws: the error number.
    static func start(
        _ path: String, _ arguments: [String], streams: Streams, environment: [String: String] = [:]
    ) throws(SystemError) -> Subprocess {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, streams.input, STDIN_FILENO)
        // The errors first: they may be where the output goes, and the other way round is not needed.
        posix_spawn_file_actions_adddup2(&actions, streams.errors, STDERR_FILENO)
        posix_spawn_file_actions_adddup2(
            &actions, streams.output == streams.errors ? STDERR_FILENO : streams.output, STDOUT_FILENO)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var (none, defaults) = (sigset_t(), sigset_t())
        sigemptyset(&none)
        sigemptyset(&defaults)
        sigaddset(&defaults, SIGPIPE)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &defaults)
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

        var variables: [UnsafeMutablePointer<CChar>?] = []
        var entry = environ
        while let pointer = entry.pointee {
            let name = UnsafeRawBufferPointer(start: pointer, count: strlen(pointer)).prefix { $0 != UInt8(ascii: "=") }
            if environment[String(decoding: name, as: UTF8.self)] == nil { variables.append(strdup(pointer)) }
            entry += 1
        }
        variables += environment.map { strdup("\($0.key)=\($0.value)") }
        variables.append(nil)
        var words: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        defer { (variables + words).forEach { free($0) } }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, path, &actions, &attributes, &words, &variables)
        if code != 0 { throw SystemError(code: code) }
        return Subprocess(pid: pid)
    }

    /// How it ended; nil while it runs.
    func reap() -> Ending? {
        if let ending { return ending }
        var status: Int32 = 0
        while true {
            let result = waitpid(pid, &status, WNOHANG)
            if result < 0 && errno == EINTR { continue }
            if result == pid { ending = Ending(wait: status) } else if result < 0 { ending = .exited(1) }
            return ending
        }
    }

    /// To it and all that it started in its group.
    func send(_ signal: Int32) {
        // Afterwards the number may be somebody else's.
        if ending == nil { kill(-pid, signal) }
    }

    enum Ending: Equatable {
        case exited(Int32)
        case killed(Int32)

        init(wait status: Int32) {
            let signal = status & 0x7f
            self = signal == 0 ? .exited((status >> 8) & 0xff) : .killed(signal)
        }

        var text: String {
            switch self {
            case .exited(let status): "exited with status \(status)"
            case .killed(let signal): "was killed by signal \(signal)"
            }
        }
    }
}

struct SystemError: Error {
    var code: Int32
    var reason: String { Console.reason(code) }
}

/// A pipe whose ends no child inherits by accident.
struct Pipe {
    let reading: Int32
    let writing: Int32

    init() throws(SystemError) {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw SystemError(code: errno) }
        // The command line starts children on its main thread only, so nothing can slip in between.
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        (reading, writing) = (ends[0], ends[1])
    }
}
