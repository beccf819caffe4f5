/// Finds and starts `looplag-demo`, the server that `looplag demo` shows.
///
/// Called by the demo verb, on the main thread. The server ends with us whatever ends us: its standard input is a pipe
/// whose other end is ours. LOOPLAG_DEMO wins; else the server lies beside our own executable (a build folder), or in
/// ../libexec/looplag or ../bin (an installation).

import Glibc
import LoopLagAttach
import LoopLagModel

/// Which server the demo shows.
enum DemoHost: String, CaseIterable {
    case swift, python, node
}

struct DemoServer {
    /// What is started, and with what.
    struct Program {
        var path: String
        /// With its own name first.
        var arguments: [String]
        var environment: [String: String]

        /// - Parameter options: of the server's program, instead of what the live view gives it.
        init(_ host: DemoHost, options: [String]? = nil) throws(Failure) {
            environment = ["LOG_LEVEL": "error"]
            switch host {
            case .swift:
                path = try DemoServer.locate()
                arguments = [DemoServer.fileName] + (options ?? ["--load-endless", "--end-with-input"])
            case .python:
                path = try PythonDemo.interpreter()
                arguments = PythonDemo.arguments(path, options ?? [])
                environment["LD_PRELOAD"] = try Self.agent()
            case .node:
                path = try NodeDemo.program()
                arguments = NodeDemo.arguments(path, options ?? [])
                environment["LD_PRELOAD"] = try Self.agent()
            }
        }

        private static func agent() throws(Failure) -> String {
            do throws(AttachError) {
                return try AgentObject.locate().path
            } catch {
                throw Failure(error.message)
            }
        }
    }

    static let fileName = "looplag-demo"
    private static let patience: Duration = .seconds(20)

    let pid: Int32
    private let process: Subprocess
    /// Our end of its standard input.
    private let lifeline: Int32
    private let errors: Int32

    // MARK: Finding

    /// A program of the search path, or the one that a variable names.
    static func find(_ usual: String, variable: String, remedy: String) throws(Failure) -> String {
        let named = getenv(variable).map { String(cString: $0) } ?? ""
        let name = named.isEmpty ? usual : named
        if name.contains("/") {
            guard access(name, X_OK) == 0 else { throw Failure("cannot run \(name): \(Console.reason(errno))") }
            return name
        }
        let folders = (getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin").split(separator: ":")
        for folder in folders where access("\(folder)/\(name)", X_OK) == 0 { return "\(folder)/\(name)" }
        throw Failure("cannot find \(name) for the demo: \(remedy), or name it in \(variable)")
    }

    static func locate() throws(Failure) -> String {
        let named = getenv("LOOPLAG_DEMO").map { String(cString: $0) }
        return try locate(named: named, executable: SystemFacts.ownExecutable)
    }

    static func locate(named: String?, executable: String?) throws(Failure) -> String {
        var candidates: [String] = []
        if let named, !named.isEmpty {
            candidates = [named]
        } else if let executable, let slash = executable.lastIndex(of: "/") {
            let folder = String(executable[..<slash])
            candidates = ["", "/../libexec/looplag", "/../bin"].map { "\(folder)\($0)/\(fileName)" }
        }
        for candidate in candidates {
            guard let resolved = realpath(candidate, nil) else { continue }
            defer { free(resolved) }
            let path = String(cString: resolved)
            guard access(path, X_OK) == 0 else {
                throw Failure("cannot run the demo's server \(path): \(Console.reason(errno))")
            }
            return path
        }
        throw Failure(
            "cannot find \(fileName): looked for \(candidates.joined(separator: ", ")); 'swift build' makes it beside"
                + " looplag, or name it in LOOPLAG_DEMO")
    }

    // MARK: Its life

    /// Returns once it listens. Its load goes on until the server ends.
    static func start(_ host: DemoHost, threshold: Duration) throws(Failure) -> DemoServer {
        let program = try Program(host)
        let path = program.path
        let server: DemoServer
        let output: Pipe
        do throws(SystemError) {
            output = try Pipe()
            defer { close(output.writing) }
            server = try start(program, output: output.writing, threshold: threshold)
        } catch {
            throw Failure("cannot start the demo's server \(path): \(error.reason)")
        }
        defer { close(output.reading) }
        do throws(Failure) {
            try server.awaitListening(output.reading)
        } catch {
            server.stop()
            throw error
        }
        return server
    }

    private static func start(
        _ program: Program, output: Int32, threshold: Duration
    ) throws(SystemError) -> DemoServer {
        let input = try Pipe()
        defer { close(input.reading) }
        let errors = try temporaryFile()
        do throws(SystemError) {
            var environment = program.environment
            environment["LOOPLAG_THRESHOLD"] = DurationArgument.format(threshold)
            let process = try Subprocess.start(
                program.path, program.arguments,
                streams: .init(input: input.reading, output: output, errors: errors), environment: environment)
            return DemoServer(pid: process.pid, process: process, lifeline: input.writing, errors: errors)
        } catch {
            close(input.writing)
            close(errors)
            throw error
        }
    }

    /// Where its complaints go: a live view owns the terminal, and a pipe that nobody reads would block the server.
    private static func temporaryFile() throws(SystemError) -> Int32 {
        var name = Array("/tmp/looplag-demo-XXXXXX".utf8CString)
        let file = mkstemp(&name)
        guard file >= 0 else { throw SystemError(code: errno) }
        _ = fcntl(file, F_SETFD, FD_CLOEXEC)
        unlink(name)
        return file
    }

    private func awaitListening(_ output: Int32) throws(Failure) {
        let start = Clock.monotonic()
        var text = ""
        while !text.contains("\n") {
            var entry = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            if poll(&entry, 1, 100) > 0 {
                var bytes = [UInt8](repeating: 0, count: 512)
                let count = read(output, &bytes, bytes.count)
                if count > 0 { text += String(decoding: bytes[..<count], as: UTF8.self) }
            }
            if let ending = process.reap() {
                throw Failure("the demo's server \(ending.text)\(lastWords)")
            }
            if Clock.monotonic().since(start) > Self.patience {
                throw Failure("the demo's server did not begin to listen\(lastWords)")
            }
        }
    }

    private var lastWords: String {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = pread(errors, &bytes, bytes.count, 0)
        let lines = String(decoding: bytes[..<max(0, count)], as: UTF8.self).split(separator: "\n")
        return lines.last.map { ": \(ProcessFacts.printable(String($0)))" } ?? ""
    }

    /// Ends it and waits for its end.
    func stop() {
        close(lifeline)
        let start = Clock.monotonic()
        var isKilled = false
        while process.reap() == nil {
            if !isKilled, Clock.monotonic().since(start) > .seconds(6) {
                process.send(SIGKILL)
                isKilled = true
            }
            usleep(5_000)
        }
        close(errors)
    }
}
