/// Captures of live threads, and the registry under load. On real threads, through the real hooks.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

extension HookTests {
    @Suite("Capture")
    struct CaptureTests {
        /// Takes one sample of a thread that is in `body`, as the watchdog would.
        private func sample(
            of body: @escaping @Sendable (Locked<Bool>) -> Void, when isReady: (ThreadLook.Place) -> Bool
        ) throws -> (reason: UInt32, sample: lag_sample, slot: lag_loop_slot) {
            let hooks = try #require(Hooks.functions)
            let segment = hooks.fixture.segment
            let tid = Locked<Int32>(0)
            let mayEnd = Locked(false)
            let thread = try TestThread {
                let descriptor = hooks.realCreate(0)
                defer { close(descriptor) }
                hooks.waitOnce(descriptor)
                tid.set(lag_gettid())
                body(mayEnd)
                hooks.waitOnce(descriptor)
            }
            defer {
                mayEnd.set(true)
                thread.join()
            }
            let scratch = try #require(Scratch.make())
            defer { scratch.release() }
            let settings = Settings(
                threshold: Hooks.threshold, families: UInt32(LAG_FAMILY_EPOLL), firstSignal: 0, takesStacks: true)
            var capture = try #require(Capture(segment, settings, scratch))
            defer { capture.release() }
            var isReadable = true
            try #require(
                eventually {
                    tid.value != 0
                        && isReady(ThreadLook.at(tid.value, scratch, syscallReadable: &isReadable).place)
                })
            let index = try #require(hooks.index(of: tid.value))
            let pointer = segment.loops + index
            var reason = UInt32(LAG_DROP_MOVED)
            // A thread may move on between two looks; the watchdog tries again then, too.
            _ = eventually {
                var view = lag_loop_view()
                guard lag_loop_read(pointer, &view) else { return false }
                let look = ThreadLook.at(tid.value, scratch, syscallReadable: &isReadable)
                guard isReady(look.place) else { return false }
                reason = capture.take(
                    slot: index, pointer: pointer, view: view, stall: 77, look: look, now: lag_clock_now())
                return reason != UInt32(LAG_DROP_MOVED) && reason != UInt32(LAG_DROP_TIMEOUT)
            }
            let size = UInt64(segment.sampleBytes)
            let header = segment.header.pointee
            var found = lag_sample()
            if reason == 0 {
                // The capture of this test writes at the ring's beginning.
                let place = segment.samples + Int(header.samples_tail % size)
                found = place.loadUnaligned(as: lag_sample.self)
            }
            return (reason, found, pointer.pointee)
        }

        @Test("A running thread is caught by the signal, with all its registers and its own stack")
        func running() throws {
            let (reason, sample, slot) = try sample(
                of: { mayEnd in
                    while !mayEnd.value { spin(nanoseconds: 100_000) }
                }, when: { $0 == .running })
            #expect(reason == UInt32(LAG_DROP_NONE))
            #expect(sample.method == UInt8(LAG_SAMPLE_SIGNAL) && sample.stall_id == 77)
            #expect(sample.regs_valid == (1 << UInt32(LAG_REGS)) - 1)
            #expect(sample.stack_base == sample.regs.7, "from the stack pointer upward")
            #expect(sample.stack_base >= slot.stack_low && sample.stack_base < slot.stack_high)
            #expect(sample.stack_base + UInt64(sample.stack_bytes) <= slot.stack_high)
            #expect(sample.pause_ns > 0)
        }

        @Test("A sleeping thread is read from outside, and its sleep lasts as long as it asked for")
        func sleeping() throws {
            let slept = Locked<(result: Int32, length: UInt64)>((-1, 0))
            let (reason, sample, slot) = try sample(
                of: { _ in
                    var time = timespec(tv_sec: 0, tv_nsec: 300_000_000)
                    let before = lag_clock_now()
                    let result = nanosleep(&time, nil)
                    slept.set((result, lag_clock_now() - before))
                }, when: { if case .inCall = $0 { true } else { false } })
            #expect(reason == UInt32(LAG_DROP_NONE))
            #expect(sample.method == UInt8(LAG_SAMPLE_PASSIVE) && sample.pause_ns == 0)
            #expect(sample.syscall_nr == 230 || sample.syscall_nr == 35)
            #expect(sample.stack_base >= slot.stack_low && sample.stack_base < slot.stack_high)
            #expect(eventually { slept.value.result != -1 })
            #expect(slept.value.result == 0 && slept.value.length >= 300_000_000)
        }

        @Test("Signals that hit a linked loop in the middle of its wait are never seen: no EINTR, no shortened wait")
        func signalsInsideWaits() throws {
            struct Seen: Sendable {
                var waits = 0
                var failed = 0
                var short = 0
            }
            let hooks = try #require(Hooks.functions)
            let tid = Locked<Int32>(0)
            let mayEnd = Locked(false)
            let seen = Locked(Seen())
            let thread = try TestThread {
                let descriptor = hooks.realCreate(0)
                defer { close(descriptor) }
                hooks.waitOnce(descriptor)
                tid.set(lag_gettid())
                var mine = Seen()
                while !mayEnd.value {
                    spin(nanoseconds: 300_000)
                    let start = lag_clock_now()
                    if hooks.waitOnce(descriptor, milliseconds: 2) < 0 { mine.failed += 1 }
                    if lag_clock_now() - start < 1_900_000 { mine.short += 1 }
                    mine.waits += 1
                }
                seen.set(mine)
            }
            try #require(eventually { tid.value != 0 })
            try #require(lag_capture_install(lag_signal_default()) != 0)
            // Without the watchdog's caution: most of these reach the thread while it waits.
            var taken = 0
            var generator = SeededGenerator(state: 7)
            for _ in 0..<300 {
                lag_sleep_until(lag_clock_now() + UInt64.random(in: 0..<3_000_000, using: &generator))
                var capture: UnsafePointer<lag_capture>?
                if lag_capture_signal(tid.value, 0, 4096, 50_000_000, &capture) == UInt32(LAG_DROP_NONE) { taken += 1 }
            }
            mayEnd.set(true)
            thread.join()
            #expect(taken > 200)
            #expect(seen.value.waits > 10)
            #expect(seen.value.failed == 0)
            #expect(seen.value.short == 0)
            print("figure: linked loop: \(taken) signals, \(seen.value.waits) waits, no EINTR")
        }

