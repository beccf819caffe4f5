/// One thread of a `dump`, as the report carries it: where it was at that moment, stalled or idle.

public struct ReportThread: Hashable, Sendable, Codable {
    public enum Activity: String, Hashable, Sendable, Codable {
        /// In an iteration; of a thread in which no loop was measured, on a processor.
        case busy
        /// Inside the wait of a loop.
        case idle
    }

    /// Absent for a thread in which no loop was measured.
    public var loopID: String?
    /// As the reader's own /proc shows it.
    public var tid: Int32
    public var threadName: String
    /// Absent for a thread in which no loop was measured, blocked in anything but a loop's wait.
    public var state: Activity?
    /// How long it has been busy or idle; absent when that was not measured.
    public var sinceNS: Int64?
    /// The state letter of /proc/PID/stat.
    public var threadState: String
    /// The system call it was in.
    public var syscall: String?
    /// Indices into the report's `frames`, leaf first.
    public var stack: [Int]
    public var truncated: Bool
    public var method: CaptureMethod
    /// Why there is no stack, when there is none.
    public var noStackReason: String?
    /// Of a busy thread.
    public var culprit: Frame?
    /// The pool whose slot it holds.
    public var poolID: String?
    /// What it serves, where the interpreter says.
    public var request: ReportStall.Request?
    public var task: String?

    enum CodingKeys: String, CodingKey {
        case loopID = "loop_id", tid, threadName = "thread_name", state, sinceNS = "since_ns"
        case threadState = "thread_state", syscall, stack, truncated, method, noStackReason = "no_stack_reason", culprit
        case poolID = "pool_id", request, task
    }

    public init(
        loopID: String?, tid: Int32, threadName: String, state: Activity?, sinceNS: Int64?, threadState: String,
        syscall: String?, stack: [Int], truncated: Bool, method: CaptureMethod, noStackReason: String?, culprit: Frame?
    ) {
        self.loopID = loopID
        self.tid = tid
        self.threadName = threadName
        self.state = state
        self.sinceNS = sinceNS
        self.threadState = threadState
        self.syscall = syscall
        self.stack = stack
        self.truncated = truncated
        self.method = method
        self.noStackReason = noStackReason
        self.culprit = culprit
    }
}
