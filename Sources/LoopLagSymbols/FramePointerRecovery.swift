/// Finds the frame pointer that a passive sample does not have.
///
/// Who calls it: Unwinder, on the decoder's thread, when libunwind asked for rbp at some frame. A blocked thread shows
/// its instruction and stack pointers in /proc only; most of libc unwinds without rbp, Swift and V8 code do not. Every
/// aligned address within reach is tried as rbp through the real call frame information (where the return address lies
/// is the compiler's choice) and must lead over call instructions to the stack's root. Among those that do:
///
/// 1. the one that the function's own prologue predicts, unless it allocates at run time;
/// 2. the one whose caller calls this very function, or one that jumps to it, then one that calls through a pointer or
///    a stub, then any other (a longer chain of tail calls cannot be followed, so a mismatch forbids nothing);
/// 3. the lowest: every outer frame's pointer leads to the root as well, and old frames lie above less often than that.
///
/// The nearest saved rbp alone is wrong in one case of nine.

import CLibunwind

extension Unwinder {
    private static let reach: UInt64 = 16384

    /// How the call before a return address fits the function below it; better ones are greater.
    private enum Link: Int, Comparable {
        /// Code that cannot be read.
        case unknown
        /// It calls something else.
        case mismatch
        /// It calls through a pointer or a stub.
        case loose
        /// It calls a function that jumps to the one below: a tail call.
        case tail
        case strict

        static func < (a: Link, b: Link) -> Bool { a.rawValue < b.rawValue }
    }

    private struct Candidate {
        var result: UnwindResult
        var first: Link

        func isBetter(than other: Candidate) -> Bool {
            // A chain to the root beats one that leaves the copy.
            if result.isRooted != other.result.isRooted { return result.isRooted }
            return first > other.first
        }
    }

    /// - Parameters:
    ///   - start: the cursor before the step that asked for rbp.
    ///   - known: the frames up to there.
    /// - Returns: the completed unwind, or nil if no candidate holds.
    func recover(from start: unw_cursor_t, known: [UnwoundFrame]) -> UnwindResult? {
        guard let frame = known.last else { return nil }
        defer { context.registers[6] = nil }
        let first = (frame.stackPointer &+ 7) & ~7
        let end = context.stackBase &+ UInt64(context.stack.count)
        guard first >= context.stackBase, first < end, end &- first >= 8 else { return nil }

        var lowest = first
        if let prologue = prologue(of: frame) {
            let predicted = frame.stackPointer &+ prologue.distance
            if !prologue.isDynamic, predicted < end,
                let candidate = tryFramePointer(predicted, from: start, known: known)
            {
                return candidate.result
            }
            // What the prologue took is the least: below it lie the function's own variables.
            if predicted >= first, predicted < end { lowest = predicted & ~7 }
        }
        let last = min(first &+ Self.reach, end &- 8)
        let found = search(from: lowest, to: last, start: start, known: known)
        if found == nil, lowest > first {
            return search(from: first, to: lowest &- 8, start: start, known: known)?.result
        }
        return found?.result
    }

    private func search(from low: UInt64, to high: UInt64, start: unw_cursor_t, known: [UnwoundFrame]) -> Candidate? {
        var best: Candidate?
        var address = low
        while address <= high, context.readsLeft > 0 {
            if let candidate = tryFramePointer(address, from: start, known: known) {
                if best.map({ candidate.isBetter(than: $0) }) ?? true { best = candidate }
                if candidate.result.isRooted, candidate.first >= .tail { break }
            }
            address &+= 8
        }
        return best
    }

    private func prologue(of frame: UnwoundFrame) -> Prologue? {
        let pc = frame.isReturnAddress ? frame.pc &- 1 : frame.pc
        guard let (module, entry) = context.frameEntry(covering: pc), let image = module.image else { return nil }
        return Prologue(image: image, start: entry.start, end: module.elfAddress(frame.pc))
    }

    private func tryFramePointer(_ address: UInt64, from start: unw_cursor_t, known: [UnwoundFrame]) -> Candidate? {
        context.registers[6] = address
        setCursor(start)
        var frames = known
        guard case .frame(let caller) = step(after: known[known.count - 1]) else { return nil }
        frames.append(caller)
        // Most candidates end here: what they took for a return address follows no call.
        guard let first = link(frames, known.count) else { return nil }
        let result = run(UnwindResult(frames: frames))
        guard result.isRooted || (result.ranOffCopy && result.frames.count > known.count + 1) else { return nil }
        for i in (known.count + 1)..<max(known.count + 1, result.frames.count)
        where link(result.frames, i) == nil { return nil }
        return Candidate(result: result, first: first)
    }

    /// nil when frame `i` cannot have called frame `i - 1`: no call stands before its PC.
    private func link(_ frames: [UnwoundFrame], _ i: Int) -> Link? {
        let caller = frames[i]
        let callee = frames[i - 1]
        guard caller.isReturnAddress else { return .loose }
        switch CallSite.before(caller.pc, in: context.module(caller.pc &- 1)) {
        case .none: return nil
        case .unknown: return context.isCode(caller.pc) ? .unknown : nil
        case .indirect: return .loose
        case .direct(let target):
            if CallSite.isStub(target, in: context.module(target)) { return .loose }
            let pc = callee.isReturnAddress ? callee.pc &- 1 : callee.pc
            guard let (module, entry) = context.frameEntry(covering: pc) else { return .loose }
            let start = module.runtimeAddress(entry.start)
            if start == target { return .strict }
            return jumps(from: target, to: start) ? .tail : .mismatch
        }
    }

    /// Does the function at `function` end in a jump to `target`, both run-time addresses?
    private func jumps(from function: UInt64, to target: UInt64) -> Bool {
        guard let (module, entry) = context.frameEntry(covering: function),
            module.runtimeAddress(entry.start) == function,
            let code = module.image?.bytes(at: entry.start, count: min(65536, entry.end - entry.start))
        else { return false }
        for i in code.indices.dropLast() {
            let next: UInt64
            if code[i] == 0xeb || code[i] & 0xf0 == 0x70 {
                next = UInt64(i) &+ 2 &+ UInt64(bitPattern: Int64(Int8(bitPattern: code[i + 1])))
            } else if code[i] == 0xe9 || (code[i] & 0xf0 == 0x80 && i > 0 && code[i - 1] == 0x0f), i + 5 <= code.count {
                let offset = code[(i + 1)..<(i + 5)].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
                next = UInt64(i) &+ 5 &+ UInt64(bitPattern: Int64(Int32(bitPattern: offset)))
            } else {
                continue
            }
            if function &+ next == target { return true }
        }
        return false
    }
}
