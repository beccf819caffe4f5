/// All that is known of one ELF file, whichever processes map it: unwind table, symbols, debug information.
///
/// Who calls it: LoadedModule, with SymbolLock held. Each part is read at first need and then kept. Files of the same
/// build ID, size and owner are shared between all decoders of this process: 500 workers of one server are one set of
/// tables. (The build ID alone would let a hostile process name another's functions.)

import Glibc
import LoopLagModel

final class ModuleFile {
    private static let maximumKnownAddresses = 65536

    let image: ElfImage
    private let debugLocator: DebugFileLocator
    private let cache: SymbolCache
    /// nil for a file that has no build ID: it is neither shared nor cached.
    private let key: String?

    private init(image: ElfImage, debugLocator: DebugFileLocator, cache: SymbolCache, key: String?) {
        self.image = image
        self.debugLocator = debugLocator
        self.cache = cache
        self.key = key
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

    // MARK: - frames

    private var unsaved = 0
    private var lastSave: Int?
    private lazy var known: [UInt64: [SymbolFrame]] = key.map { cache.load($0, source: debugSource) } ?? [:]

    /// Which debug file the names and lines come from: one that is installed later makes older answers stale.
    private var debugSource: String {
        debugImage.map { "debug \($0.device) \($0.inode) \($0.size) \($0.modified)" } ?? "self"
    }

    /// The frames at an ELF address, innermost first; empty when nothing is known of it.
    func frames(at address: UInt64) -> [SymbolFrame] {
        if let frames = known[address] { return frames }
        let frames = read(address)
        if known.count >= Self.maximumKnownAddresses { known.removeAll() }
        known[address] = frames
        unsaved += 1
        return frames
    }

    /// Writes what is new into the cache: at once the first time, then at most every two seconds.
    func save(isLast: Bool) {
        guard unsaved > 0, let key else { return }
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        if let lastSave, !isLast, now.tv_sec - lastSave < 2 { return }
        lastSave = now.tv_sec
        unsaved = 0
        cache.save(key, source: debugSource, entries: known.filter { !$0.value.isEmpty })
    }

    private func read(_ address: UInt64) -> [SymbolFrame] {
        let symbol = symbols.symbol(at: address)
        var frames: [SymbolFrame] = []
        for source in debugInfo?.frames(at: address) ?? [] {
            // The symbol table's choice among aliases reads better, and exists where DWARF has no linkage name.
            guard let name = source.isInlined ? source.function : symbol?.name ?? source.function else { continue }
            frames.append(SymbolFrame(name, source))
        }
        if frames.isEmpty || frames.last?.isInlined == true, let name = symbol?.name ?? stubs.name(at: address) {
            frames.append(SymbolFrame(name, nil))
        }
        return frames
    }

    // MARK: - sharing

    private struct Weak {
        weak var file: ModuleFile?
    }

    /// Guarded by SymbolLock.
    private nonisolated(unsafe) static var shared: [String: Weak] = [:]

    /// The file of a module, opened or shared; nil when none with the module's identity can be read.
    static func open(_ record: ModuleRecord, locator: ModuleLocator, cache: SymbolCache) -> ModuleFile? {
        guard let image = locator.open(record) else { return nil }
        let key = image.buildID.isEmpty ? nil : "\(hexadecimal(image.buildID))-\(image.size)-\(image.owner)"
        if let key, let file = shared[key]?.file { return file }
        let path = ModuleLocator.plainPath(record.path)
        let file = ModuleFile(
            image: image, debugLocator: DebugFileLocator(identity: locator.identity, path: path), cache: cache, key: key
        )
        if let key {
            shared = shared.filter { $0.value.file != nil }
            shared[key] = Weak(file: file)
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

extension SymbolFrame {
    init(_ symbol: String, _ source: SourceFrame?) {
        let demangled = Demangler.demangle(symbol)
        self.init(
            function: printable(demangled.name), isSwift: demangled.isSwift, file: source?.file.map(printable),
            line: source?.line, column: source?.column, isInlined: source?.isInlined ?? false)
    }
}

/// Names come from files that the measured process controls, and end on terminals: control characters do not pass.
func printable(_ text: String) -> String {
    guard text.unicodeScalars.contains(where: isControl) else { return text }
    var result = ""
    for scalar in text.unicodeScalars { result.unicodeScalars.append(isControl(scalar) ? "?" : scalar) }
    return result
}

private func isControl(_ scalar: Unicode.Scalar) -> Bool {
    // C0, DEL, C1, line and paragraph separators, and the marks that turn the direction of writing.
    scalar.value < 0x20 || (0x7f...0x9f).contains(scalar.value) || (0x2028...0x202e).contains(scalar.value)
        || (0x2066...0x2069).contains(scalar.value)
}

func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}
