/// Which thread holds the Python lock that a thread waits for: `threading.RLock` says it itself; of a `threading.Lock` it
/// is the one that stands inside `with lock:`, where one does.
///
/// Watchdog only; the waiting thread is blocked in the kernel, the others run on. A Condition, a Queue or a Lock that was
/// acquired by name has no owner that could be known: then there is none.

import CLoopLag

struct CPythonLocks {
    private enum Kind { case lock, recursive }

    /// Slots of a frame that are looked at: its variables and what it is computing with.
    private static let slots: UInt64 = 64
    /// All threads' frames that are looked at, most.
    private static let framesLooked = 2048
    /// From 3.14 on a lock is one byte: held, and somebody waits for it.
    private static let heldAndWanted: UInt8 = 3

    private let frames: CPythonFrames
    private let memory: CPythonMemory
    private let layout: UnsafePointer<CPythonLayout>
    private let runtime: UInt64

    init(_ frames: CPythonFrames, _ runtime: UInt64) {
        self.frames = frames
        memory = frames.memory
        layout = frames.layout
        self.runtime = runtime
    }

    /// The thread state of the owner, 0 when there is none or it is not sure.
    /// - Parameters:
    ///   - copy: the waiting thread's frames.
    ///   - futex: the address that it waits on.
    ///   - spare: room for another thread's frames.
    func owner(
        _ copy: UnsafePointer<lag_python_frames>, futex: UInt64, spare: UnsafeMutablePointer<lag_python_frames>
    ) -> UInt64 {
        guard copy.pointee.count > 0, let lock = lock(waitedForBy: lag_python_frame_address(copy, 0), futex) else {
            return 0
        }
        if kind(lock) == .recursive {
            guard let thread = memory.word(lock &+ 24), thread != 0 else { return 0 }
            return CPythonThreads.state(ofThread: thread, runtime: runtime, frames)
        }
        var left = Self.framesLooked
        return CPythonThreads.find(runtime, frames) { state in
            guard state != copy.pointee.thread_state, left > 0 else { return false }
            lag_python_copy(state, spare)
            left &-= Int(spare.pointee.count)
            var i: UInt32 = 0
            while i < spare.pointee.count {
                if isInside(spare, i, lock) { return true }
                i &+= 1
            }
            return false
        }
    }

    // MARK: - the lock

    /// Among what the frame computes with. Up to 3.13 a lock has a semaphore of its own, on which its waiter waits; since
    /// then that is the waiter's, and the lock is what the call in progress was given.
    private func lock(waitedForBy frame: UInt64, _ futex: UInt64) -> UInt64? {
        let isOwn = layout.pointee.minor <= 13
        let start = isOwn ? frame &+ layout.pointee.frameLocals : (memory.word(frame &+ 64) ?? 0) &- 32
        var i: UInt64 = 0
        while i < (isOwn ? Self.slots : 4) {
            let value = (memory.word(start &+ i &* 8) ?? 0) & ~3
            i &+= 1
            // The lock, or a method bound to it.
            if isWanted(value, futex, isOwn) { return value }
            if let object = memory.word(value &+ 24), isWanted(object, futex, isOwn) { return object }
        }
        return nil
    }

    @inline(never)
    private func isWanted(_ lock: UInt64, _ futex: UInt64, _ isOwn: Bool) -> Bool {
        if isOwn { return memory.word(lock &+ 16) == futex && kind(lock) != nil }
        return memory.byte(lock &+ 16) == Self.heldAndWanted && kind(lock) != nil
    }

    @inline(never)
    private func kind(_ object: UInt64) -> Kind? {
        var name: (UInt64, UInt64) = (0, 0)
        guard let type = memory.type(object), let at = memory.word(type &+ 24), lag_safe_read(at, &name, 16) >= 14
        else { return nil }
        return withUnsafePointer(to: &name) { raw in
            raw.withMemoryRebound(to: UInt8.self, capacity: 16) {
                var parser = ByteParser($0, count: 16)
                guard parser.take("_thread.") else { return nil }
                let kind: Kind = parser.peek == UInt8(ascii: "R") ? .recursive : .lock
                if kind == .recursive { _ = parser.next() }
                return parser.take(kind == .lock ? "lock" : "Lock") && parser.peek == 0 ? kind : nil
            }
        }
    }

    // MARK: - who stands inside `with`

    /// Whether `__exit__` of the lock lies on that frame's stack, ready to be called.
    @inline(never)
    private func isInside(_ copy: UnsafePointer<lag_python_frames>, _ index: UInt32, _ lock: UInt64) -> Bool {
        let bytes = lag_python_frame(copy, index)
        guard let code = frames.code(bytes) else { return false }
        let address = lag_python_frame_address(copy, index)
        var stack: UInt64
        var depth: UInt64
        if layout.pointee.hasFrameObjects {
            // f_valuestack; f_iblock, and f_blockstack behind it: three numbers each, the last is the depth.
            stack = frames.field(bytes, 64)
            let blocks: UInt64 = layout.pointee.minor == 9 ? 120 : 112
            let count = frames.field(bytes, blocks &- 8) & 0xffff_ffff
            guard count > 0, count <= 20 else { return false }
            depth = UInt64(UInt32(bitPattern: memory.int32(address &+ blocks &+ count &* 12 &- 4) ?? 0))
        } else {
            let variables = Int32(truncatingIfNeeded: frames.codeField(layout.pointee.codeFirstLine &+ 4))
            guard let place = frames.instruction(code, bytes), place >= 0, variables >= 0 else { return false }
            stack = address &+ layout.pointee.frameLocals &+ UInt64(UInt32(bitPattern: variables)) &* 8
            depth = frames.protectedDepth(UInt64(bitPattern: place) / 2)
        }
        if depth > Self.slots { depth = Self.slots }
        while depth > 0 {
            let value = (memory.word(stack) ?? 0) & ~3
            // The method bound to it; since 3.14 the lock itself, beside the method.
            if value == lock ? layout.pointee.minor >= 14 : isExit(value, of: lock) { return true }
            stack &+= 8
            depth &-= 1
        }
        return false
    }

    /// A method of C, by its definition's name.
    @inline(never)
    private func isExit(_ value: UInt64, of lock: UInt64) -> Bool {
        guard value != 0, memory.word(value &+ 24) == lock, let definition = memory.word(value &+ 16),
            let name = memory.word(definition)
        else { return false }
        return memory.word(name) == 0x5f5f_7469_7865_5f5f  // "__exit__"
    }
}

extension CPythonFrames {
    /// How much of its stack a frame is sure to have at this instruction (in units of two bytes): what its exception
    /// table says the nearest handler finds there. 0 outside of any (3.11 and later).
    func protectedDepth(_ instruction: UInt64) -> UInt64 {
        guard var bytes = tableBytes(codeField(40)) else { return 0 }
        // Entries are ordered by where they begin; of nested ones only the innermost is written.
        while let start = CPythonLines.number(&bytes), let length = CPythonLines.number(&bytes),
            CPythonLines.number(&bytes) != nil, let depth = CPythonLines.number(&bytes)
        {
            if instruction < start { return 0 }
            if instruction &- start < length { return depth &>> 1 }
        }
        return 0
    }
}

extension CPythonLines {
    /// A number of an exception table: six bits a byte, the highest first.
    @inline(never)
    static func number(_ bytes: inout LineTableBytes) -> UInt64? {
        var value: UInt64 = 0
        while let byte = bytes.next() {
            value = value &<< 6 | UInt64(byte & 63)
            if byte & 64 == 0 { return value }
            if value > 1 &<< 40 { return nil }
        }
        return nil
    }
}