        @Test("A thread that blocks the signal is left alone")
        func blocked() throws {
            let before = lag_capture_signals_sent()
            let (reason, _, _) = try sample(
                of: { mayEnd in
                    var set = sigset_t()
                    sigfillset(&set)
                    pthread_sigmask(SIG_SETMASK, &set, nil)
                    while !mayEnd.value { spin(nanoseconds: 100_000) }
                }, when: { $0 == .running })
            // The first look may fall before the mask: then it was sent, and served.
            #expect(reason == UInt32(LAG_DROP_NO_SIGNAL) || lag_capture_signals_sent() == before + 1)
        }

        @Test("A thread with an alternate stack too small for the handler is never signalled")
        func smallAlternateStack() throws {
            let before = lag_capture_signals_sent()
            let reason = try TestThread.run { () -> UInt32 in
                guard let hooks = Hooks.functions else { return 0 }
                let space = UnsafeMutableRawPointer.allocate(byteCount: 2048, alignment: 16)
                defer { space.deallocate() }
                var small = stack_t(ss_sp: space, ss_flags: 0, ss_size: 2048)
                guard sigaltstack(&small, nil) == 0 else { return UInt32(LAG_DROP_NO_SIGNAL) }
                defer {
                    small.ss_flags = 2  // SS_DISABLE
                    sigaltstack(&small, nil)
                }
                let descriptor = hooks.realCreate(0)
                defer { close(descriptor) }
                hooks.waitOnce(descriptor)
                guard let index = hooks.index(of: lag_gettid()) else { return 0 }
                return lag_loop_takes_signal(UInt32(index)) ? 0 : UInt32(LAG_DROP_NO_SIGNAL)
            }
            #expect(reason == UInt32(LAG_DROP_NO_SIGNAL))
            #expect(lag_capture_signals_sent() == before)
        }

        @Test("Memory that is not there is not read, and nobody dies of it")
        func safeRead() throws {
            #expect(lag_safe_read_works())
            let page = 4096
            let memory = try #require(
                mmap(nil, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
            defer { munmap(memory, 3 * page) }
            try #require(mprotect(memory + 2 * page, page, PROT_NONE) == 0)
            let address = UInt64(UInt(bitPattern: memory))
            var bytes = [UInt8](repeating: 0, count: 3 * page)
            #expect(lag_safe_read(address, &bytes, 3 * page) == 2 * page)
            #expect(lag_safe_read(address + 100, &bytes, 3 * page - 100) == 2 * page - 100)
            #expect(lag_safe_read(address + UInt64(2 * page), &bytes, page) == 0)
            #expect(lag_safe_read(0, &bytes, 16) == 0)
            #expect(lag_safe_read(UInt64.max - 8, &bytes, 16) == 0)
        }

        @Test("Loops born and dying by the thousand: every view of every slot is whole")
        func stress() throws {
            let hooks = try #require(Hooks.functions)
            let segment = hooks.fixture.segment
            let end = lag_clock_now() + 3_000_000_000
            let born = Locked(0)
            let refusedBefore = segment.header.pointee.loops_refused
            let makers = try (0..<3).map { number in
                try TestThread {
                    while lag_clock_now() < end {
                        let threads = (0..<8).compactMap { i in
                            try? TestThread(stackBytes: 128 << 10) {
                                let descriptor = hooks.create(0)
                                for _ in 0..<(i + number) { hooks.waitOnce(descriptor) }
                                close(descriptor)
                            }
                        }
                        threads.forEach { $0.join() }
                        born.change { $0 += threads.count }
                    }
                }
            }
            var views = 0
            var nextRetirement: UInt64 = 0
            var problems: [String] = []
            var generations = [UInt32](repeating: 0, count: segment.loopCount)
            var iterations = [UInt64](repeating: 0, count: segment.loopCount)
            var view = lag_loop_view()
            while lag_clock_now() < end {
                for i in 0..<segment.loopCount where lag_loop_read(segment.loops + i, &view) {
                    views += 1
                    if view.generation < generations[i] { problems.append("slot \(i): generation went back") }
                    if view.generation == generations[i], view.iterations < iterations[i] {
                        problems.append("slot \(i): iterations went back")
                    }
                    if view.state == UInt32(LAG_LOOP_LIVE), view.tid <= 0 || view.epfd < -2 {
                        problems.append("slot \(i): live without a thread")
                    }
                    generations[i] = view.generation
                    iterations[i] = view.iterations
                    // The watchdog may take any slot away at any time. Each then rests for 100 ms: as many as five do.
                    if view.state == UInt32(LAG_LOOP_LIVE), lag_clock_now() > nextRetirement {
                        nextRetirement = lag_clock_now() + 20_000_000
                        lag_loop_retire(UInt32(i), view.generation)
                    }
                }
            }
            makers.forEach { $0.join() }
            #expect(problems.prefix(5).isEmpty, "\(problems.prefix(5))")
            #expect(views > 1_000)
            #expect(born.value > 100)
            #expect(segment.header.pointee.loops_refused == refusedBefore)
            for i in 0..<segment.loopCount { #expect(segment.loops[i].seq % 2 == 0) }
        }
    }
}
