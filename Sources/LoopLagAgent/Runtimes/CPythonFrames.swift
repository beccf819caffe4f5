/// Turns the copied memory of a thread's interpreter frames into names and lines.
///
/// Watchdog only, after the copy: the frames are as they were at the moment of the sample, the code objects are read now.
/// A pointer counts as a code object only if its type says so, and an instruction only if it lies in that code: what does
/// not fit is shown as a frame that is not known.

import CLoopLag

struct CPythonFrames {
    private static let chunkBytes = 4096
    private static let textBytes = 512
    /// The layout comes first: everything that reads the interpreter shares this one by its address.
    private static let layoutBytes = MemoryLayout<CPythonLayout>.stride
    /// What is read of a code object: its own fields, and not the code behind them.
    private static let codeBytes = 216
    static let scratchBytes = layoutBytes &+ chunkBytes &+ textBytes &+ codeBytes

    let layout: UnsafePointer<CPythonLayout>
    let memory: CPythonMemory
    private let codeType: UInt64
    private let chunk: UnsafeMutablePointer<UInt8>
    private let text: UnsafeMutablePointer<UInt8>
    private let codeFields: UnsafeMutablePointer<UInt8>

    /// - Parameter scratch: `scratchBytes` of memory that nobody else uses.
    init(_ layout: CPythonLayout, _ scratch: UnsafeMutableRawPointer) {
        let kept = scratch.bindMemory(to: CPythonLayout.self, capacity: 1)
        kept.initialize(to: layout)
        self.layout = UnsafePointer(kept)
        memory = CPythonMemory(asciiBytes: layout.asciiBytes)
        codeType = lag_python_found().pointee.code_type
        chunk = (scratch + Self.layoutBytes).assumingMemoryBound(to: UInt8.self)
        text = chunk + Self.chunkBytes
        codeFields = text + Self.textBytes
    }

    /// A field of a copied frame.
    func field(_ frame: UnsafePointer<UInt8>, _ offset: UInt64) -> UInt64 {
        guard offset &+ 8 <= UInt64(LAG_PYTHON_FRAME_BYTES) else { return 0 }
        return UnsafeRawPointer(frame).loadUnaligned(fromByteOffset: Int(truncatingIfNeeded: offset), as: UInt64.self)
    }

    /// A reference in a copied frame: from 3.14 on they carry tags.
    func reference(_ frame: UnsafePointer<UInt8>, _ offset: UInt64) -> UInt64 {
        let raw = field(frame, offset)
        return layout.pointee.hasTaggedReferences ? raw & ~3 : raw
    }

    /// Whether this is the evaluation loop's own first frame (3.12 and later), which lies on the C stack.
    func isShim(_ frame: UnsafePointer<UInt8>) -> Bool {
        layout.pointee.minor >= 12 && frame[Int(truncatingIfNeeded: layout.pointee.frameOwner)] >= 3
    }

    /// The frame's code object; nil for a shim and for what is none. Its fields are read with it, in one piece.
    @inline(never)
    func code(_ frame: UnsafePointer<UInt8>) -> UInt64? {
        guard !isShim(frame) else { return nil }
        let code = reference(frame, layout.pointee.frameCode)
        guard code & 7 == 0, code != 0 else { return nil }
        // An older version's object is shorter, and may be the last thing in its mapping.
        let had = Int(lag_safe_read(code, codeFields, Self.codeBytes))
        lag_zero(codeFields + had, Self.codeBytes &- had)
        return codeType != 0 && codeField(8) == codeType ? code : nil
    }

    /// A field of the code object that `code` gave last.
    @inline(never)
    func codeField(_ offset: UInt64) -> UInt64 {
        guard offset &+ 8 <= UInt64(Self.codeBytes) else { return 0 }
        return UnsafeRawPointer(codeFields).loadUnaligned(
            fromByteOffset: Int(truncatingIfNeeded: offset), as: UInt64.self)
    }

