/// The hooks themselves, called through their table on threads of the test's own, with a segment in plain memory and no
/// watchdog: what they count, what is a loop and what is not, and how slots change hands.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

/// The hooks of this test process, live since the first use. One for all tests: a process has one agent.
enum Hooks {
    typealias Wait = @convention(c) (Int32, UnsafeMutableRawPointer?, Int32, Int32) -> Int32
    typealias Poll = @convention(c) (UnsafeMutableRawPointer?, UInt, Int32) -> Int32
    typealias Create = @convention(c) (Int32) -> Int32
    typealias Control = @convention(c) (Int32, Int32, Int32, UnsafeMutableRawPointer?) -> Int32

    struct Functions: Sendable {
        var wait: Wait
        var realWait: Wait
        var poll: Poll
        var create: Create
        var realCreate: Create
        var control: Control
        var fixture: Shared
    }

    /// The segment that the hooks write.
    struct Shared: @unchecked Sendable {
        // Safety: the addresses never change; the memory is shared between threads by its own protocol.
        let segment: Segment
    }

    // Safety: written once, by the starter inside the initialiser of `functions`, and only read after it.
    nonisolated(unsafe) private static var segment: Segment?
    static let threshold: UInt64 = 20_000_000

    static let functions: Functions? = {
        guard let fixture = try? SegmentFixture(loops: Int(LAG_MAX_LOOPS), stalls: 512, sampleBytes: 1 << 20) else {
            return nil
        }
        segment = fixture.segment
        let starter: lag_starter = {
            guard let segment = Hooks.segment else { return false }
            return lag_loops_open(segment.header, segment.loops, UInt32(segment.loopCount), Hooks.threshold)
        }
        guard lag_life_arm(UInt32(LAG_MODE_LINKED), starter), lag_life_start_now(),
            let (wait, realWait) = pair("epoll_wait"), let (poll, _) = pair("poll"),
            let (create, realCreate) = pair("epoll_create1"), let control = dlsym(nil, "epoll_ctl")
        else { return nil }
        return Functions(
            wait: unsafeBitCast(wait, to: Wait.self), realWait: unsafeBitCast(realWait, to: Wait.self),
            poll: unsafeBitCast(poll, to: Poll.self), create: unsafeBitCast(create, to: Create.self),
            realCreate: unsafeBitCast(realCreate, to: Create.self), control: unsafeBitCast(control, to: Control.self),
            fixture: Shared(segment: fixture.segment))
    }()

    private static func pair(_ name: String) -> (UnsafeMutableRawPointer, UnsafeMutableRawPointer)? {
        var count = 0
        guard let rows = lag_hooks(&count) else { return nil }
        for row in UnsafeBufferPointer(start: rows, count: count) where String(cString: row.name) == name {
            guard let hook = row.replacement, let real = row.real.pointee else { return nil }
            return (hook, real)
        }
        return nil
    }
}

extension Hooks.Functions {
    /// The slots that belong or belonged to a thread, in the order of their tenants.
    func slots(of tid: Int32) -> [lag_loop_slot] {
        (0..<fixture.segment.loopCount).map { fixture.segment.loops[$0] }
            .filter { $0.tid == tid && $0.state != UInt32(LAG_LOOP_FREE) }.sorted { $0.generation < $1.generation }
    }

    func index(of tid: Int32) -> Int? {
        (0..<fixture.segment.loopCount).first {
            fixture.segment.loops[$0].tid == tid && fixture.segment.loops[$0].state == UInt32(LAG_LOOP_LIVE)
        }
    }

    /// One wait, from a stack depth that is the same for all callers at the same depth.
    @inline(never)
    @discardableResult
    func waitOnce(_ descriptor: Int32, milliseconds: Int32 = 0) -> Int32 {
        withUnsafeTemporaryAllocation(byteCount: 12 * 4, alignment: 8) { events in
            wait(descriptor, events.baseAddress, 4, milliseconds)
        }
    }

    /// The same from at least a kilobyte deeper in the stack.
    @inline(never)
    func waitDeeper(_ descriptor: Int32, milliseconds: Int32) {
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 16) { space in
            space.initializeMemory(as: UInt8.self, repeating: 1)
            waitOnce(descriptor, milliseconds: milliseconds)
            space.initializeMemory(as: UInt8.self, repeating: 2)
        }
    }
}

