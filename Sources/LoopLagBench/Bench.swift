/// The budgets of the design, measured as ratios within one run: `swift run -c release looplag-bench`.
///
/// A person runs it; no test asserts a time. Every row says what was measured, the figure, the bar, and whether it holds.

import CLoopLag
import Glibc
import LoopLagAgent

@main
enum Bench {
    static func main() {
        var table = Table()
        HookCost.measure(into: &table)
        ObjectSize.measure(into: &table)
        print(table.text)
        exit(table.holds ? 0 : 1)
    }
}

struct Table {
    private struct Row {
        var what: String
        var figure: String
        var bar: String
        var holds: Bool
    }

    private var rows: [Row] = []

    mutating func add(_ what: String, _ figure: String, bar: String, holds: Bool) {
        rows.append(Row(what: what, figure: figure, bar: bar, holds: holds))
    }

    var holds: Bool { rows.allSatisfy(\.holds) }

    var text: String {
        func padded(_ text: String, _ width: Int) -> String {
            text + String(repeating: " ", count: max(0, width - text.count))
        }
        let what = rows.map(\.what.count).max() ?? 0
        let figure = rows.map(\.figure.count).max() ?? 0
        return rows.map { row in
            padded(row.what, what) + "  " + padded(row.figure, figure) + "  " + (row.holds ? "ok  " : "OVER") + "  "
                + row.bar
        }.joined(separator: "\n")
    }
}

/// What a hooked wait costs more than a plain one, against two clock reads.
enum HookCost {
    private static let calls = 100_000
    private static let rounds = 9

    private typealias Wait = @convention(c) (Int32, UnsafeMutableRawPointer?, Int32, Int32) -> Int32
    private typealias Create = @convention(c) (Int32) -> Int32

    static func measure(into table: inout Table) {
        lag_hooks_resolve(true)
        guard let (real, hook) = functions(named: "epoll_wait"), let (create, _) = functions(named: "epoll_create1")
        else {
            table.add("hook", "epoll_wait was not found", bar: "", holds: false)
            return
        }
        let plainWait = unsafeBitCast(real, to: Wait.self)
        let hookedWait = unsafeBitCast(hook, to: Wait.self)
        let descriptor = unsafeBitCast(create, to: Create.self)(0)
        guard descriptor >= 0, Agent.startLinked(threshold: 0) == .running else {
            table.add("hook", "the agent did not start", bar: "", holds: false)
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
            plain.append(nanosecondsPerCall { _ = plainWait(descriptor, &event, 1, 0) })
            clock.append(nanosecondsPerCall { readClock() })
            hooked.append(nanosecondsPerCall { _ = hookedWait(descriptor, &event, 1, 0) })
        }
        // The least of each: noise on a shared machine only ever adds.
        guard let least = plain.min(), let leastHooked = hooked.min(), let leastClock = clock.min() else { return }
        let cost = leastHooked - least
        let ratio = cost / (2 * leastClock)
        table.add(
            "hook cost per iteration", "\(rounded(cost)) ns = \(rounded(ratio)) x two clock reads",
            bar: "<= 1.3 x two clock_gettime", holds: ratio <= 1.3)
    }

    private static func functions(named name: String) -> (real: UnsafeMutableRawPointer, hook: UnsafeMutableRawPointer)? {
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

    private static func nanosecondsPerCall(_ body: () -> Void) -> Double {
        let start = lag_clock_now()
        for _ in 0..<calls { body() }
        return Double(lag_clock_now() - start) / Double(calls)
    }
}

/// The segment of one process, as the layout fixes it.
enum ObjectSize {
    static func measure(into table: inout Table) {
        let bytes = Int(LAG_SEGMENT_BYTES) + MemoryLayout<lag_capture>.size
        table.add(
            "host memory: segment and capture slot", "\(bytes / 1024) KiB", bar: "<= 2 MiB", holds: bytes <= 2 << 20)
    }
}

private func rounded(_ value: Double) -> String {
    let hundredths = Int((value * 100).rounded())
    return "\(hundredths / 100).\(hundredths / 10 % 10)\(hundredths % 10)"
}
