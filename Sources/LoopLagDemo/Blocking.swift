/// The bad habits that the demo shows: each blocks the calling thread and says by its own clock how long it took.
///
/// Called by: RawServer on a NIO loop, HTTPServer on the Swift concurrency pool. Thread: the caller's, that is the point.
/// Refuses: to be interrupted. A sleep that a signal cut short is reported as such and never topped up, since the tests
/// hold the agent to not cutting it short.

import Glibc
import NIOCore
import Synchronization

/// What a handler found out about itself.
struct Blocked {
    /// By CLOCK_MONOTONIC, read before and after.
    var nanoseconds: UInt64
    /// A signal ended the call before its time.
    var wasInterrupted = false

    var answer: String { wasInterrupted ? "done \(nanoseconds) interrupted" : "done \(nanoseconds)" }
}

/// NIO's clock is CLOCK_MONOTONIC.
private func monotonicNanoseconds() -> UInt64 { NIODeadline.now().uptimeNanoseconds }

// Not inlined: these names are what a person should find on the stack of the stall.

@inline(never)
func blockBySleeping(milliseconds: UInt32) -> Blocked {
    let start = monotonicNanoseconds()
    let result = usleep(milliseconds &* 1000)
    return Blocked(nanoseconds: monotonicNanoseconds() &- start, wasInterrupted: result != 0)
}

@inline(never)
func blockBySpinning(milliseconds: UInt32) -> Blocked {
    let start = monotonicNanoseconds()
    let end = start &+ UInt64(milliseconds) &* 1_000_000
    var now = start
    while now < end { now = monotonicNanoseconds() }
    return Blocked(nanoseconds: now &- start)
}

/// Waits for a mutex that another thread holds for the given time.
@inline(never)
func blockOnLock(milliseconds: UInt32) -> Blocked {
    let start = monotonicNanoseconds()
    guard let holder = LockHolder.start(holding: milliseconds) else { return Blocked(nanoseconds: 0) }
    holder.waitUntilFree()
    return Blocked(nanoseconds: monotonicNanoseconds() &- start)
}

/// A mutex and the thread that takes it, keeps it for a while and gives it back.
// Safety: `mutex` is a C object at a fixed address, touched through the pthread functions alone and freed with the
// last reference; `milliseconds` never changes; `isHeld` is atomic.
final class LockHolder: @unchecked Sendable {
    let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let milliseconds: UInt32
    private let isHeld = Atomic(false)

    private init(milliseconds: UInt32) {
        self.milliseconds = milliseconds
        mutex = .allocate(capacity: 1)
        mutex.initialize(to: pthread_mutex_t())
        pthread_mutex_init(mutex, nil)
    }

    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    /// Returns once the thread holds the mutex; nil when no thread could be made.
    static func start(holding milliseconds: UInt32) -> LockHolder? {
        let holder = LockHolder(milliseconds: milliseconds)
        let reference = Unmanaged.passRetained(holder)
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<LockHolder>.fromOpaque(context).takeRetainedValue().hold()
                return nil
            }, reference.toOpaque())
        guard status == 0 else {
            reference.release()
            return nil
        }
        pthread_detach(thread)
        while !holder.isHeld.load(ordering: .acquiring) { sched_yield() }
        return holder
    }

    private func hold() {
        pthread_setname_np(pthread_self(), "lock-holder")
        pthread_mutex_lock(mutex)
        isHeld.store(true, ordering: .releasing)
        usleep(milliseconds &* 1000)
        pthread_mutex_unlock(mutex)
    }

    func waitUntilFree() {
        pthread_mutex_lock(mutex)
        pthread_mutex_unlock(mutex)
    }
}