    /// The first names of local variables of the code object that `code` gave last; valid until a table is read.
    @inline(never)
    func localNames() -> UnsafeBufferPointer<UInt64> {
        let items = Int(truncatingIfNeeded: layout.pointee.tupleItems)
        let had = Int(lag_safe_read(codeField(layout.pointee.codeLocalNames), chunk, items &+ Self.namesLooked &* 8))
        guard had >= items else { return UnsafeBufferPointer(start: nil, count: 0) }
        let all = UnsafeRawPointer(chunk).loadUnaligned(fromByteOffset: 16, as: UInt64.self)
        let read = (had &- items) / 8
        return UnsafeBufferPointer(
            start: UnsafeRawPointer(chunk + items).assumingMemoryBound(to: UInt64.self),
            count: all < UInt64(truncatingIfNeeded: read) ? Int(truncatingIfNeeded: all) : read)
    }

    private static let namesLooked = 15

    /// Whether the file of the code object that `code` gave last has this ending.
    @inline(never)
    func isIn(_ ending: StaticString) -> Bool {
        let count = memory.text(codeField(layout.pointee.codeFile), text, capacity: Self.textBytes)
        guard ending.hasPointerRepresentation, count >= ending.utf8CodeUnitCount else { return false }
        var parser = ByteParser(text, count: count, from: count &- ending.utf8CodeUnitCount)
        return parser.take(ending)
    }

    // MARK: - all frames of a thread

    /// Adds the frames to the section, leaf first; one that makes no sense stands there without a name. Returns how many
    /// such there are.
    /// - Parameter stack: the copy of the thread's C stack made at the same moment, nil when the thread is blocked.
    func decode(
        _ frames: UnsafePointer<lag_python_frames>, stack: UnsafePointer<lag_capture>?, asBlocker: Bool,
        into section: inout ManagedSection
    ) -> UInt64 {
        var bad: UInt64 = 0
        var cframe = frames.pointee.cframe
        var run: UInt64 = 0
        var isNewRun = true
        var i: UInt32 = 0
        while i < frames.pointee.count {
            let bytes = lag_python_frame(frames, i)
            if isShim(bytes) {
                isNewRun = true
                i &+= 1
                continue
            }
            if isNewRun {
                run = layout.pointee.minor >= 12 ? nextShim(frames, i) : (layout.pointee.minor >= 10 ? cframe : 0)
                isNewRun = false
            }
            let isEntry = isEntry(frames, i)
            var frame = lag_managed_frame()
            let code = code(bytes)
            if code == nil || !describe(code ?? 0, bytes, &frame, &section) {
                frame = lag_managed_frame()
                bad &+= 1
            }
            frame.kind = UInt16(LAG_MANAGED_PYTHON)
            frame.stack_address = run
            if isEntry { frame.flags |= UInt16(LAG_FRAME_ENTRY) }
            guard asBlocker ? section.addBlocker(frame) : section.add(frame) else { return bad }
            if isEntry, layout.pointee.minor < 12 {
                isNewRun = true
                cframe = previous(cframe, stack)
            }
            i &+= 1
        }
        return bad
    }

    /// Whether native code entered the interpreter with this frame.
    private func isEntry(_ frames: UnsafePointer<lag_python_frames>, _ index: UInt32) -> Bool {
        if layout.pointee.hasFrameObjects { return true }
        if layout.pointee.minor == 11 {
            return lag_python_frame(frames, index)[Int(truncatingIfNeeded: layout.pointee.frameIsEntry)] != 0
        }
        let next = index &+ 1
        guard next < frames.pointee.count else { return frames.pointee.is_complete != 0 }
        return isShim(lag_python_frame(frames, next))
    }

    private func nextShim(_ frames: UnsafePointer<lag_python_frames>, _ index: UInt32) -> UInt64 {
        var i = index
        while i < frames.pointee.count {
            if isShim(lag_python_frame(frames, i)) { return lag_python_frame_address(frames, i) }
            i &+= 1
        }
        return 0
    }

    /// The C frame of the evaluation before: it lies on the thread's stack, of a running thread only the copy counts.
    private func previous(_ cframe: UInt64, _ stack: UnsafePointer<lag_capture>?) -> UInt64 {
        guard cframe != 0 else { return 0 }
        let at = cframe &+ layout.pointee.cframePrevious
        guard let stack else { return memory.word(at) ?? 0 }
        let offset = at &- stack.pointee.stack_base
        guard offset < UInt64(stack.pointee.stack_bytes), UInt64(stack.pointee.stack_bytes) &- offset >= 8 else {
            return 0
        }
        return lag_capture_stack(stack).loadUnaligned(
            fromByteOffset: Int(truncatingIfNeeded: offset), as: UInt64.self)
    }

