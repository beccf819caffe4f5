/// The command of `stalls --on-stall`: started through `sh -c` for a stall, with the stall's JSON on its standard input
/// and its output on our standard error.
///
/// Owned by the stalls verb, on the main thread, which calls `poll` between two looks. Nothing here waits: the JSON is
/// written as far as the pipe takes it, and a command that hangs is killed after its time. A storm of stalls starts one
/// command at a time and one a second; how many had none is counted and said, never queued.

import Glibc
import LoopLagModel
import LoopLagReport

struct StallCommand {
    static let interval: Duration = .seconds(1)
    static let limit: Duration = .seconds(10)
    /// Between asking a command to end and killing it.
    static let grace: Duration = .seconds(1)

    let command: String
    /// Run it when a stall has closed, with its cause, and not when it opens.
    let waitsForEnd: Bool

    private struct Running {
        let process: Subprocess
        let started: MonotonicTime
        /// The writing end of its standard input, and what is still to go there.
        var input: Int32
        var rest: ArraySlice<UInt8>
        var isAskedToEnd = false
    }

    private var running: Running?
    private var lastStart: MonotonicTime?
    private var skipped: UInt64 = 0
    private var toldEndings: [Subprocess.Ending] = []

    /// Stalls whose opening was taken; their end is no news.
    private var open: Set<String> = []

    init(command: String, waitsForEnd: Bool) {
        self.command = command
        self.waitsForEnd = waitsForEnd
    }

    /// Starts the command for what is news to it. A stall that opened and closed between two looks is told only once,
    /// as closed, and is news all the same.
    mutating func take(_ event: StallEvent, now: MonotonicTime) {
        let id = "\(event.pid)/\(event.stall.id)"
        switch event.kind {
        case .opened:
            guard !waitsForEnd else { return }
            open.insert(id)
        case .closed:
            if open.remove(id) != nil { return }
        case .sampled: return
        }
        run(for: StallLine.json(event), now: now)
    }

    /// Starts the command for one stall, or counts that it may not run now.
    private mutating func run(for json: String, now: MonotonicTime) {
        poll(now: now)
        guard running == nil, lastStart.map({ now.since($0) >= Self.interval }) ?? true else {
            skipped &+= 1
            return
        }
        tellSkipped()
        lastStart = now
        do throws(SystemError) {
            let pipe = try Pipe()
            defer { close(pipe.reading) }
            _ = fcntl(pipe.writing, F_SETFL, O_NONBLOCK)
            do throws(SystemError) {
                let process = try Subprocess.start(
                    "/bin/sh", ["sh", "-c", command],
                    streams: .init(input: pipe.reading, output: STDERR_FILENO, errors: STDERR_FILENO))
                running = Running(
                    process: process, started: now, input: pipe.writing, rest: Array((json + "\n").utf8)[...])
            } catch {
                close(pipe.writing)
                throw error
            }
        } catch {
            Console.error("cannot start the command of --on-stall: \(error.reason)")
        }
        feed()
    }

    /// Feeds a running command, notices its end, ends one that takes too long.
    mutating func poll(now: MonotonicTime) {
        guard var current = running else { return }
        feed()
        if let ending = current.process.reap() {
            closeInput()
            running = nil
            // A command that fails does so each time: once is enough.
            if ending != .exited(0), !current.isAskedToEnd, !toldEndings.contains(ending) {
                toldEndings.append(ending)
                Console.error("the command of --on-stall \(ending.text)")
            }
            return
        }
        let elapsed = now.since(current.started)
        if elapsed >= Self.limit + Self.grace {
            current.process.send(SIGKILL)
        } else if elapsed >= Self.limit, !current.isAskedToEnd {
            Console.error(
                "the command of --on-stall still ran after \(DurationArgument.format(Self.limit)) and was ended")
            current.process.send(SIGTERM)
            current.isAskedToEnd = true
            running?.isAskedToEnd = true
        }
    }

    /// Lets a running command come to its end, within its time; at once when somebody wants us gone.
    mutating func finish(isHurried: Bool, clock: () -> MonotonicTime, pause: () -> Void) {
        if isHurried {
            running?.process.send(SIGTERM)
            running?.isAskedToEnd = true
        }
        let start = clock()
        while running != nil {
            poll(now: clock())
            if isHurried, clock().since(start) >= Self.grace { running?.process.send(SIGKILL) }
            if running != nil { pause() }
        }
        tellSkipped()
    }

    private mutating func tellSkipped() {
        guard skipped > 0 else { return }
        Console.error(
            "\(skipped) \(skipped == 1 ? "stall" : "stalls") without a command: --on-stall runs one at a time and one a second"
        )
        skipped = 0
    }

    private mutating func feed() {
        guard let input = running?.input, input >= 0, let rest = running?.rest else { return }
        var left = rest
        while !left.isEmpty {
            let count = left.withUnsafeBytes { write(input, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 && errno == EAGAIN { break }
            // It reads no more, which is its own business.
            if count <= 0 { left = [] } else { left = left.dropFirst(count) }
        }
        running?.rest = left
        if left.isEmpty { closeInput() }
    }

    private mutating func closeInput() {
        guard let input = running?.input, input >= 0 else { return }
        close(input)
        running?.input = -1
    }
}
