/// What is known of V8 in this process, and which way a sample gets its JavaScript frames:
///
/// 1. The thread is in native code that JavaScript called (JSON.parse, pbkdf2Sync, a read): the isolate says where it left
///    JavaScript, and the frames are walked in memory. No signal and no pause.
/// 2. It runs JavaScript: its isolate is asked for an interrupt, which is served at once, and V8's own stack trace is
///    exact whatever the compilers did. One that is not served within its time is dropped: it would show what came after.
/// 3. Neither: frames by the registers that the signal brought, optimised functions at the line where they begin.
///
/// The first and the third read V8's memory by a layout that has to be right: nothing of them is shown before the
/// self-check has passed (V8Check.swift).
///
/// Watchdog only. V8 itself is never entered here.

import CLoopLag

/// A place in a script, both numbers from 1; not exact = where the function begins.
struct V8Place {
    var line: UInt32
    var column: UInt32
    var isExact: Bool
}

struct V8Runtime {
    /// An answer that comes later is dropped, and the registers' copy stands: the thread may have gone on to something else.
    private static let interruptTimeout: UInt64 = 8_000_000
    private static let isolateBytes = 64 << 10
    private static let bufferBytes = 4096
    private static let cacheBytes = V8Memory.cacheBytes &+ V8LineCache.bytes
    private static let framesBytes = V8Walk.limit &* MemoryLayout<V8Frame>.stride

    private enum Way {
        case none
        case exit(UInt64)
        case registers
        case answer(UnsafePointer<lag_v8_answer>)
    }

    private let header: UnsafeMutablePointer<lag_header>
    private(set) var layout: UnsafePointer<lag_v8_layout>?
    let frames: UnsafeMutablePointer<V8Frame>
    private let buffer: UnsafeMutablePointer<UInt8>
    let name: UnsafeMutablePointer<UInt8>
    private let memory: UnsafeMutableRawPointer
    private let cache: UnsafeMutableRawPointer
    private var lines: V8LineCache
    var check = V8Check()
    private static let memoryBytes = isolateBytes &+ framesBytes &+ bufferBytes &+ 1024 &+ cacheBytes
    /// Where c_entry_fp lies in an isolate; 0 = not found yet.
    private(set) var entryOffset: UInt32 = 0
    private var builtins = V8Range()
    private var builtinsOf: UInt64 = 0
    private var way = Way.none
    private var isInCollection = false
    private var collections: UInt32 = 0

    init?(_ header: UnsafeMutablePointer<lag_header>) {
        guard lag_v8_is_present(), let memory = lag_memory_zeroed(Self.memoryBytes) else { return nil }
        self.header = header
        self.memory = memory
        frames = (memory + Self.isolateBytes).bindMemory(to: V8Frame.self, capacity: V8Walk.limit)
        buffer = (memory + (Self.isolateBytes &+ Self.framesBytes)).bindMemory(
            to: UInt8.self, capacity: Self.bufferBytes)
        name = (memory + (Self.isolateBytes &+ Self.framesBytes &+ Self.bufferBytes)).bindMemory(
            to: UInt8.self, capacity: 1024)
        cache = memory + (Self.memoryBytes &- Self.cacheBytes)
        lines = V8LineCache(cache + V8Memory.cacheBytes)
        layout = lag_v8_has_traces() ? lag_v8_layout() : nil
        if layout == nil { refuse() }
    }

