/// `looplag record PID --duration 30s -o FILE`: watches, then writes the JSON report.
///
/// Main thread. The report is written whatever ends the recording: the duration, Ctrl-C, or the death of the target
/// (status 3). It refuses to start when the file could never be written.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

struct RecordVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "record",
        abstract: "Write a JSON report of some time of one or more processes.",
        discussion: """
            Follows the processes that the targets start, too. Without --duration it records until Ctrl-C. A target that \
            goes away ends its part; when one did, the status is 3 and the report holds what was seen.
            """)

    @Argument(help: ArgumentHelp("Processes to record.", valueName: "pid"))
    var pids: [Int32]

    @Option(
        help: ArgumentHelp("How long to record.", valueName: "duration"), transform: DurationArgument.parse)
    var duration: Duration?

    @Option(
        name: .shortAndLong,
        help: ArgumentHelp("The report's file; - is standard output, %p becomes the process id.", valueName: "file"))
    var output: String

    @OptionGroup var threshold: ThresholdOption

    @OptionGroup var attach: AttachOptions

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    private static let interval: Duration = .milliseconds(50)

    func validate() throws {
        try Targets.check(pids)
        if pids.isEmpty { throw ValidationError("Name at least one process id") }
    }

    func run() throws {
        let file = OutputFile(pattern: output, pid: pids.first ?? 0)
        try file.check()
        threshold.noteLimits()
        let window = ReportWindow()
        let follower = Follower(
            scope: Targets.scope(pids, noChildren: attach.noChildren), threshold: threshold.threshold,
            includesHistory: false)
        let attaching = try Attaching.prepare(
            pids: pids, options: attach, threshold: threshold.threshold, userCode: userCode)
        defer { attaching.finish() }
        try follower.follow(attaching)
        let targets = attaching.targets
        follow(follower, targets: targets, attaching: attaching, start: window.start)
        if let failure = attaching.takeFailures().first, follower.processes.isEmpty { throw failure }
        let gone = targets.filter { !$0.isRunning }
        let report = window.report(of: follower, userCode: userCode)
        try file.write(report: report)
        Console.error(Summary.line(of: report, output: file.path))
        if let lost = follower.lost, gone.isEmpty {
            throw ExitCode(Targets.failure(lost.error, pid: lost.pid).status)
        }
        if !gone.isEmpty {
            let names = gone.map { "\($0.identity.pid) (\($0.name))" }.joined(separator: ", ")
            throw Failure("\(names) went away while it was recorded", status: Failure.gone)
        }
    }

    private func follow(_ follower: Follower, targets: [Target], attaching: Attaching, start: MonotonicTime) {
        var inbox = SignalInbox([SIGINT, SIGTERM, SIGHUP])
        var readiness = Readiness()
        var progress = Progress()
        var stalls = 0
        while true {
            let now = Clock.monotonic()
            for event in follower.poll(now: now) {
                switch event {
                case .found, .gone: break
                case .unreadable, .thresholdRefused, .change(_, .missed):
                    progress.clear()
                    Notices.print(event)
                case .change(_, .closed): stalls += 1
                case .change: break
                }
            }
            for line in readiness.lines(follower, now: now) {
                progress.clear()
                Console.error(line)
            }
            let pid = pids.first ?? 0
            if let line = readiness.silence(
                of: follower, root: try? ProcessFacts.read(pid: pid), since: start, now: now)
            {
                progress.clear()
                Console.error(line)
            }
            let elapsed = now.since(start)
            progress.show(elapsed: elapsed, of: duration, stalls: stalls)
            attaching.showProvisional()
            if follower.live.isEmpty && !attaching.isPending
                && (follower.lost != nil || !targets.contains(where: \.isRunning))
            {
                break
            }
            if let duration, elapsed >= duration { break }
            let rest = duration.map { max(.zero, $0 - Clock.monotonic().since(start)) } ?? Self.interval
            if inbox.next(timeout: min(rest, Self.interval))?.isStopRequest == true { break }
        }
        _ = follower.finish(now: Clock.monotonic())
        progress.clear()
    }
}

/// One line on a terminal's last row, redrawn once a second; nothing at all on a pipe.
private struct Progress {
    private let isShown = Console.err.isTerminal
    private var second: Int64 = -1

    mutating func show(elapsed: Duration, of total: Duration?, stalls: Int) {
        let now = elapsed.components.seconds
        guard isShown, now != second else { return }
        second = now
        let end = total.map { " of \(DurationArgument.format($0))" } ?? ", Ctrl-C ends it"
        _ = Console.err.write("\r\u{1b}[Krecording \(now)s\(end), \(Readiness.count(stalls, "stall"))")
    }

    mutating func clear() {
        guard isShown, second >= 0 else { return }
        second = -1
        _ = Console.err.write("\r\u{1b}[K")
    }
}
