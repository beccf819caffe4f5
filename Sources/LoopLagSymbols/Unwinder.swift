/// Unwinds one copied stack with libunwind, from the modules' own unwind tables.
///
/// Who calls it: StackDecoder, on its thread; not reentrant. libunwind sees the target only through the accessors here:
/// the stack copy, the registers, and the bytes of the modules' files. Every answer is bounded: a decode has a budget
/// of reads and of frames, so that no stack and no unwind table, however hostile, keeps it from ending.

import CLibunwind
import LoopLagModel

struct UnwoundFrame: Equatable {
    var pc: UInt64
    var stackPointer: UInt64
    /// nil = not known. Where libunwind follows frame pointers (code that V8 makes has no tables) its stack pointers are
    /// too low, and this alone says where the frame lies.
    var framePointer: UInt64?
    /// False for the leaf and for a frame that a signal interrupted: there the PC is exact.
    var isReturnAddress: Bool
}

struct UnwindResult {
    var frames: [UnwoundFrame] = []
    /// The last frame has unwind information that says so: nothing is missing.
    var isRooted = false
    /// The last step read beyond the end of the copy.
    var ranOffCopy = false
    /// The cursor before the step that asked for a frame pointer which is not known.
    var stoppedForFramePointer: unw_cursor_t?
    /// Some frame depends on a frame pointer that was found by trying.
    var isReconstructed = false
}

/// What the accessors read from. One instance a decoder; filled for each sample.
final class UnwindContext {
    var stack: UnsafeRawBufferPointer = .init(start: nil, count: 0)
    var stackBase: UInt64 = 0
    var registers: [UInt64?] = []
    var pc: UInt64 = 0
    var readsLeft = 0
    var failedRead: UInt64?
    var askedForFramePointer = false
    /// The one-entry search table that libunwind is shown for the address it asked about.
    var tableEntry: UInt64 = 0
    let module: (UInt64) -> LoadedModule?
    private let readRuntimeCode: () -> [(start: UInt64, end: UInt64)]?
    /// Executable memory of no file, as the process's map had it when it was last read; nil when it cannot be known.
    private var runtimeCode: [(start: UInt64, end: UInt64)]?
    private var hasReadRuntimeCode = false

    init(
        module: @escaping (UInt64) -> LoadedModule?,
        runtimeCode: @escaping () -> [(start: UInt64, end: UInt64)]? = { nil }
    ) {
        self.module = module
        readRuntimeCode = runtimeCode
    }

    /// Forgets the last sample.
    func begin(_ bytes: UnsafeRawBufferPointer, of sample: RawSample, reads: Int) {
        stack = bytes
        stackBase = sample.stackBase
        registers = sample.registers
        readsLeft = reads
        hasReadRuntimeCode = false
    }

    func end() { stack = .init(start: nil, count: 0) }

    /// An address that no user process has.
    static let tableAddress: UInt64 = 0xffff_f000_0000_0000

    func word(at address: UInt64) -> UInt64? {
        readsLeft -= 1
        guard readsLeft >= 0 else { return nil }
        let delta = address &- stackBase
        let count = UInt64(stack.count)
        if delta < count {
            guard count - delta >= 8 else { return nil }
            return UInt64(littleEndian: stack.loadUnaligned(fromByteOffset: Int(delta), as: UInt64.self))
        }
        if address == Self.tableAddress { return tableEntry }
        if let module = module(address) { return module.image?.word(at: module.elfAddress(address)) }
        // libunwind looks at the code under the PC for signal trampolines and PLT stubs. Code of no module was made
        // at run time and is neither; without an answer it would take the PC for a wild jump.
        if address &- (pc & ~7) < 32 { return 0 }
        return nil
    }

