/// Instructions that a process executes in user space, where the machine counts them: perf_event_open on each of its
/// threads.
///
/// Used by RequestCost from the bench's one thread. Most virtual machines and containers have no such counter; the
/// reason is then the error. Nothing is sampled and nothing in the target changes.

import Glibc

final class InstructionCounter {
    private var descriptors: [Int32] = []

    /// Counts from now on, over the threads that exist now.
    init(_ pid: pid_t) throws(BenchError) {
        for thread in ProcFigures.threads(of: pid) { descriptors.append(try Self.open(thread)) }
        guard !descriptors.isEmpty else { throw BenchError("the process has no threads") }
    }

    deinit { for descriptor in descriptors { close(descriptor) } }

    /// The sum so far.
    var total: UInt64 {
        descriptors.reduce(0) { sum, descriptor in
            var value: UInt64 = 0
            return read(descriptor, &value, 8) == 8 ? sum &+ value : sum
        }
    }

    private typealias SystemCall = @convention(c) (Int, UnsafeMutableRawPointer?, Int, Int, Int, UInt) -> Int

    private static func open(_ thread: Int32) throws(BenchError) -> Int32 {
        // Swift cannot call a variadic function; syscall(2) takes plain words on x86_64.
        guard let address = dlsym(nil, "syscall") else { throw BenchError("syscall(2) was not found") }
        let call = unsafeBitCast(address, to: SystemCall.self)
        // perf_event_attr, version 0 (64 bytes): PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS; exclude_kernel (bit 5)
        // and exclude_hv (bit 6), which an unprivileged user may not count.
        var attributes = [UInt64](repeating: 0, count: 8)
        attributes[0] = 64 << 32
        attributes[1] = 1
        attributes[5] = 1 << 5 | 1 << 6
        let perfEventOpen = 298
        let closeOnExec: UInt = 8
        let result = attributes.withUnsafeMutableBytes {
            call(perfEventOpen, $0.baseAddress, Int(thread), -1, -1, closeOnExec)
        }
        guard let descriptor = Int32(exactly: result), descriptor >= 0 else {
            let code = errno
            throw BenchError("no instruction counter here (perf_event_open: \(systemReason(code)))")
        }
        return descriptor
    }
}
