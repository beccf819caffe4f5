/// Loads the agent into node by its inspector: where the process may not be traced, or where `--requests` is to follow what
/// its JavaScript does.
///
/// Called by `attach` and by Attaching, on the main thread, which it blocks until the agent measures or the time is over.
/// Says in one line that it has been there: the process's own output shows that its inspector was open.

import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry

struct InspectorLoading {
    let options: NodeOptions
    let threshold: Duration?

    struct Entry {
        var identity: ProcessIdentity
        var name: String
        var source: SegmentSource
        var wasRunning: Bool
    }

    static func isNode(_ pid: Int32) -> Bool {
        (try? ProcessFacts.read(pid: pid)).map(InspectorRoute.isNode) ?? false
    }

    static func isPrimary(_ pid: Int32) -> Bool {
        guard let facts = try? ProcessFacts.read(pid: pid) else { return false }
        return InspectorRoute.isClusterPrimary(facts, children: SegmentDiscovery.children(of: pid))
    }

    /// Whether the process is better left out, and its workers entered instead; says so.
    static func leavesOut(_ pid: Int32) -> Bool {
        guard isPrimary(pid) else { return false }
        Console.error(
            "\(pid) (\(LoopHost.name(pid))) is left out: it is the primary of a cluster, and its inspector would open those"
                + " of all its workers on one port; they are entered one by one")
        return true
    }

    /// - Parameter refusal: why the process cannot be entered by tracing it; nil where that was not tried. Anything but a
    ///   missing permission is thrown as it is.
    func enter(_ pid: Int32, after refusal: InjectError?, within limit: Duration) throws(Failure) -> Entry {
        let name = LoopHost.name(pid)
        if let refusal {
            guard case .notPermitted = refusal, options.inspector != .never else {
                throw AgentLoading.failure(refusal, pid: pid, name: nil)
            }
        }
        let route: InspectorRoute?
        let success: InspectorRoute.Success
        do throws(InjectError) {
            let object: AgentObject
            do throws(AttachError) {
                object = try AgentObject.locate()
            } catch {
                throw .failed(error.message)
            }
            route = try InspectorRoute(
                pid: pid, agent: object, variables: AgentLoading.variables(threshold: threshold),
                trustsHandler: options.inspector == .always, notes: CacheFolder.path)
            guard let route else {
                throw refusal ?? .unfit("it is not node, and --requests follows node's requests only")
            }
            success = try route.attach(followsRequests: options.requests, within: limit)
        } catch {
            throw failure(error, after: refusal, pid: pid, name: name)
        }
        let source = try AgentLoading.source(pid: pid, name: name) { false }
        tell(success, pid: pid, name: name, wasRefused: refusal != nil)
        return Entry(
            identity: ProcessIdentity(pid: pid, startTicks: source.startTicks), name: name, source: source,
            wasRunning: success.wasRunning)
    }

    /// Both reasons in one line: that it may not be traced, and why not even this way.
    private func failure(_ error: InjectError, after refusal: InjectError?, pid: Int32, name: String) -> Failure {
        guard case .notPermitted(let first)? = refusal, error != refusal else {
            return AgentLoading.failure(error, pid: pid, name: name)
        }
        switch error {
        case .unfit(let second), .notPermitted(let second):
            return AgentLoading.failure(
                .notPermitted("\(first); nor by node's inspector: \(second)"), pid: pid, name: name)
        case .failed(let second):
            return AgentLoading.failure(
                .failed("it may not be traced, and by node's inspector it failed: \(second)"), pid: pid, name: name)
        case .gone, .noSafeThread: return AgentLoading.failure(error, pid: pid, name: name)
        }
    }

    private func tell(_ success: InspectorRoute.Success, pid: Int32, name: String, wasRefused: Bool) {
        let why = wasRefused ? "may not be traced: the agent" : "follows its requests: the agent"
        var port = "port \(success.port), which was open before and stays so"
        if let open = success.openFor {
            let milliseconds = open.components.seconds * 1000 + open.components.attoseconds / 1_000_000_000_000_000
            port =
                "port \(success.port), open for \(milliseconds) ms and "
                + (success.isStillOpen ? "not closed yet" : "closed again")
        }
        Console.error("\(pid) (\(name)) \(why) came in by node's inspector (\(port))")
        if success.followsRequests == false {
            Console.error("\(pid) (\(name)): its requests cannot be followed: the agent has no room for them")
        }
    }
}
