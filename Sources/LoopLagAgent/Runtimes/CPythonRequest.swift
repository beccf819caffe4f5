/// Which request and which asyncio task a sampled thread was serving: read from its frames' locals and from asyncio's own
/// table, with no Python executed.
///
/// Watchdog only. What is not surely that is left out: the request's `scope` must be exactly a dict, a task must own one
/// of the sampled frames. Query strings, headers and arguments are never read.

import CLoopLag

struct CPythonRequest {
    private let frames: CPythonFrames
    private let memory: CPythonMemory
    private let text: UnsafeMutablePointer<UInt8>
    private let textBytes: Int
    /// The one interned text "scope", once seen.
    private var scopeName: UInt64 = 0
    /// asyncio.tasks._current_tasks, once found.
    private var currentTasks: UInt64 = 0
    private var tasksWantedAt: UInt64 = 0
    /// Where in a Task its coroutine lies; the name is the next word.
    private var coroutineOffset: UInt64 = 0

    init(_ frames: CPythonFrames, text: UnsafeMutablePointer<UInt8>, capacity: Int) {
        self.frames = frames
        memory = frames.memory
        self.text = text
        textBytes = capacity
    }

    // MARK: - the request

    mutating func describe(_ copy: UnsafePointer<lag_python_frames>, into section: inout ManagedSection) {
        var i: UInt32 = 0
        while i < copy.pointee.count {
            let bytes = lag_python_frame(copy, i)
            if frames.code(bytes) != nil, let scope = local(bytes), readScope(scope, &section) { return }
            i &+= 1
        }
    }

    /// The value of the local named `scope` in a frame of the function that was looked at last.
    private mutating func local(_ bytes: UnsafePointer<UInt8>) -> UInt64? {
        let names = frames.localNames()
        var i = 0
        while i < names.count {
            let name = names[i]
            if scopeName == 0, memory.isText(name, "scope") { scopeName = name }
            if name == scopeName, name != 0 {
                return frames.reference(
                    bytes, frames.layout.pointee.frameLocals &+ UInt64(truncatingIfNeeded: i) &* 8)
            }
            i &+= 1
        }
        return nil
    }

    private func readScope(_ scope: UInt64, _ section: inout ManagedSection) -> Bool {
        guard memory.isA(lag_python_found().pointee.dict_type, scope), var list = memory.entries(scope, limit: 64)
        else {
            return false
        }
        var found = false
        while let entry = list.next() {
            if memory.isText(entry.key, "path") {
                let count = memory.text(entry.value, text, capacity: textBytes)
                if count > 0 {
                    section.header.path = section.text(text, count)
                    found = true
                }
            } else if memory.isText(entry.key, "method") {
                let count = memory.text(entry.value, text, capacity: 32)
                if count > 0 { section.header.method = section.text(text, count) }
            }
        }
        return found
    }

    // MARK: - the task

    /// - Parameter modules: sys.modules.
    mutating func describeTask(
        _ copy: UnsafePointer<lag_python_frames>, modules: UInt64, now: UInt64, into section: inout ManagedSection
    ) {
        if frames.layout.pointee.threadTask != 0 {
            guard let task = memory.word(copy.pointee.thread_state &+ frames.layout.pointee.threadTask), task != 0
            else {
                return
            }
            _ = name(of: task, owning: nil, &section)
            return
        }
        if currentTasks == 0 {
            guard tasksWantedAt <= now else { return }
            tasksWantedAt = now &+ 1_000_000_000
            currentTasks = CPythonModules.value(memory, modules, "asyncio.tasks", "_current_tasks") ?? 0
        }
        guard memory.isA(lag_python_found().pointee.dict_type, currentTasks),
            var list = memory.entries(currentTasks, limit: 64)
        else {
            currentTasks = 0
            return
        }
        while let entry = list.next() {
            if name(of: entry.value, owning: copy, &section) { return }
        }
    }

    /// Writes the task's name, if one of the copied frames is its coroutine's (nil: it is known to be this thread's).
    private mutating func name(
        of task: UInt64, owning copy: UnsafePointer<lag_python_frames>?, _ section: inout ManagedSection
    ) -> Bool {
        guard task & 7 == 0, task != 0 else { return false }
        if coroutineOffset == 0 { coroutineOffset = findCoroutine(task) }
        guard coroutineOffset != 0, let coroutine = memory.word(task &+ coroutineOffset), isCoroutine(coroutine)
        else { return false }
        if let copy, !owns(coroutine, copy) { return false }
        guard let name = memory.word(task &+ coroutineOffset &+ 8) else { return false }
        var count = memory.text(name, text, capacity: 256)
        if count == 0, let number = memory.smallInt(name), number >= 0 {
            // From 3.12 on a name that nobody asked for is only a number yet.
            var builder = ByteBuilder(text, capacity: 64)
            builder.append("Task-")
            builder.append(decimal: UInt64(truncatingIfNeeded: number))
            count = builder.count
        }
        if count > 0 { section.header.task = section.text(text, count) }
        return count > 0
    }

    private func isCoroutine(_ object: UInt64) -> Bool {
        let found = lag_python_found().pointee
        return memory.isA(found.coroutine_type, object) || memory.isA(found.generator_type, object)
    }

    private func findCoroutine(_ task: UInt64) -> UInt64 {
        var offset: UInt64 = 16
        while offset < 320 {
            if let word = memory.word(task &+ offset), word & 7 == 0, word != 0, isCoroutine(word) { return offset }
            offset &+= 8
        }
        return 0
    }

    private func owns(_ coroutine: UInt64, _ copy: UnsafePointer<lag_python_frames>) -> Bool {
        let place = coroutine &+ frames.layout.pointee.generatorFrame
        let frame = frames.layout.pointee.hasFrameObjects ? memory.word(place) ?? 0 : place
        var i: UInt32 = 0
        while i < copy.pointee.count {
            if lag_python_frame_address(copy, i) == frame { return true }
            i &+= 1
        }
        return false
    }
}

/// Looks names up in imported modules.
enum CPythonModules {
    /// The global `name` of the imported module `module`.
    static func value(_ memory: CPythonMemory, _ modules: UInt64, _ module: StaticString, _ name: StaticString)
        -> UInt64?
    {
        guard let found = memory.value(modules, module), memory.isA(lag_python_found().pointee.module_type, found),
            let dictionary = memory.word(found &+ 16)
        else { return nil }
        return memory.value(dictionary, name)
    }
}
