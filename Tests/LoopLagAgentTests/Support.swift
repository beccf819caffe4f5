/// What the agent's tests share: a segment in plain memory, threads with a beginning and an end, a seeded generator.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

/// A segment that no file holds, laid out as the tests like it.
struct SegmentFixture {
    let segment: Segment
    let scratch: Scratch

    init(loops: Int = 4, stalls: Int = 8, sampleBytes: Int = 64 << 10, modules: Int = 192) throws {
        let loopBytes = loops * MemoryLayout<lag_loop_slot>.stride
        let stallBytes = stalls * MemoryLayout<lag_stall>.stride
        let moduleBytes = modules * MemoryLayout<lag_module>.stride
        let stringBytes = 64 << 10
        let bytes = Int(LAG_HEADER_BYTES) + loopBytes + stallBytes + moduleBytes + stringBytes + sampleBytes
        let base = try #require(lag_memory_zeroed(bytes))
        var next = base + Int(LAG_HEADER_BYTES)
        func take(_ count: Int) -> UnsafeMutableRawPointer {
            defer { next += count }
            return next
        }
        segment = Segment(
            base: base, bytes: bytes, header: base.assumingMemoryBound(to: lag_header.self),
            loops: take(loopBytes).assumingMemoryBound(to: lag_loop_slot.self), loopCount: loops,
            stalls: take(stallBytes).assumingMemoryBound(to: lag_stall.self), stallCount: stalls,
            samples: take(sampleBytes), sampleBytes: sampleBytes,
            modules: take(moduleBytes).assumingMemoryBound(to: lag_module.self), moduleCount: modules,
            strings: take(stringBytes).assumingMemoryBound(to: UInt8.self), stringBytes: stringBytes, descriptor: -1)
        scratch = try #require(Scratch.make())
    }

    var header: lag_header { segment.header.pointee }

    /// Every stall record that is there, by id.
    var stalls: [lag_stall] {
        (0..<segment.stallCount).map { segment.stalls[$0] }.filter { $0.state != UInt32(LAG_STALL_EMPTY) }
            .sorted { $0.id < $1.id }
    }

    func context(threshold: UInt64, takesStacks: Bool = false) throws -> WatchContext {
        let settings = Settings(
            threshold: threshold, families: UInt32(LAG_FAMILY_EPOLL), firstSignal: 0, takesStacks: takesStacks)
        let capture = try #require(Capture(segment, settings, scratch))
        return WatchContext(
            segment: segment, scratch: scratch, book: StallBook(segment), capture: capture, threshold: threshold)
    }

    func release() {
        scratch.release()
        lag_memory_free(segment.base, segment.bytes)
    }
}

/// A joinable thread: the hooks know threads, so each scenario has its own.
final class TestThread {
    // Safety: started once; the closure runs on the new thread and is let go before `join` returns.
    private final class Body: @unchecked Sendable {
        let run: () -> Void
        init(_ run: @escaping () -> Void) { self.run = run }
    }

    private var thread = pthread_t()

    init(stackBytes: Int? = nil, _ run: @escaping @Sendable () -> Void) throws {
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        defer { pthread_attr_destroy(&attributes) }
        if let stackBytes { pthread_attr_setstacksize(&attributes, stackBytes) }
        let body = Unmanaged.passRetained(Body(run))
        let failure = pthread_create(
            &thread, &attributes,
            { raw in
                guard let raw else { return nil }
                // Threads of libdispatch, on which tests may run, block all signals and hand that down.
                var none = sigset_t()
                sigemptyset(&none)
                pthread_sigmask(SIG_SETMASK, &none, nil)
                Unmanaged<Body>.fromOpaque(raw).takeRetainedValue().run()
                return nil
            }, body.toOpaque())
        try #require(failure == 0)
    }

    func join() { pthread_join(thread, nil) }

    /// Runs `work` on a fresh thread and gives its result back.
    static func run<Result: Sendable>(_ work: @escaping @Sendable () -> Result) throws -> Result {
        let box = Locked<Result?>(nil)
        let thread = try TestThread { box.set(work()) }
        thread.join()
        return try #require(box.value)
    }
}

/// A value between two threads.
final class Locked<Value: Sendable>: @unchecked Sendable {
    // Safety: `stored` is touched only with `lock` held.
    private var lock = pthread_mutex_t()
    private var stored: Value

    init(_ value: Value) {
        stored = value
        pthread_mutex_init(&lock, nil)
    }

    deinit { pthread_mutex_destroy(&lock) }

    var value: Value {
        pthread_mutex_lock(&lock)
        defer { pthread_mutex_unlock(&lock) }
        return stored
    }

    func set(_ value: Value) {
        pthread_mutex_lock(&lock)
        stored = value
        pthread_mutex_unlock(&lock)
    }

    func change(_ body: (inout Value) -> Void) {
        pthread_mutex_lock(&lock)
        body(&stored)
        pthread_mutex_unlock(&lock)
    }
}

/// Waits for another thread's doing; false after ten seconds.
func eventually(_ condition: () -> Bool) -> Bool {
    let end = lag_clock_now() + 10_000_000_000
    while !condition() {
        if lag_clock_now() > end { return false }
        lag_sleep_until(lag_clock_now() + 200_000)
    }
    return true
}

/// Keeps the calling thread on its CPU.
func spin(nanoseconds: UInt64) {
    let end = lag_clock_now() + nanoseconds
    while lag_clock_now() < end {}
}

/// SplitMix64: the same inputs at every run.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// Calls `body` with the text's bytes; a NUL lies behind them.
func withBytes<Result>(_ text: String, _ body: (UnsafePointer<UInt8>, Int) throws -> Result) rethrows -> Result {
    let count = text.utf8.count
    return try text.withCString { characters in
        try body(UnsafeRawPointer(characters).assumingMemoryBound(to: UInt8.self), count)
    }
}
