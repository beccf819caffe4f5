/// `looplag postmortem PID|SEGMENT`: what a killed process left: its last stalls, the one it died in, its counters.
///
/// Main thread, one look at one file. Names come from the files that the process had mapped, if they are still the same
/// (build ID, else inode): one that was replaced since gives addresses, never wrong names. It refuses a process that
/// lives, whose figures would be out of date at once.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTelemetry

struct PostmortemVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "postmortem",
        abstract: "What a killed process left: its last stalls with their stacks, and its counters.",
        discussion: """
            Reads the segment of a dead process, by the number it had or by the file. 'looplag ps' lists what is there, \
            'looplag ps --clean' removes it.
            """)

    @Argument(help: ArgumentHelp("The number of a dead process, or a segment's file.", valueName: "pid|segment"))
    var target: String

    @Flag(help: "A JSON report on standard output.")
    var json = false

    @OptionGroup var threshold: ThresholdOption

    @Option(help: ArgumentHelp("How many of the last stalls are shown with their stacks.", valueName: "count"))
    var last = PostmortemText.usualStalls

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    func validate() throws {
        if target.isEmpty { throw ValidationError("Name a process id or a segment's file") }
        if let number = Int(target), number <= 0 || number > Int(Int32.max) { try Targets.check([0]) }
        if last < 0 { throw ValidationError("--last takes a number of stalls") }
    }

    func run() throws {
        let source = try Int32(target).map(leftover) ?? segment(target)
        let report: Report
        do throws(TelemetryError) {
            let process = try FollowedProcess(source: source, includesHistory: true)
            // The first look tells what is there, the second decodes the last samples.
            for _ in 0..<2 { _ = process.poll(threshold: threshold.threshold) }
            if let failure = process.failure { throw failure }
            report = self.report(of: process)
        } catch {
            throw failure(error, path: source.path)
        }
        if json {
            try OutputFile(path: "-").write(report: report)
        } else if case .failed(let code) = Console.out.write(PostmortemText.render(report, lastStalls: last)) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }

    // MARK: Which segment

    private func leftover(_ pid: Int32) throws -> SegmentSource {
        do throws(TelemetryError) {
            if let source = try SegmentDiscovery.leftover(pid: pid) { return source }
        } catch {
            throw failure(error, path: Self.path(of: error) ?? "the segment of \(pid)")
        }
        if let facts = try? ProcessFacts.read(pid: pid), !facts.isZombie {
            throw alive(pid, facts.displayName)
        }
        throw Failure(
            "no segment of \(pid): a clean exit leaves none, and it may never have been measured; 'looplag ps' lists"
                + " what dead processes left", status: Failure.gone)
    }

    private func segment(_ path: String) throws -> SegmentSource {
        let source: SegmentSource
        do throws(TelemetryError) {
            source = try SegmentDiscovery.source(ofFile: path)
        } catch {
            throw failure(error, path: path)
        }
        guard !source.isAlive else {
            throw alive(source.pid, (try? ProcessFacts.read(pid: source.pid))?.displayName)
        }
        return source
    }

    private func alive(_ pid: Int32, _ name: String?) -> Failure {
        Failure(
            "\(pid)\(name.map { " (\($0))" } ?? "") is still alive; 'looplag stalls \(pid)' lists its stalls and"
                + " 'looplag record \(pid) -o FILE' measures it")
    }

    private static func path(of error: TelemetryError) -> String? {
        switch error {
        case .notPermitted(_, let path, _), .untrusted(let path, _), .corrupt(let path, _),
            .otherVersion(let path, _, _),
            .gone(let path), .io(let path, _):
            path
        case .noSuchProcess, .noAgent: nil
        }
    }

    /// The reader's messages speak of servers that can be restarted; this one is dead.
    private func failure(_ error: TelemetryError, path: String) -> Failure {
        let path = ProcessFacts.printable(path)
        switch error {
        case .io(_, let code) where code == ENOENT || code == ENOTDIR:
            return Failure(
                "no segment \(path): there is no such file; 'looplag ps' lists what dead processes left",
                status: Failure.gone)
        case .gone, .noAgent, .noSuchProcess:
            return Failure("\(path) went away while it was read", status: Failure.gone)
        case .notPermitted(_, _, let detail):
            return Failure(
                "cannot read \(path): \(ProcessFacts.printable(detail)); run as that user or as root",
                status: Failure.notPermitted)
        case .untrusted(_, let reason):
            return Failure(
                "will not read \(path): \(ProcessFacts.printable(reason)), so it is no segment of an agent's")
        case .corrupt(_, let reason):
            return Failure(
                "cannot read \(path): the segment is damaged (\(ProcessFacts.printable(reason))), and what it held is"
                    + " lost")
        case .otherVersion, .io:
            return Failure(error.message)
        }
    }

    // MARK: The report

    /// On the clock of the process's own start: the file may be older than this boot.
    private func report(of process: FollowedProcess) -> Report {
        let snapshot = process.latest
        let anchor = snapshot.anchor
        let input = ReportInput.Process(
            from: nil, to: snapshot, stalls: process.stallHistory, samples: process.samples.values.flatMap { $0 },
            callers: process.loopCallers)
        return ReportBuilder.build(
            ReportInput(
                processes: [input], start: anchor.monotonic, end: max(snapshot.takenAt, anchor.monotonic),
                startWallNanoseconds: anchor.realtimeNanoseconds,
                endWallNanoseconds: anchor.realtime(of: max(snapshot.takenAt, anchor.monotonic)),
                threshold: threshold.threshold, machine: MachineInfo.current(), version: Version.number,
                userCode: userCode))
    }
}
