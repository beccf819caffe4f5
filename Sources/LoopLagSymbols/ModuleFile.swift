/// All that is known of one ELF file, whichever processes map it: unwind table, symbols, debug information.
///
/// Who calls it: LoadedModule, with the module's lock held. Each part is read at first need and then kept. Files with a
/// build ID are shared between all decoders of this process: 500 workers of one server are one set of tables.

import Glibc
import LoopLagModel

final class ModuleFile {
    let image: ElfImage
    private let debugLocator: DebugFileLocator

    private init(image: ElfImage, debugLocator: DebugFileLocator) {
        self.image = image
        self.debugLocator = debugLocator
    }

    private(set) lazy var frameTable = FrameTable(image: image)
    private lazy var stubs = StubTable(image: image)
    /// Sought only where the file itself lacks something.
    private lazy var debugImage: ElfImage? = {
        if image.section(named: ".symtab") != nil, image.section(named: ".debug_info") != nil { return nil }
        return debugLocator.find(for: image)
    }()
    private lazy var symbols: SymbolTable = {
        if image.section(named: ".symtab") == nil, let debugImage {
            let table = SymbolTable(image: debugImage)
            if !table.isEmpty { return table }
        }
        return SymbolTable(image: image)
    }()
    private lazy var debugInfo: DebugInfo? = {
        DebugInfo(image: image) ?? debugImage.flatMap { DebugInfo(image: $0) }
    }()

    /// The frames at an ELF address, innermost first; empty when nothing is known of it.
    func frames(at address: UInt64) -> [SymbolFrame] {
        let symbol = symbols.symbol(at: address)
        var frames: [SymbolFrame] = []
        for source in debugInfo?.frames(at: address) ?? [] {
            // The symbol table's choice among aliases reads better, and exists where DWARF has no linkage name.
            guard let name = source.isInlined ? source.function : symbol?.name ?? source.function else { continue }
            let demangled = Demangler.demangle(name)
            frames.append(
                SymbolFrame(
                    function: demangled.name, isSwift: demangled.isSwift, file: source.file, line: source.line,
                    column: source.column, isInlined: source.isInlined))
        }
        if frames.isEmpty || frames.last?.isInlined == true, let name = symbol?.name ?? stubs.name(at: address) {
            let demangled = Demangler.demangle(name)
            frames.append(
                SymbolFrame(
                    function: demangled.name, isSwift: demangled.isSwift, file: nil, line: nil, column: nil,
                    isInlined: false))
        }
        return frames
    }

    // MARK: - sharing

    private struct Weak {
        weak var file: ModuleFile?
    }

    /// Guarded by SymbolLock.
    private nonisolated(unsafe) static var shared: [[UInt8]: Weak] = [:]

    /// The file of a module, opened or shared; nil when none with the module's identity can be read.
    static func open(_ record: ModuleRecord, locator: ModuleLocator) -> ModuleFile? {
        // A recorded build ID may be cut to 24 bytes; such a one is not shared.
        let isShareable = !record.buildID.isEmpty && record.buildID.count < 24
        if isShareable, let file = shared[record.buildID]?.file { return file }
        guard let image = locator.open(record) else { return nil }
        let path = ModuleLocator.plainPath(record.path)
        let file = ModuleFile(
            image: image, debugLocator: DebugFileLocator(identity: locator.identity, path: path))
        if isShareable {
            shared = shared.filter { $0.value.file != nil }
            shared[record.buildID] = Weak(file: file)
        }
        return file
    }
}

/// One frame at an ELF address, before it belongs to a process.
struct SymbolFrame: Equatable {
    var function: String
    var isSwift: Bool
    var file: String?
    var line: Int?
    var column: Int?
    var isInlined: Bool
}

/// Held during every public call of this module: files are shared between decoders, and libdw is single-threaded.
enum SymbolLock {
    private final class Storage: @unchecked Sendable {
        // Safety: the pointer is set once and only ever given to pthread calls, which are what makes it shareable.
        let mutex: UnsafeMutablePointer<pthread_mutex_t>

        init() {
            mutex = .allocate(capacity: 1)
            mutex.initialize(to: pthread_mutex_t())
            pthread_mutex_init(mutex, nil)
        }
    }

    private static let storage = Storage()

    static func withLock<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(storage.mutex)
        defer { pthread_mutex_unlock(storage.mutex) }
        return body()
    }
}
