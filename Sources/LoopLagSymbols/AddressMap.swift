/// Which module an address of the process belongs to.
///
/// Rebuilt by StackDecoder whenever the module table changes; a lookup is a binary search over plain numbers: unwinding
/// one stack asks some hundred times. Modules that were unmapped answer only where nothing is mapped now: a sample may be
/// older than the table.

import LoopLagModel

struct AddressMap {
    /// Those that are mapped, by address, then those that were.
    let modules: [ModuleRecord]
    private let mapped: Int
    private let starts: [UInt64]
    private let ends: [UInt64]

    init(_ modules: [ModuleRecord]) {
        let known = modules.filter { $0.end > $0.start }
        let current = known.filter(\.isMapped).sorted { $0.start < $1.start }
        mapped = current.count
        self.modules = current + known.filter { !$0.isMapped }
        starts = self.modules.map(\.start)
        ends = self.modules.map(\.end)
    }

    /// Where in `modules` the one stands that an address belongs to.
    func index(at address: UInt64) -> Int? {
        var low = 0
        var high = mapped
        while low < high {
            let middle = (low + high) / 2
            if starts[middle] <= address { low = middle + 1 } else { high = middle }
        }
        // Ranges cover every mapping of a file, so a hole of one may hold another: look a little further down.
        var i = low - 1
        while i >= 0, i >= low - 4 {
            if holds(i, address) { return i }
            i -= 1
        }
        return (mapped..<starts.count).last { holds($0, address) }
    }

    private func holds(_ index: Int, _ address: UInt64) -> Bool {
        address &- starts[index] < ends[index] &- starts[index]
    }
}