    /// Name, file, line and flags; false when the instruction does not lie in the code, or there is no name.
    private func describe(
        _ code: UInt64, _ bytes: UnsafePointer<UInt8>, _ frame: inout lag_managed_frame,
        _ section: inout ManagedSection
    ) -> Bool {
        let nameAt = layout.pointee.codeQualifiedName != 0 ? layout.pointee.codeQualifiedName : layout.pointee.codeName
        let nameBytes = memory.text(codeField(nameAt), text, capacity: Self.textBytes)
        guard nameBytes > 0 else { return false }
        frame.function = section.text(text, nameBytes)
        let fileBytes = memory.text(codeField(layout.pointee.codeFile), text, capacity: Self.textBytes)
        if fileBytes > 0 { frame.file = section.text(text, fileBytes) }
        let flags = UInt32(truncatingIfNeeded: codeField(layout.pointee.codeFlags))
        // CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR
        if flags & 0x380 != 0 { frame.flags |= UInt16(LAG_FRAME_COROUTINE) }
        guard let place = instruction(code, bytes) else { return false }
        switch line(place) {
        case .at(let line): frame.line = line
        case .beginning(let line):
            frame.line = line
            frame.flags |= UInt16(LAG_FRAME_APPROXIMATE)
        case .none: break
        }
        return true
    }

    // MARK: - lines

    enum Line: Equatable {
        case at(UInt32)
        /// Only where the function begins is known.
        case beginning(UInt32)
        /// The interpreter itself says that this instruction belongs to no line.
        case none
    }

    /// The byte offset of the frame's instruction in its code, the one that `code` gave last: -1 ahead of the first; nil when
    /// it lies elsewhere.
    func instruction(_ code: UInt64, _ frame: UnsafePointer<UInt8>) -> Int64? {
        let raw = field(frame, layout.pointee.frameInstruction)
        var offset: Int64
        if layout.pointee.hasFrameObjects {
            offset = Int64(Int32(truncatingIfNeeded: raw))
            if layout.pointee.minor == 10, offset > 0 { offset &*= 2 }
            return offset >= -1 && offset < 1 &<< 26 ? offset : nil
        }
        offset = Int64(bitPattern: raw &- code &- layout.pointee.codeStart)
        if offset < 0 { return offset >= -2 ? -1 : nil }
        let units = codeField(16)
        return units < 1 &<< 25 && UInt64(offset) < units &* 2 ? offset : nil
    }

    /// The content of a `bytes` object, read with its length as far as most are long; valid until the next table is read.
    func tableBytes(_ table: UInt64) -> LineTableBytes? {
        let had = Int(lag_safe_read(table &+ 16, chunk, Self.tableBytesAtOnce))
        guard table != 0, had >= 16 else { return nil }
        let size = UnsafeRawPointer(chunk).loadUnaligned(as: UInt64.self)
        guard size < 1 &<< 24 else { return nil }
        return LineTableBytes(
            memory: chunk, capacity: Self.chunkBytes, at: table &+ 32, count: size, from: 16, held: had)
    }

    private static let tableBytesAtOnce = 512

    /// The line of an instruction of the code object that `code` gave last, by the version's own table.
    func line(_ instruction: Int64) -> Line {
        let first = Int32(truncatingIfNeeded: codeField(layout.pointee.codeFirstLine))
        guard first >= 0 else { return .none }
        let start = UInt32(bitPattern: first)
        guard instruction >= 0 else { return .at(start) }
        guard var bytes = tableBytes(codeField(layout.pointee.codeLines)) else { return .beginning(start) }
        switch layout.pointee.minor {
        case 9: return CPythonLines.notab(&bytes, first, instruction)
        case 10: return CPythonLines.ranges(&bytes, first, instruction)
        default: return CPythonLines.locations(&bytes, first, instruction)
        }
    }
}

