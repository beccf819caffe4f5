/// The live view over a follower, from its first look to its end: on a terminal the screen, on a pipe plain lines, with
/// `json` a report of the last minute on each line.
///
/// Used by `top` and by `demo`, on the main thread: whoever has a Follower makes a session of it and calls `run` once.
/// It starts, attaches and ends no process. It says on stderr what a person has to know, but never while it owns the
/// terminal.

import Glibc
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagTop

struct LiveOptions {
    /// JSON Lines, wherever they go.
    var json = false
    /// Plain lines also on a terminal.
    var plain = false
    /// Between two lines or pictures; nil is a second for lines and a quarter of one for the screen.
    var interval: Duration?
    /// Ends by itself after so many.
    var iterations: Int?
    /// Ends by itself at this moment.
    var deadline: MonotonicTime?
    /// Processes whose end is the end of it all; with none it goes on for ever.
    var targets: [Target] = []
    /// Loops that serve nothing are shown too.
    var showsHelpers = false
    /// Rings when a stall opens, once a second at most.
    var bell = false
    var userCode: [String] = []
}

/// How a live view ended, all of them without an error.
enum LiveEnding: Equatable {
    /// The person quit, or a signal asked for it.
    case quit
    /// The deadline or the number of iterations was reached.
    case done
    /// Nobody reads the pipe any more.
    case closed
    /// All targets are gone; named for the sentence.
    case gone(String)
}

final class LiveSession {
    let follower: Follower
    let options: LiveOptions

    init(follower: Follower, options: LiveOptions) {
        self.follower = follower
        self.options = options
    }

    /// Until the person quits, the deadline, the last target's end or the reader's.
    func run() throws -> LiveEnding {
        guard let terminal = openTerminal() else {
            var lines = LiveLines(follower: follower, options: options)
            return try lines.run()
        }
        // What Ctrl-C, Ctrl-Z and a new window size do is ours from here on.
        let inbox = SignalInbox([SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGTSTP, SIGCONT])
        var screen = LiveScreen(follower: follower, options: options, terminal: terminal, inbox: inbox)
        return try screen.run()
    }

    private func openTerminal() -> Terminal? {
        guard !options.json, !options.plain, Console.out.isTerminal else { return nil }
        do throws(Terminal.Refusal) {
            return try Terminal(colours: !Self.refusesColour)
        } catch {
            Console.error(error.message)
            return nil
        }
    }

    /// https://no-color.org: present and not empty.
    private static var refusesColour: Bool { getenv("NO_COLOR").map { $0.pointee != 0 } ?? false }
}

extension Terminal.Refusal {
    var message: String {
        switch self {
        case .cannotPlaceText(let name):
            name.isEmpty
                ? "TERM is not set, so no screen can be drawn: plain lines follow; set TERM (xterm-256color)"
                : "TERM=\(ProcessFacts.printable(name)) cannot place text on the screen: plain lines follow; set TERM"
                    + " (xterm-256color)"
        case .noInput: "standard input is no terminal, so there are no keys: plain lines follow"
        }
    }
}

/// What both forms do with the follower between two outputs.
struct LiveWatch {
    let follower: Follower
    let options: LiveOptions
    let model: LiveModel
    private var readiness = Readiness()
    private let start: MonotonicTime
    private var lastBell: MonotonicTime?

    init(follower: Follower, options: LiveOptions, now: MonotonicTime) {
        self.follower = follower
        self.options = options
        start = now
        model = LiveModel(
            follower: follower, showsHelpers: options.showsHelpers, userCode: options.userCode, now: now)
    }

    struct News {
        /// For a person, without `looplag: `.
        var lines: [String] = []
        var opened = false
        var rings = false
    }

    /// A quarter of a second is soon enough for a picture, and often is cheap only where little is read.
    var pollInterval: Duration {
        .milliseconds(min(250, max(50, 4 * follower.live.count)))
    }

    mutating func poll(now: MonotonicTime) -> News {
        var news = News()
        for event in follower.poll(now: now) {
            if let line = Notices.text(event) { news.lines.append(line) }
            if case .change(let process, .opened(let stall)) = event {
                let role = process.loop(stall.loop).map { process.quickClass(of: $0).role }
                if options.showsHelpers || role != .helper { news.opened = true }
            }
        }
        model.update(now: now, keepsLast: !options.targets.isEmpty)
        news.lines += readiness.lines(follower, now: now)
        if let pid = options.targets.first?.identity.pid,
            let line = readiness.silence(of: follower, root: try? ProcessFacts.read(pid: pid), since: start, now: now)
        {
            news.lines.append(line)
        }
        if options.bell, news.opened, lastBell.map({ now.since($0) >= .seconds(1) }) ?? true {
            lastBell = now
            news.rings = true
        }
        return news
    }

    /// The names of the targets once all of them have ended; throws when they run and cannot be read any more.
    func goneTargets() throws(Failure) -> String? {
        guard !options.targets.isEmpty, follower.live.isEmpty else { return nil }
        guard !options.targets.contains(where: \.isRunning) else {
            if let lost = follower.lost { throw Targets.failure(lost.error, pid: lost.pid) }
            return nil
        }
        return options.targets.map { "\($0.identity.pid) (\($0.name))" }.joined(separator: ", ")
    }
}
