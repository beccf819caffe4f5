/// `looplag attach PID`: loads the agent into running processes, and into the children that wait for events, and leaves
/// it there.
///
/// Main thread. A process that measures already is no error. It returns when all of them measure.

import ArgumentParser
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagTelemetry

struct AttachVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "attach",
        abstract: "Load the agent into a running server.",
        discussion: """
            Borrows a thread that waits for events for a fraction of a millisecond; nothing is restarted and no request \
            is lost. A server that is stalled is tried again until --wait is over. 'looplag detach' ends the measuring.
            """)

    @Argument(help: ArgumentHelp("Processes.", valueName: "pid"))
    var pids: [Int32]

    @OptionGroup var threshold: ThresholdOption

    @Flag(name: .customLong("no-children"), help: "Leave the processes that it has started alone.")
    var noChildren = false

    @Option(
        help: ArgumentHelp("How long to wait for a moment to load the agent.", valueName: "duration"),
        transform: DurationArgument.parse)
    var wait: Duration = .seconds(30)

    @OptionGroup var node: NodeOptions

    @Flag(name: .shortAndLong, help: "Say how long each process was stopped.")
    var verbose = false

    func validate() throws {
        try Targets.check(pids)
        if pids.isEmpty { throw ValidationError("Name at least one process id") }
    }

    func run() throws {
        let image = try AgentLoading.image()
        for pid in pids {
            let members = noChildren ? [] : SegmentDiscovery.children(of: pid).filter(LoopHost.isLikely)
            do throws(Failure) {
                // A prefork master often waits for nothing but signals: its workers are the servers.
                try attach(pid, image, limit: members.isEmpty || LoopHost.isLikely(pid) ? wait : .zero)
            } catch {
                guard !members.isEmpty, error.status == Failure.general else { throw error }
                if verbose { Console.error(error.message) }
            }
            for child in members {
                do throws(Failure) {
                    try attach(child, image, limit: wait)
                } catch {
                    // A child that has ended meanwhile was never the point.
                    if error.status != Failure.gone { throw error }
                }
            }
        }
    }

    private func attach(_ pid: Int32, _ image: AgentImage, limit: Duration) throws(Failure) {
        let inspector = InspectorLoading(options: node, threshold: threshold.given)
        if node.requests, pids.contains(pid) || InspectorLoading.isNode(pid),
            noChildren || !InspectorLoading.isPrimary(pid)
        {
            _ = try inspector.enter(pid, after: nil, within: limit)
            return
        }
        if let source = try? SegmentDiscovery.live(pid: pid) {
            Console.error("\(source.pid) (\(LoopHost.name(pid))) is measured already")
            return
        }
        let injector: Injector
        let success: Injector.Success
        do throws(InjectError) {
            injector = try AgentLoading.injector(pid: pid, image: image, threshold: threshold.given)
            success = try injector.attach(within: limit)
        } catch {
            if case .notPermitted = error, !noChildren, InspectorLoading.leavesOut(pid) { return }
            _ = try inspector.enter(pid, after: error, within: limit)
            return
        }
        if verbose { AgentLoading.tell(success, pid: pid, name: injector.name) }
        _ = try AgentLoading.source(of: injector)
        Console.error("attached to \(pid) (\(injector.name))")
    }
}

/// What a process looks like from outside, to those who decide whether to bring an agent into it.
enum LoopHost {
    /// One of its threads waits for events in epoll now: a shell or a helper does not.
    static func isLikely(_ pid: Int32) -> Bool {
        ThreadFacts.all(pid: pid).contains { thread in
            ThreadFacts.syscall(pid: pid, tid: thread.tid)?.number.map(WaitCall.epoll.contains) ?? false
        }
    }

    static func name(_ pid: Int32) -> String {
        guard let facts = try? ProcessFacts.read(pid: pid) else { return "?" }
        return serverName(command: facts.command, executable: facts.executable, runtime: nil)
    }
}
