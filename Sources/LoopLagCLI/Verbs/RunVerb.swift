/// `looplag run -- CMD ARGS`: launches a command with the agent preloaded and follows it and all its descendants.
///
/// Main thread. Standard input and output belong to the command; everything of ours goes to stderr. Exits as the
/// command did. While it waits it forwards signals; a Ctrl-C from the terminal is the command's own.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

struct RunVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Launch a command with the agent preloaded; exits as the command does.",
        usage:
            "looplag run [--threshold <duration>] [-o <file>] [--requests] [--quiet] [--user-code <path>] ... -- <command> ...",
        discussion: """
            Measures the command and all processes it starts. Needs a dynamically linked x86_64 program with glibc that \
            waits in epoll (LOOPLAG_WAITS=epoll,poll adds poll and select).
            """)

    @OptionGroup var threshold: ThresholdOption

    @Option(
        name: .shortAndLong,
        help: ArgumentHelp("Write a JSON report at the end; %p becomes the process id.", valueName: "file"))
    var output: String?

    @Flag(
        help: "Of node: name each stall's request also behind awaits and timers; costs 20 to 40 % more CPU per request."
    )
    var requests = false

    @Flag(name: .shortAndLong, help: "Print no stalls and no summary.")
    var quiet = false

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    @Argument(
        parsing: .captureForPassthrough, help: ArgumentHelp("The command and its arguments.", valueName: "command"))
    var command: [String] = []

    func run() throws {
        let command = try self.command(arguments: CommandLine.unsafeArgv, count: Int(CommandLine.argc))
        let agent = try AgentObject.locate()
        let (limit, complaint) = ThresholdOption.resolve(
            given: threshold.given, environment: getenv("LOOPLAG_THRESHOLD").map { String(cString: $0) })
        if let complaint { Console.error(complaint) }
        ThresholdOption.noteLimits(of: limit)
        // A folder that is not there is better told now than after the command's work.
        try output.map { try OutputFile(pattern: $0, pid: 0).check() }

        let module = try requests ? RequestsModule(agent: agent) : nil
        var environment = ["LOOPLAG_THRESHOLD": DurationArgument.format(limit)]
        if let module { environment["NODE_OPTIONS"] = module.nodeOptions }
        let window = ReportWindow()
        var inbox = SignalInbox(Launcher.signals)
        let child: LaunchedProcess
        do throws(AttachError) {
            child = try Launcher.launch(
                LaunchRequest(command: command, agent: agent, environment: environment),
                mask: inbox.inheritedMask, dispositions: Entry.dispositions)
        } catch {
            module?.remove()
            throw error
        }
        let root = try? ProcessFacts.read(pid: child.pid)
        if let obstacle = child.executable.obstacle {
            Console.error(
                "\(child.pid) (\(ProcessFacts.printable(child.executable.path))) cannot be measured: \(obstacle)")
        }

        let follower = Follower(scope: .trees([child.pid]), threshold: limit, includesHistory: true)
        let status = follow(child, root: root, follower: follower, window: window, inbox: &inbox)
        module?.clean()
        if requests, !follower.processes.contains(where: { $0.latest.runtime == .node }) {
            Console.error("nothing of it was node: --requests follows the requests of node only")
        }
        try finish(follower, window: window, pid: child.pid, status: status)
    }

    /// Until the command has ended.
    private func follow(
        _ child: LaunchedProcess, root: ProcessFacts?, follower: Follower, window: ReportWindow,
        inbox: inout SignalInbox
    ) -> ChildStatus {
        let events = StallEvents(threshold: follower.threshold, userCode: userCode)
        var readiness = Readiness()
        while true {
            if let signal = inbox.next(timeout: follower.pollInterval), Launcher.isForwarded(signal) {
                child.send(signal.number)
                continue
            }
            // Asked before the look: what was written until the end is then seen by it.
            let status = child.reap()
            let now = Clock.monotonic()
            let news = status == nil ? follower.poll(now: now) : follower.finish(now: now)
            for event in news { tell(event, events, follower) }
            for line in readiness.lines(follower, now: now) { Console.error(line) }
            if child.executable.obstacle == nil,
                let line = readiness.silence(
                    of: follower, root: (try? ProcessFacts.read(pid: child.pid)) ?? root, since: window.start, now: now)
            {
                Console.error(line)
            }
            if let status { return status }
        }
    }

    private func tell(_ event: Follower.Event, _ events: StallEvents, _ follower: Follower) {
        switch event {
        case .found: break
        case .gone: Leftovers.prune(follower)
        case .unreadable, .thresholdRefused: Notices.print(event)
        case .change(let process, let change):
            guard !quiet else { return }
            if case .missed = change { return Notices.print(event) }
            if case .sampled = change { return }
            if let event = events.event(process, change) { _ = Console.err.write(StallLine.text(event) + "\n") }
        }
    }

    /// The report first: it must be there when whoever waits for our exit looks for it.
    private func finish(_ follower: Follower, window: ReportWindow, pid: Int32, status: ChildStatus) throws {
        let report = window.report(of: follower, userCode: userCode)
        let file = output.map { OutputFile(pattern: $0, pid: pid) }
        var failed = false
        if let file {
            do throws(Failure) {
                try file.write(report: report)
            } catch {
                Console.error(error.message)
                failed = true
            }
        }
        if !quiet { Console.error(Summary.line(of: report, output: failed ? nil : file?.path)) }
        // The command's own status wins over our failure to write, unless it says that all went well.
        if status.shellStatus != 0 { throw ExitCode(status.shellStatus) }
        if failed { throw ExitCode(Failure.general) }
    }

    // MARK: The command line behind ours

    /// The command as bytes, taken from the process's own arguments: they need not be UTF-8.
    private func command(
        arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>, count: Int
    ) throws -> [[UInt8]] {
        var words = command
        if words.first == "--" {
            words.removeFirst()
        } else if let first = words.first, first.hasPrefix("-") {
            if first == "--help" || first == "-h" { throw CleanExit.helpRequest(self) }
            if first == "--version" { throw CleanExit.message(Version.text) }
            throw ValidationError(
                "Unknown option '\(first)' of run; a command that begins with '-' needs '--' before it")
        }
        guard !words.isEmpty else { throw ValidationError("Name a command to run: looplag run -- node server.js") }
        guard words.count < count else { return words.map { Array($0.utf8) } }
        return (count - words.count..<count).map { i in
            guard let word = arguments[i] else { return [] }
            return UnsafeRawBufferPointer(start: word, count: strlen(word)).map { $0 }
        }
    }
}
