/// What `doctor` finds, one line a check, and how it is shown.
///
/// Called by the doctor verb, on the main thread. Pure: the checks themselves are in the files beside this one. Every
/// check that is not fine says in words what to do; names and reasons come from foreign processes and are cleaned here.

import Foundation
import LoopLagDiagnosis

struct Checkup {
    enum Verdict: String, Encodable {
        case ok
        /// Said for completeness.
        case note
        /// It works with less.
        case warning
        /// Something needed does not work.
        case failed
    }

    struct Check: Encodable {
        /// Stable, for programs.
        var id: String
        var verdict: Verdict
        var what: String
        var remedy: String?
    }

    private(set) var checks: [Check] = []

    var isFine: Bool { !checks.contains { $0.verdict == .failed } }

    mutating func ok(_ id: String, _ what: String) { add(id, .ok, what, nil) }
    mutating func note(_ id: String, _ what: String, _ remedy: String? = nil) { add(id, .note, what, remedy) }
    mutating func warning(_ id: String, _ what: String, _ remedy: String) { add(id, .warning, what, remedy) }
    mutating func failed(_ id: String, _ what: String, _ remedy: String) { add(id, .failed, what, remedy) }

    private mutating func add(_ id: String, _ verdict: Verdict, _ what: String, _ remedy: String?) {
        checks.append(
            Check(
                id: id, verdict: verdict, what: PlainText.printable(what), remedy: remedy.map(PlainText.printable)))
    }

    var text: String {
        checks.map { check in
            let mark =
                switch check.verdict {
                case .ok: "ok     "
                case .note: "note   "
                case .warning: "warning"
                case .failed: "FAILED "
                }
            return "\(mark)  \(check.what)\n" + (check.remedy.map { "           -> \($0)\n" } ?? "")
        }.joined()
    }

    /// What it comes to, and what to do next.
    func conclusion(pid: Int32?) -> String {
        let failures = checks.count { $0.verdict == .failed }
        let warnings = checks.count { $0.verdict == .warning }
        guard failures == 0 else {
            return
                "\nNot everything needed works: see \(failures == 1 ? "the line" : "the \(failures) lines") marked FAILED.\n"
        }
        let less =
            warnings == 0 ? "" : ", some of it with less (\(warnings == 1 ? "one warning" : "\(warnings) warnings"))"
        let next =
            pid.map { "'looplag stalls \($0) --follow' and 'looplag dump \($0)' show it" }
            ?? "'looplag demo' shows it, 'looplag run -- COMMAND' measures a server of yours"
        return "\nAll that is needed works\(less): \(next).\n"
    }

    /// One object a line.
    func json() throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return try checks.map { String(decoding: try encoder.encode($0), as: UTF8.self) + "\n" }.joined()
    }
}
