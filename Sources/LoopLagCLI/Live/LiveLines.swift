/// The live view on a pipe: each interval a plain line per loop, or one report of the last minute as JSON.
///
/// Used by `LiveSession`, on the main thread. Lines leave at once; it ends with its reader.

import Foundation
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagTop

struct LiveLines {
    private var watch: LiveWatch
    private let options: LiveOptions
    private let follower: Follower

    init(follower: Follower, options: LiveOptions) {
        self.follower = follower
        self.options = options
        watch = LiveWatch(follower: follower, options: options, now: Clock.monotonic())
    }

    mutating func run() throws -> LiveEnding {
        var inbox = SignalInbox([SIGINT, SIGTERM, SIGHUP])
        let interval = options.interval ?? .seconds(1)
        var next = Clock.monotonic().advanced(by: interval)
        var count = 0
        while true {
            let now = Clock.monotonic()
            let news = watch.poll(now: now)
            for line in news.lines { Console.error(line) }
            // A pipe takes no bell; the person's terminal may still be there.
            if news.rings, Console.err.isTerminal { _ = Console.err.write("\u{7}") }
            if let names = try watch.goneTargets() { return .gone(names) }
            if now >= next {
                guard try show(now: now) else { return .closed }
                count += 1
                if let iterations = options.iterations, count >= iterations { return .done }
                // Late ones are not made up for.
                next = max(next.advanced(by: interval), now)
            }
            if let deadline = options.deadline, now >= deadline { return .done }
            if Console.out.isClosed { return .closed }
            var rest = min(watch.pollInterval, next.since(now))
            if let deadline = options.deadline { rest = min(rest, deadline.since(now)) }
            if inbox.next(timeout: rest)?.isStopRequest == true { return .quit }
        }
    }

    /// False when nobody reads any more.
    private func show(now: MonotonicTime) throws -> Bool {
        let text: String
        if options.json {
            let encoder = JSONEncoder()
            encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
            let report = watch.model.report(threshold: follower.threshold, now: now)
            guard let data = try? encoder.encode(report) else {
                throw Failure("cannot write the snapshot as JSON: it holds a number that JSON cannot")
            }
            text = String(decoding: data, as: UTF8.self) + "\n"
        } else {
            let picture = watch.model.picture(
                threshold: follower.threshold, now: now, focus: nil, wantsFindings: false)
            text = PlainLines.lines(picture).map { $0 + "\n" }.joined()
        }
        switch Console.out.write(text) {
        case .written: return true
        case .closed: return false
        case .failed(let code): throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }
}
