/// The processes that a verb names, and what is said when one of them cannot be measured.
///
/// Used by `stalls` and `record`, on the main thread. Loading an agent into a running process is another verb's work;
/// here a process without one is an error that says what to do.

import ArgumentParser
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

enum Targets {
    /// The live segment of a named process.
    static func source(of pid: Int32) throws(Failure) -> SegmentSource {
        do throws(TelemetryError) {
            return try SegmentDiscovery.live(pid: pid)
        } catch {
            throw failure(error, pid: pid)
        }
    }

    /// Which processes a verb follows.
    static func scope(_ pids: [Int32], noChildren: Bool) -> Follower.Scope {
        pids.isEmpty ? .everything : noChildren ? .these(pids) : .trees(pids)
    }

    static func failure(_ error: TelemetryError, pid: Int32) -> Failure {
        switch error {
        case .noAgent:
            let name = (try? ProcessFacts.read(pid: pid)).map { " (\($0.displayName))" } ?? ""
            if ProcessFacts.hasMapped(fileName: AgentObject.fileName, pid: pid) == true {
                return Failure(
                    "no telemetry of \(pid)\(name) yet: the agent is loaded and has not seen it wait for events;"
                        + " try again once it serves")
            }
            return Failure(
                "no agent in \(pid)\(name): load one with 'looplag attach \(pid)', or start the server with 'looplag run -- ...'"
            )
        case .noSuchProcess, .gone: return Failure(error.message, status: Failure.gone)
        case .notPermitted: return Failure(error.message, status: Failure.notPermitted)
        case .untrusted, .corrupt, .otherVersion, .io: return Failure(error.message)
        }
    }

    /// Refuses numbers that can be no process.
    static func check(_ pids: [Int32]) throws {
        for pid in pids where pid <= 0 { throw ValidationError("'\(pid)' is no process id") }
    }
}

/// Events that are no stalls, as lines on stderr.
enum Notices {
    static func print(_ event: Follower.Event) {
        if let text = text(event) { Console.error(text) }
    }

    /// The line without `looplag: `; nil for what needs none.
    static func text(_ event: Follower.Event) -> String? {
        switch event {
        case .found, .gone: return nil
        case .unreadable(_, let error): return error.message
        case .thresholdRefused(let process):
            let capture = DurationArgument.format(process.latest.startThreshold)
            return
                "cannot ask the agent of \(process.identity.pid) (\(process.name)) for shorter stalls: its segment may"
                + " not be written, or sixteen readers have asked; it captures stalls of \(capture) and more"
        case .change(let process, .missed(let count)):
            return "\(count) stalls of \(process.identity.pid) (\(process.name)) came and went unseen"
        case .change: return nil
        }
    }
}
