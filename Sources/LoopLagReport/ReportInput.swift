/// Everything a report is made of: two looks at each process and what was seen between them.
///
/// Filled in by the verbs that report (`record`, `run -o`, `postmortem`, `dump`), taken apart by `ReportBuilder`.

import LoopLagModel

public struct ReportInput: Sendable {
    public struct Process: Sendable {
        /// The snapshot at the window's start; nil reports since the process's agent started.
        public var from: ProcessSnapshot?
        public var to: ProcessSnapshot
        /// Every stall seen in the window, each once in its latest state; those of other times are left out.
        public var stalls: [StallRecord]
        /// Those of the stalls, in any order.
        public var samples: [StackSample]
        /// The symbolicated return address of the wait that registered each loop, where known.
        public var callers: [LoopID: Frame]
        /// The last snapshots of loops that went away and whose slots others have taken since, so that `to` has lost them.
        public var goneLoops: [LoopSnapshot]
        /// When the process started, nanoseconds since 1970; nil when unknown.
        public var startedWallNanoseconds: UInt64?
        /// Stalls seen from outside before an agent was there.
        public var provisional: [Provisional] = []
        /// The threads of a `dump`; nil in other reports.
        public var dump: [DumpedThread]?

        public init(
            from: ProcessSnapshot?, to: ProcessSnapshot, stalls: [StallRecord], samples: [StackSample] = [],
            callers: [LoopID: Frame] = [:], goneLoops: [LoopSnapshot] = [], startedWallNanoseconds: UInt64? = nil,
            dump: [DumpedThread]? = nil
        ) {
            self.from = from
            self.to = to
            self.stalls = stalls
            self.samples = samples
            self.callers = callers
            self.goneLoops = goneLoops
            self.startedWallNanoseconds = startedWallNanoseconds
            self.dump = dump
        }
    }

    /// A stall without a loop: what was seen of a thread from outside.
    public struct Provisional: Sendable {
        public var stall: StallRecord
        public var samples: [StackSample]

        public init(stall: StallRecord, samples: [StackSample]) {
            self.stall = stall
            self.samples = samples
        }
    }

    public var processes: [Process]
    /// The observed window on both clocks.
    public var start: MonotonicTime
    public var end: MonotonicTime
    public var startWallNanoseconds: UInt64
    public var endWallNanoseconds: UInt64
    /// What this report calls a stall, whatever the agent captured at.
    public var threshold: Duration
    public var machine: Report.Machine
    public var version: String
    /// Path prefixes or module names that are the user's own code whatever the rules say.
    public var userCode: [String]

    public init(
        processes: [Process], start: MonotonicTime, end: MonotonicTime, startWallNanoseconds: UInt64,
        endWallNanoseconds: UInt64, threshold: Duration, machine: Report.Machine, version: String,
        userCode: [String] = []
    ) {
        self.processes = processes
        self.start = start
        self.end = end
        self.startWallNanoseconds = startWallNanoseconds
        self.endWallNanoseconds = endWallNanoseconds
        self.threshold = threshold
        self.machine = machine
        self.version = version
        self.userCode = userCode
    }
}
