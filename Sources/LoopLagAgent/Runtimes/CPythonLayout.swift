/// Where each version of CPython keeps what the agent reads: byte offsets of default builds on x86_64.
///
/// Made once, on the thread that starts the agent. 3.9 to 3.12 by tables; 3.13 and later describe themselves at
/// `_PyRuntime`, and what that description leaves out is the same in all of them. Later ones than 3.15 are read in
/// 3.15's order and count for nothing until the self-check agrees. Refused, by nil: versions before 3.9, free-threaded
/// builds, and descriptions that do not fit what is known of their version.

import CLoopLag

struct CPythonLayout {
    var minor: UInt32 = 0
    // The runtime and its interpreters.
    var interpretersHead: UInt64 = 0
    var interpreterNext: UInt64 = 0
    var threadsHead: UInt64 = 0
    var modules: UInt64 = 0
    var collecting: UInt64 = 0
    /// The lock: in the runtime (up to 3.11), or behind a pointer in the interpreter.
    var lockInRuntime: UInt64 = 0
    var lockPointer: UInt64 = 0
    // Thread states.
    var threadNext: UInt64 = 8
    var threadInterpreter: UInt64 = 16
    var threadFrame: UInt64 = 0
    var threadCFrame: UInt64 = 0
    var threadID: UInt64 = 0
    var threadTask: UInt64 = 0
    // The C frame of one run of the evaluation loop (3.10 to 3.12).
    var cframeFrame: UInt64 = UInt64.max
    var cframePrevious: UInt64 = 0
    // Frames.
    var frameCode: UInt64 = 0
    var framePrevious: UInt64 = 0
    var frameInstruction: UInt64 = 0
    var frameLocals: UInt64 = 0
    var frameOwner: UInt64 = 0
    var frameIsEntry: UInt64 = 0
    // Code objects.
    var codeFile: UInt64 = 112
    var codeName: UInt64 = 120
    var codeQualifiedName: UInt64 = 128
    var codeFlags: UInt64 = 48
    var codeFirstLine: UInt64 = 68
    var codeLines: UInt64 = 136
    var codeLocalNames: UInt64 = 96
    var codeStart: UInt64 = 0
    // Everything else.
    /// The first item in a tuple.
    var tupleItems: UInt64 = 24
    var asciiBytes: UInt64 = 40
    var cachedKeys: UInt64 = 880
    /// The frame inside a coroutine object; up to 3.10 a pointer to it.
    var generatorFrame: UInt64 = 72

    static let lockHolder: UInt64 = 8
    static let lockIsHeld: UInt64 = 16

    /// Frames are plain objects up to 3.10.
    var hasFrameObjects: Bool { minor <= 10 }
    /// Tried on the real thing: believed before the self-check has answered.
    var isCertain: Bool { minor <= 15 }
    /// The references in a frame carry tags in their low bits.
    var hasTaggedReferences: Bool { minor >= 14 }

    /// - Parameter version: as PY_VERSION_HEX.
    static func of(version: UInt32, runtime: UInt64) -> CPythonLayout? {
        guard version &>> 24 == 3, runtime != 0 else { return nil }
        var layout = CPythonLayout()
        layout.minor = version &>> 16 & 0xff
        switch layout.minor {
        case 9, 10: layout.fillFrameObjects()
        case 11: layout.fill311()
        case 12: layout.fill312()
        default:
            guard layout.minor >= 13, layout.readDescription(runtime) else { return nil }
        }
        return layout
    }

    private mutating func fillFrameObjects() {
        interpretersHead = 32
        threadsHead = 8
        modules = 856
        collecting = 816
        lockInRuntime = 352
        threadFrame = 24
        threadID = 176
        frameCode = 32
        framePrevious = 24
        frameInstruction = minor == 9 ? 104 : 96
        frameLocals = minor == 9 ? 360 : 352
        threadCFrame = minor == 9 ? 0 : 48
        cframePrevious = 8
        codeFile = 104
        codeName = 112
        codeQualifiedName = 0
        codeFlags = 36
        codeFirstLine = 40
        codeLines = 120
        codeLocalNames = 72
        asciiBytes = 48
        generatorFrame = 16
    }

    private mutating func fill311() {
        interpretersHead = 40
        threadsHead = 16
        modules = 888
        collecting = 848
        lockInRuntime = 360
        threadCFrame = 56
        cframeFrame = 8
        cframePrevious = 16
        threadID = 152
        frameCode = 32
        framePrevious = 48
        frameInstruction = 56
        frameLocals = 72
        frameOwner = 69
        frameIsEntry = 68
        codeFirstLine = 72
        codeStart = 184
        asciiBytes = 48
        cachedKeys = 872
        generatorFrame = 80
    }

    private mutating func fill312() {
        interpretersHead = 40
        threadsHead = 72
        modules = 944
        collecting = 312
        lockPointer = 384
        threadCFrame = 56
        cframeFrame = 0
        cframePrevious = 8
        threadID = 136
        frameCode = 0
        framePrevious = 8
        frameInstruction = 56
        frameLocals = 72
        frameOwner = 70
        codeStart = 192
    }

    // MARK: - the interpreter's own description

