/// `looplag doctor [PID]`: what works here and what does not, each with its remedy.
///
/// Main thread. Without a PID it looks at the machine and measures a short-lived process of its own; with one it looks
/// at that process too, changing nothing in it. Status 0 when all that is needed works, else 1.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel

struct DoctorVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "What works here and what does not, with the remedy.",
        discussion: """
            With a PID: what can be measured of that process, and why not more. Exit status 0 when everything needed \
            works, 1 when something does not.
            """)

    @Argument(help: ArgumentHelp("A process to look at.", valueName: "pid"))
    var pid: Int32?

    @Flag(help: "One JSON object per line on standard output.")
    var json = false

    /// The process that the check-up starts and measures: it waits in epoll until it is told to end.
    @Flag(help: .hidden)
    var probe = false

    func validate() throws { try Targets.check(pid.map { [$0] } ?? []) }

    func run() throws {
        if probe { return try Probe.serve() }
        var checkup = Checkup()
        if let pid {
            try ProcessChecks.run(pid: pid, into: &checkup)
        } else {
            MachineChecks.run(into: &checkup)
        }
        let text = json ? try checkup.json() : checkup.text + checkup.conclusion(pid: pid)
        if case .failed(let code) = Console.out.write(text) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
        if !checkup.isFine { throw ExitCode(Failure.general) }
    }
}

/// A server of our own for two seconds: the whole way from preload to segment, tried for real.
enum Probe {
    static let patience: Duration = .seconds(2)

    /// Runs in the child.
    static func serve() throws {
        var inbox = SignalInbox([SIGTERM])
        let start = Clock.monotonic()
        let worked = SystemFacts.turnEmptyLoop {
            Clock.monotonic().since(start) >= patience * 2 || inbox.next(timeout: .zero) != nil
        }
        if !worked { throw Failure("cannot make an epoll descriptor: \(Console.reason(errno))") }
    }
}
