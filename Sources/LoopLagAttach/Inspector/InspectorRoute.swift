/// The other way into a node process: SIGUSR1 opens node's inspector, which loads the agent's object through
/// `process.dlopen`, and is closed again.
///
/// Made by the command line for one process that may not be traced, or whose requests are to be followed; blocks until it
/// is done or the time is over, on the main thread. The signal is sent only to a process that is node and handles it:
/// whatever speaks against it is found before. One process at a time in a network namespace, since all of them open the
/// same port. An inspector that was open before is used and stays open.

import CLoopLagLayout
import Glibc
import LoopLagModel

public final class InspectorRoute {
    public struct Success: Hashable, Sendable {
        public var port: Int
        /// How long the inspector was open for us; nil for one that is the process's own.
        public var openFor: Duration?
        /// It did not close again in the time that it was given.
        public var isStillOpen: Bool
        /// It measured already.
        public var wasRunning: Bool
        /// Requests are followed from now on; nil where that was not asked for.
        public var followsRequests: Bool?
    }

    /// How long the inspector gets to close.
    private static let closeLimit: Duration = .seconds(3)

    public let pid: Int32
    public let facts: ProcessFacts
    private let node: NodeProcess
    private let agent: String
    private let variables: [UInt8]
    private let trustsHandler: Bool
    /// There while the process has our signal and has not come to open its inspector: whoever comes next closes it.
    private let note: String?

    /// Looks at everything, and throws what can never work. nil when the process is not node.
    /// - Parameters:
    ///   - variables: LOOPLAG_* names and values for the agent, over those in the process's own environment.
    ///   - trustsHandler: send SIGUSR1 also where the program's source names that signal.
    ///   - notes: a folder of ours, for what the next command line has to know; nil = there is none.
    public init?(
        pid: Int32, agent: AgentObject, variables: [String: String], trustsHandler: Bool, notes: String?
    ) throws(InjectError) {
        self.pid = pid
        self.trustsHandler = trustsHandler
        facts = try Obstacle.check(pid: pid, traces: false)
        let started = facts.startTicks
        note = notes.map { "\($0)/inspector-\(pid)-\(started)" }
        guard let node = NodeProcess(facts: facts) else { return nil }
        self.node = node
        self.agent = try Self.object(agent, pid: pid)
        self.variables = try Injector.block(variables, pid: pid)
        if SystemFacts.sharesNamespace("net", pid: pid) != true {
            throw .unfit("its inspector would listen in another network namespace; run looplag inside it")
        }
        if kill(pid, 0) != 0, errno == EPERM {
            throw .notPermitted("not permitted to send it a signal (uid \(facts.uid), you are \(geteuid()))")
        }
    }

    public static func isNode(_ facts: ProcessFacts) -> Bool { NodeProcess(facts: facts) != nil }

    /// The primary of a cluster asks every worker to open its inspector, too, as soon as its own does; all of them on one
    /// port. It is not to be entered this way; its workers are.
    public static func isClusterPrimary(_ facts: ProcessFacts, children: [Int32]) -> Bool {
        isNode(facts) && children.contains { ProcessFacts.environment(pid: $0)["NODE_UNIQUE_ID"] != nil }
    }

    /// The path by which the process loads the object: that of an agent in it, else ours.
    private static func object(_ agent: AgentObject, pid: Int32) throws(InjectError) -> String {
        guard let map = MemoryMap.read(pid: pid) else {
            throw .notPermitted("not permitted to look at its mappings and files")
        }
        if let loaded = map.mappings.first(where: { $0.offset == 0 && Injector.isAgent($0.path) })?.path {
            guard !loaded.hasPrefix("/memfd:"), !loaded.hasSuffix(" (deleted)") else {
                throw .unfit(
                    "its agent came in by tracing, or its file is gone, and node's inspector cannot find it again;"
                        + " restart it to measure it this way")
            }
            return loaded
        }
        var own = stat()
        var theirs = stat()
        guard stat(agent.path, &own) == 0, stat("/proc/\(pid)/root\(agent.path)", &theirs) == 0,
            own.st_ino == theirs.st_ino, own.st_dev == theirs.st_dev
        else {
            throw .unfit(
                "it does not see the agent's object \(agent.path) in its own file system; put it where both of you see it"
                    + " and name it with LOOPLAG_AGENT")
        }
        return agent.path
    }

    // MARK: The way in

    public func attach(followsRequests: Bool, within limit: Duration) throws(InjectError) -> Success {
        let end = ContinuousClock.now + max(limit, .seconds(1))
        guard let lock = PortLock(until: end) else {
            throw .failed("another looplag uses the inspector's port at this moment; try again")
        }
        defer { lock.release() }
        guard ProcessFacts.isRunning(facts.identity) else { throw .gone }
        guard let before = Listener.own(pid: pid) else {
            throw .notPermitted("not permitted to see its open sockets, and so not which port its inspector has")
        }
        let known = node.inspectorPort.flatMap { port in before.first { $0.port == port } }
        // Nor is one that opened too late for an earlier command line the process's own.
        let isOurs = known == nil || note.map { unlink($0) == 0 } == true
        let opened = ContinuousClock.now
        let listener: Listener
        if let known { listener = known } else { listener = try open(before: before, end: end) }
        let text: String
        do throws(InspectorError) {
            text = try InspectorClient(host: listener.host, port: listener.port).evaluate(
                NodeProgram.expression(
                    agent: agent, variables: variables, closesInspector: isOurs,
                    followsRequests: followsRequests),
                within: max(end - ContinuousClock.now, .seconds(1)))
        } catch {
            throw failure(error, listener, isOurs: isOurs)
        }
        let isStillOpen = isOurs && !isClosed(listener)
        guard let answer = NodeAnswer(text) else {
            throw .failed("its agent gave an answer that I do not know (\(ProcessFacts.printable(text)))")
        }
        return try Success(
            port: listener.port, openFor: isOurs ? ContinuousClock.now - opened : nil, isStillOpen: isStillOpen,
            wasRunning: Injector.wasRunning(answer: answer.answer),
            followsRequests: followsRequests ? answer.follows : nil)
    }