@Suite("Hooks", .serialized)
struct HookTests {
    private func hooks() throws -> Hooks.Functions { try #require(Hooks.functions) }

    /// What one thread saw of its own loops.
    private struct Seen: Sendable {
        var slots: [lag_loop_slot] = []
        var wall: UInt64 = 0
        var nested: UInt64 = 0
        var text = ""
    }

    @Test("Iterations are counted one by one, and busy and idle time together are all the time there was")
    func counting() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let descriptor = hooks.realCreate(0)
            defer { close(descriptor) }
            let before = lag_clock_now()
            hooks.waitOnce(descriptor, milliseconds: 2)
            for _ in 0..<50 {
                spin(nanoseconds: 200_000)
                hooks.waitOnce(descriptor, milliseconds: 1)
            }
            return Seen(slots: hooks.slots(of: lag_gettid()), wall: lag_clock_now() - before)
        }
        let slot = try #require(seen.slots.first)
        #expect(seen.slots.count == 1)
        #expect(slot.iterations == 50)
        #expect(slot.busy_ns >= 50 * 200_000)
        #expect(slot.idle_ns >= 50 * 1_000_000)
        #expect(slot.busy_ns + slot.idle_ns <= seen.wall)
        // From the first wait to the last one's return, without a gap; the registration lies before it.
        let measured = slot.busy_since_ns - slot.registered_ns
        #expect(slot.busy_ns + slot.idle_ns <= measured)
        #expect(measured - slot.busy_ns - slot.idle_ns < 50_000_000)
        #expect(slot.min_ns >= 200_000 && slot.max_ns >= slot.min_ns && slot.max_ns <= slot.busy_ns)
        let histogram = withUnsafeBytes(of: slot.histogram) { Array($0.bindMemory(to: UInt64.self)) }
        #expect(histogram.reduce(0, +) == 50)
        let lowest = Int(lag_histogram_index(slot.min_ns))
        #expect(histogram[lowest] > 0 && histogram[..<lowest].allSatisfy { $0 == 0 })
        #expect(slot.seq % 2 == 0)
        #expect(slot.stack_high > slot.stack_low && slot.stack_low > 0)
    }

    @Test("An iteration at or above the threshold is counted and kept with its exact bounds")
    func longOnes() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let descriptor = hooks.realCreate(0)
            defer { close(descriptor) }
            hooks.waitOnce(descriptor)
            for i in 0..<12 as Range<UInt64> {
                spin(nanoseconds: i % 2 == 0 ? Hooks.threshold + i * 100_000 : 1_000)
                hooks.waitOnce(descriptor)
            }
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        let slot = try #require(seen.slots.first)
        // A machine that stood still may have made one of the short ones long.
        #expect(slot.stall_count >= 6 && slot.long_head == UInt32(slot.stall_count))
        let kept = withUnsafeBytes(of: slot.recent_long) { Array($0.bindMemory(to: lag_long_iteration.self)) }
        #expect(kept.prefix(6).allSatisfy { $0.duration_ns >= Hooks.threshold && $0.start_ns > 0 })
        #expect(slot.stalled_ns >= kept.prefix(6).reduce(0) { $0 + $1.duration_ns })
    }

    @Test("Results and errno pass through untouched, events are summed")
    func transparency() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            var text = ""
            let descriptor = hooks.realCreate(0)
            var ends: [Int32] = [-1, -1]
            pipe(&ends)
            write(ends[1], "x", 1)
            defer {
                close(descriptor)
                ends.forEach { close($0) }
            }
            withUnsafeTemporaryAllocation(byteCount: 12, alignment: 8) { event in
                event.storeBytes(of: 1, as: UInt32.self)  // EPOLLIN
                _ = hooks.control(descriptor, 1, ends[0], event.baseAddress)
            }
            for _ in 0..<4 { text += "\(hooks.waitOnce(descriptor, milliseconds: 100)) " }
            let slots = hooks.slots(of: lag_gettid())
            errno = 0
            let result = hooks.waitOnce(-1)
            text += "\(result) \(errno == EBADF) "
            errno = ENOTTY
            text += "\(hooks.waitOnce(descriptor)) \(errno == ENOTTY)"
            return Seen(slots: slots, text: text)
        }
        #expect(seen.text == "1 1 1 1 -1 true 1 true")
        #expect(seen.slots.first?.events == 4)
        #expect(seen.slots.count == 1, "a wait that must fail is no loop")
    }

    @Test("A wait on another descriptor deeper in the stack is busy time of the outer loop")
    func nested() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let outer = hooks.realCreate(0)
            let inner = hooks.realCreate(0)
            defer {
                close(outer)
                close(inner)
            }
            hooks.waitOnce(outer)
            let before = lag_clock_now()
            for _ in 0..<10 { hooks.waitDeeper(inner, milliseconds: 3) }
            let nested = lag_clock_now() - before
            hooks.waitOnce(outer)
            return Seen(slots: hooks.slots(of: lag_gettid()), nested: nested)
        }
        #expect(seen.slots.count == 1)
        let slot = try #require(seen.slots.first)
        #expect(slot.iterations == 1)
        #expect(slot.busy_ns >= seen.nested && seen.nested >= 30_000_000)
    }

    @Test("A descriptor that is closed and replaced becomes the loop, even deeper in the stack")
    func replaced() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let first = hooks.realCreate(0)
            hooks.waitOnce(first)
            close(first)
            // Takes the number, so that the new one has another.
            let other = dup(1)
            let second = hooks.realCreate(0)
            defer {
                close(other)
                close(second)
            }
            // A nested wait asks at most every 10 ms whether the primary still exists.
            spin(nanoseconds: 11_000_000)
            for _ in 0..<3 { hooks.waitDeeper(second, milliseconds: 0) }
            return Seen(slots: hooks.slots(of: lag_gettid()), text: "\(second)")
        }
        #expect(seen.slots.map(\.state) == [UInt32(LAG_LOOP_RETIRED), UInt32(LAG_LOOP_LIVE)])
        #expect(seen.slots.last.map { "\($0.epfd)" } == seen.text)
        #expect(seen.slots.last?.iterations == 2)
        #expect(seen.slots.first?.busy_since_ns == 0, "the open iteration is dropped")
    }

    @Test("The same number for a new descriptor drops what lies between the two loops")
    func sameNumber() throws {
        let hooks = try hooks()
        // A test beside this one may take the number in between: then it says nothing, and is made again.
        var seen = Seen()
        for _ in 0..<30 where seen.text != "true" {
            seen = try TestThread.run { () -> Seen in
                let first = hooks.create(0)
                hooks.waitOnce(first)
                hooks.waitOnce(first)
                close(first)
                spin(nanoseconds: 2 * Hooks.threshold)
                let second = hooks.create(0)
                defer { close(second) }
                hooks.waitOnce(second)
                hooks.waitOnce(second)
                return Seen(slots: hooks.slots(of: lag_gettid()), text: "\(first == second)")
            }
        }
        #expect(seen.text == "true")
        #expect(seen.slots.count == 2)
        #expect(seen.slots.map(\.iterations) == [1, 1])
        #expect(seen.slots.allSatisfy { $0.max_ns < 2 * Hooks.threshold }, "what lay between was no iteration")
    }

    @Test("A thread that goes on alternating between descriptors at one depth has one loop")
    func alternating() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let pair = [hooks.realCreate(0), hooks.realCreate(0)]
            defer { pair.forEach { close($0) } }
            for i in 0..<200 { hooks.waitOnce(pair[i % 2]) }
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(seen.slots.filter { $0.state == UInt32(LAG_LOOP_LIVE) }.count == 1)
        #expect(seen.slots.count <= 6)
        let iterations = try #require(seen.slots.last?.iterations)
        #expect(iterations >= 190)
    }

    @Test("A merged loop whose first descriptor is closed goes on under another one")
    func mergedAndClosed() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let first = hooks.realCreate(0)
            let second = hooks.realCreate(0)
            for i in 0..<20 { hooks.waitOnce(i % 2 == 0 ? first : second) }
            close(first)
            close(second)
            let others = [dup(1), dup(1)]
            let third = hooks.realCreate(0)
            defer { (others + [third]).forEach { close($0) } }
            spin(nanoseconds: 11_000_000)
            for _ in 0..<3 { hooks.waitOnce(third) }
            return Seen(slots: hooks.slots(of: lag_gettid()), text: "\(third)")
        }
        #expect(seen.slots.last.map { "\($0.epfd)" } == seen.text)
        #expect(seen.slots.last?.state == UInt32(LAG_LOOP_LIVE))
    }

    @Test("poll is no loop unless it is asked for, and never one inside an epoll loop")
    func polling() throws {
        let hooks = try hooks()
        let plain = try TestThread.run { () -> Seen in
            _ = hooks.poll(nil, 0, 1)
            _ = hooks.poll(nil, 0, 1)
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(plain.slots.isEmpty)

        lag_hooks_set_families(UInt32(LAG_FAMILY_EPOLL) | UInt32(LAG_FAMILY_POLL))
        defer { lag_hooks_set_families(UInt32(LAG_FAMILY_EPOLL)) }
        let asked = try TestThread.run { () -> Seen in
            for _ in 0..<5 { _ = hooks.poll(nil, 0, 1) }
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(asked.slots.map(\.iterations) == [4])
        #expect(asked.slots.first?.epfd == -2)

        let inside = try TestThread.run { () -> Seen in
            let descriptor = hooks.realCreate(0)
            defer { close(descriptor) }
            hooks.waitOnce(descriptor)
            for _ in 0..<5 { _ = hooks.poll(nil, 0, 2) }
            hooks.waitOnce(descriptor)
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(inside.slots.map(\.iterations) == [1])
        #expect(try #require(inside.slots.first).busy_ns >= 10_000_000)
    }

    @Test("A thread that ends retires its loop at once")
    func threadExit() throws {
        let hooks = try hooks()
        let tid = try TestThread.run { () -> Int32 in
            let descriptor = hooks.realCreate(0)
            hooks.waitOnce(descriptor)
            close(descriptor)
            return lag_gettid()
        }
        let slots = hooks.slots(of: tid)
        #expect(slots.map(\.state) == [UInt32(LAG_LOOP_RETIRED)])
        #expect(try #require(slots.first).retired_ns > 0)
    }

    @Test("A loop that the watchdog retires registers anew at its next wait")
    func retiredFromOutside() throws {
        let hooks = try hooks()
        let seen = try TestThread.run { () -> Seen in
            let descriptor = hooks.realCreate(0)
            defer { close(descriptor) }
            hooks.waitOnce(descriptor)
            if let index = hooks.index(of: lag_gettid()) {
                lag_loop_retire(UInt32(index), hooks.fixture.segment.loops[index].generation &+ 1)  // not this tenant
                lag_loop_retire(UInt32(index), hooks.fixture.segment.loops[index].generation)
            }
            hooks.waitOnce(descriptor)
            hooks.waitOnce(descriptor)
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(seen.slots.map(\.state) == [UInt32(LAG_LOOP_RETIRED), UInt32(LAG_LOOP_LIVE)])
        #expect(seen.slots.map(\.iterations) == [0, 1])
    }

    @Test("More loops than slots: those that have none run on unmeasured, and each is counted once")
    func tooMany() throws {
        let hooks = try hooks()
        let before = hooks.fixture.segment.header.pointee.loops_refused
        let extra = 10
        let tids = Locked<Set<Int32>>([])
        let mayEnd = Locked(false)
        let threads = try (0..<Int(LAG_MAX_LOOPS) + extra).map { _ in
            try TestThread(stackBytes: 256 << 10) {
                let descriptor = hooks.realCreate(0)
                for _ in 0..<3 { hooks.waitOnce(descriptor) }
                tids.change { $0.insert(lag_gettid()) }
                while !mayEnd.value { hooks.waitOnce(descriptor, milliseconds: 5) }
                close(descriptor)
            }
        }
        #expect(eventually { tids.value.count == threads.count })
        let refused = hooks.fixture.segment.header.pointee.loops_refused - before
        let measured = tids.value.filter { hooks.index(of: $0) != nil }.count
        mayEnd.set(true)
        threads.forEach { $0.join() }
        #expect(refused >= UInt64(extra))
        #expect(Int(refused) + measured == threads.count)
        let after = try TestThread.run { () -> Seen in
            let descriptor = hooks.realCreate(0)
            hooks.waitOnce(descriptor)
            hooks.waitOnce(descriptor)
            close(descriptor)
            return Seen(slots: hooks.slots(of: lag_gettid()))
        }
        #expect(after.slots.first?.iterations == 1, "and their slots are free again")
    }
}
