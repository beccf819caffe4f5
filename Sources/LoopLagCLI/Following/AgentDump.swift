/// What an agent adds to a dump: the stacks of its loops with the interpreter's frames, and of the workers that hold a
/// pool's slots.
///
/// Called by `dump`, on the main thread. Only where an interpreter runs: of other processes the stacks that are taken from
/// outside say as much, and nothing is loaded for them. It decodes nothing and prints nothing.

import ArgumentParser
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

enum AgentDump {
    /// How long an agent gets to answer: it looks at least four times a second.
    private static let limit: Duration = .seconds(4)
    /// Another reader's wish may have taken the place of ours.
    private static let repeated: Duration = .milliseconds(600)
    /// How long an agent that was just loaded gets to see a loop wait.
    private static let loopLimit: Duration = .milliseconds(600)

    /// CPython or node, by the program and the libraries that it has mapped.
    static func isManaged(_ facts: ProcessFacts, _ map: MemoryMap) -> Bool {
        let program = facts.executable.map { $0.split(separator: "/").last ?? "" } ?? ""
        return program.hasPrefix("python") || program == "node" || program == "nodejs"
            || map.hasFile { $0.hasPrefix("libpython3") || $0.hasPrefix("libnode.so") }
    }

    /// The samples that the agent took for us; empty when it did not answer.
    static func samples(of source: SegmentSource) throws(TelemetryError) -> [RawSample] {
        let control = try AgentControl(source)
        let number = UInt64.random(in: 1 ... .max)
        let clock = ContinuousClock()
        let start = clock.now
        var asked = start
        try control.requestDump(number)
        while !control.hasServed(number), clock.now - start < limit {
            if clock.now - asked > repeated {
                asked = clock.now
                try control.requestDump(number)
            }
            usleep(2_000)
        }
        return try SegmentReader(source).samples(after: nil).filter { $0.dump == number }
    }

    /// Waits until an agent that was loaded a moment ago has met its first loop; a loop without timers may not come.
    static func awaitLoop(of process: FollowedProcess, threshold: Duration) {
        let clock = ContinuousClock()
        let start = clock.now
        while process.latest.loops.isEmpty, clock.now - start < loopLimit {
            usleep(5_000)
            _ = process.poll(threshold: threshold)
        }
    }
}

/// An agent that is loaded for one dump.
final class DumpAgent {
    /// A stalled process is to be shown now, and not when it waits again.
    private static let patience: Duration = .milliseconds(300)

    private let attaching: Attaching

    /// Loads one; throws the reason where that cannot be done, or not now.
    init(pid: Int32, keep: Bool, threshold: Duration, userCode: [String]) throws {
        let options = try AttachOptions.parse(["--no-children"] + (keep ? ["--keep"] : []))
        attaching = try Attaching.prepare(pids: [pid], options: options, threshold: threshold, userCode: userCode)
        let clock = ContinuousClock()
        let start = clock.now
        while attaching.isPending, clock.now - start < Self.patience {
            attaching.poll(now: Clock.monotonic())
            usleep(3_000)
        }
        if let failure = attaching.takeFailures().first { throw failure }
        if attaching.isPending {
            attaching.finish()
            throw Failure("no thread of \(pid) waits for events now, so no agent could be loaded")
        }
    }

    func finish() { attaching.finish() }
}
