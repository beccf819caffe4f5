/// The `looplag` command as a person runs it, and what it prints as values.

import Foundation
import LoopLagModel

/// One line of `looplag stalls --json`.
struct StallEvent: Decodable, Sendable {
    enum Kind: String, Decodable, Sendable { case opened, sampled, closed }

    var event: Kind
    var pid: Int32
    var loopID: String
    var stallID: String
    var elapsedNS: Int64?
    var durationNS: Int64?
    var cause: Cause?
    var syscall: String?
    var culprit: Frame?
    var stack: [Frame]?

    enum CodingKeys: String, CodingKey {
        case event, pid, loopID = "loop_id", stallID = "stall_id", elapsedNS = "elapsed_ns", durationNS = "duration_ns"
        case cause, syscall, culprit, stack
    }
}

/// An event and the moment its line left the pipe.
struct SeenEvent: Sendable {
    var event: StallEvent
    var arrived: MonotonicTime
}

enum LoopLagTool {
    struct Result {
        var status: ExitStatus
        var output: String
        var errors: String
    }

    static func start(_ arguments: [String], environment: [String: String] = [:]) throws -> Child {
        try Child([Tools.looplag()] + arguments, environment: environment)
    }

    /// Runs it to its end.
    static func run(
        _ arguments: [String], environment: [String: String] = [:], within limit: Duration = .seconds(40)
    ) throws -> Result {
        let child = try start(arguments, environment: environment)
        defer { child.end() }
        child.closeInput()
        let status = try child.exitStatus(within: limit)
        return try Result(status: status, output: child.output.wholeText(), errors: child.errors.wholeText())
    }

    /// Records a window of one process. `during` runs while the recording does, once it has said that it measures.
    static func record(
        _ pid: Int32, for window: Duration, options: [String] = [], during: (() throws -> Void)? = nil
    ) throws -> Report {
        let file = FileManager.default.temporaryDirectory.appending(path: "looplag-test-\(UUID().uuidString).json")
        defer { try? FileManager.default.removeItem(at: file) }
        let milliseconds = window.nanosecondCount / 1_000_000
        let child = try start(["record", "\(pid)", "--duration", "\(milliseconds)ms", "-o", file.path] + options)
        defer { child.end() }
        if let during {
            _ = try child.wait(forOutput: "(measuring)")
            try during()
        }
        let status = try child.exitStatus(within: window + .seconds(20))
        guard status == .exited(0) else {
            throw SpawnFailed(description: "looplag record ended with \(status): \(child.errors.text)")
        }
        return try ReportFile.read(file)
    }
}

/// Reports as files: every one that a test makes is held against the schema.
enum ReportFile {
    static func read(_ file: URL) throws -> Report {
        try validate(file)
        return try JSONDecoder().decode(Report.self, from: Data(contentsOf: file))
    }

    private static func validate(_ file: URL) throws {
        let schema = Tools.repository.appending(path: "Sources/LoopLagReport/looplag.report.schema.json")
        let program = """
            import json, sys, jsonschema
            schema, report = (json.load(open(name)) for name in sys.argv[1:])
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(report, schema, jsonschema.Draft202012Validator)
            """
        let child = try Child([Tools.installed("PYTHON"), "-c", program, schema.path, file.path])
        defer { child.end() }
        let status = try child.exitStatus(within: .seconds(30))
        guard status == .exited(0) else {
            throw SpawnFailed(description: "the report does not keep to its schema: \(child.errors.text.suffix(2000))")
        }
    }
}

/// A running `looplag stalls PID --follow --json`.
final class Follower {
    let child: Child

    init(_ pids: [Int32], options: [String] = []) throws {
        child = try LoopLagTool.start(["stalls"] + pids.map(String.init) + ["--follow", "--json"] + options)
        do {
            _ = try child.wait(forOutput: "(measuring)")
        } catch {
            child.end()
            throw error
        }
    }

    func end() { child.end() }

    func events() throws -> [SeenEvent] { try Self.decode(child.output.lines) }

    private static func decode(_ lines: [TimedLine]) throws -> [SeenEvent] {
        let decoder = JSONDecoder()
        return try lines.map { line in
            SeenEvent(event: try decoder.decode(StallEvent.self, from: Data(line.text.utf8)), arrived: line.arrived)
        }
    }

    /// Waits for the `count`-th stall to close and gives all that was said of each, in order of opening.
    func stalls(
        closed count: Int, within limit: Duration = .seconds(10)
    ) throws -> [FollowedStall] {
        try child.output.wait(for: "\(count) closed stalls", within: limit) { lines in
            let events = try Self.decode(lines)
            let stalls = FollowedStall.group(events)
            return stalls.count { $0.closed != nil } >= count ? stalls : nil
        }
    }
}

/// All events of one stall.
struct FollowedStall {
    var opened: SeenEvent?
    var sampled: [SeenEvent] = []
    var closed: SeenEvent?

    var duration: Duration? { closed?.event.durationNS.map { .nanoseconds($0) } }

    /// Function names of every stack that was shown for it.
    var functions: Set<String> {
        let events = [opened, closed].compactMap { $0 } + sampled
        return Set(events.flatMap { $0.event.stack ?? [] }.map(\.function))
    }

    static func group(_ events: [SeenEvent]) -> [FollowedStall] {
        var order: [String] = []
        var stalls: [String: FollowedStall] = [:]
        for seen in events {
            let key = "\(seen.event.pid)/\(seen.event.stallID)"
            if stalls[key] == nil { order.append(key) }
            switch seen.event.event {
            case .opened: stalls[key, default: FollowedStall()].opened = seen
            case .sampled: stalls[key, default: FollowedStall()].sampled.append(seen)
            case .closed: stalls[key, default: FollowedStall()].closed = seen
            }
        }
        return order.compactMap { stalls[$0] }
    }
}
