/// One stall event as a line: for a person, or as a JSON object for a program.
///
/// Called by `stalls`, `run` and `attach --follow` style verbs, on any thread. Pure apart from the time zone. A line is
/// a line whatever a foreign process calls its threads and functions.

import Foundation
import LoopLagDiagnosis
import LoopLagModel

public struct StallEvent: Sendable {
    public enum Kind: String, Hashable, Sendable, Codable { case opened, sampled, closed }

    public var kind: Kind
    /// When it happened, nanoseconds since 1970.
    public var wallNanoseconds: UInt64
    public var pid: Int32
    /// As `serverName` gives it.
    public var server: String
    public var loopID: LoopID
    public var loop: LoopClass
    /// Its duration is the elapsed time until it is closed.
    public var stall: StallRecord
    /// The reader's own; an opened stall has lasted longer than it.
    public var threshold: Duration
    public var diagnosis: StallDiagnosis?
    /// The newest sample's stack, leaf first.
    public var stack: [Frame]?
    public var request: ReportStall.Request?
    /// Seen from outside, before the process was measured: its beginning is when we first looked.
    public var isProvisional = false

    public init(
        kind: Kind, wallNanoseconds: UInt64, pid: Int32, server: String, loopID: LoopID, loop: LoopClass,
        stall: StallRecord, threshold: Duration, diagnosis: StallDiagnosis? = nil, stack: [Frame]? = nil,
        request: ReportStall.Request? = nil
    ) {
        self.kind = kind
        self.wallNanoseconds = wallNanoseconds
        self.pid = pid
        self.server = server
        self.loopID = loopID
        self.loop = loop
        self.stall = stall
        self.threshold = threshold
        self.diagnosis = diagnosis
        self.stack = stack
        self.request = request
    }
}

public enum StallLine {
    /// "12:03:22.702  4242 uvicorn  main·uvloop  closed   412 ms  on_cpu  cpu app.py:9", without a newline.
    public static func text(_ event: StallEvent, zone: TimeZone = .current) -> String {
        let length: String
        let verb: String
        switch event.kind {
        case .opened:
            verb = "open"
            length = ">" + PlainText.duration(nanoseconds: event.threshold.nanosecondCount)
        case .sampled:
            verb = "open"
            length = PlainText.duration(nanoseconds: event.stall.duration.nanosecondCount)
        case .closed:
            // The loop went away first: nobody knows when the iteration ended.
            verb = event.stall.state == .dropped ? "dropped" : "closed"
            length =
                event.stall.state == .dropped
                ? "" : PlainText.duration(nanoseconds: event.stall.duration.nanosecondCount)
        }
        var columns = [
            WallClock.timeOfDay(event.wallNanoseconds, zone: zone),
            PlainText.right("\(event.pid)", 7) + " " + PlainText.left(event.server, 12),
            PlainText.left("\(event.loop.name)·\(event.loop.kind)", 18), PlainText.left(verb, 7),
            PlainText.right(length, 8),
        ]
        if event.kind == .closed, event.stall.state != .dropped, let diagnosis = event.diagnosis {
            let cause = [diagnosis.cause.rawValue, diagnosis.syscall ?? ""].joined(separator: " ")
            columns.append(PlainText.left(cause, 24))
            if let culprit = diagnosis.culprit { columns.append(FrameText.short(culprit)) }
        } else if event.kind == .sampled, let culprit = event.diagnosis?.culprit {
            columns.append(FrameText.short(culprit))
        }
        if let request = event.request { columns.append(PlainText.printable("\(request.method) \(request.path)")) }
        if event.isProvisional { columns.append("(provisional)") }
        var line = columns.joined(separator: "  ")
        while line.last == " " { line.removeLast() }
        return line
    }

    /// One JSON object on one line, without a newline; fields as in the report.
    public static func json(_ event: StallEvent) -> String {
        let isClosed = event.kind == .closed
        let line = Line(
            event: event.kind, time: WallClock.timestamp(event.wallNanoseconds), pid: event.pid,
            loopID: ReportIDs.loop(pid: event.pid, event.loopID),
            stallID: ReportIDs.stall(pid: event.pid, event.stall.id),
            elapsedNS: isClosed ? nil : event.stall.duration.nanosecondCount,
            durationNS: isClosed && event.stall.state != .dropped ? event.stall.duration.nanosecondCount : nil,
            dropped: event.stall.state == .dropped ? true : nil, provisional: event.isProvisional ? true : nil,
            server: PlainText.printable(event.server),
            loop: PlainText.printable(event.loop.name), kind: PlainText.printable(event.loop.kind),
            cause: event.diagnosis?.cause, evidence: event.diagnosis?.evidence, syscall: event.diagnosis?.syscall,
            culprit: event.diagnosis?.culprit.map(FrameText.printable), request: event.request,
            task: event.diagnosis?.task.map(PlainText.printable),
            phase: event.diagnosis?.phase.map(PlainText.printable),
            blockedBy: event.diagnosis?.blockedBy.map(Blocker.init),
            stack: event.stack.map { $0.map(FrameText.printable) })
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        guard let data = try? encoder.encode(line) else {
            // Only a number that JSON cannot hold gets here; the event itself must not be lost.
            return #"{"event":"\#(event.kind.rawValue)","pid":\#(event.pid)}"#
        }
        return String(decoding: data, as: UTF8.self)
    }

    /// As in the report, with its frames in place: an event refers to no table.
    private struct Blocker: Encodable {
        var tid: Int32
        var threadName: String
        var stack: [Frame]
        enum CodingKeys: String, CodingKey { case tid, threadName = "thread_name", stack }

        init(_ thread: BlockingThread) {
            tid = thread.tid
            threadName = PlainText.printable(thread.name)
            stack = thread.frames.map(FrameText.printable)
        }
    }

    private struct Line: Encodable {
        var event: StallEvent.Kind
        var time: String
        var pid: Int32
        var loopID: String
        var stallID: String
        var elapsedNS: Int64?
        var durationNS: Int64?
        /// The loop went away before the iteration ended, so there is no duration.
        var dropped: Bool?
        var provisional: Bool?
        var server: String
        var loop: String
        var kind: String
        var cause: Cause?
        var evidence: [String: Double]?
        var syscall: String?
        var culprit: Frame?
        var request: ReportStall.Request?
        var task: String?
        var phase: String?
        var blockedBy: Blocker?
        var stack: [Frame]?

        enum CodingKeys: String, CodingKey {
            case event, time, pid, loopID = "loop_id", stallID = "stall_id", elapsedNS = "elapsed_ns"
            case durationNS = "duration_ns", dropped, provisional, server, loop, kind, cause, evidence, syscall,
                culprit, request,
                task, phase, blockedBy = "blocked_by",
                stack
        }
    }
}
