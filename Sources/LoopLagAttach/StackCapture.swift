/// Takes the stacks of another process's threads from outside, without the agent and without being felt.
///
/// Called by `dump`, on the main thread. A blocked thread is read from procfs and its memory, with no stop, and read
/// again until it has not moved in between; only a thread on a processor is stopped, for some microseconds. The
/// samples have the form of the agent's own, so the same decoder unwinds both. It never writes to the process's memory.

import CLoopLagTrace
import Glibc
import LoopLagModel

public struct CapturedThread: Sendable {
    public var thread: ThreadFacts
    /// What it was in, as far as that is known.
    public var syscallNumber: Int?
    /// On a processor, or ready for one.
    public var wasRunning: Bool
    public var sample: RawSample

    public init(thread: ThreadFacts, syscallNumber: Int?, wasRunning: Bool, sample: RawSample) {
        self.thread = thread
        self.syscallNumber = syscallNumber
        self.wasRunning = wasRunning
        self.sample = sample
    }
}

public struct StackCapture: Sendable {
    /// What one copy holds at first, and at most.
    public static let usualBytes = 64 << 10
    public static let mostBytes = 512 << 10

    private static let attempts = 12
    private static let deadline: Duration = .milliseconds(500)

    public let pid: Int32
    private let map: MemoryMap
    private let memory: ProcessMemory
    /// False forbids every stop.
    private let mayStop: Bool

    public init(pid: Int32, map: MemoryMap, mayStop: Bool = true) {
        self.pid = pid
        self.map = map
        self.memory = ProcessMemory(pid: pid)
        self.mayStop = mayStop
    }

    /// Why threads of this process cannot be stopped; nil when they can. Stops this one for an instant.
    public static func stopRefusal(tid: Int32) -> String? {
        do throws(TraceFailure) {
            _ = try ThreadTrace.take(tid: tid, memory: ProcessMemory(pid: tid), deadline: deadline) { _ in 0 }
            return nil
        } catch {
            return error.reason
        }
    }

    /// One thread, now. Always an answer: a sample without a stack says why.
    public func capture(_ thread: ThreadFacts, atMost bytes: Int = usualBytes) -> CapturedThread {
        var blocked: SyscallLook?
        for attempt in 0..<Self.attempts {
            guard let look = ThreadFacts.syscall(pid: pid, tid: thread.tid) else {
                return failed(thread, look: nil, refusal(thread.tid))
            }
            guard case .blocked = look else {
                // It may just be passing through: two looks in a row, and it counts as running.
                if attempt > 0 || ThreadFacts.syscall(pid: pid, tid: thread.tid) == .running {
                    return stopped(thread, bytes)
                }
                continue
            }
            blocked = look
            if let sample = still(thread, look, bytes) { return sample }
        }
        // Awake at every look, yet never for long: a loop under load.
        return mayStop ? stopped(thread, bytes) : failed(thread, look: blocked, "it moved while it was read")
    }

    // MARK: Blocked

    /// nil when the thread has moved.
    private func still(_ thread: ThreadFacts, _ look: SyscallLook, _ bytes: Int) -> CapturedThread? {
        guard case .blocked(let number, _, let stackPointer, let pc) = look else { return nil }
        let ran = ThreadFacts.schedule(pid: pid, tid: thread.tid)
        // The first look may be older than the count of its turns on a processor.
        guard ThreadFacts.syscall(pid: pid, tid: thread.tid) == look else { return nil }
        let time = Self.now()
        let base = stackPointer & ~7
        let wanted = extent(base, bytes)
        let stack = memory.bytes(at: base, count: wanted)
        let channel = ThreadFacts.waitChannel(pid: pid, tid: thread.tid)
        guard ThreadFacts.syscall(pid: pid, tid: thread.tid) == look,
            ThreadFacts.schedule(pid: pid, tid: thread.tid) == ran
        else { return nil }
        guard !stack.isEmpty else { return failed(thread, look: look, "its stack cannot be read") }
        var registers = [UInt64?](repeating: nil, count: 17)
        registers[7] = stackPointer
        registers[16] = pc
        let state = ThreadFacts.read(pid: pid, tid: thread.tid)?.state ?? thread.state
        return CapturedThread(
            thread: thread, syscallNumber: number, wasRunning: false,
            sample: sample(
                thread, time: time, pause: .zero, method: .passive, state: state, number: number, channel: channel,
                isTruncated: isCut(base, stack.count), reason: nil, registers: registers, base: base, stack: stack))
    }

