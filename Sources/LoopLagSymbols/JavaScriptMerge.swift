/// Puts JavaScript frames where they belong among the native ones, and takes out what only V8's makers want to see.
///
/// Called by StackDecoder for samples of node; pure. A JavaScript frame is a native frame too: the one whose frame pointer
/// is its address. Several with the same address were inlined into one. What cannot be placed by address takes the next
/// native frame that executes JavaScript; nothing is ever reordered.

import LoopLagModel

enum JavaScriptMerge {
    /// - Parameters:
    ///   - managed: leaf first.
    ///   - isInterrupt: V8 was asked to stop inside JavaScript: the native frames above it are our own doing.
    /// - Returns: leaf first.
    static func merge(native: [ManagedMerge.Native], managed: [ManagedFrame], isInterrupt: Bool) -> [Frame] {
        var result: [Frame] = []
        var next = 0
        var first: Int?
        for group in groups(managed) {
            let place = position(of: group, in: native, from: next)
            if first == nil {
                first = place
                if !isInterrupt { result += leaves(native[..<place]) }
            } else {
                result += shown(native[next..<place])
            }
            result += group.map(\.frame)
            next = place
            if place < native.count, executesJavaScript(native[place]) { next += 1 }
        }
        if next < native.count { result += shown(native[next...]) }
        return result
    }

    /// Frames of one address, which V8 inlined into one another.
    private static func groups(_ managed: [ManagedFrame]) -> [[ManagedFrame]] {
        var groups: [[ManagedFrame]] = []
        for frame in managed {
            if let last = groups.last?.last?.stackAddress, last == frame.stackAddress {
                groups[groups.count - 1].append(frame)
            } else {
                groups.append([frame])
            }
        }
        return groups
    }

    private static func position(of group: [ManagedFrame], in native: [ManagedMerge.Native], from start: Int) -> Int {
        if let address = group.last?.stackAddress,
            let exact = native.indices.first(where: { $0 >= start && native[$0].framePointer == address })
        {
            return exact
        }
        // No native frame at all executes it: the native stack ended before it came that far.
        return native.indices.first { $0 >= start && executesJavaScript(native[$0]) } ?? native.count
    }

    /// Between the leaf and the first JavaScript frame: without V8's way out of JavaScript.
    private static func leaves(_ native: ArraySlice<ManagedMerge.Native>) -> [Frame] {
        native.flatMap { $0.frames.filter { !isPassage($0.function) } }
    }

    /// Between JavaScript frames and behind them.
    private static func shown(_ native: ArraySlice<ManagedMerge.Native>) -> [Frame] {
        native.flatMap { part in
            part.frames.filter { !isPassage($0.function) && !($0.module == nil && $0.file == nil) }
        }
    }

    /// Code that V8 made has no module; its interpreter and its builtins lie in the executable.
    private static func executesJavaScript(_ native: ManagedMerge.Native) -> Bool {
        native.frames.allSatisfy { frame in
            (frame.module == nil && frame.kind == .native)
                || (frame.function.hasPrefix("Builtins_") && !isPassage(frame.function))
                || isInterpreter(frame.function)
        }
    }

    private static func isInterpreter(_ function: String) -> Bool {
        function.hasPrefix("Builtins_InterpreterEntryTrampoline")
            || function.hasPrefix("Builtins_BaselineOutOfLinePrologue")
            || function.hasPrefix("Builtins_InterpreterEnterAt") || function.hasPrefix("Builtins_BaselineOrInterpreter")
    }

    /// How V8 gets from native code into JavaScript and back: no function that anybody called.
    private static func isPassage(_ function: String) -> Bool {
        function.hasPrefix("Builtins_") && passages.contains { function.hasPrefix($0) }
    }

    private static let passages = [
        "Builtins_JSEntry", "Builtins_CEntry", "Builtins_JSConstruct", "Builtins_Construct", "Builtins_Call",
        "Builtins_JSRunMicrotasksEntry", "Builtins_FunctionPrototypeApply", "Builtins_FunctionPrototypeCall",
        "Builtins_ReflectApply", "Builtins_HandleApiCallOrConstruct", "Builtins_StackCheckHandler",
        "Builtins_FunctionPrototypeBind", "Builtins_ArgumentsAdaptor",
    ]
}
