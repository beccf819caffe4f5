/// The live view on a terminal: waits for keys, signals and the next look, and draws.
///
/// Used by `LiveSession`, on the main thread. The terminal is given back on every way out of `run`; what is said to the
/// person meanwhile stands in the last line.

import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagReport
import LoopLagTop

struct LiveScreen: ~Copyable {
    private let follower: Follower
    private let options: LiveOptions
    private let terminal: Terminal
    private var inbox: SignalInbox
    private var watch: LiveWatch
    private var state: TopState
    private var picture = LivePicture()
    private var notice: String?
    private var gone: String?

    init(follower: Follower, options: LiveOptions, terminal: Terminal, inbox: consuming SignalInbox) {
        self.follower = follower
        self.options = options
        self.terminal = terminal
        self.inbox = inbox
        watch = LiveWatch(follower: follower, options: options, now: Clock.monotonic())
        state = TopState(threshold: follower.threshold)
    }

    mutating func run() throws -> LiveEnding {
        defer { terminal.close() }
        let interval = options.interval ?? .milliseconds(250)
        var nextPoll = Clock.monotonic()
        var nextDraw = nextPoll
        var count = 0
        while true {
            var now = Clock.monotonic()
            if now >= nextPoll {
                let news = watch.poll(now: now)
                // What was said of a process that could not be measured is over when it is.
                if let line = news.lines.last { notice = line.hasPrefix("measuring") ? nil : line }
                if news.rings { terminal.send("\u{7}") }
                // The news of a stall does not wait for the next picture.
                if news.opened { nextDraw = now }
                try noteTheGone()
                now = Clock.monotonic()
                nextPoll = now.advanced(by: watch.pollInterval)
            }
            if now >= nextDraw {
                look(now: now)
                draw()
                nextDraw = now.advanced(by: interval)
                count += 1
                if let iterations = options.iterations, count > iterations { return .done }
            }
            if let deadline = options.deadline, now >= deadline { return .done }

            var rest = min(nextPoll.since(now), nextDraw.since(now))
            if let deadline = options.deadline { rest = min(rest, deadline.since(now)) }
            guard waitForKeys(rest) else { return .quit }
            var isDirty = false
            while let key = terminal.key() {
                guard act(on: key) else { return gone.map { .gone($0) } ?? .quit }
                isDirty = true
            }
            while let signal = inbox.next(timeout: .zero) {
                guard answer(signal) else { return .quit }
                isDirty = true
            }
            if isDirty { draw() }
        }
    }

    /// All targets gone: the last picture stays until the person has seen it, as a terminal's owner would want.
    private mutating func noteTheGone() throws {
        guard gone == nil, let names = try watch.goneTargets() else { return }
        gone = names
        notice = "\(names) went away; q quits"
    }

    private mutating func look(now: MonotonicTime) {
        if state.isPaused {
            picture.notice = notice
            return
        }
        picture = watch.model.picture(
            threshold: state.threshold, now: now, focus: state.processInFocus(in: picture))
        picture.notice = notice
    }

    private func draw() {
        terminal.draw(
            Screen.lines(picture, state, columns: terminal.columns, rows: terminal.rows, glyphs: terminal.glyphs))
    }

    /// False when the terminal is gone.
    private func waitForKeys(_ timeout: Duration) -> Bool {
        var entry = pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0)
        // Rounded up: a wait of zero would spin until the moment comes.
        let milliseconds = (timeout.nanosecondCount + 999_999) / 1_000_000
        guard poll(&entry, 1, Int32(clamping: milliseconds)) > 0 else { return true }
        return Int32(entry.revents) & (POLLHUP | POLLERR | POLLNVAL) == 0
    }

    /// False to quit.
    private mutating func act(on key: Key) -> Bool {
        let page = Screen.page(
            picture, state, columns: terminal.columns, rows: terminal.rows, glyphs: terminal.glyphs)
        let wasPaused = state.isPaused
        switch TopKeys.handle(key, &state, picture: picture, page: page) {
        case .none: break
        case .quit: return false
        case .redraw: terminal.redraw()
        case .threshold(let threshold):
            follower.change(threshold: threshold)
            look(now: Clock.monotonic())
        case .copy(let stall):
            guard let text = json(of: stall) else { break }
            if let sequence = StallExport.clipboard(text) {
                terminal.send(sequence)
                state.message = "\(stall) copied, if the terminal allows it (OSC 52); w writes a file"
            } else {
                state.message = "\(stall) is too long for the clipboard; w writes a file"
            }
        case .save(let stall):
            guard let text = json(of: stall) else { break }
            do throws(Failure) {
                state.message = "written to \(try StallExport.save(text, stall: stall))"
            } catch {
                state.message = error.message
            }
        }
        if wasPaused, !state.isPaused { look(now: Clock.monotonic()) }
        return true
    }

    private mutating func json(of stall: String) -> String? {
        guard
            let report = watch.model.report(ofStall: stall, threshold: state.threshold, now: Clock.monotonic()),
            let data = try? ReportCoding.encode(report)
        else {
            state.message = "\(stall) is not kept any more"
            return nil
        }
        return String(decoding: data, as: UTF8.self)
    }

    /// False to quit.
    private func answer(_ signal: ReceivedSignal) -> Bool {
        switch signal.number {
        case SIGWINCH: terminal.resize()
        case SIGTSTP: terminal.suspend { Self.stop() }
        // Somebody stopped us with SIGSTOP and may have used the terminal meanwhile.
        case SIGCONT: terminal.redraw()
        default: return !signal.isStopRequest
        }
        return true
    }

    /// Stops as the signal's default does (not at all where nobody could ever continue us); returns when continued.
    private static func stop() {
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGTSTP)
        kill(getpid(), SIGTSTP)
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
        pthread_sigmask(SIG_BLOCK, &set, nil)
    }
}
