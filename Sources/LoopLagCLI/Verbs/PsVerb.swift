/// `looplag ps`: which processes have an agent, which have died and left a segment, and with --all why others have none.
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
        commandName: "ps", abstract: "Processes with an agent, and dead ones that left a segment.")

    @Flag(help: "One JSON object per line on standard output.")
    var json = false

    @Flag(name: .shortAndLong, help: "Also processes without an agent, with what stands in the way of one.")
    var all = false

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
        var user: String?
        var server: String
        var executable: String?
        var runtime: RuntimeInfo?
        var alive: Bool
        var agent: AgentState?
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
        var rows: [Row] = []
        let sources = SegmentDiscovery.allLive() + SegmentDiscovery.leftovers()
        for source in sources { rows.append(row(of: source)) }
        if all {
            let seen = Set(sources.filter(\.isAlive).map(\.pid))
            for facts in ProcessFacts.all() where !facts.isKernelThread && !facts.isZombie && !seen.contains(facts.pid)
            {
                rows.append(row(of: facts))
            }
        }
        rows.sort { ($0.alive ? 0 : 1, $0.pid) < ($1.alive ? 0 : 1, $1.pid) }
        if json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            for row in rows { try write(String(decoding: try encoder.encode(row), as: UTF8.self) + "\n") }
            return
        }
        if rows.isEmpty {
            Console.error("no process with an agent; start one with 'looplag run -- ...'")
            return
        }
        try write(Self.table(rows))
    }

    private func write(_ text: String) throws {
        if case .failed(let code) = Console.out.write(text) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }

    private func row(of source: SegmentSource) -> Row {
        let facts = source.isAlive ? try? ProcessFacts.read(pid: source.pid) : nil
        var row = Row(
            pid: source.pid, user: facts.map { ProcessFacts.userName($0.uid) }, server: facts?.displayName ?? "?",
            executable: facts?.executable, alive: source.isAlive, segment: source.isAlive ? nil : source.path)
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
        return Row(
            pid: facts.pid, user: ProcessFacts.userName(facts.uid), server: facts.displayName,
            executable: facts.executable, alive: true,
            preloadable: program.kind == .unknown ? nil : program.obstacle == nil, obstacle: program.obstacle)
    }

    // MARK: The table

    static func table(_ rows: [Row]) -> String {
        var head = ["PID", "USER", "SERVER", "RUNTIME", "AGENT", "LOOPS", "STALLS"]
        var cells = rows.map { row in
            [
                "\(row.pid)", row.user ?? "-", row.server,
                row.runtime.map { [$0.name, $0.version].compactMap { $0 }.joined(separator: " ") } ?? "-",
                agent(row), row.agent.map { "\($0.loops)" } ?? "-", row.agent.map { "\($0.stalls)" } ?? "-",
            ].map(PlainText.printable)
        }
        let notes = rows.map { PlainText.printable(note($0)) }
        if notes.contains(where: { !$0.isEmpty }) {
            head.append("NOTE")
            for i in cells.indices { cells[i].append(notes[i]) }
        }
        let widths = head.indices.map { i in
            min(40, max(head[i].count, cells.map { PlainText.columns(of: $0[i]) }.max() ?? 0))
        }
        return ([head] + cells).map { line in
            var text = line.enumerated().map { i, cell in
                if i == 7 { return cell }
                return [0, 5, 6].contains(i) ? PlainText.right(cell, widths[i]) : PlainText.left(cell, widths[i])
            }.joined(separator: "  ")
            while text.last == " " { text.removeLast() }
            return text + "\n"
        }.joined()
    }

    private static func agent(_ row: Row) -> String {
        if row.error != nil { return "unreadable" }
        guard let agent = row.agent else { return "none" }
        return row.alive ? "\(agent.state), \(agent.mode)" : "dead, segment left"
    }

    private static func note(_ row: Row) -> String {
        if let error = row.error { return error }
        if let agent = row.agent { return agent.degraded.joined(separator: ", ") }
        if let obstacle = row.obstacle { return "cannot be measured: \(obstacle)" }
        return row.preloadable == nil ? "its program may not be read" : "start it with 'looplag run' to measure it"
    }
}