/// The bytes of a line table, read piece by piece.
struct LineTableBytes {
    private let memory: UnsafeMutablePointer<UInt8>
    private let capacity: Int
    private var at: UInt64
    private var left: UInt64
    private var position = 0
    private var held = 0

    /// - Parameters:
    ///   - from: where the content begins in the memory, if some of it has been read already.
    ///   - held: up to where.
    init(
        memory: UnsafeMutablePointer<UInt8>, capacity: Int, at: UInt64, count: UInt64, from: Int = 0, held: Int = 0
    ) {
        self.memory = memory
        self.capacity = capacity
        position = from
        let had = UInt64(truncatingIfNeeded: held &- from)
        let taken = had < count ? had : count
        self.held = from &+ Int(truncatingIfNeeded: taken)
        self.at = at &+ taken
        left = count &- taken
    }

    @inline(never)
    mutating func next() -> UInt8? {
        if position >= held {
            let wanted = left < UInt64(truncatingIfNeeded: capacity) ? Int(truncatingIfNeeded: left) : capacity
            guard wanted > 0 else { return nil }
            held = Int(lag_safe_read(at, memory, wanted))
            position = 0
            guard held > 0, held <= wanted else {
                held = 0
                left = 0
                return nil
            }
            at &+= UInt64(truncatingIfNeeded: held)
            left &-= UInt64(truncatingIfNeeded: held)
        }
        let byte = memory[position]
        position &+= 1
        return byte
    }
}

/// The three formats of CPython's line tables. Pure.
enum CPythonLines {
    /// 3.9: pairs of an address step and a signed line step.
    static func notab(_ bytes: inout LineTableBytes, _ first: Int32, _ target: Int64) -> CPythonFrames.Line {
        var line = Int64(first)
        var address: Int64 = 0
        while let step = bytes.next(), let delta = bytes.next() {
            address &+= Int64(step)
            if address > target { break }
            line &+= Int64(Int8(bitPattern: delta))
        }
        return at(line)
    }

    /// 3.10: pairs of a length and a signed line step; -128 stands for "no line".
    static func ranges(_ bytes: inout LineTableBytes, _ first: Int32, _ target: Int64) -> CPythonFrames.Line {
        var line = Int64(first)
        var end: Int64 = 0
        while let length = bytes.next(), let delta = bytes.next() {
            end &+= Int64(length)
            let hasLine = delta != 0x80
            if hasLine { line &+= Int64(Int8(bitPattern: delta)) }
            if target < end { return hasLine ? at(line) : .none }
        }
        return .beginning(UInt32(truncatingIfNeeded: first))
    }

    /// 3.11 and later: entries that begin with a byte of their own kind and length.
    static func locations(_ bytes: inout LineTableBytes, _ first: Int32, _ target: Int64) -> CPythonFrames.Line {
        var line = Int64(first)
        var end: Int64 = 0
        var held = bytes.next()
        while let head = held, head & 0x80 != 0 {
            end &+= Int64(head & 7) &* 2 &+ 2
            let kind = head &>> 3 & 15
            switch kind {
            case 13, 14:
                guard let delta = signed(&bytes) else { return .beginning(UInt32(truncatingIfNeeded: first)) }
                line &+= delta
            case 10, 11, 12: line &+= Int64(kind) &- 10
            default: break
            }
            if target < end { return kind == 15 ? .none : at(line) }
            // What is left of the entry: its bytes have no high bit.
            held = bytes.next()
            while let byte = held, byte & 0x80 == 0 { held = bytes.next() }
        }
        return .beginning(UInt32(truncatingIfNeeded: first))
    }

    private static func signed(_ bytes: inout LineTableBytes) -> Int64? {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while let byte = bytes.next() {
            value |= UInt64(byte & 63) &<< shift
            guard byte & 64 != 0 else {
                let magnitude = Int64(truncatingIfNeeded: value &>> 1)
                return value & 1 != 0 ? 0 &- magnitude : magnitude
            }
            shift &+= 6
            guard shift < 36 else { return nil }
        }
        return nil
    }

    private static func at(_ line: Int64) -> CPythonFrames.Line {
        line > 0 && line < 1 &<< 31 ? .at(UInt32(truncatingIfNeeded: line)) : .none
    }
}
