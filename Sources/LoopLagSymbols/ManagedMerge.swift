/// Puts an interpreter's frames where they belong among the native ones.
///
/// Called by StackDecoder with what Unwinder and the agent found; pure. Native frames are known with their stack pointers,
/// so a managed frame that has an address on the stack lies inside exactly one of them. A run of Python frames without
/// such an address replaces the interpreter function that executes it, by name, run by run. It never invents an order:
/// frames that cannot be placed stand before the first frame that is known to be older, and at worst at the leaf.

import LoopLagModel

struct ManagedMerge {
    /// One native frame with what the symbols made of it (inlined ones first).
    struct Native {
        var stackPointer: UInt64
        var framePointer: UInt64?
        /// Up to the next frame's; the last one's is open.
        var end: UInt64
        var frames: [Frame]
    }

    /// - Returns: leaf first.
    static func merge(native: [Native], managed: [ManagedFrame]) -> [Frame] {
        guard !managed.isEmpty else { return native.flatMap(\.frames) }
        let runs = split(managed)
        var inserted: [Int: [ManagedFrame]] = [:]
        var replaced: Set<Int> = []
        // Evaluator frames not taken yet, leaf first.
        var place = 0
        for run in runs {
            let index = position(of: run, in: native, from: place)
            let isReplaced =
                index < native.count && (replaces(run, native[index]) || executes(run, stripped: native[index]))
            inserted[index, default: []] += run
            if isReplaced { replaced.insert(index) }
            place = isReplaced ? index + 1 : index
        }
        var result: [Frame] = []
        for index in 0...native.count {
            result += (inserted[index] ?? []).map(\.frame)
            if index < native.count, !replaced.contains(index) {
                result += native[index].frames.filter { !isTrampoline($0) }
            }
        }
        return result
    }

    /// A run ends at the frame where the interpreter was entered from native code. JavaScript frames are native frames
    /// of their own: each is a run.
    private static func split(_ managed: [ManagedFrame]) -> [[ManagedFrame]] {
        var runs: [[ManagedFrame]] = []
        var run: [ManagedFrame] = []
        for frame in managed {
            run.append(frame)
            if frame.isEntry || frame.frame.kind == .javascript {
                runs.append(run)
                run = []
            }
        }
        if !run.isEmpty { runs.append(run) }
        return runs
    }

    /// The native frame that executes this run, at or behind `start`; the number of native frames for none.
    private static func position(of run: [ManagedFrame], in native: [Native], from start: Int) -> Int {
        if let address = run.last(where: { $0.stackAddress != nil })?.stackAddress,
            let found = native.indices.first(where: { $0 >= start && address < native[$0].end })
        {
            return found
        }
        if run.last?.frame.kind == .python {
            return native.indices.first { $0 >= start && isEvaluator(native[$0]) } ?? start
        }
        return start
    }

    private static func replaces(_ run: [ManagedFrame], _ native: Native) -> Bool {
        switch run.last?.frame.kind {
        case .python: isEvaluator(native)
        // Code that V8 made at run time has no module; its interpreter and builtins do.
        case .javascript:
            native.frames.allSatisfy { $0.module == nil } || native.frames.contains { isJavaScriptEntry($0) }
        default: false
        }
    }

    /// Without symbols: the interpreter's function that has the run's address among its own locals.
    private static func executes(_ run: [ManagedFrame], stripped native: Native) -> Bool {
        guard run.last?.frame.kind == .python, let address = run.last(where: { $0.stackAddress != nil })?.stackAddress,
            address >= native.stackPointer, address < native.end, native.frames.count == 1,
            let frame = native.frames.first, let module = frame.module
        else { return false }
        return frame.function.hasPrefix(module + "+0x")
    }

    private static func isEvaluator(_ native: Native) -> Bool {
        native.frames.contains {
            $0.function == "_PyEval_EvalFrameDefault" || $0.function.hasPrefix("_PyEval_EvalFrameDefault.")
        }
    }

    private static func isJavaScriptEntry(_ frame: Frame) -> Bool {
        frame.function.hasPrefix("Builtins_InterpreterEntryTrampoline")
            || frame.function.hasPrefix("Builtins_BaselineOutOfLinePrologue")
    }

    /// Between a Python frame and the C that it calls there is nothing that a person wants to read.
    private static func isTrampoline(_ frame: Frame) -> Bool { frame.function == "_PyEval_EvalFrame" }
}
