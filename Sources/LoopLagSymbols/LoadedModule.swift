/// A module of one process: where it is mapped, and its file, found at first need.
///
/// Who calls it: StackDecoder and the unwinder, on the decoder's thread.

import LoopLagModel

final class LoadedModule {
    let record: ModuleRecord
    /// The file name alone, as frames show it.
    let name: String
    private let locator: ModuleLocator

    init(record: ModuleRecord, locator: ModuleLocator) {
        self.record = record
        self.locator = locator
        let path = ModuleLocator.plainPath(record.path)
        let last = path.split(separator: "/").last.map(String.init)
        name = record.isVDSO ? "[vdso]" : last ?? "unknown"
    }

    /// nil when no file with this module's identity can be read.
    private(set) lazy var file: ModuleFile? = .open(record, locator: locator)

    var image: ElfImage? { file?.image }
    var frameTable: FrameTable? { file?.frameTable }

    func elfAddress(_ address: UInt64) -> UInt64 { address &- record.loadBias }
    func runtimeAddress(_ address: UInt64) -> UInt64 { address &+ record.loadBias }
}