    /// JavaScript frames are left out from now on, and the report says so.
    mutating func refuse() {
        layout = nil
        header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_JAVASCRIPT)
    }

    func release() { lag_memory_free(memory, Self.memoryBytes) }

    // MARK: - right after the capture

    /// Decides the way and, for a thread that runs JavaScript, replaces the capture by the one that V8 made at its interrupt:
    /// registers, stack and frames are then of one moment.
    mutating func refine(
        _ capture: UnsafePointer<lag_capture>, slot: UInt32, generation: UInt32,
        of loop: UnsafeMutablePointer<lag_loop_slot>, look: ThreadLook, sample: inout lag_sample
    ) -> UnsafePointer<lag_capture> {
        way = .none
        var view = lag_v8_loop()
        settleCheck()
        guard let layout, lag_v8_loop_read(slot, generation, &view) else { return capture }
        isInCollection = view.gc_since_ns != 0
        collections = view.gc_count
        if isInCollection { sample.flags |= UInt16(LAG_SAMPLE_IN_GC) }
        let memory = read(capture, of: view.isolate, layout, stackHigh: loop.pointee.stack_high)
        if let entry = exitFrame(view.isolate, memory) {
            if check.isPassed { way = .exit(entry) }
            return capture
        }
        guard look.place == .running else { return capture }
        if check.isPassed { way = .registers }
        guard view.can_interrupt, !isInCollection, runsJavaScript(capture, memory) else { return capture }
        var answer: UnsafePointer<lag_v8_answer>?
        var below: UnsafePointer<lag_capture>?
        let began = loop.pointee.busy_since_ns
        // An answer to the self-check that is still to come gives way to this one.
        check.cookie = 0
        guard lag_v8_interrupt(slot, generation, entryOffset, Self.interruptTimeout, &answer, &below),
            let answer, let below, answer.pointee.frame_count > 0, loop.pointee.busy_since_ns == began
        else { return capture }
        if !check.isDone {
            judge(answer, below, slot, generation, stackHigh: loop.pointee.stack_high)
        }
        way = .answer(answer)
        // Served in the moment in which it was given up: it blames nobody.
        if below.pointee.time_ns &- answer.pointee.asked_ns > Self.interruptTimeout {
            sample.flags |= UInt16(LAG_SAMPLE_LATE)
        }
        sample.method = UInt8(LAG_SAMPLE_INTERRUPT)
        sample.regs_valid =
            1 &<< UInt32(LAG_REG_RBP) | 1 &<< UInt32(LAG_REG_RSP) | 1 &<< UInt32(LAG_REG_RIP)
        return below
    }

    /// The native call that a running thread is in, by what the isolate remembers of it: frame, and the function that was
    /// called. The frame keeps the stack pointer that the call was made with.
    mutating func nativeCall(_ slot: UInt32, _ generation: UInt32, of loop: UnsafeMutablePointer<lag_loop_slot>)
        -> NativeCall?
    {
        var view = lag_v8_loop()
        guard let layout, entryOffset != 0, loop.pointee.stack_high != 0, lag_v8_loop_read(slot, generation, &view)
        else { return nil }
        let words = UnsafeMutableRawPointer(buffer)
        guard lag_safe_read(view.isolate &+ UInt64(entryOffset), words, 32) == 32 else { return nil }
        let fp = words.load(as: UInt64.self)
        let high = loop.pointee.stack_high
        guard fp != 0, fp & 7 == 0, fp < high, high &- fp < 64 << 20, high &- fp > 32 else { return nil }
        // Stack pointer, kind, and then the caller's frame and return address.
        let frame = words + 32
        guard lag_safe_read(fp &- 16, frame, 32) == 32 else { return nil }
        let marker = frame.load(fromByteOffset: 8, as: UInt64.self)
        guard marker & 1 == 0, marker < 256, marker > 0 else { return nil }
        let sp = frame.load(as: UInt64.self)
        // The function lies one or two words behind; its return address leads into V8's way out of JavaScript.
        var back: UInt64 = 0
        findBuiltins(of: view.isolate)
        if sp > fp &- 4096, sp < fp, sp & 7 == 0, lag_safe_read(sp &- 8, &back, 8) == 8, isBuiltin(back, layout) {
            var i = 1
            while i < 4 {
                let function = words.load(fromByteOffset: i &* 8, as: UInt64.self)
                if function >= layout.pointee.text_low, function < layout.pointee.text_high {
                    return NativeCall(stackPointer: sp &- 8, programCounter: function, framePointer: fp)
                }
                i &+= 1
            }
        }
        return NativeCall(
            stackPointer: fp &- 16, programCounter: frame.load(fromByteOffset: 24, as: UInt64.self),
            framePointer: frame.load(fromByteOffset: 16, as: UInt64.self))
    }

    private func isBuiltin(_ pc: UInt64, _ layout: UnsafePointer<lag_v8_layout>) -> Bool {
        (pc >= layout.pointee.text_low && pc < layout.pointee.text_high) || (pc >= builtins.low && pc < builtins.high)
    }

    /// Whether the thread left JavaScript for native code, and at which frame.
    private mutating func exitFrame(_ isolate: UInt64, _ memory: V8Memory) -> UInt64? {
        let walk = V8Walk(memory, frames)
        if entryOffset != 0 {
            guard let value = memory.word(isolate &+ UInt64(entryOffset)), value != 0, walk.isExit(value) else {
                return nil
            }
            return value
        }
        // Found once, by what it holds: the one word of the isolate that points at an exit frame on this stack.
        let bytes = lag_safe_read(isolate, self.memory, Self.isolateBytes)
        var offset = 0
        var found: (offset: Int, value: UInt64)?
        while offset &+ 8 <= bytes {
            let value = self.memory.load(fromByteOffset: offset, as: UInt64.self)
            if value >= memory.lowest, value < memory.stackHigh, walk.isExit(value) {
                // Two of them: not to be told apart now.
                if found != nil { return nil }
                found = (offset, value)
            }
            offset &+= 8
        }
        guard let found, found.offset > 0 else { return nil }
        entryOffset = UInt32(truncatingIfNeeded: found.offset)
        return found.value
    }

    /// What a walk of this copy reads by.
    @inline(never)
    private func reader(
        _ capture: UnsafePointer<lag_capture>, _ layout: UnsafePointer<lag_v8_layout>, stackHigh: UInt64
    ) -> V8Memory {
        V8Memory(layout, capture, stackHigh: stackHigh, builtins: builtins, cache: cache)
    }

    mutating func read(
        _ capture: UnsafePointer<lag_capture>, of isolate: UInt64, _ layout: UnsafePointer<lag_v8_layout>,
        stackHigh: UInt64
    ) -> V8Memory {
        findBuiltins(of: isolate)
        return reader(capture, layout, stackHigh: stackHigh)
    }

    private mutating func findBuiltins(of isolate: UInt64) {
        guard isolate != builtinsOf else { return }
        builtinsOf = isolate
        builtins = V8Range.ofBuiltins(memory, bytes: lag_safe_read(isolate, memory, Self.isolateBytes))
    }

    @inline(never)
    func walkRegisters(_ capture: UnsafePointer<lag_capture>, _ memory: V8Memory) -> V8Walk {
        var registers = capture.pointee.regs
        return withUnsafePointer(to: &registers) { tuple in
            tuple.withMemoryRebound(to: UInt64.self, capacity: Int(LAG_REGS)) { regs in
                let pc = regs[Int(LAG_REG_RIP)]
                var walk = V8Walk(memory, frames)
                // r9 holds the offset while a handler of the interpreter runs.
                walk.run(
                    from: regs[Int(LAG_REG_RBP)], pc: pc, offsetRegister: memory.isBuiltin(pc) ? regs[9] : nil)
                return walk
            }
        }
    }

    private func runsJavaScript(_ capture: UnsafePointer<lag_capture>, _ memory: V8Memory) -> Bool {
        walkRegisters(capture, memory).count > 0
    }

    // MARK: - the frames

    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, slot: UInt32, generation: UInt32,
        of loop: UnsafeMutablePointer<lag_loop_slot>, into section: inout ManagedSection, sample: inout lag_sample
    ) {
        guard let layout else { return }
        let memory = reader(capture, layout, stackHigh: loop.pointee.stack_high)
        var walk = V8Walk(memory, frames)
        switch way {
        case .none: return
        case .exit(let fp): walk.run(from: fp, pc: nil, offsetRegister: nil)
        case .registers: walk = walkRegisters(capture, memory)
        case .answer(let answer):
            // Before the check has passed V8's own trace is worth something, and nothing else.
            let entry = check.isPassed ? answer.pointee.entry_fp : 0
            if entry != 0, walk.isExit(entry) {
                walk.run(from: entry, pc: nil, offsetRegister: nil)
            } else if check.isPassed {
                walk = walkRegisters(capture, memory)
            }
            findRequest(walk.count, memory, &section)
            add(answer, walk.count, memory, &section)
            return
        }
        var i = 0
        while i < walk.count {
            guard add(frames[i], memory, &section) else { break }
            i &+= 1
        }
        findRequest(walk.count, memory, &section)
        // One collection since the copy leaves at each object's old place the address of its new one; a second one gives
        // that place to others.
        var view = lag_v8_loop()
        if !lag_v8_loop_read(slot, generation, &view) || view.gc_count &- collections > 1 { section.clear() }
    }

    /// One walked frame. False when the section is full.
    private mutating func add(_ frame: V8Frame, _ memory: V8Memory, _ section: inout ManagedSection) -> Bool {
        var out = lag_managed_frame()
        out.kind = UInt16(LAG_MANAGED_JAVASCRIPT)
        out.stack_address = frame.fp
        if frame.isEntry { out.flags |= UInt16(LAG_FRAME_ENTRY) }
        var count = functionName(frame.shared, memory, inferred: true)
        out.function = count > 0 ? section.text(name, count) : anonymous(&section)
        if let script = memory.script(ofShared: frame.shared) {
            count = scriptName(script, memory)
            if count > 0 { out.file = fileText(name, count, &section) }
            if let place = place(of: frame, inScript: script, memory) {
                out.line = place.line
                out.column = place.column
                if !place.isExact { out.flags |= UInt16(LAG_FRAME_APPROXIMATE) }
            }
        }
        return section.add(out)
    }

    /// Where the interpreter is in the function, else where the function begins.
    @inline(never)
    mutating func place(of frame: V8Frame, inScript script: UInt64, _ memory: V8Memory) -> V8Place? {
        var isExact = frame.isInterpreted
        var position =
            isExact
            ? memory.position(inBytecode: frame.bytecode, offset: frame.offset, buffer, Self.bufferBytes) : nil
        if position == nil, let bytecode = memory.bytecode(ofShared: frame.shared) {
            position = memory.position(inBytecode: bytecode, offset: nil, buffer, Self.bufferBytes)
            isExact = false
        }
        guard let position, let place = memory.place(position, inScript: script, &lines) else { return nil }
        return V8Place(line: place.line, column: place.column, isExact: isExact)
    }

    /// V8's own stack trace, with the stack addresses of the walked frames: an inlined function lies in the frame of the
    /// one that it was inlined into, which comes behind it.
    private func add(
        _ answer: UnsafePointer<lag_v8_answer>, _ walked: Int, _ memory: V8Memory, _ section: inout ManagedSection
    ) {
        let texts = lag_v8_answer_texts(answer)
        var at = 0
        var i: UInt32 = 0
        while i < answer.pointee.frame_count {
            let frame = lag_v8_answer_frame(answer, i).pointee
            var out = lag_managed_frame()
            out.kind = UInt16(LAG_MANAGED_JAVASCRIPT)
            out.line = frame.line
            out.column = frame.column
            let function = texts + Int(frame.function_offset)
            let bytes = Int(frame.function_bytes)
            out.function = bytes > 0 ? section.text(function, bytes) : anonymous(&section)
            if frame.file_bytes > 0 {
                out.file = fileText(texts + Int(frame.file_offset), Int(frame.file_bytes), &section)
            }
            var ahead = at
            while ahead < walked, ahead < at &+ 4 {
                if isNamed(frames[ahead], function, bytes, memory) {
                    at = ahead
                    break
                }
                ahead &+= 1
            }
            if at < walked {
                out.stack_address = frames[at].fp
                if ahead == at {
                    if frames[at].isEntry { out.flags |= UInt16(LAG_FRAME_ENTRY) }
                    at &+= 1
                }
            }
            guard section.add(out) else { return }
            i &+= 1
        }
    }

    @inline(never)
    private func isNamed(_ frame: V8Frame, _ text: UnsafePointer<UInt8>, _ count: Int, _ memory: V8Memory) -> Bool {
        let length = functionName(frame.shared, memory, inferred: false)
        guard length == count else { return false }
        var i = 0
        while i < count {
            if name[i] != text[i] { return false }
            i &+= 1
        }
        return true
    }

    private func anonymous(_ section: inout ManagedSection) -> lag_text {
        let text: StaticString = "(anonymous)"
        return section.text(text.utf8Start, text.utf8CodeUnitCount)
    }

    /// A file's path; modules of the newer kind have a URL.
    private func fileText(_ bytes: UnsafePointer<UInt8>, _ count: Int, _ section: inout ManagedSection) -> lag_text {
        var parser = ByteParser(bytes, count: count)
        if parser.take("file://"), parser.peek == UInt8(ascii: "/") {
            return section.text(bytes + parser.position, count &- parser.position)
        }
        return section.text(bytes, count)
    }

    // MARK: - names, into `name`

    @inline(never)
    func functionName(_ shared: UInt64, _ memory: V8Memory, inferred: Bool) -> Int {
        guard let value = memory.field(shared, memory.layout.pointee.shared_name) else { return 0 }
        let direct = lag_v8_string(value, name, 256)
        if direct > 0 { return direct }
        // A function that keeps its scope keeps its name there: behind the names of its variables and what is known of
        // each; the function's own name first, then the one that was guessed for it.
        guard let scope = memory.object(value), scope.type == memory.layout.pointee.type_scope_info,
            let locals = memory.field(scope.tagged, 8 &+ memory.layout.pointee.scope_locals &* 8),
            V8Memory.isInteger(locals)
        else { return 0 }
        let count = locals &>> 32
        guard count < 75 else { return 0 }
        var index = memory.layout.pointee.scope_first &+ Int32(truncatingIfNeeded: count) &* 2
        let end = index &+ (inferred ? 4 : 3)
        while index < end {
            if let slot = memory.field(scope.tagged, 8 &+ index &* 8) {
                let bytes = lag_v8_string(slot, name, 256)
                if bytes > 0 { return bytes }
            }
            index &+= 1
        }
        return 0
    }

    @inline(never)
    func scriptName(_ script: UInt64, _ memory: V8Memory) -> Int {
        guard let value = memory.field(script, memory.layout.pointee.script_name) else { return 0 }
        let count = lag_v8_string(value, name, 1024)
        return count > 0 ? count : 0
    }

    // MARK: - the request

    private func findRequest(_ walked: Int, _ memory: V8Memory, _ section: inout ManagedSection) {
        let wanted: StaticString = "parserOnIncoming"
        var i = 0
        while i < walked {
            if isNamed(frames[i], wanted.utf8Start, wanted.utf8CodeUnitCount, memory), isNodesOwn(frames[i], memory),
                let request = memory.request(inFrame: frames[i].fp)
            {
                var count = lag_v8_string(request.method, name, 32)
                if count > 0 { section.header.method = section.text(name, count) }
                count = lag_v8_string(request.path, name, 1024)
                // What follows the question mark may be anybody's secret.
                var end = 0
                while end < count, name[end] != UInt8(ascii: "?"), name[end] != UInt8(ascii: "#") { end &+= 1 }
                if end > 0 { section.header.path = section.text(name, end) }
                return
            }
            i &+= 1
        }
    }

    private func isNodesOwn(_ frame: V8Frame, _ memory: V8Memory) -> Bool {
        guard let script = memory.script(ofShared: frame.shared) else { return false }
        var parser = ByteParser(name, count: scriptName(script, memory))
        return parser.take("node:_http_server")
    }
}
