/// Turns raw samples into frames: the one way into this module.
///
/// Who calls it: the verbs that show stacks, each decoder from one thread. It reads ELF files and, of the process, only
/// what leads to its files; it never stops, signals or writes to the process. It never throws and never traps: what
/// cannot be found out is an address, a shorter stack, or a stack marked truncated.

import LoopLagModel

public final class StackDecoder {
    private static let maximumCachedAddresses = 65536

    private let locator: ModuleLocator
    private let cache: SymbolCache
    private var records: [ModuleRecord] = []
    private var map = AddressMap([])
    /// What has been asked about, in the map's order.
    private var loaded: [LoadedModule?] = []
    private var cachedFrames: [UInt64: [Frame]] = [:]
    private lazy var unwinder = Unwinder(
        context: UnwindContext(
            module: { [unowned self] in self.module(at: $0) }, runtimeCode: { [locator] in locator.runtimeCode() }))

    /// - Parameters:
    ///   - identity: the live process, through whose /proc files are found that our own paths do not show; nil
    ///     post-mortem.
    ///   - modules: the process's module table; see `update(modules:)`.
    ///   - cacheDirectory: where symbol indexes are kept from run to run; nil keeps none.
    public init(identity: ProcessIdentity?, modules: [ModuleRecord], cacheDirectory: String? = nil) {
        locator = ModuleLocator(identity: identity)
        cache = SymbolCache(directory: cacheDirectory)
        update(modules: modules)
    }

    deinit {
        SymbolLock.withLock { save(isLast: true) }
    }

    /// Takes a newer module table; files that are still mapped stay open. Cheap when nothing has changed.
    public func update(modules: [ModuleRecord]) {
        guard modules != records else { return }
        SymbolLock.withLock { replaceModules(modules) }
    }

    private func replaceModules(_ modules: [ModuleRecord]) {
        save(isLast: false)
        records = modules
        map = AddressMap(modules)
        let known = Dictionary(loaded.compactMap { $0 }.map { ($0.record, $0) }, uniquingKeysWith: { $1 })
        loaded = map.modules.map { known[$0] }
        cachedFrames.removeAll(keepingCapacity: true)
        unwinder.flush()
    }

    /// Unwinds and symbolicates one sample.
    public func decode(_ sample: RawSample) -> StackSample {
        SymbolLock.withLock { decodeLocked(sample) }
    }

    private func decodeLocked(_ sample: RawSample) -> StackSample {
        let unwound = unwinder.unwind(sample)
        let frames = merged(unwound, sample)
        save(isLast: false)
        return StackSample(
            stallID: sample.stallID, position: sample.position, offset: sample.offset,
            threadState: sample.threadState, method: unwound.isReconstructed ? .passiveReconstructed : sample.method,
            frames: frames,
            isTruncated: !unwound.frames.isEmpty && !unwound.isRooted,
            isLate: sample.isLate,
            noStackReason: frames.isEmpty ? sample.noStackReason ?? "no registers" : nil, isInGC: sample.isInGC,
            task: sample.managed?.task, request: sample.managed?.request,
            phase: sample.managed?.phase ?? JavaScriptPhase.phase(of: frames),
            blockedBy: sample.managed?.blocker)
    }

    private func merged(_ unwound: UnwindResult, _ sample: RawSample) -> [Frame] {
        let native = unwound.frames.indices.map { index in
            let frame = unwound.frames[index]
            return ManagedMerge.Native(
                stackPointer: frame.stackPointer, framePointer: frame.framePointer,
                end: index + 1 < unwound.frames.count ? unwound.frames[index + 1].stackPointer : .max,
                frames: cachedFrames(at: frame.pc, isReturnAddress: frame.isReturnAddress))
        }
        let managed = sample.managed?.frames ?? []
        if managed.contains(where: { $0.frame.kind == .javascript }) {
            return JavaScriptMerge.merge(native: native, managed: managed, isInterrupt: sample.method == .interrupt)
        }
        return ManagedMerge.merge(native: native, managed: managed)
    }

    /// The frames at one PC, inlined ones first.
    ///
    /// - Parameter isReturnAddress: true for a caller's PC, which points behind the call that it belongs to.
    public func frames(at pc: UInt64, isReturnAddress: Bool) -> [Frame] {
        SymbolLock.withLock { cachedFrames(at: pc, isReturnAddress: isReturnAddress) }
    }

    private func cachedFrames(at pc: UInt64, isReturnAddress: Bool) -> [Frame] {
        let address = isReturnAddress ? pc &- 1 : pc
        if let known = cachedFrames[address] { return known }
        let frames = symbolicate(address, pc: pc)
        if cachedFrames.count >= Self.maximumCachedAddresses { cachedFrames.removeAll() }
        cachedFrames[address] = frames
        return frames
    }

    private func module(at address: UInt64) -> LoadedModule? {
        guard let index = map.index(at: address) else { return nil }
        let module = loaded[index] ?? LoadedModule(record: map.modules[index], locator: locator, cache: cache)
        loaded[index] = module
        return module.contains(address) ? module : nil
    }

    private func save(isLast: Bool) {
        for case let module? in loaded { module.save(isLast: isLast) }
    }

    private func symbolicate(_ address: UInt64, pc: UInt64) -> [Frame] {
        guard let module = module(at: address) else {
            // The upper half of the address space is the kernel's.
            let kind: FrameKind = pc >> 63 == 1 ? .kernel : .native
            return [Frame(function: "0x" + String(pc, radix: 16), kind: kind, address: pc)]
        }
        let elfAddress = module.elfAddress(address)
        let shown = module.elfAddress(pc)
        let frames = module.file?.frames(at: elfAddress) ?? []
        if frames.isEmpty {
            return [
                Frame(
                    function: module.name + "+0x" + String(shown, radix: 16), kind: .native, module: module.name,
                    address: shown)
            ]
        }
        return frames.map {
            Frame(
                function: $0.function, kind: $0.isSwift ? .swift : .native, file: $0.file, line: $0.line,
                column: $0.column, module: module.name, address: shown, inlined: $0.isInlined ? true : nil)
        }
    }
}