    /// Sends the signal and waits for a port that was not there before.
    private func open(before: [Listener], end: ContinuousClock.Instant) throws(InjectError) -> Listener {
        if let port = node.inspectorPort,
            let taken = Listener.all(pid: pid).first(where: { $0.port == port })
        {
            let holder = Listener.holder(of: taken).map { " by \($0)" } ?? ""
            throw .failed("port \(port), which its inspector would use, is taken\(holder)")
        }
        if let refusal = node.signalRefusal(trustsHandler: trustsHandler) { throw .unfit(refusal) }
        guard ProcessFacts.isRunning(facts.identity) else { throw .gone }
        guard kill(pid, SIGUSR1) == 0 else {
            throw .notPermitted("not permitted to send it a signal (uid \(facts.uid), you are \(geteuid()))")
        }
        var looks = 0
        let signalled = ContinuousClock.now
        var idleLooks = 0
        while ContinuousClock.now < end {
            guard ProcessFacts.isRunning(facts.identity) else { throw .gone }
            let now = Listener.own(pid: pid) ?? []
            if let new = now.first(where: { !before.contains($0) && isInspector($0) }) { return new }
            looks += 1
            idleLooks = node.isInEventLoop ? idleLooks + 1 : 0
            // One that comes back to its loop again and again has had its signal.
            if idleLooks > 20, ContinuousClock.now - signalled > .seconds(2) { break }
            usleep(looks < 50 ? 2_000 : 50_000)
        }
        if node.isInEventLoop {
            throw .failed(
                "it took SIGUSR1 and did not open its inspector: it has a handler of its own for that signal, or its"
                    + " inspector listens already on a port that I do not know, or could not listen")
        }
        if let note { close(Glibc.open(note, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600)) }
        throw .failed(
            "it has not opened its inspector yet: its main thread is busy in native code, and will open it on port"
                + " \(node.inspectorPort.map(String.init) ?? "?") once it comes back; attach again then, which closes it"
        )
    }

    /// A server's own listener may be born at the same moment: the inspector's has its default port, or the named one.
    private func isInspector(_ listener: Listener) -> Bool {
        node.inspectorPort.map { $0 == listener.port } ?? true
    }

    private func isClosed(_ listener: Listener) -> Bool {
        let end = ContinuousClock.now + Self.closeLimit
        while ContinuousClock.now < end {
            if Listener.own(pid: pid)?.contains(listener) != true { return true }
            usleep(3_000)
        }
        return false
    }

    private func failure(_ error: InspectorError, _ listener: Listener, isOurs: Bool) -> InjectError {
        guard ProcessFacts.isRunning(facts.identity) else { return .gone }
        let open = !isOurs || isClosed(listener) ? "" : "; its inspector is still open on port \(listener.port)"
        switch error {
        case .unreachable(let reason):
            return .failed(
                "its inspector on port \(listener.port) cannot be used: \(ProcessFacts.printable(reason))\(open)")
        case .silent:
            return .failed(
                "its inspector does not answer: its main thread is busy in native code; the agent comes in and the"
                    + " inspector is closed once it comes back")
        case .threw(let reason) where reason.contains("addons is disabled") || reason.contains("ERR_DLOPEN_DISABLED"):
            return .unfit("it may not load native modules (--no-addons, or --permission without --allow-addons)\(open)")
        case .threw(let reason) where reason.contains("cannot open shared object file"):
            return .failed("it cannot read the agent's object: \(ProcessFacts.printable(reason))\(open)")
        case .threw(let reason):
            return .failed("its inspector could not load the agent: \(ProcessFacts.printable(reason))\(open)")
        }
    }
}

/// What the program says of itself.
private struct NodeAnswer {
    var answer: UInt32
    var follows: Bool

    /// `{"answer":1,"follows":false}`
    init?(_ text: String) {
        let words = text.split { !$0.isLetter && !$0.isNumber }
        guard words.count == 4, words[0] == "answer", words[2] == "follows", let answer = UInt32(words[1]) else {
            return nil
        }
        self.answer = answer
        follows = words[3] == "true"
    }
}

/// Held while one command line uses the inspector's port: a lock on the network namespace.
private struct PortLock {
    private let descriptor: Int32

    init?(until end: ContinuousClock.Instant) {
        descriptor = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            guard ContinuousClock.now < end else {
                close(descriptor)
                return nil
            }
            usleep(10_000)
        }
    }

    func release() { close(descriptor) }
}