    /// May code lie at an address that belongs to no module? A live process's map says so; else it must at least not
    /// be on the stack or outside of user space. The map is read again, once a sample, for an address that was in none of
    /// the places known before: reading it takes longer than all the rest.
    func isCode(_ address: UInt64) -> Bool {
        guard address >= 65536, address < 1 << 47, address &- stackBase >= UInt64(stack.count) else { return false }
        func isKnown() -> Bool? { runtimeCode?.contains { address &- $0.start < $0.end &- $0.start } }
        if isKnown() == true { return true }
        if !hasReadRuntimeCode {
            runtimeCode = readRuntimeCode()
            hasReadRuntimeCode = true
        }
        return isKnown() ?? true
    }

    func frameEntry(covering address: UInt64) -> (module: LoadedModule, entry: FrameEntry)? {
        guard let module = module(address),
            let entry = module.frameTable?.entry(covering: module.elfAddress(address))
        else { return nil }
        return (module, entry)
    }
}

final class Unwinder {
    /// A 64 KiB copy cannot hold more frames than this that are worth reading.
    static let maximumFrames = 2048
    private static let readsPerDecode = 2_000_000

    let context: UnwindContext
    private let accessors: UnsafeMutablePointer<unw_accessors_t>
    private let space: unw_addr_space_t?
    private let cursor: UnsafeMutablePointer<unw_cursor_t>

    init(context: UnwindContext) {
        self.context = context
        accessors = .allocate(capacity: 1)
        accessors.initialize(to: Self.makeAccessors())
        cursor = .allocate(capacity: 1)
        cursor.initialize(to: unw_cursor_t())
        space = lag_unw_create(accessors)
        if let space { lag_unw_cache(space, 4096) }
    }

    deinit {
        if let space { lag_unw_destroy(space) }
        accessors.deallocate()
        cursor.deallocate()
    }

    /// Forget what was learnt of addresses: another module may lie there now.
    func flush() {
        if let space { lag_unw_flush(space) }
    }

    func unwind(_ sample: RawSample) -> UnwindResult {
        guard let space, sample.registers.count > 16, let pc = sample.registers[16],
            let stackPointer = sample.registers[7]
        else { return UnwindResult() }
        let leaf = UnwoundFrame(
            pc: pc, stackPointer: stackPointer, framePointer: sample.registers[6], isReturnAddress: false)
        return sample.stack.withUnsafeBytes { bytes in
            context.begin(bytes, of: sample, reads: Self.readsPerDecode)
            context.pc = pc
            defer { context.end() }
            guard lag_unw_init(cursor, space, Unmanaged.passUnretained(context).toOpaque()) == 0 else {
                return UnwindResult(frames: [leaf])
            }
            let result = run(UnwindResult(frames: [leaf]))
            guard let stopped = result.stoppedForFramePointer else { return result }
            guard var recovered = recover(from: stopped, known: result.frames) else { return result }
            recovered.isReconstructed = true
            return recovered
        }
    }

    enum Step {
        case frame(UnwoundFrame)
        case end(isRooted: Bool)
        case failed
    }

    /// From the cursor's frame, which is `last`, to its caller.
    func step(after last: UnwoundFrame) -> Step {
        context.failedRead = nil
        context.askedForFramePointer = false
        context.pc = last.pc
        let status = lag_unw_step(cursor)
        guard status > 0 else {
            if status == 0, context.failedRead == nil { return .end(isRooted: hasEntry(last)) }
            return .failed
        }
        var pc: UInt64 = 0
        var stackPointer: UInt64 = 0
        guard lag_unw_register(cursor, 16, &pc) == 0, lag_unw_register(cursor, 7, &stackPointer) == 0 else {
            return .failed
        }
        // A thread's first function is called from nowhere.
        if pc == 0 { return .end(isRooted: hasEntry(last)) }
        let isInterrupted = lag_unw_is_signal_frame(cursor) > 0
        // The stack grows down: callers lie above, except across a signal on its own stack.
        guard stackPointer > last.stackPointer || isInterrupted else { return .failed }
        var framePointer: UInt64 = 0
        let isKnown = lag_unw_register(cursor, 6, &framePointer) == 0
        context.askedForFramePointer = false
        return .frame(
            UnwoundFrame(
                pc: pc, stackPointer: stackPointer, framePointer: isKnown ? framePointer : nil,
                isReturnAddress: !isInterrupted))
    }

