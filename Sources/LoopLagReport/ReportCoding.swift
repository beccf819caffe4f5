/// Reports to bytes and back.
///
/// Called by the verbs that write or read report files, on any thread. It refuses what it does not understand in one
/// line a person can act on, and whatever it returns is safe to print and to index.

import Foundation
import LoopLagDiagnosis
import LoopLagModel

public enum ReportError: Error, Hashable, Sendable, CustomStringConvertible {
    case empty
    /// Begins like JSON and ends before it does.
    case truncated
    case notAReport
    /// Of a later version of the schema, which only a later looplag reads.
    case newerSchema(String)
    /// Says it is a report, and is none: what, and where.
    case damaged(String)
    case notEncodable(String)

    /// One line, without the file's name.
    public var message: String {
        switch self {
        case .empty: "the file is empty"
        case .truncated: "the report is cut off: the file ends in the middle of the JSON"
        case .notAReport: "this is not a looplag report (no \"schema\": \"looplag.report/...\")"
        case .newerSchema(let name):
            "the report is of schema \(name), this looplag reads \(Report.schemaName); update looplag"
        case .damaged(let what): "the report is damaged: \(what)"
        case .notEncodable(let what): "the report cannot be written: \(what)"
        }
    }

    public var description: String { message }
}

public enum ReportCoding {
    /// The report as JSON text that ends with a newline: keys sorted, so that two reports compare line by line.
    public static func encode(_ report: Report) throws(ReportError) -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        do {
            return try encoder.encode(report) + Data("\n".utf8)
        } catch {
            throw .notEncodable(PlainText.clip("\(error)", to: 120))
        }
    }

    public static func decode(_ data: Data) throws(ReportError) -> Report {
        guard let first = data.first(where: { !isSpace($0) }) else { throw .empty }
        guard first == UInt8(ascii: "{") else { throw .notAReport }
        let decoder = JSONDecoder()
        let schema: String
        do {
            schema = try decoder.decode(Envelope.self, from: data).schema
        } catch DecodingError.dataCorrupted {
            // No JSON at all. Whoever writes a report writes its last brace last.
            if data.last(where: { !isSpace($0) }) != UInt8(ascii: "}") { throw .truncated }
            throw .damaged("it is not valid JSON")
        } catch {
            throw .notAReport
        }
        let family = "looplag.report/"
        guard schema.hasPrefix(family) else { throw .notAReport }
        guard schema == Report.schemaName else {
            guard let version = Int(schema.dropFirst(family.count)), version > 1 else { throw .notAReport }
            throw .newerSchema("\(family)\(version)")
        }
        let report: Report
        do {
            report = try decoder.decode(Report.self, from: data)
        } catch let error as DecodingError {
            throw .damaged(describe(error))
        } catch {
            throw .damaged("it does not follow the schema")
        }
        try check(report)
        return report
    }

    private struct Envelope: Decodable { var schema: String }

    private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || (0x09...0x0d).contains(byte) }

    private static func describe(_ error: DecodingError) -> String {
        func place(_ path: [any CodingKey], _ last: (any CodingKey)? = nil) -> String {
            let keys = path + (last.map { [$0] } ?? [])
            let text = keys.map { $0.intValue.map { "[\($0)]" } ?? ".\($0.stringValue)" }.joined()
            return PlainText.clip(String(text.drop { $0 == "." }), to: 80)
        }
        switch error {
        case .keyNotFound(let key, let context): return "\(place(context.codingPath, key)) is missing"
        case .typeMismatch(_, let context), .valueNotFound(_, let context), .dataCorrupted(let context):
            return "\(place(context.codingPath)) has a wrong value"
        @unknown default: return "it does not follow the schema"
        }
    }

    /// What the types cannot say: stacks point into the table of frames, stalls at loops of their process.
    private static func check(_ report: Report) throws(ReportError) {
        for process in report.processes {
            let loops = Set(process.loops.map(\.id))
            for thread in process.dump ?? [] {
                guard thread.stack.allSatisfy(report.frames.indices.contains) else {
                    throw .damaged("thread \(thread.tid) has a frame that is not there")
                }
            }
            for stall in process.stalls {
                guard loops.contains(stall.loopID) else {
                    throw .damaged("stall \(PlainText.clip(stall.id, to: 40)) is of a loop that is not there")
                }
                let stacks = stall.samples.map(\.stack) + (stall.blockedBy.map { [$0.stack] } ?? [])
                guard stacks.joined().allSatisfy(report.frames.indices.contains) else {
                    throw .damaged("stall \(PlainText.clip(stall.id, to: 40)) has a frame that is not there")
                }
            }
        }
    }
}
