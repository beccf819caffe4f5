/// The self-check: V8's own stack trace, made at the first interrupt on a loop's thread, against the agent's walk of the
/// same stack. Until they have agreed once nothing is shown that the walk has read; where they disagree the layout is not
/// the one that this code was written for, JavaScript frames are left out, and the report says so.
///
/// Watchdog only. The trace costs the loop's thread under a millisecond, once; an idle server makes it when it next runs
/// JavaScript. V8 tells names by its own means and lines by its own tables: neither comes from what is being checked.

import CLoopLag

struct V8Check {
    /// Functions and scripts agreed.
    var isPassed = false
    /// And so did the lines of functions that the interpreter was in the middle of. An interrupt is served where a function
    /// begins: it takes one that is asked for while JavaScript runs.
    var hasLines = false
    /// Of the interrupt that has been asked for, 0 = none.
    var cookie: UInt64 = 0
    var slot: UInt32 = 0
    var generation: UInt32 = 0
    var stackHigh: UInt64 = 0
    var askedAt: UInt64 = 0
    var asked = 0
    /// In a row: traces of which less than half was found, and such that neither agreed nor failed.
    var failures = 0
    var doubts = 0

    var isDone: Bool { isPassed && hasLines }
}

extension V8Runtime {
    /// A wrong layout finds nothing at all, time after time. A right one can miss frames now and then: a function that was
    /// given another name, a line at the border of two.
    private static let failuresAllowed = 4
    private static let doubtsAllowed = 12
    /// As many at once, because a collection can move what is to be read; from then on one a second, and not for ever.
    private static let quickOnes = 8
    private static let mostOnes = 40
    private static let second: UInt64 = 1_000_000_000
    /// How soon an answer is looked at: what lies on the heap is where it was until the next collection.
    private static let period: UInt64 = 5_000_000
    private static let busyFor: UInt64 = 500_000

    /// Asks, and looks whether there is an answer. Returns when it wants to look again; UInt64.max = whenever.
    mutating func tick(now: UInt64, loops: UnsafeMutablePointer<lag_loop_slot>, count: Int) -> UInt64 {
        guard !check.isDone, layout != nil else { return UInt64.max }
        settleCheck()
        guard layout != nil else { return UInt64.max }
        let isFree = check.asked < Self.quickOnes && !check.isPassed
        let isDue = isFree || (now &- check.askedAt > Self.second && (check.asked < Self.mostOnes || !check.isPassed))
        var slot = 0
        while slot < count, check.cookie == 0, isDue {
            let index = UInt32(truncatingIfNeeded: slot)
            let generation = loops[slot].generation
            let since = lag_load_u64(&loops[slot].busy_since_ns)
            let isBusy = since != 0 && now > since && now &- since > Self.busyFor
            var view = lag_v8_loop()
            if isBusy || !check.isPassed, lag_v8_loop_read(index, generation, &view), view.can_interrupt,
                view.gc_since_ns == 0
            {
                check.cookie = lag_v8_ask(index, generation, 0)
                check.slot = index
                check.generation = generation
                check.stackHigh = loops[slot].stack_high
                check.askedAt = now
            }
            slot &+= 1
        }
        if check.askedAt == now { check.asked &+= 1 }
        return check.cookie != 0 && now &- check.askedAt < Self.second ? now &+ Self.period : UInt64.max
    }

    /// Takes the answer, if it is there by now.
    mutating func settleCheck() {
        guard check.cookie != 0 else { return }
        var view = lag_v8_loop()
        var answer: UnsafePointer<lag_v8_answer>?
        var capture: UnsafePointer<lag_capture>?
        guard lag_v8_loop_read(check.slot, check.generation, &view) else {
            check.cookie = 0
            return
        }
        guard lag_v8_answered(check.cookie, &answer, &capture), let answer, let capture else { return }
        check.cookie = 0
        judge(answer, capture, check.slot, check.generation, stackHigh: check.stackHigh)
    }

