/// A stall that was seen from outside, before the agent could be loaded: as long as the process was found away from any
/// wait, with the stacks that were taken of its main thread.
///
/// Made by PendingAttach, kept by Attaching, shown by `top` and reported by `record`. Its length is what we saw of it.

import LoopLagModel
import LoopLagReport

struct ProvisionalStall {
    let identity: ProcessIdentity
    let server: String
    let executable: String?
    /// Open while it lasts; of no loop, since none is known yet.
    var record: StallRecord
    var samples: [StackSample]

    var isOpen: Bool { record.state == .open }
    var reported: ReportInput.Provisional { ReportInput.Provisional(stall: record, samples: samples) }
}
