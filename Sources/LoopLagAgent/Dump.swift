/// Answers a reader's wish for a dump: one sample of each loop's thread, stalled or idle, and the interpreter's frames of
/// every worker that is busy for a pool, all in the sample ring.
///
/// Watchdog only, at its tick. The laws of Capture hold: a blocked thread is never signalled. Whoever may write the segment
/// may ask, at most five times a second.

import CLoopLag

struct Dump {
    private static let shortestGap: UInt64 = 200_000_000
    /// A thread that moves on while it is looked at is looked at again.
    private static let attempts = 6
    private static let workerLimit = 128

    private var served: UInt64 = 0
    private var servedAt: UInt64 = 0

    mutating func serve(_ context: inout WatchContext, loops: Int, now: UInt64) {
        let header = context.segment.header
        let request = lag_load_u64(&header.pointee.dump_request)
        guard request != served, request != 0, now &- servedAt >= Self.shortestGap else { return }
        servedAt = now
        var i = 0
        while i < loops {
            sample(i, context.segment.loops + i, request, &context)
            i &+= 1
        }
        context.capture.takeWorkers(
            request: request, loops: context.segment.loops, count: loops, limit: Self.workerLimit)
        served = request
        lag_store_u64(&header.pointee.dump_served, request)
    }

    private func sample(
        _ index: Int, _ pointer: UnsafeMutablePointer<lag_loop_slot>, _ request: UInt64, _ context: inout WatchContext
    ) {
        var attempt = 0
        while attempt < Self.attempts {
            attempt &+= 1
            var view = lag_loop_view()
            guard lag_loop_read(pointer, &view) else { continue }
            guard view.state == UInt32(LAG_LOOP_LIVE) else { return }
            let look = ThreadLook.at(view.tid, context.scratch, syscallReadable: &context.syscallReadable)
            let reason = context.capture.take(
                slot: index, pointer: pointer, view: view, stall: 0, dump: request, look: look, now: lag_clock_now())
            guard reason == UInt32(LAG_DROP_MOVED) || reason == UInt32(LAG_DROP_TIMEOUT) else { return }
        }
    }
}

extension Capture {
    /// The frames of every worker that is busy for a pool. They are read where the thread is blocked, and while it runs.
    mutating func takeWorkers(request: UInt64, loops: UnsafeMutablePointer<lag_loop_slot>, count: Int, limit: Int) {
        runtime.lookAtPools(loops: loops, count: count)
        var taken = 0
        var i = 0
        while taken < limit, let worker = runtime.worker(i) {
            i &+= 1
            var sample = lag_sample()
            sample.dump = request
            sample.pool = worker.pool
            sample.loop_index = UInt32.max
            sample.tid = worker.tid
            sample.method = UInt8(LAG_SAMPLE_PASSIVE)
            sample.syscall_nr = -1
            var isReadable = true
            let look = ThreadLook.at(worker.tid, scratch, syscallReadable: &isReadable)
            sample.thread_state = look.state
            if case .inCall(let number) = look.place { sample.syscall_nr = number }
            section.clear()
            guard look.place != .gone, runtime.describeWorker(i &- 1, into: &section, sample: &sample) else { continue }
            sample.time_ns = lag_clock_now()
            let managed = section.assemble()
            guard ring.hasRoom(stackBytes: 0, managedBytes: managed.count) else { continue }
            ring.append(sample, stack: nil, stackBytes: 0, managed: managed.bytes, managedBytes: managed.count)
            taken &+= 1
        }
    }
}
