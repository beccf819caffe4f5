/// `looplag detach PID`: ends the measuring of processes and of their children. The agent restores every slot that it
/// patched, removes its segment and sleeps no more; its code stays, unused.
///
/// Main thread. It needs no tracing: the wish is a word in the segment. A process without an agent is no error.

import ArgumentParser
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

struct DetachVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "detach",
        abstract: "End the measuring of a running server.",
        discussion: """
            Every call that was redirected is restored and the agent's thread ends; 'looplag attach' starts it again. \
            An agent that was linked in or preloaded ends, too.
            """)

    @Argument(help: ArgumentHelp("Processes.", valueName: "pid"))
    var pids: [Int32]

    @Flag(name: .customLong("no-children"), help: "Leave the processes that it has started alone.")
    var noChildren = false

    func validate() throws {
        try Targets.check(pids)
        if pids.isEmpty { throw ValidationError("Name at least one process id") }
    }

    func run() throws {
        for pid in pids {
            var ended = 0
            for member in [pid] + (noChildren ? [] : SegmentDiscovery.children(of: pid)) {
                let source: SegmentSource
                do throws(TelemetryError) {
                    source = try SegmentDiscovery.live(pid: member)
                } catch {
                    if case .noAgent = error { continue }
                    if member == pid { throw Targets.failure(error, pid: pid) }
                    continue
                }
                try AgentLoading.detach(source)
                ended += 1
                Console.error("detached from \(member) (\(LoopHost.name(member)))")
            }
            if ended == 0 { Console.error("\(pid) (\(LoopHost.name(pid))) is not measured") }
        }
    }
}
