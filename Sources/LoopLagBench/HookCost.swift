/// What a hooked wait costs more than a plain one, against two clock reads.
///
/// In this process, with the linked build of the agent: the hook is the same code in both builds.

import CLoopLag
import Glibc
import LoopLagAgent

enum HookCost {
    /// Short rounds and many: between two turns of somebody else on the core, some of each kind run undisturbed.
    private static let calls = 10_000
    private static let what = "hook cost per iteration"
    private static let bar = "<= 1.3 x two clock_gettime"

    private typealias Wait = @convention(c) (Int32, UnsafeMutableRawPointer?, Int32, Int32) -> Int32
    private typealias Create = @convention(c) (Int32) -> Int32

    static func measure(into table: inout Table, _ plan: Plan) {
        let rounds = plan.isQuick ? 30 : 100
        lag_hooks_resolve(true)
        guard let (real, hook) = functions(named: "epoll_wait"), let (create, _) = functions(named: "epoll_create1")
        else {
            table.skip(what, because: "epoll_wait was not found", bar: bar)
            return
        }
        let plainWait = unsafeBitCast(real, to: Wait.self)
        let hookedWait = unsafeBitCast(hook, to: Wait.self)
        let descriptor = unsafeBitCast(create, to: Create.self)(0)
        guard descriptor >= 0, Agent.startLinked(threshold: 0) == .running else {
            table.skip(what, because: "the agent did not start in the bench itself", bar: bar)
            return
        }
        defer {
            Agent.stop()
            close(descriptor)
        }
        var event: (UInt64, UInt64) = (0, 0)
        var plain: [Double] = []
        var clock: [Double] = []
        var hooked: [Double] = []
        for _ in 0..<rounds {
            plain.append(perCall { _ = plainWait(descriptor, &event, 1, 0) })
            clock.append(perCall { readClock() })
            hooked.append(perCall { _ = hookedWait(descriptor, &event, 1, 0) })
        }
        // The least of each: noise on a shared machine only ever adds.
        let cost = Figures(hooked).least - Figures(plain).least
        let ratio = cost / (2 * Figures(clock).least)
        table.add(what, "\(rounded(cost)) ns = \(rounded(ratio)) x two clock reads", bar: bar, holds: ratio <= 1.3)
    }

    private static func functions(named name: String) -> (real: UnsafeMutableRawPointer, hook: UnsafeMutableRawPointer)?
    {
        var count = 0
        guard let rows = lag_hooks(&count) else { return nil }
        for row in UnsafeBufferPointer(start: rows, count: count) where String(cString: row.name) == name {
            guard let real = row.real.pointee, let hook = row.replacement else { return nil }
            return (real, hook)
        }
        return nil
    }

    private static func readClock() {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
    }

    /// Nanoseconds.
    private static func perCall(_ body: () -> Void) -> Double {
        let start = now()
        for _ in 0..<calls { body() }
        return Double(now() - start) / Double(calls)
    }
}
