/// `looplag top [PID ...]`: the live view of one, several or all processes with an agent.
///
/// Main thread. Finds the processes and hands them to the live view; ends with status 3 when every process that was
/// named has gone away.

import ArgumentParser
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry
import LoopLagTop

struct TopVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "top",
        abstract: "Live view of event loops and their stalls, also while they last.",
        discussion: """
            Without a PID it shows every process with an agent; new ones appear, ended ones fade out. Delays and stalls \
            are those of the last 60 s. '?' in the view explains its keys. On a pipe it prints a line per loop every \
            second; with --json a report of the last 60 s on each line (the format of 'looplag record'). When every \
            process that was named has ended it exits with status 3, on a terminal once you quit.
            """)

    @Argument(help: ArgumentHelp("Processes; none means all with an agent.", valueName: "pid"))
    var pids: [Int32] = []

    @OptionGroup var threshold: ThresholdOption

    @Flag(help: "On standard output a report of the last 60 s as one JSON object per line.")
    var json = false

    @Option(
        help: ArgumentHelp(
            "Time between two lines or pictures (default: 1s, on a terminal 250ms).", valueName: "duration"),
        transform: DurationArgument.parse)
    var interval: Duration?

    @Option(help: ArgumentHelp("End after this many lines per loop, or pictures.", valueName: "number"))
    var iterations: Int?

    @Flag(help: "Also show loops that serve nothing (libdispatch's manager, node's inspector).")
    var helpers = false

    @Flag(help: "Ring the terminal's bell when a stall opens, once a second at most.")
    var bell = false

    @OptionGroup var attach: AttachOptions

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    func validate() throws {
        try Targets.check(pids)
        if let iterations, iterations < 1 { throw ValidationError("--iterations must be at least 1") }
        if let interval, interval < .milliseconds(50) { throw ValidationError("--interval must be at least 50ms") }
        if attach.noChildren && pids.isEmpty { throw ValidationError("--no-children needs a process id") }
    }

    func run() throws {
        threshold.noteLimits()
        let follower = Follower(
            scope: Targets.scope(pids, noChildren: attach.noChildren), threshold: threshold.threshold,
            includesHistory: false)
        var options = LiveOptions()
        let attaching = try Attaching.prepare(
            pids: Set(pids).sorted(), options: attach, threshold: threshold.threshold, userCode: userCode)
        defer { attaching.finish() }
        try follower.follow(attaching)
        options.targets = attaching.targets
        options.json = json
        options.interval = interval
        options.iterations = iterations
        options.showsHelpers = helpers
        options.bell = bell
        options.userCode = userCode
        if case .gone(let names) = try LiveSession(follower: follower, options: options).run() {
            throw Failure("\(names) went away", status: Failure.gone)
        }
    }
}
