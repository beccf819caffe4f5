/// What a child process wrote so far, with the time at which each line came, and a way to wait for more.
///
/// Filled by one reading thread a stream, read by the test's thread.

import Dispatch
import Foundation
import Glibc
import LoopLagModel

struct TimedOut: Error, CustomStringConvertible {
    var what: String
    var seen: String

    var description: String { "timed out waiting for \(what); seen so far:\n\(seen.suffix(4000))" }
}

struct TimedLine: Sendable {
    var text: String
    var arrived: MonotonicTime
}

extension MonotonicTime {
    /// CLOCK_MONOTONIC, the clock of the hosts and of the agent.
    static func now() -> MonotonicTime { MonotonicTime(nanoseconds: DispatchTime.now().uptimeNanoseconds) }
}

// Safety: every access to the variables is made under `condition`.
final class TextLog: @unchecked Sendable {
    private let condition = NSCondition()
    private var complete: [TimedLine] = []
    private var partial: [UInt8] = []
    private var bytes: [UInt8] = []
    private var isAtEnd = false

    /// Starts a thread that reads the descriptor to its end, and then closes it.
    init(reading descriptor: Int32) {
        let thread = Thread { [self] in
            var buffer = [UInt8](repeating: 0, count: 16 << 10)
            while true {
                let count = read(descriptor, &buffer, buffer.count)
                if count < 0 && errno == EINTR { continue }
                guard count > 0 else { break }
                append(buffer[..<count])
            }
            close(descriptor)
            finish()
        }
        thread.start()
    }

    private func append(_ new: ArraySlice<UInt8>) {
        let now = MonotonicTime.now()
        condition.withLock {
            bytes += new
            for byte in new {
                if byte == UInt8(ascii: "\n") {
                    complete.append(TimedLine(text: String(decoding: partial, as: UTF8.self), arrived: now))
                    partial.removeAll(keepingCapacity: true)
                } else {
                    partial.append(byte)
                }
            }
            condition.broadcast()
        }
    }

    private func finish() {
        condition.withLock {
            isAtEnd = true
            condition.broadcast()
        }
    }

    var text: String { condition.withLock { String(decoding: bytes, as: UTF8.self) } }
    var lines: [TimedLine] { condition.withLock { complete } }

    /// Waits until `find` gives something for the lines so far. Ends early, in an error, when the stream ended.
    func wait<Found>(
        for what: String, within limit: Duration = .seconds(15), _ find: ([TimedLine]) throws -> Found?
    ) throws -> Found {
        let deadline = Date(timeIntervalSinceNow: limit.secondsAsDouble)
        condition.lock()
        defer { condition.unlock() }
        while true {
            if let found = try find(complete) { return found }
            guard !isAtEnd, condition.wait(until: deadline) else {
                if let found = try find(complete) { return found }
                throw TimedOut(what: what, seen: String(decoding: bytes, as: UTF8.self))
            }
        }
    }

    /// All that was written, once the stream has ended.
    func wholeText(within limit: Duration = .seconds(15)) throws -> String {
        let deadline = Date(timeIntervalSinceNow: limit.secondsAsDouble)
        condition.lock()
        defer { condition.unlock() }
        while !isAtEnd {
            guard condition.wait(until: deadline) else {
                throw TimedOut(what: "the end of the output", seen: String(decoding: bytes, as: UTF8.self))
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
