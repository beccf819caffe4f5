/// Decides when to say that a process is being measured, and when to say that nothing is.
///
/// Used by the verbs that follow, between two polls. Gives out lines and prints none. A server registers its loops one
/// by one in its first moments, so a process is announced a little after its first loop: once, with a count that stands.

import Glibc
import LoopLagAttach
import LoopLagModel

struct Readiness {
    /// How long the number of loops gets to settle.
    static let settling: Duration = .milliseconds(200)
    /// After this long without any loop, silence needs an explanation.
    static let patience: Duration = .seconds(3)

    private struct Sighting {
        var firstLoop: MonotonicTime?
        var isAnnounced = false
    }

    private var sightings: [ObjectIdentifier: Sighting] = [:]
    private var explained = false
    private(set) var anyAnnounced = false

    /// The lines that are due now.
    mutating func lines(_ follower: Follower, now: MonotonicTime) -> [String] {
        var lines: [String] = []
        let live = follower.live
        // The follower forgets ended processes in the end, and a later one may lie where such a one lay.
        if sightings.count > live.count {
            let keys = Set(live.map { ObjectIdentifier($0) })
            sightings = sightings.filter { keys.contains($0.key) }
        }
        for process in live {
            let key = ObjectIdentifier(process)
            var sighting = sightings[key] ?? Sighting()
            guard !sighting.isAnnounced else { continue }
            // Asking for the loops' classes symbolicates: only while the process is new.
            let loops = process.serverLoops.count
            if loops > 0 { sighting.firstLoop = sighting.firstLoop ?? now }
            if let first = sighting.firstLoop, loops > 0, now.since(first) >= Self.settling {
                sighting.isAnnounced = true
                anyAnnounced = true
                lines.append("measuring \(process.identity.pid) (\(process.name)), \(Self.count(loops, "loop"))")
            }
            sightings[key] = sighting
        }
        return lines
    }

    /// Why nothing is measured, once, when it is time to say so; nil otherwise.
    mutating func silence(
        of follower: Follower, root: @autoclosure () -> ProcessFacts?, since start: MonotonicTime, now: MonotonicTime
    ) -> String? {
        guard !explained, !anyAnnounced, now.since(start) >= Self.patience else { return nil }
        explained = true
        guard let root = root() else { return nil }
        let subject = "no event loop seen yet in \(root.pid) (\(root.displayName))"
        if follower.live.contains(where: { $0.latest.agent.mode == "attached" && $0.latest.loops.isEmpty }) {
            return "\(subject): it has been idle since the agent was loaded; a loop shows at its next event"
        }
        if !follower.processes.isEmpty {
            return "\(subject): it has waited for events before and does not now, or only in helper loops"
        }
        if follower.provisionalStalls.contains(where: { $0.isOpen && $0.identity == root.identity }) {
            return "\(subject): it has been away from its waits since; the agent goes in at the next one"
        }
        if let value = getenv("LOOPLAG_DISABLE"), String(cString: value) == "1" {
            return "\(subject): LOOPLAG_DISABLE=1 is set; unset it to measure"
        }
        if ProcessFacts.hasMapped(fileName: AgentObject.fileName, pid: root.pid) == false {
            return "\(subject): the agent is not loaded in it; a static, setuid, 32-bit or musl program takes none"
        }
        return "\(subject): it has not waited in epoll; for a server that waits in poll or select set"
            + " LOOPLAG_WAITS=epoll,poll"
    }

    static func count(_ number: Int, _ noun: String, _ plural: String? = nil) -> String {
        "\(number) \(number == 1 ? noun : plural ?? noun + "s")"
    }
}