    /// The words of the description, by their place (`_Py_DebugOffsets` of each version). 3.14 put one more into the
    /// interpreter's part, two more at its end, two behind the frame's, one behind the code's and four for sets; 3.15
    /// three ahead of the thread's number and five behind it, four for types and one for texts.
    private mutating func readDescription(_ runtime: UInt64) -> Bool {
        let memory = CPythonMemory(asciiBytes: 40)
        guard memory.word(runtime) == 0x7970_6775_6265_6478 else { return false }  // "xdebugpy"
        func entry(_ place: UInt64) -> UInt64 { memory.word(runtime &+ place &* 8) ?? UInt64.max }
        let described = UInt32(truncatingIfNeeded: entry(1))
        guard described &>> 16 == 0x300 &+ minor, entry(2) == 0 else { return false }
        let since14: UInt64 = minor >= 14 ? 1 : 0
        let since15: UInt64 = minor >= 15 ? 1 : 0
        interpretersHead = entry(5)
        interpreterNext = entry(8)
        threadsHead = entry(9)
        let collector = entry(10 &+ since14)
        modules = entry(11 &+ since14)
        lockPointer = entry(14 &+ since14)
        let thread = 19 &+ 3 &* since14
        threadNext = entry(thread &+ 2)
        threadInterpreter = entry(thread &+ 3)
        threadFrame = entry(thread &+ 4)
        threadID = entry(thread &+ 5 &+ 3 &* since15)
        let frame = thread &+ 9 &+ 8 &* since15
        framePrevious = entry(frame &+ 1)
        frameCode = entry(frame &+ 2)
        frameInstruction = entry(frame &+ 3)
        frameLocals = entry(frame &+ 4)
        frameOwner = entry(frame &+ 5)
        let code = frame &+ 6 &+ 2 &* since14
        codeFile = entry(code &+ 1)
        codeName = entry(code &+ 2)
        codeQualifiedName = entry(code &+ 3)
        codeLines = entry(code &+ 4)
        codeFirstLine = entry(code &+ 5)
        codeLocalNames = entry(code &+ 7)
        codeStart = entry(code &+ 9)
        tupleItems = entry(code &+ 17 &+ since14 &+ 4 &* since15)
        if minor >= 15 { cachedKeys = entry(code &+ 20) }
        let garbage = code &+ 37 &+ 5 &* since14 &+ 5 &* since15
        collecting = collector &+ entry(garbage &+ 1)
        if minor >= 14 { generatorFrame = entry(garbage &+ (minor == 14 ? 4 : 7)) }
        threadTask = minor == 14 ? 872 : (minor == 15 ? 1032 : 0)
        return isPlausible(collector)
    }

    /// Whether the description was read at the right places: measured values of this version, and sane ones.
    private func isPlausible(_ collector: UInt64) -> Bool {
        let head: UInt64 = minor == 13 ? 632 : (minor == 14 ? 808 : 936)
        let threads: UInt64 = minor == 15 ? 7336 : 7344
        guard !isCertain || interpretersHead == head && threadsHead == threads, threadFrame == 72, framePrevious == 8,
            frameCode == 0, frameInstruction == 56, frameLocals == (minor == 13 ? 72 : 80),
            frameOwner == (minor == 13 ? 70 : 74), codeFile == 112, codeName == 120, codeQualifiedName == 128,
            codeFirstLine == 68
        else { return false }
        return collector < collecting && collecting < 16384 && modules < 16384 && lockPointer < 16384
            && interpretersHead < 16384 && threadsHead < 16384 && interpreterNext < 16384 && threadNext < 1024
            && threadInterpreter < 1024 && threadID < 1024 && codeLines < 1024 && codeLocalNames < 1024
            && codeStart >= 128 && codeStart < 1024 && cachedKeys < 2048 && tupleItems < 64 && generatorFrame < 1024
    }

    /// What the copier needs of it.
    var forCopying: lag_python_layout {
        let wanted = frameLocals &+ 120
        let bytes = wanted < UInt64(LAG_PYTHON_FRAME_BYTES) ? wanted : UInt64(LAG_PYTHON_FRAME_BYTES)
        return lag_python_layout(
            ready: 1, thread_frame: UInt32(truncatingIfNeeded: threadFrame),
            thread_cframe: UInt32(truncatingIfNeeded: threadCFrame),
            frame_is_in_cframe: cframeFrame == UInt64.max ? 0 : 1,
            cframe_frame: cframeFrame == UInt64.max ? 0 : UInt32(truncatingIfNeeded: cframeFrame),
            cframe_previous: UInt32(truncatingIfNeeded: cframePrevious),
            frame_code: UInt32(truncatingIfNeeded: frameCode),
            frame_entry: UInt32(truncatingIfNeeded: minor == 11 ? frameIsEntry : frameOwner),
            frame_entry_least: minor == 11 ? 1 : 3,
            frame_previous: UInt32(truncatingIfNeeded: framePrevious), frame_bytes: UInt32(truncatingIfNeeded: bytes),
            frame_least: UInt32(truncatingIfNeeded: frameLocals), has_shims: minor >= 12 ? 1 : 0,
            is_certain: isCertain ? 1 : 0)
    }
}
