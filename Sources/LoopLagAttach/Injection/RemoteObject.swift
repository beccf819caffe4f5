/// Looks up exported functions of an ELF object as it lies in another process's memory.
///
/// Called by the injector before anything is stopped, on any thread. The memory is the process's own and may hold
/// anything: every count is bounded, and an address counts only inside the object. Reading memory instead of the file
/// works in any mount namespace and with a library that was replaced on disk since.

import LoopLagModel

struct RemoteObject {
    let path: String
    let bias: UInt64
    private let range: Range<UInt64>
    private let memory: ProcessMemory
    private let symbols: UInt64
    private let strings: UInt64
    private let stringBytes: UInt64
    private let hash: UInt64
    private let versions: UInt64?

    /// nil when the object's dynamic section makes no sense.
    init?(_ module: ModuleRecord, memory: ProcessMemory) {
        path = module.path
        bias = module.loadBias
        range = module.start..<max(module.end, module.start &+ 1)
        self.memory = memory
        let head = memory.bytes(at: module.start, count: 64)
        guard head.count == 64, head.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]) else { return nil }
        let count = Int(Self.little(head, 56, 2))
        guard Self.little(head, 54, 2) == 56, count > 0, count <= 512 else { return nil }
        let table = memory.bytes(at: module.start &+ Self.little(head, 32, 8), count: count * 56)
        guard table.count == count * 56 else { return nil }
        // PT_DYNAMIC
        guard let at = (0..<count).first(where: { Self.little(table, $0 * 56, 4) == 2 }) else { return nil }
        let size = Int(min(Self.little(table, at * 56 + 40, 8), 16 << 10))
        let dynamic = memory.bytes(at: bias &+ Self.little(table, at * 56 + 16, 8), count: size)
        var entries: [UInt64: UInt64] = [:]
        for entry in stride(from: 0, to: dynamic.count & ~15, by: 16) {
            let tag = Self.little(dynamic, entry, 8)
            if tag == 0 { break }
            entries[tag] = Self.little(dynamic, entry + 8, 8)
        }
        // glibc relocates these addresses in place; one that it left alone is the file's own.
        let bias = self.bias
        let range = self.range
        func address(_ tag: UInt64) -> UInt64? {
            guard let value = entries[tag] else { return nil }
            if range.contains(value) { return value }
            return range.contains(value &+ bias) ? value &+ bias : nil
        }
        // DT_SYMTAB, DT_STRTAB, DT_STRSZ, DT_GNU_HASH, DT_VERSYM
        guard let symbols = address(6), let strings = address(5), let bytes = entries[10],
            let hash = address(0x6fff_fef5), bytes < 1 << 30
        else { return nil }
        self.symbols = symbols
        self.strings = strings
        stringBytes = bytes
        self.hash = hash
        versions = address(0x6fff_fff0)
    }

    /// The run-time address of an exported symbol, the default version first; nil when there is none.
    func address(of name: String) -> UInt64? {
        let head = memory.bytes(at: hash, count: 16)
        guard head.count == 16 else { return nil }
        let buckets = Self.little(head, 0, 4)
        let first = Self.little(head, 4, 4)
        let bloomWords = Self.little(head, 8, 4)
        guard buckets > 0, buckets < 1 << 24, bloomWords < 1 << 20 else { return nil }
        var code: UInt32 = 5381
        for byte in name.utf8 { code = code &* 33 &+ UInt32(byte) }
        let bucketTable = hash &+ 16 &+ bloomWords &* 8
        var index = word(at: bucketTable &+ (UInt64(code) % buckets) &* 4)
        guard index >= first, index > 0 else { return nil }
        let chains = bucketTable &+ buckets &* 4
        var hidden: UInt64?
        for _ in 0..<4096 {
            let link = word(at: chains &+ (index &- first) &* 4)
            if UInt32(truncatingIfNeeded: link) | 1 == code | 1, let found = symbol(index, named: name) {
                // The top bit of a version index marks one that new links do not get.
                let isHidden = versions.map { word(at: $0 &+ index &* 2) & 0x8000 != 0 } ?? false
                if !isHidden { return found }
                hidden = hidden ?? found
            }
            if link & 1 != 0 { break }
            index &+= 1
        }
        return hidden
    }

    /// Where these bytes stand in the object's code.
    func find(_ pattern: [UInt8], in map: MemoryMap) -> UInt64? {
        guard let start = pattern.first else { return nil }
        for mapping in map.mappings
        where mapping.isExecutable && mapping.start >= range.lowerBound && mapping.start < range.upperBound {
            let bytes = memory.bytes(at: mapping.start, count: Int(min(mapping.end &- mapping.start, 16 << 20)))
            var at = 0
            while let next = bytes[at...].firstIndex(of: start), next + pattern.count <= bytes.count {
                if bytes[next..<(next + pattern.count)].elementsEqual(pattern) { return mapping.start &+ UInt64(next) }
                at = next + 1
            }
        }
        return nil
    }

    private func symbol(_ index: UInt64, named name: String) -> UInt64? {
        let entry = memory.bytes(at: symbols &+ index &* 24, count: 24)
        guard entry.count == 24 else { return nil }
        // Defined, and a function or an object: an indirect function's address is that of its resolver.
        let type = entry[4] & 15
        guard Self.little(entry, 6, 2) != 0, type == 1 || type == 2 else { return nil }
        let offset = Self.little(entry, 0, 4)
        let wanted = Array(name.utf8) + [0]
        guard offset < stringBytes, memory.bytes(at: strings &+ offset, count: wanted.count) == wanted else {
            return nil
        }
        let address = bias &+ Self.little(entry, 8, 8)
        return range.contains(address) ? address : nil
    }

    private func word(at address: UInt64) -> UInt64 { Self.little(memory.bytes(at: address, count: 4), 0, 4) }

    static func little(_ bytes: [UInt8], _ at: Int, _ width: Int) -> UInt64 {
        guard at >= 0, at + width <= bytes.count else { return 0 }
        var result: UInt64 = 0
        for i in 0..<width { result |= UInt64(bytes[at + i]) << UInt64(8 * i) }
        return result
    }
}