    mutating func judge(
        _ answer: UnsafePointer<lag_v8_answer>, _ capture: UnsafePointer<lag_capture>, _ slot: UInt32,
        _ generation: UInt32, stackHigh: UInt64
    ) {
        var view = lag_v8_loop()
        guard layout != nil, lag_v8_loop_read(slot, generation, &view) else { return }
        let outcome = agrees(answer, capture, of: view.isolate, stackHigh: stackHigh)
        let isStill =
            lag_v8_loop_read(slot, generation, &view) && view.gc_since_ns == 0
            && view.gc_count == answer.pointee.collections
        guard let outcome, isStill else { return }
        if outcome.agreed > 0, outcome.agreed &* 4 >= outcome.compared &* 3 {
            check.isPassed = true
            check.failures = 0
            check.doubts = 0
            if outcome.lines > 0 { check.hasLines = true }
            return
        }
        check.doubts &+= 1
        if outcome.agreed &* 2 < outcome.compared || outcome.agreed == 0 {
            check.isPassed = false
            check.failures &+= 1
        }
        if check.failures >= Self.failuresAllowed || check.doubts >= Self.doubtsAllowed { refuse() }
    }

    /// How many of the walked frames are in V8's trace, in its order: the same function, the same script, and the same line
    /// where the interpreter's own place is known, else none before the function begins; and how many such lines agreed.
    /// nil = nothing to compare.
    private mutating func agrees(
        _ answer: UnsafePointer<lag_v8_answer>, _ capture: UnsafePointer<lag_capture>, of isolate: UInt64,
        stackHigh: UInt64
    ) -> (agreed: Int, compared: Int, lines: Int)? {
        let told = answer.pointee.frame_count
        guard let layout, told > 0 else { return nil }
        let memory = read(capture, of: isolate, layout, stackHigh: stackHigh)
        let walk = walkRegisters(capture, memory)
        var next: UInt32 = 0
        var compared = 0
        var agreed = 0
        var lineCount = 0
        var i = 0
        while i < walk.count, next < told {
            let frame = frames[i]
            i &+= 1
            // Builtins have no script, and V8 leaves them out.
            guard let script = memory.script(ofShared: frame.shared) else { continue }
            compared &+= 1
            var ahead = next
            while ahead < told {
                let other = lag_v8_answer_frame(answer, ahead).pointee
                ahead &+= 1
                let same = compare(frame, script, other, lag_v8_answer_texts(answer), memory)
                if same > 0 {
                    agreed &+= 1
                    lineCount &+= same &- 1
                    next = ahead
                    break
                }
            }
        }
        return (agreed, compared, lineCount)
    }

    /// 0 = another frame, 1 = the same, 2 = the same, and its line is one that the interpreter was at.
    private mutating func compare(
        _ frame: V8Frame, _ script: UInt64, _ other: lag_v8_frame, _ texts: UnsafePointer<UInt8>, _ memory: V8Memory
    ) -> Int {
        var count = functionName(frame.shared, memory, inferred: true)
        guard isName(count, texts + Int(other.function_offset), Int(other.function_bytes)) else { return 0 }
        count = scriptName(script, memory)
        guard isName(count, texts + Int(other.file_offset), Int(other.file_bytes)) else { return 0 }
        // A table that was never made is nothing to disagree about.
        guard let place = place(of: frame, inScript: script, memory) else { return 1 }
        if place.isExact { return place.line == other.line ? 2 : 0 }
        return place.line <= other.line ? 1 : 0
    }

    /// Whether the `count` bytes in `name` are those; long texts are cut at different lengths.
    @inline(never)
    private func isName(_ count: Int, _ text: UnsafePointer<UInt8>, _ bytes: Int) -> Bool {
        guard count == bytes || (count >= 256 && bytes >= 256) else { return false }
        var i = 0
        while i < count, i < bytes {
            if name[i] != text[i] { return false }
            i &+= 1
        }
        return true
    }
}
