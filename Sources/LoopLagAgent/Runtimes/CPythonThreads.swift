/// Which thread state belongs to a thread, and what Python's threading calls it.
///
/// Watchdog only; passive, like all that reads the interpreter's memory.

import CLoopLag

enum CPythonThreads {
    /// The thread state with this `thread_id` in any interpreter of the process; 0 = none.
    static func state(ofThread thread: UInt64, runtime: UInt64, _ frames: CPythonFrames) -> UInt64 {
        find(runtime, frames) { frames.memory.word($0 &+ frames.layout.pointee.threadID) == thread }
    }

    /// The first thread state that `isIt` takes; 0 = none.
    static func find(_ runtime: UInt64, _ frames: CPythonFrames, _ isIt: (UInt64) -> Bool) -> UInt64 {
        let memory = frames.memory
        let layout = frames.layout
        var interpreter = memory.word(runtime &+ layout.pointee.interpretersHead) ?? 0
        var interpreters = 0
        while interpreter != 0, interpreters < 16 {
            var state = memory.word(interpreter &+ layout.pointee.threadsHead) ?? 0
            var states = 0
            while state != 0, states < 512 {
                if isIt(state) { return state }
                state = memory.word(state &+ layout.pointee.threadNext) ?? 0
                states &+= 1
            }
            interpreter = memory.word(interpreter &+ layout.pointee.interpreterNext) ?? 0
            interpreters &+= 1
        }
        return 0
    }

    /// Writes the name of a copied thread's `threading.Thread`: `self` of the frame that bootstraps it. The bytes written.
    static func name(
        _ copy: UnsafePointer<lag_python_frames>, _ frames: CPythonFrames, into text: UnsafeMutablePointer<UInt8>,
        capacity: Int
    ) -> Int {
        guard copy.pointee.count > 0, copy.pointee.is_complete != 0 else { return 0 }
        let memory = frames.memory
        var i = copy.pointee.count
        while i > 0 {
            i &-= 1
            let bytes = lag_python_frame(copy, i)
            guard let code = frames.code(bytes) else { continue }
            guard memory.isText(memory.word(code &+ frames.layout.pointee.codeName) ?? 0, "_bootstrap") else {
                return 0
            }
            let thread = frames.reference(bytes, frames.layout.pointee.frameLocals)
            guard let name = memory.attribute(thread, "_name", cachedKeys: frames.layout.pointee.cachedKeys) else {
                return 0
            }
            return memory.text(name, text, capacity: capacity)
        }
        return 0
    }
}
