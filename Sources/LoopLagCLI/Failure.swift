/// How a verb fails: one line for stderr and an exit status of DESIGN section 5.
///
/// Thrown by verbs, caught in `Entry`. The message is what failed, on what, why, what to do, without `looplag: `.

import LoopLagAttach
import LoopLagTelemetry

struct Failure: Error {
    static let general: Int32 = 1
    static let gone: Int32 = 3
    static let notPermitted: Int32 = 4
    static let usage: Int32 = 64

    var status: Int32
    var message: String

    init(_ message: String, status: Int32 = Failure.general) {
        self.message = message
        self.status = status
    }

    static func status(of error: AttachError) -> Int32 {
        switch error {
        case .noSuchProcess: gone
        case .notPermitted: notPermitted
        case .unreadable, .agentMissing, .agentUnusable, .launchFailed: general
        case .commandNotFound: 127
        case .commandNotExecutable: 126
        }
    }
}
