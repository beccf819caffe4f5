/// Walks the JavaScript frames of one thread by its frame pointers, leaf first.
///
/// Watchdog only. It begins where JavaScript was left for native code (the isolate's `c_entry_fp`), or at the frame
/// pointer of a thread that was stopped inside JavaScript. Native code between two runs of JavaScript is jumped over: the
/// entry frame remembers the exit frame below it. What does not check out is not a frame: nothing is guessed.

import CLoopLag

/// One JavaScript frame, found and not yet described.
struct V8Frame {
    var fp: UInt64
    var shared: UInt64
    var function: UInt64
    /// Known for a frame of the interpreter alone.
    var bytecode: UInt64
    var offset: UInt64
    var isInterpreted: Bool
    /// JavaScript was entered from native code here.
    var isEntry: Bool
}

struct V8Walk {
    static let limit = 128
    private static let steps = 2048

    private let memory: V8Memory
    private let frames: UnsafeMutablePointer<V8Frame>
    private(set) var count = 0
    /// The walk came to the outermost entry of JavaScript.
    private(set) var isComplete = false

    init(_ memory: V8Memory, _ frames: UnsafeMutablePointer<V8Frame>) {
        self.memory = memory
        self.frames = frames
    }

    private func isOnStack(_ address: UInt64) -> Bool {
        address & 7 == 0 && address >= memory.lowest && address &+ 16 <= memory.stackHigh
    }

    /// What kind of frame this is, for those that V8 marks; nil for a JavaScript frame, which has its context there.
    @inline(never)
    private func marker(_ fp: UInt64) -> Int32? {
        guard let value = memory.word(fp, memory.layout.pointee.fp_context), value & 1 == 0 else { return nil }
        let type = value &>> 1
        return type > 0 && type <= UInt64(truncatingIfNeeded: memory.layout.pointee.frame_last) &+ 8
            ? Int32(truncatingIfNeeded: type) : nil
    }

    /// Whether JavaScript was left for native code at this frame.
    @inline(never)
    func isExit(_ fp: UInt64) -> Bool {
        guard isOnStack(fp), let type = marker(fp) else { return false }
        let layout = memory.layout
        return type == layout.pointee.frame_exit || type == layout.pointee.frame_builtin_exit
            || (layout.pointee.frame_api_callback_exit != 0 && type == layout.pointee.frame_api_callback_exit)
            || (layout.pointee.frame_api_accessor_exit != 0 && type == layout.pointee.frame_api_accessor_exit)
    }

    private func isEntry(_ fp: UInt64) -> Bool {
        guard let type = marker(fp) else { return false }
        return type == memory.layout.pointee.frame_entry || type == memory.layout.pointee.frame_construct_entry
    }

    /// - Parameters:
    ///   - start: the first frame's pointer.
    ///   - pc: where the code of that frame stands; nil = in the frame below an exit.
    ///   - offsetRegister: what a thread stopped inside the interpreter has in its register for the bytecode offset.
    mutating func run(from start: UInt64, pc: UInt64?, offsetRegister: UInt64?) {
        var fp = start
        var code = pc
        var register = offsetRegister
        var left = Self.steps
        while left > 0, isOnStack(fp) {
            left &-= 1
            if isEntry(fp) {
                if count > 0 { frames[count &- 1].isEntry = true }
                guard let outer = outerExit(fp) else {
                    isComplete = true
                    return
                }
                fp = outer
                code = nil
                register = nil
                continue
            }
            if let code, marker(fp) == nil, let frame = javaScript(fp, code, register) {
                guard count < Self.limit else { return }
                frames[count] = frame
                count &+= 1
            }
            // A register is worth something for the innermost frame of the interpreter only.
            register = nil
            guard let caller = memory.word(fp), let back = memory.word(fp &+ 8), caller > fp else { return }
            fp = caller
            code = back
        }
    }

    /// The exit frame that lies behind an entry frame: the innermost one of those that the entry frame's own words point
    /// at (it keeps the isolate's c_entry_fp among the registers it saves).
    private func outerExit(_ fp: UInt64) -> UInt64? {
        var best: UInt64?
        var place = fp &- 128
        while place < fp {
            if place >= memory.lowest, let value = memory.word(place), value > fp, isExit(value) {
                if best == nil || value < (best ?? 0) { best = value }
            }
            place &+= 8
        }
        return best
    }

    private func javaScript(_ fp: UInt64, _ pc: UInt64, _ register: UInt64?) -> V8Frame? {
        let layout = memory.layout
        guard let context = memory.word(fp, layout.pointee.fp_context), V8Memory.isObject(context),
            let function = memory.word(fp, layout.pointee.fp_function), V8Memory.isObject(function),
            let shared = memory.shared(ofFunction: function)
        else { return nil }
        var frame = V8Frame(
            fp: fp, shared: shared, function: function, bytecode: 0, offset: 0, isInterpreted: false, isEntry: false)
        // Code made at run time may leave an old interpreter's slots in place: only a return into V8's own builtins
        // makes them true.
        guard memory.isBuiltin(pc), let bytecode = memory.word(fp, layout.pointee.fp_bytecode_array),
            let found = memory.object(bytecode), found.type == layout.pointee.type_bytecode,
            let slot = memory.word(fp, layout.pointee.fp_bytecode_offset), V8Memory.isInteger(slot)
        else { return frame }
        let header = UInt64(truncatingIfNeeded: Int64(layout.pointee.bytecode_data)) &- 1
        let raw = register ?? (slot &>> 32)
        guard raw >= header, raw &- header < 1 << 28 else { return frame }
        frame.bytecode = found.tagged
        frame.offset = raw &- header
        frame.isInterpreted = true
        return frame
    }
}
