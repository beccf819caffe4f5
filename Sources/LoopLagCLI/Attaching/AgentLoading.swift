/// Loads the agent into one process, waits until it measures, and takes it out again: the steps that `attach`,
/// `detach` and all verbs that name a process have in common.
///
/// Main thread. Prints what `--verbose` asks for, and nothing else; failures are thrown as the line to show.

import Glibc
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagTelemetry

enum AgentLoading {
    /// How long an agent that was called gets to show its segment.
    static let startLimit: Duration = .seconds(3)
    /// How long a running agent gets to end: it looks four times a second.
    static let endLimit: Duration = .seconds(3)

    /// What the agent is told. Our own environment, and the threshold that was asked for.
    static func variables(threshold: Duration?) -> [String: String] {
        var found: [String: String] = [:]
        for name in [
            "LOOPLAG_THRESHOLD", "LOOPLAG_DIR", "LOOPLAG_WAITS", "LOOPLAG_SIGNAL", "LOOPLAG_STACKS", "LOOPLAG_BUDGET",
        ] {
            if let value = getenv(name), value.pointee != 0 { found[name] = String(cString: value) }
        }
        if let threshold { found["LOOPLAG_THRESHOLD"] = DurationArgument.format(threshold) }
        return found
    }

    static func injector(pid: Int32, image: AgentImage, threshold: Duration?) throws(InjectError) -> Injector {
        try Injector(pid: pid, image: image, variables: variables(threshold: threshold))
    }

    static func image() throws(Failure) -> AgentImage {
        do throws(AttachError) {
            return try AgentImage(AgentObject.locate())
        } catch {
            throw Failure(error.message, status: Failure.status(of: error))
        }
    }

    static func failure(_ error: InjectError, pid: Int32, name: String?) -> Failure {
        guard let name = name ?? (try? ProcessFacts.read(pid: pid)).map({ _ in LoopHost.name(pid) }) else {
            return Failure("no process \(pid)", status: Failure.gone)
        }
        let status =
            switch error {
            case .gone: Failure.gone
            case .notPermitted: Failure.notPermitted
            case .unfit, .noSafeThread, .failed: Failure.general
            }
        return Failure(error.message(pid: pid, name: name), status: status)
    }

    /// Waits until the called agent's segment is there.
    static func source(of injector: Injector) throws(Failure) -> SegmentSource {
        try source(pid: injector.pid, name: injector.name) { injector.hasFailed }
    }

    static func source(pid: Int32, name: String, hasFailed: () -> Bool) throws(Failure) -> SegmentSource {
        let clock = ContinuousClock()
        let start = clock.now
        while true {
            do throws(TelemetryError) {
                return try SegmentDiscovery.live(pid: pid)
            } catch {
                switch error {
                case .noAgent, .gone: break
                case .noSuchProcess: throw Self.failure(.gone, pid: pid, name: name)
                default: throw Targets.failure(error, pid: pid)
                }
            }
            if hasFailed() {
                throw Failure(
                    "the agent in \(pid) (\(name)) could not start: no room for its segment, no memory, or no"
                        + " thread; see 'looplag doctor \(pid)'")
            }
            guard clock.now - start < startLimit else {
                throw Failure(
                    "the agent in \(pid) (\(name)) was loaded and shows no segment; see 'looplag doctor"
                        + " \(pid)'")
            }
            usleep(1_000)
        }
    }

    static func tell(_ success: Injector.Success, pid: Int32, name: String) {
        let how = success.wasLoaded ? "called the agent in" : "loaded the agent into"
        Console.error(
            "\(how) \(pid) (\(name)) through thread \(success.tid) (\(success.threadName)): stopped for"
                + " \(milliseconds(success.stopped)) ms, of that held for \(milliseconds(success.held)) ms,"
                + " \(Readiness.count(success.attempts, "attempt"))")
    }

    private static func milliseconds(_ duration: Duration) -> String {
        let micros = duration.components.attoseconds / 1_000_000_000_000 + duration.components.seconds * 1_000_000
        let rest = String(micros % 1000)
        return "\(micros / 1000).\(String(repeating: "0", count: 3 - rest.count))\(rest)"
    }

    /// Ends a running agent and waits until every slot is its own again.
    static func detach(_ source: SegmentSource) throws(Failure) {
        let control: AgentControl
        do throws(TelemetryError) {
            control = try AgentControl(source)
            try control.requestDetach()
        } catch {
            throw Targets.failure(error, pid: source.pid)
        }
        let clock = ContinuousClock()
        let start = clock.now
        let identity = ProcessIdentity(pid: source.pid, startTicks: source.startTicks)
        while !control.isParked {
            // Its end is an end of measuring, too.
            guard ProcessFacts.isRunning(identity) else { return }
            guard clock.now - start < endLimit else {
                throw Failure(
                    "the agent in \(source.pid) does not answer: its thread is stopped, or starved; try again")
            }
            usleep(2_000)
        }
    }
}

extension Injector {
    /// As every other line of ours calls the process.
    var name: String { serverName(command: facts.command, executable: facts.executable, runtime: nil) }
}
