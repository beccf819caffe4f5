/// A process that a test started, in a process group of its own, with its output collected.
///
/// Not Foundation's Process: a host needs clean signal masks and dispositions (a test runs on a pool thread that blocks
/// some), its own process group, and an exit status that tells a signal from a number.
/// Refuses: to outlive its test. `end()` kills the whole group, waits for it, and removes the segments it left.

import Foundation
import Glibc
import LoopLagModel
import Synchronization

enum ExitStatus: Equatable, CustomStringConvertible {
    case exited(Int32)
    case signalled(Int32)

    init(waitStatus: Int32) {
        let signal = waitStatus & 0x7f
        self = signal == 0 ? .exited(waitStatus >> 8 & 0xff) : .signalled(signal)
    }

    var description: String {
        switch self {
        case .exited(let status): "exit status \(status)"
        case .signalled(let number): "signal \(number)"
        }
    }
}

struct SpawnFailed: Error, CustomStringConvertible {
    var description: String
}

final class Child: Sendable {
    let pid: Int32
    let arguments: [String]
    let output: TextLog
    let errors: TextLog
    private let state: Mutex<State>

    private struct State {
        var status: ExitStatus?
        var input: Int32
        var hasEnded = false
    }

    /// `environment` is added to the test's own; an empty value removes a variable. LD_PRELOAD and LOOPLAG_* are never
    /// inherited.
    init(_ arguments: [String], environment: [String: String] = [:]) throws {
        self.arguments = arguments
        var variables = ProcessInfo.processInfo.environment
            .filter { $0.key != "LD_PRELOAD" && !$0.key.hasPrefix("LOOPLAG_") }
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
        for (name, value) in environment { variables[name] = value.isEmpty ? nil : value }

        let input = try Pipe(), output = try Pipe(), errors = try Pipe()
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, input.reading, STDIN_FILENO)
        posix_spawn_file_actions_adddup2(&actions, output.writing, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, errors.writing, STDERR_FILENO)

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t(), all = sigset_t()
        sigemptyset(&none)
        sigfillset(&all)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setsigdefault(&attributes, &all)
        posix_spawnattr_setpgroup(&attributes, 0)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

        var argv: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        var envp: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { (argv + envp).forEach { free($0) } }
        var pid: pid_t = 0
        let status = posix_spawnp(&pid, arguments[0], &actions, &attributes, &argv, &envp)
        close(input.reading)
        close(output.writing)
        close(errors.writing)
        guard status == 0 else {
            for descriptor in [input.writing, output.reading, errors.reading] { close(descriptor) }
            throw SpawnFailed(description: "cannot start \(arguments[0]): \(String(cString: strerror(status)))")
        }
        self.pid = pid
        self.output = TextLog(reading: output.reading)
        self.errors = TextLog(reading: errors.reading)
        state = Mutex(State(input: input.writing))
    }

    deinit { end() }

    // MARK: - Talking to it

    func writeLine(_ text: String) {
        let descriptor = state.withLock { $0.input }
        guard descriptor >= 0 else { return }
        let bytes = Array((text + "\n").utf8)
        _ = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
    }

    func closeInput() {
        state.withLock { state in
            guard state.input >= 0 else { return }
            close(state.input)
            state.input = -1
        }
    }

    /// To this process alone; `end()` is for the group.
    func send(_ signal: Int32) { kill(pid, signal) }

    /// The first match of the pattern's first group in either stream: a server's port or socket.
    func wait(forOutput pattern: String, within limit: Duration = .seconds(20)) throws -> String {
        let expression = try Regex(pattern)
        return try eventually("\(arguments[0]) to write \(pattern)", within: limit) {
            for log in [output, errors] {
                if let match = try expression.firstMatch(in: log.text), match.count > 1, let text = match[1].substring {
                    return String(text)
                }
            }
            if let status = pollStatus() {
                throw SpawnFailed(
                    description: "\(arguments[0]) ended early (\(status)): \(output.text)\(errors.text)")
            }
            return nil
        }
    }

    // MARK: - Its end

    var isRunning: Bool { pollStatus() == nil }

    private func pollStatus() -> ExitStatus? {
        state.withLock { state in
            if let status = state.status { return status }
            var raw: Int32 = 0
            guard waitpid(pid, &raw, WNOHANG) == pid else { return nil }
            state.status = ExitStatus(waitStatus: raw)
            return state.status
        }
    }

    func exitStatus(within limit: Duration = .seconds(15)) throws -> ExitStatus {
        try eventually("\(arguments.joined(separator: " ")) to end", within: limit) { pollStatus() }
    }

    /// Kills the group, waits for this process and removes the segments of all that belonged to it.
    func end() {
        let isFirst = state.withLock { state in
            defer { state.hasEnded = true }
            return !state.hasEnded
        }
        guard isFirst else { return }
        closeInput()
        let members = ProcessTable.members(ofGroup: pid)
        kill(-pid, SIGKILL)
        _ = try? exitStatus(within: .seconds(10))
        _ = try? eventually("the group to end", within: .seconds(10)) {
            ProcessTable.members(ofGroup: pid).isEmpty ? true : nil
        }
        for member in Set(members + [pid]) { Segments.remove(ofProcess: member) }
    }
}

/// A pipe whose both ends are closed in children.
private struct Pipe {
    var reading: Int32
    var writing: Int32

    init() throws {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw SpawnFailed(description: "no pipe: errno \(errno)") }
        // Swift does not see pipe2; no other thread of the test run starts a process in between that could matter long.
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        (reading, writing) = (ends[0], ends[1])
    }
}
