/// Stacks: raw as the agent copied them, and as frames once LoopLagSymbols has unwound them.

public enum CaptureMethod: String, Hashable, Sendable, Codable {
    case signal, passive, interrupt, ptrace
    case passiveReconstructed = "passive-reconstructed"
}

/// Registers and a copy of the stack of one stalled thread at one moment.
public struct RawSample: Hashable, Sendable {
    /// Absolute position in the segment's ring: unique and rising within one segment.
    public var position: UInt64
    public var stallID: UInt64
    public var loopSlot: Int
    public var tid: Int32
    public var time: MonotonicTime
    /// Since the stalled iteration began.
    public var offset: Duration
    public var pause: Duration
    public var method: CaptureMethod
    /// The state letter of /proc/PID/stat.
    public var threadState: Character
    public var syscallNumber: Int?
    public var waitChannel: String?
    /// The stack went on beyond the copy.
    public var isTruncated: Bool
    /// Why there is no stack; nil when there is one.
    public var noStackReason: String?
    /// By DWARF number (0...15 rax...r15, 16 rip); nil = unknown.
    public var registers: [UInt64?]
    public var stackBase: UInt64
    public var stack: [UInt8]
    /// The interpreter's side; nil where the agent had none.
    public var managed: ManagedStack?
    /// A garbage collection was running.
    public var isInGC: Bool
    /// The managed frames were served after the moment they were asked for.
    public var isLate: Bool
    /// The dump that it was taken for; nil for a sample of a stall.
    public var dump: UInt64?
    /// Of a dump: the pool's slot whose worker it is.
    public var pool: Int?

    public init(
        position: UInt64, stallID: UInt64, loopSlot: Int, tid: Int32, time: MonotonicTime, offset: Duration,
        pause: Duration, method: CaptureMethod, threadState: Character, syscallNumber: Int?, waitChannel: String?,
        isTruncated: Bool, noStackReason: String?, registers: [UInt64?], stackBase: UInt64, stack: [UInt8],
        managed: ManagedStack? = nil, isInGC: Bool = false, isLate: Bool = false, dump: UInt64? = nil,
        pool: Int? = nil
    ) {
        self.position = position
        self.stallID = stallID
        self.loopSlot = loopSlot
        self.tid = tid
        self.time = time
        self.offset = offset
        self.pause = pause
        self.method = method
        self.threadState = threadState
        self.syscallNumber = syscallNumber
        self.waitChannel = waitChannel
        self.isTruncated = isTruncated
        self.noStackReason = noStackReason
        self.registers = registers
        self.stackBase = stackBase
        self.stack = stack
        self.managed = managed
        self.isInGC = isInGC
        self.isLate = isLate
        self.dump = dump
        self.pool = pool
    }
}

/// A frame of CPython or V8, as the agent decoded it.
public struct ManagedFrame: Hashable, Sendable {
    public var frame: Frame
    /// An address on the thread's stack that belongs to this frame or to its run; places it among native frames.
    public var stackAddress: UInt64?
    /// The interpreter was entered from native code here: the root of its run of frames.
    public var isEntry: Bool

    public init(frame: Frame, stackAddress: UInt64?, isEntry: Bool) {
        self.frame = frame
        self.stackAddress = stackAddress
        self.isEntry = isEntry
    }
}

/// What the interpreter was doing when a sample was taken.
public struct ManagedStack: Hashable, Sendable {
    /// Of the sampled thread, leaf first.
    public var frames: [ManagedFrame]
    /// Who holds what the thread waits for.
    public var blocker: BlockingThread?
    public var task: String?
    public var request: ReportStall.Request?
    public var phase: String?

    public init(
        frames: [ManagedFrame], blocker: BlockingThread? = nil, task: String? = nil,
        request: ReportStall.Request? = nil, phase: String? = nil
    ) {
        self.frames = frames
        self.blocker = blocker
        self.task = task
        self.request = request
        self.phase = phase
    }
}

/// The thread that holds the interpreter's lock, or the mutex, that a stalled loop waits for.
public struct BlockingThread: Hashable, Sendable {
    public var tid: Int32
    public var name: String
    /// Leaf first; may be empty.
    public var frames: [Frame]

    public init(tid: Int32, name: String, frames: [Frame]) {
        self.tid = tid
        self.name = name
        self.frames = frames
    }
}

public enum FrameKind: String, Hashable, Sendable, Codable { case native, swift, python, javascript, kernel }

/// One frame of a decoded stack. In a report every distinct frame stands once and stacks refer to it by index.
public struct Frame: Hashable, Sendable, Codable {
    /// As a person writes it (demangled); `module+0x1234` when no symbol is known.
    public var function: String
    public var kind: FrameKind
    public var file: String?
    public var line: Int?
    public var column: Int?
    /// The file name of the module, without its folders.
    public var module: String?
    /// Relative to the module where there is one (the ELF file's own address), else absolute.
    public var address: UInt64?
    public var inlined: Bool?
    /// True for a frame of a coroutine or an async function; absent otherwise.
    public var coroutine: Bool?
    /// True where `line` is where the function begins and not where it stands; absent otherwise.
    public var approximate: Bool?

    public init(
        function: String, kind: FrameKind, file: String? = nil, line: Int? = nil, column: Int? = nil,
        module: String? = nil, address: UInt64? = nil, inlined: Bool? = nil, coroutine: Bool? = nil,
        approximate: Bool? = nil
    ) {
        self.function = function
        self.kind = kind
        self.file = file
        self.line = line
        self.column = column
        self.module = module
        self.address = address
        self.inlined = inlined
        self.coroutine = coroutine
        self.approximate = approximate
    }
}

/// A raw sample, unwound and symbolicated.
public struct StackSample: Hashable, Sendable {
    public var stallID: UInt64
    public var position: UInt64
    public var offset: Duration
    public var threadState: Character
    public var method: CaptureMethod
    /// Leaf first; empty when there is no stack.
    public var frames: [Frame]
    /// The stack's root is missing.
    public var isTruncated: Bool
    /// Served after the moment it was asked for.
    public var isLate: Bool
    public var noStackReason: String?
    /// A garbage collection was running.
    public var isInGC: Bool
    public var task: String?
    public var request: ReportStall.Request?
    /// Of node's loop: timers, poll, check ...
    public var phase: String?
    public var blockedBy: BlockingThread?

    public init(
        stallID: UInt64, position: UInt64, offset: Duration, threadState: Character, method: CaptureMethod,
        frames: [Frame], isTruncated: Bool, isLate: Bool = false, noStackReason: String? = nil, isInGC: Bool = false,
        task: String? = nil, request: ReportStall.Request? = nil, phase: String? = nil,
        blockedBy: BlockingThread? = nil
    ) {
        self.stallID = stallID
        self.position = position
        self.offset = offset
        self.threadState = threadState
        self.method = method
        self.frames = frames
        self.isTruncated = isTruncated
        self.isLate = isLate
        self.noStackReason = noStackReason
        self.isInGC = isInGC
        self.task = task
        self.request = request
        self.phase = phase
        self.blockedBy = blockedBy
    }
}
