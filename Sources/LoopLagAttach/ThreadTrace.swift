/// Stops one running thread for some microseconds to read its registers and stack, and lets it run on as if nothing
/// had been.
///
/// Called by StackCapture, and only for a thread that was on a processor a moment ago: one that is blocked is read
/// without a stop. It can have entered a call meanwhile. Most calls are then restarted by the kernel and nobody notices;
/// a few come back with EINTR at once (epoll_wait, a recv with a time-out). Such a result is replaced by the kernel's
/// own ERESTARTNOHAND before the thread sees it: the call starts again, or becomes EINTR after all when a handler of the
/// host's is due, as without us. Its time-out begins anew, which adds no more than the time since we saw it running.
///
/// Every trace runs on a thread of its own. A thread in an uninterruptible call stops when that is over, which may be
/// never; when the tracing thread ends, the kernel takes everything back, also a stop that is still to come.

import CLoopLagTrace
import Glibc

struct TracedThread {
    var registers: [UInt64]
    /// The call that it was in after all.
    var call: Int?
    var stackBase: UInt64
    var stack: [UInt8]
    /// From the request to stop until it ran again.
    var pause: Duration
}

enum TraceFailure: Error {
    case refused(code: Int32)
    case ended
    /// It did not stop in time.
    case busyInKernel

    var reason: String {
        switch self {
        case .refused(let code): "it may not be traced: \(systemReason(code))"
        case .ended: "the thread has ended"
        case .busyInKernel: "it is in a call that cannot be interrupted"
        }
    }
}

enum ThreadTrace {
    /// Calls whose EINTR means that nothing was done, so that starting again loses nothing: read, write, readv, writev,
    /// the socket calls (recvfrom, recvmsg, recvmmsg, sendto, sendmsg, sendmmsg, accept, accept4), semop, semtimedop,
    /// rt_sigtimedwait, io_getevents, io_pgetevents, epoll_*, io_uring_enter. Not close: its descriptor may be gone.
    static let repeatable: Set<Int> = [
        0, 1, 19, 20, 43, 44, 45, 46, 47, 65, 128, 208, 220, 232, 281, 288, 299, 307, 333, 426, 441,
    ]

    /// - Parameters:
    ///   - extent: the bytes of stack to copy from a stack pointer.
    static func take(
        tid: Int32, memory: ProcessMemory, deadline: Duration, extent: @escaping (UInt64) -> Int
    ) throws(TraceFailure) -> TracedThread {
        let job = Job { trace(tid: tid, memory: memory, deadline: deadline, extent: extent) }
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(job)
        let status = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                let job = Unmanaged<Job>.fromOpaque(argument).takeRetainedValue()
                job.result = job.work()
                return nil
            }, argument.toOpaque())
        guard status == 0 else {
            argument.release()
            throw .refused(code: status)
        }
        pthread_join(thread, nil)
        guard let result = job.result else { throw .ended }
        return try result.get()
    }

    private final class Job: @unchecked Sendable {
        // Safety: written by the one thread that runs it, read after that thread was joined.
        let work: () -> Result<TracedThread, TraceFailure>
        var result: Result<TracedThread, TraceFailure>?

        init(_ work: @escaping () -> Result<TracedThread, TraceFailure>) { self.work = work }
    }

    private static func trace(
        tid: Int32, memory: ProcessMemory, deadline: Duration, extent: (UInt64) -> Int
    ) -> Result<TracedThread, TraceFailure> {
        let code = lag_trace_seize(tid)
        if code != 0 { return .failure(code == ESRCH ? .ended : .refused(code: code)) }
        let clock = ContinuousClock()
        let start = clock.now
        if lag_trace_interrupt(tid) != 0 { return .failure(.ended) }
        var status: Int32 = 0
        var turns = 0
        while true {
            let found = lag_trace_wait(tid, &status)
            if found == tid { break }
            if found < 0 && errno != EINTR { return .failure(.ended) }
            if clock.now - start >= deadline { return .failure(.busyInKernel) }
            turns += 1
            // It mostly stops within microseconds; after that, leave it the processor.
            if turns > 50 { usleep(turns > 200 ? 500 : 20) } else { sched_yield() }
        }
        // WIFSTOPPED; anything else is its end.
        guard status & 0xff == 0x7f else { return .failure(.ended) }
        let signal = (status >> 8) & 0xff
        let isEventStop = status >> 16 == Int32(LAG_TRACE_EVENT_STOP)
        // A signal that arrived first was taken off its queue for us: it goes on with the thread.
        let delivered = isEventStop ? 0 : signal
        var registers = [UInt64](repeating: 0, count: Int(LAG_TRACE_REGISTERS))
        var number: Int64 = -1
        guard lag_trace_registers(tid, &registers, &number) == 0 else {
            _ = lag_trace_detach(tid, delivered)
            return .failure(.ended)
        }
        let call = number >= 0 ? Int(exactly: number) : nil
        if isEventStop, let call, repeatable.contains(call), registers[0] == UInt64(bitPattern: -Int64(EINTR)) {
            _ = lag_trace_set_result(tid, -Int64(LAG_TRACE_ERESTARTNOHAND))
        }
        let base = registers[7] & ~7
        let stack = memory.bytes(at: base, count: extent(base))
        _ = lag_trace_detach(tid, delivered)
        return .success(
            TracedThread(
                registers: registers, call: call, stackBase: base, stack: stack, pause: clock.now - start))
    }
}