    /// Steps until the stack ends, one way or another; the cursor stands at the last frame of `result`.
    func run(_ result: UnwindResult) -> UnwindResult {
        var result = result
        let mayLackFramePointer = context.registers[6] == nil
        while result.frames.count < Self.maximumFrames, let last = result.frames.last {
            let before = mayLackFramePointer ? cursor.pointee : nil
            switch step(after: last) {
            case .frame(let frame): result.frames.append(frame)
            case .end(let isRooted):
                result.isRooted = isRooted
                return result
            case .failed:
                result.ranOffCopy = context.failedRead.map { beyondCopy($0) } ?? false
                if context.askedForFramePointer { result.stoppedForFramePointer = before }
                return result
            }
        }
        return result
    }

    func setCursor(_ value: unw_cursor_t) { cursor.pointee = value }

    private func hasEntry(_ frame: UnwoundFrame) -> Bool {
        context.frameEntry(covering: frame.isReturnAddress ? frame.pc &- 1 : frame.pc) != nil
    }

    private func beyondCopy(_ address: UInt64) -> Bool {
        let delta = address &- context.stackBase
        return delta >= UInt64(context.stack.count) && delta < 1 << 30
    }

    // MARK: - accessors

    private static func context(_ argument: UnsafeMutableRawPointer?) -> UnwindContext? {
        argument.map { Unmanaged<UnwindContext>.fromOpaque($0).takeUnretainedValue() }
    }

    private static func makeAccessors() -> unw_accessors_t {
        var accessors = unw_accessors_t()
        accessors.find_proc_info = { space, ip, info, needsUnwindInfo, argument in
            guard let context = Unwinder.context(argument), let info,
                let (module, entry) = context.frameEntry(covering: ip)
            else { return -CInt(LAG_UNW_ENOINFO) }
            // Our own search has found the FDE; libunwind is shown a table of that one entry, relative to the FDE.
            let base = module.runtimeAddress(entry.address)
            let start = module.runtimeAddress(entry.start)
            guard let offset = Int32(exactly: Int64(bitPattern: start &- base)) else {
                return -CInt(LAG_UNW_ENOINFO)
            }
            context.tableEntry = UInt64(UInt32(bitPattern: offset))
            return lag_unw_search(
                space, ip, start, module.runtimeAddress(entry.end), base, UnwindContext.tableAddress, 1, info,
                needsUnwindInfo, argument)
        }
        accessors.put_unwind_info = { _, _, _ in }
        accessors.get_dyn_info_list_addr = { _, _, _ in -CInt(LAG_UNW_ENOINFO) }
        accessors.access_mem = { _, address, value, isWrite, argument in
            guard isWrite == 0, let value, let context = Unwinder.context(argument) else {
                return -CInt(LAG_UNW_EINVAL)
            }
            guard let word = context.word(at: address) else {
                context.failedRead = address
                return -CInt(LAG_UNW_EINVAL)
            }
            value.pointee = word
            return 0
        }
        accessors.access_reg = { _, register, value, isWrite, argument in
            guard let value, let context = Unwinder.context(argument) else { return -CInt(LAG_UNW_EINVAL) }
            guard isWrite == 0 else { return -CInt(LAG_UNW_EREADONLYREG) }
            guard register >= 0, Int(register) < context.registers.count,
                let known = context.registers[Int(register)]
            else {
                if register == 6 { context.askedForFramePointer = true }
                return -CInt(LAG_UNW_EBADREG)
            }
            value.pointee = known
            return 0
        }
        accessors.access_fpreg = { _, _, _, _, _ in -CInt(LAG_UNW_EBADREG) }
        accessors.resume = { _, _, _ in -CInt(LAG_UNW_EINVAL) }
        accessors.get_proc_name = { _, _, _, _, _, _ in -CInt(LAG_UNW_ENOINFO) }
        return accessors
    }
}