    // MARK: Running

    private func stopped(_ thread: ThreadFacts, _ bytes: Int) -> CapturedThread {
        guard mayStop else { return failed(thread, look: .running, "it is running, and must not be stopped") }
        let time = Self.now()
        let traced: TracedThread
        do throws(TraceFailure) {
            traced = try ThreadTrace.take(tid: thread.tid, memory: memory, deadline: Self.deadline) {
                extent($0, bytes)
            }
        } catch {
            // Traced by a debugger it is blocked soon or has been all along.
            if case .refused = error, let look = ThreadFacts.syscall(pid: pid, tid: thread.tid), look != .running,
                let sample = still(thread, look, bytes)
            {
                return sample
            }
            return failed(thread, look: .running, error.reason)
        }
        guard !traced.stack.isEmpty else { return failed(thread, look: .running, "its stack cannot be read") }
        return CapturedThread(
            thread: thread, syscallNumber: traced.call, wasRunning: traced.call == nil,
            sample: sample(
                thread, time: time, pause: traced.pause, method: .ptrace, state: traced.call == nil ? "R" : "S",
                number: traced.call, channel: nil, isTruncated: isCut(traced.stackBase, traced.stack.count),
                reason: nil, registers: traced.registers, base: traced.stackBase, stack: traced.stack))
    }

    // MARK: Neither

    private func failed(_ thread: ThreadFacts, look: SyscallLook?, _ reason: String) -> CapturedThread {
        CapturedThread(
            thread: thread, syscallNumber: look?.number, wasRunning: look == .running,
            sample: sample(
                thread, time: Self.now(), pause: .zero, method: .passive, state: thread.state, number: look?.number,
                channel: nil, isTruncated: false, reason: reason,
                registers: Array(repeating: nil, count: 17), base: 0, stack: []))
    }

    private func refusal(_ tid: Int32) -> String {
        ThreadFacts.syscallRefusal(pid: pid, tid: tid) ?? "the kernel does not show where it is"
    }

    private func sample(
        _ thread: ThreadFacts, time: MonotonicTime, pause: Duration, method: CaptureMethod, state: Character,
        number: Int?, channel: String?, isTruncated: Bool, reason: String?, registers: [UInt64?], base: UInt64,
        stack: [UInt8]
    ) -> RawSample {
        RawSample(
            position: 0, stallID: 0, loopSlot: -1, tid: thread.tid, time: time, offset: .zero, pause: pause,
            method: method, threadState: state, syscallNumber: number, waitChannel: channel, isTruncated: isTruncated,
            noStackReason: reason, registers: registers, stackBase: base, stack: stack)
    }

    /// How many bytes of stack lie above `base`; a stack that has grown since the map was read ends where it did.
    private func extent(_ base: UInt64, _ bytes: Int) -> Int {
        guard let mapping = map.mapping(at: base) else { return bytes }
        return Int(min(UInt64(bytes), mapping.end &- base))
    }

    private func isCut(_ base: UInt64, _ count: Int) -> Bool {
        guard let mapping = map.mapping(at: base) else { return false }
        return UInt64(count) < mapping.end &- base
    }

    private static func now() -> MonotonicTime {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return MonotonicTime(
            nanoseconds: UInt64(clamping: time.tv_sec) &* 1_000_000_000 &+ UInt64(clamping: time.tv_nsec))
    }
}
