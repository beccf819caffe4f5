/// The stack of one stall: samples that agree merged, the user's own code marked, the rest dimmed.
///
/// Called by the screen and by the keys (how far one can scroll), on any thread. Pure.

import LoopLagDiagnosis
import LoopLagModel

/// Samples with one and the same stack.
struct MergedStack {
    /// Of the latest of them; leaf first.
    var frames: [Frame]
    var count: Int
    var isTruncated: Bool
    var method: CaptureMethod
    var lastOffset: Duration
    var threadState: Character

    /// The most frequent first; of equals the later one, which is nearer to now.
    /// Lines within a function move while it runs, so samples agree that name the same functions.
    static func merge(_ samples: [StackSample]) -> [MergedStack] {
        var order: [[String]] = []
        var merged: [[String]: MergedStack] = [:]
        for sample in samples where !sample.frames.isEmpty {
            let key = sample.frames.map { "\($0.function)\u{0}\($0.file ?? "")\u{0}\($0.module ?? "")" }
            if merged[key] == nil { order.append(key) }
            merged[key] = MergedStack(
                frames: sample.frames, count: (merged[key]?.count ?? 0) + 1, isTruncated: sample.isTruncated,
                method: sample.method, lastOffset: sample.offset, threadState: sample.threadState)
        }
        return order.compactMap { merged[$0] }
            .sorted { ($1.count, $1.lastOffset) < ($0.count, $0.lastOffset) }
    }
}

enum StackLines {
    enum Line {
        case group(String)
        case frame(Frame, isUser: Bool)
        case note(String)
    }

    /// All that can be scrolled through.
    static func lines(_ stall: LiveStall) -> [Line] {
        let stacks = MergedStack.merge(stall.samples)
        var lines: [Line] = []
        for (place, stack) in stacks.enumerated() {
            if place > 0 { lines.append(.group(agreement(stack, of: stall.samples.count))) }
            lines += stack.frames.map { .frame($0, isUser: stall.userCode.isUserCode($0)) }
            if stack.isTruncated { lines.append(.note("the stack goes on; its root was not captured")) }
        }
        if stacks.isEmpty { lines.append(.note(noStack(stall))) }
        // Who holds what the loop waits for is the one to look at.
        if let blocker = stall.diagnosis.blockedBy {
            lines.append(.group("held by thread \(blocker.name) (\(blocker.tid))"))
            lines += blocker.frames.map { .frame($0, isUser: stall.userCode.isUserCode($0)) }
            if blocker.frames.isEmpty { lines.append(.note("no stack of it was taken")) }
        }
        return lines
    }

    static func count(_ stall: LiveStall) -> Int { lines(stall).count }

    private static func noStack(_ stall: LiveStall) -> String {
        if let reason = stall.noStackReason { return "no stack: \(reason)" }
        return stall.isOpen ? "no stack yet" : "no stack was taken"
    }

    /// "2 of 3 samples agree (signal), the last after 312 ms".
    static func agreement(_ stack: MergedStack, of all: Int) -> String {
        let count: String =
            switch (stack.count, all) {
            case (1, 1): "1 sample"
            case (1, _): "1 of \(all) samples"
            case (all, _): "\(all) samples agree"
            default: "\(stack.count) of \(all) samples agree"
            }
        let offset = PlainText.duration(nanoseconds: stack.lastOffset.nanosecondCount)
        return "\(count), \(stack.count == 1 ? "" : "the last ")after \(offset) (\(stack.method.rawValue))"
    }

    static func kind(_ frame: Frame) -> String {
        switch frame.kind {
        case .native: "c"
        case .swift: "swift"
        case .python: "py"
        case .javascript: "js"
        case .kernel: "kernel"
        }
    }

    /// "billing.py:41", or with `isLong` the whole path; else the module; else nothing. "41+" is where the function
    /// begins: it stands at that line or after it.
    static func place(_ frame: Frame, isLong: Bool = false) -> String {
        guard let file = frame.file else { return frame.module ?? "" }
        let line = frame.line.map { ":\($0)\(frame.approximate == true ? "+" : "")" } ?? ""
        return (isLong ? file : PlainText.fileName(file)) + line
    }
}
