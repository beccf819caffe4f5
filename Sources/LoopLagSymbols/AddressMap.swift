/// Which module an address of the process belongs to.
///
/// Rebuilt by StackDecoder whenever the module table changes; a lookup is a binary search. Modules that were unmapped
/// answer only where nothing is mapped now: a sample may be older than the table.

import LoopLagModel

struct AddressMap {
    private var mapped: [ModuleRecord] = []
    private var unmapped: [ModuleRecord] = []

    init(_ modules: [ModuleRecord]) {
        for module in modules where module.end > module.start {
            if module.isMapped { mapped.append(module) } else { unmapped.append(module) }
        }
        mapped.sort { $0.start < $1.start }
    }

    func module(at address: UInt64) -> ModuleRecord? {
        var low = 0
        var high = mapped.count
        while low < high {
            let middle = (low + high) / 2
            if mapped[middle].start <= address { low = middle + 1 } else { high = middle }
        }
        // Ranges cover every mapping of a file, so a hole of one may hold another: look a little further down.
        var i = low - 1
        while i >= 0, i >= low - 4 {
            let module = mapped[i]
            if address &- module.start < module.end &- module.start { return module }
            i -= 1
        }
        return unmapped.last { address &- $0.start < $0.end &- $0.start }
    }
}
