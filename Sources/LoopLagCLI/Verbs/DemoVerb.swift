/// `looplag demo`: a bundled server that misbehaves, with its own traffic, watched live.
///
/// Main thread. Starts looplag-demo, which ends with us, and shows it as `top` would; on a pipe plain lines, and an exit
/// status of 0 after the duration. `--serve-only` and `--list` hand over to the server's own program.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

extension DemoHost: ExpressibleByArgument {}

struct DemoVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo",
        abstract: "A server that misbehaves, watched live.",
        discussion: """
            Starts a small Hummingbird server on loopback whose routes block their event loops in every usual way, sends \
            it requests, and shows what LoopLag sees. Nothing of it is left when it ends. On a pipe it prints plain \
            lines and a report at the end, after 20s unless --duration says otherwise.
            """)

    @Option(
        help: ArgumentHelp("End after this time.", valueName: "duration"), transform: DurationArgument.parse)
    var duration: Duration?

    @Option(help: "The server: swift (Hummingbird), python (FastAPI, where Python has it), or node.")
    var host = DemoHost.swift

    @OptionGroup var threshold: ThresholdOption

    @Flag(
        name: .customLong("serve-only"), help: "Only the server, until Ctrl-C: says what to type in another terminal.")
    var serveOnly = false

    @Flag(help: "The routes, what each does wrong and what LoopLag shows for it.")
    var list = false

    /// On a pipe nobody can end it.
    private static let usualDuration: Duration = .seconds(20)

    func validate() throws {
        if serveOnly && list { throw ValidationError("--serve-only and --list exclude each other") }
        if (serveOnly || list) && duration != nil { throw ValidationError("--duration goes with the live view only") }
    }

    func run() throws {
        if list { try become(["--list"]) }
        if serveOnly { try become(["--serve-only"]) }
        threshold.noteLimits()
        let server = try DemoServer.start(host, threshold: threshold.threshold)
        defer { server.stop() }
        try watch(server)
    }

    private func watch(_ server: DemoServer) throws {
        let window = ReportWindow()
        let follower = Follower(scope: .only, threshold: threshold.threshold, includesHistory: true)
        let process = try join(follower, server)
        var options = LiveOptions()
        options.targets = [Target(identity: process.identity, name: process.name)]
        let length = duration ?? (Console.out.isTerminal ? nil : Self.usualDuration)
        options.deadline = length.map { Clock.monotonic().advanced(by: $0) }
        if case .gone(let names) = try LiveSession(follower: follower, options: options).run() {
            throw Failure("the demo's server \(names) went away", status: Failure.gone)
        }
        try sumUp(window.report(of: follower))
    }

    /// What it all came to: one line under a live view, the report for people on a pipe.
    private func sumUp(_ report: Report) throws {
        guard !Console.out.isTerminal else { return Console.error(Summary.line(of: report, output: nil)) }
        if case .failed(let code) = Console.out.write("\n" + TextReport.render(report)) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }

    private func join(_ follower: Follower, _ server: DemoServer) throws -> FollowedProcess {
        let start = Clock.monotonic()
        while true {
            do throws(TelemetryError) {
                return try follower.add(try SegmentDiscovery.live(pid: server.pid))
            } catch {
                // It listens a moment before its first wait.
                guard case .noAgent = error, Clock.monotonic().since(start) < .seconds(5) else {
                    throw Targets.failure(error, pid: server.pid)
                }
                usleep(10_000)
            }
        }
    }

    /// The server's program in our place: Ctrl-C, its output and its status are then its own.
    private func become(_ arguments: [String]) throws {
        let program = try DemoServer.Program(host, options: arguments)
        for (name, value) in program.environment where name != "LOG_LEVEL" { setenv(name, value, 1) }
        setenv("LOOPLAG_THRESHOLD", DurationArgument.format(threshold.threshold), threshold.given == nil ? 0 : 1)
        setenv("LOG_LEVEL", "error", 0)
        // What the server tells a person to type is what they typed.
        if let own = CommandLine.arguments.first { setenv("LOOPLAG_COMMAND", own, 1) }
        if !Entry.dispositions.ignoredPipe { signal(SIGPIPE, SIG_DFL) }
        var words: [UnsafeMutablePointer<CChar>?] = program.arguments.map { strdup($0) } + [nil]
        defer { words.forEach { free($0) } }
        execv(program.path, &words)
        throw Failure("cannot run the demo's server \(program.path): \(Console.reason(errno))")
    }
}
