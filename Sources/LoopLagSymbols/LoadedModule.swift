/// A module of one process: where it is mapped, and its file, found at first need.
///
/// Who calls it: StackDecoder and the unwinder, on the decoder's thread.

import LoopLagModel

final class LoadedModule {
    let record: ModuleRecord
    /// The file name alone, as frames show it.
    let name: String
    private let locator: ModuleLocator
    private let cache: SymbolCache

    init(record: ModuleRecord, locator: ModuleLocator, cache: SymbolCache) {
        self.record = record
        self.locator = locator
        self.cache = cache
        let path = ModuleLocator.plainPath(record.path)
        let last = path.split(separator: "/").last.map(String.init)
        name = record.isVDSO ? "[vdso]" : printable(last ?? "unknown")
    }

    /// nil when no file with this module's identity can be read.
    private(set) lazy var file: ModuleFile? = {
        isOpened = true
        return .open(record, locator: locator, cache: cache)
    }()
    private var isOpened = false

    /// Saves what was learnt of the file, if it was ever asked for.
    func save(isLast: Bool) {
        if isOpened { file?.save(isLast: isLast) }
    }

    var image: ElfImage? { file?.image }
    var frameTable: FrameTable? { file?.frameTable }

    /// A file may be mapped a second time far away (V8 does that with its builtins): such a record spans more than the
    /// file's image, and what lies between is not its code.
    func contains(_ address: UInt64) -> Bool {
        guard let image else { return true }
        return image.contains(elfAddress(address))
    }

    func elfAddress(_ address: UInt64) -> UInt64 { address &- record.loadBias }
    func runtimeAddress(_ address: UInt64) -> UInt64 { address &+ record.loadBias }
}
