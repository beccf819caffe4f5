/// `looplag ps`: which processes have an agent, as a tree; which have died and left a segment; with --all also those
/// without one, and why they have none. `--clean` takes the segments of the dead away.
///
/// Main thread, one look, no waiting. It changes nothing in any process and holds no lease.

import ArgumentParser
import Foundation
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagTelemetry

struct PsVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ps", abstract: "Processes with an agent, and dead ones that left a segment.",
        discussion: """
            Children stand under their parents; a parent that runs the same program (a master of workers) is shown with \
            them. --clean removes the segments of your own dead processes (as root: of everybody's) and says which; \
            nothing that may still be in use is touched.
            """)

    @Flag(help: "One JSON object per line on standard output.")
    var json = false

    @Flag(name: .shortAndLong, help: "Also processes without an agent, with what stands in the way of one.")
    var all = false

    @Flag(help: "Remove the segments that dead processes have left.")
    var clean = false

    /// One process, as a row or a JSON object. The command line is left out: arguments hold secrets.
    struct Row: Encodable {
        struct AgentState: Encodable {
            var state: String
            var mode: String
            var loops: Int
            var stalls: UInt64
            var degraded: [String]
        }

        struct RuntimeInfo: Encodable {
            var name: String
            var version: String?
        }

        var pid: Int32
        var parent: Int32?
        var user: String?
        var server: String
        var executable: String?
        var runtime: RuntimeInfo?
        var alive: Bool
        var agent: AgentState?
        /// Whether an agent can be loaded into it as it runs; absent when that cannot be told, or it has one.
        var attachable: Bool?
        /// Whether the agent can be preloaded at its next start; absent when the program may not be read.
        var preloadable: Bool?
        /// Why not.
        var obstacle: String?
        /// The file that a dead process left.
        var segment: String?
        /// What went wrong with its segment.
        var error: String?
    }

    func run() throws {
        if clean { return try cleaning() }
        let rows = rows()
        if json {
            for (row, _) in PsTable.ordered(rows) { try write(Self.line(row)) }
            return
        }
        if rows.isEmpty {
            Console.error("no process with an agent; start one with 'looplag run -- ...'")
            return
        }
        try write(Self.table(rows, width: Console.out.columns))
    }

    static func table(_ rows: [Row], width: Int? = nil) -> String { PsTable.text(rows, width: width) }

    private static func line(_ value: some Encodable) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
    }

    private func write(_ text: String) throws {
        if case .failed(let code) = Console.out.write(text) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }

    // MARK: Removing

    private struct Removed: Encodable {
        var segment: String
        var bytes: Int
        var removed: Bool
        var reason: String?
    }

    private func cleaning() throws {
        var failed = 0
        var (count, bytes) = (0, 0)
        for removal in SegmentDiscovery.clean() {
            if removal.kept == nil {
                count += 1
                bytes += removal.bytes
            } else {
                failed += 1
            }
            if json {
                try write(
                    Self.line(
                        Removed(
                            segment: removal.path, bytes: removal.bytes, removed: removal.kept == nil,
                            reason: removal.kept)))
            } else if let reason = removal.kept {
                Console.error("left \(ProcessFacts.printable(removal.path)): \(ProcessFacts.printable(reason))")
            } else {
                try write("removed \(ProcessFacts.printable(removal.path)), \(removal.bytes / 1024) KiB\n")
            }
        }
        guard !json else { return }
        if count == 0 {
            Console.error(failed == 0 ? "no dead process has left a segment" : "nothing was removed")
        } else {
            Console.error("removed \(Readiness.count(count, "segment")), \(bytes / 1024) KiB")
        }
    }

    // MARK: Looking

    private func rows() -> [Row] {
        var rows: [Row] = []
        var known: [Int32: ProcessFacts] = [:]
        for source in SegmentDiscovery.allLive() {
            let facts = try? ProcessFacts.read(pid: source.pid)
            known[source.pid] = facts
            rows.append(row(of: source, facts))
        }
        for source in SegmentDiscovery.leftovers() { rows.append(row(of: source, nil)) }
        if all {
            for facts in ProcessFacts.all()
            where !facts.isKernelThread && !facts.isZombie && known[facts.pid] == nil {
                rows.append(row(of: facts))
            }
        } else {
            for facts in masters(of: known) { rows.append(row(of: facts)) }
        }
        return rows
    }

    /// Parents without an agent that run the same program as a child with one: masters of workers, which never wait.
    private func masters(of known: [Int32: ProcessFacts]) -> [ProcessFacts] {
        var found: [Int32: ProcessFacts] = [:]
        for facts in known.values {
            var child = facts
            while known[child.parentPID] == nil, found[child.parentPID] == nil, child.parentPID > 1,
                let parent = try? ProcessFacts.read(pid: child.parentPID), !parent.isZombie,
                parent.executable != nil, parent.executable == child.executable
            {
                found[parent.pid] = parent
                child = parent
            }
        }
        return Array(found.values)
    }

    private func row(of source: SegmentSource, _ facts: ProcessFacts?) -> Row {
        var row = Row(
            pid: source.pid, parent: facts?.parentPID, user: facts.map { ProcessFacts.userName($0.uid) },
            server: facts?.displayName ?? "?", executable: facts?.executable, alive: source.isAlive,
            segment: source.isAlive ? nil : source.path)
        do throws(TelemetryError) {
            let process = try FollowedProcess(source: source)
            let snapshot = process.latest
            row.server = process.name
            row.executable = snapshot.executable ?? row.executable
            row.runtime = snapshot.runtime.map { Row.RuntimeInfo(name: $0.rawValue, version: snapshot.runtimeVersion) }
            row.alive = snapshot.isAlive
            let loops = source.isAlive ? process.serverLoops : process.allServerLoops
            row.agent = Row.AgentState(
                state: snapshot.state.rawValue, mode: snapshot.agent.mode, loops: loops.count,
                stalls: loops.reduce(0) { $0 &+ $1.stallCount }, degraded: snapshot.agent.degraded)
        } catch {
            row.error = error.message
        }
        return row
    }

    private func row(of facts: ProcessFacts) -> Row {
        let program = ExecutableFacts.inspect(pid: facts.pid)
        var row = Row(
            pid: facts.pid, parent: facts.parentPID, user: ProcessFacts.userName(facts.uid),
            server: serverName(command: facts.command, executable: facts.executable, runtime: nil),
            executable: facts.executable, alive: true,
            preloadable: program.kind == .unknown ? nil : program.obstacle == nil, obstacle: program.obstacle)
        if row.obstacle == nil { row.obstacle = Self.attachObstacle(facts) }
        if program.kind != .unknown { row.attachable = row.obstacle == nil }
        return row
    }

    /// What stands in the way of loading an agent into a process of a fitting program, as it runs now.
    private static func attachObstacle(_ facts: ProcessFacts) -> String? {
        if let reason = ThreadFacts.syscallRefusal(pid: facts.pid, tid: facts.pid) {
            return "it may not be traced: \(reason)"
        }
        let privileges = SystemFacts.privileges(pid: facts.pid)
        if let tracer = privileges?.tracer { return "process \(tracer) traces it" }
        if privileges?.seccompMode == 1 { return "it is in strict seccomp mode" }
        return nil
    }
}
