/// The functions of one ELF file by address: a sorted copy of `.symtab`, else of `.dynsym`.
///
/// Who calls it: ModuleSymbols, on the decoder's thread. Only ranges and name offsets are kept (16 bytes a symbol);
/// names are read from the file and demangled when asked for. Nested and overlapping symbols are flattened once: the
/// innermost symbol with a size wins; one without a size reaches to the next symbol, never into another function.

final class SymbolTable {
    private struct Range {
        var start: UInt64
        var length: UInt32
        var name: UInt32
    }

    private static let maximumTableBytes: UInt64 = 512 << 20
    private static let maximumSymbols = 8 << 20

    private let image: ElfImage
    private let names: ElfImage.Section?
    private var ranges: [Range] = []

    /// `image` may be a separate debug file: its symbol table is in the addresses of the file it belongs to.
    init(image: ElfImage) {
        self.image = image
        let table = image.section(named: ".symtab") ?? image.sections.first { $0.type == 2 }
        let dynamic = image.sections.first { $0.type == 11 }
        guard let symbols = [table, dynamic].compactMap({ $0 }).first(where: { $0.size >= 48 && $0.type != 8 }),
            Int(symbols.link) < image.sections.count
        else {
            names = nil
            return
        }
        names = image.sections[Int(symbols.link)]
        ranges = Self.flatten(Self.read(symbols, image: image))
    }

    var isEmpty: Bool { ranges.isEmpty }

    /// The symbol whose code holds `address`, an ELF address.
    func symbol(at address: UInt64) -> (name: String, start: UInt64)? {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].start <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return nil }
        let range = ranges[low - 1]
        guard address &- range.start < UInt64(range.length), let name = name(at: range.name) else { return nil }
        return (name, range.start)
    }

    private func name(at offset: UInt32) -> String? {
        guard let names, UInt64(offset) < names.size else { return nil }
        // Most names are short; a few Swift ones run to thousands of bytes.
        for length: UInt64 in [256, 4096, 65536] {
            let count = min(length, names.size - UInt64(offset))
            let (position, overflow) = names.offset.addingReportingOverflow(UInt64(offset))
            guard !overflow, let bytes = image.read(offset: position, count: count) else { return nil }
            if let end = bytes.firstIndex(of: 0) {
                // Symbol versions (name@@VERSION) are the linker's affair.
                let version = bytes[1..<max(1, end)].firstIndex(of: 0x40) ?? end
                return end == 0 ? nil : String(decoding: bytes[..<version], as: UTF8.self)
            }
        }
        return nil
    }

    private struct Entry {
        var start: UInt64
        var size: UInt64
        var name: UInt32
        /// Which name to show where several stand for the same code: smaller is better.
        var rank: UInt8
        /// One past the end of the section, for symbols without a size.
        var sectionEnd: UInt64
    }

    private static func read(_ table: ElfImage.Section, image: ElfImage) -> [Entry] {
        let sections = image.sections
        // Only for ranking aliases; not kept.
        let names =
            Int(table.link) < sections.count ? image.contents(of: sections[Int(table.link)], atMost: 128 << 20) : nil
        var entries: [Entry] = []
        let count = min(Int(min(table.size, maximumTableBytes) / 24), maximumSymbols)
        entries.reserveCapacity(min(count, 1 << 16))
        // In slices: a symbol table can be larger than all that is kept of it.
        let slice = 65536
        var first = 0
        while first < count {
            let amount = min(slice, count - first)
            let (offset, overflow) = table.offset.addingReportingOverflow(UInt64(first) * 24)
            guard !overflow, let bytes = image.read(offset: offset, count: UInt64(amount) * 24) else { break }
            bytes.withUnsafeBytes { buffer in
                for i in 0..<amount {
                    let at = i * 24
                    let name = UInt32(littleEndian: buffer.loadUnaligned(fromByteOffset: at, as: UInt32.self))
                    let info = buffer[at + 4]
                    let index = UInt16(littleEndian: buffer.loadUnaligned(fromByteOffset: at + 6, as: UInt16.self))
                    let value = UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: at + 8, as: UInt64.self))
                    let size = UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: at + 16, as: UInt64.self))
                    let type = info & 0x0f
                    // STT_FUNC, STT_GNU_IFUNC, and STT_NOTYPE labels of assembly code.
                    guard type == 2 || type == 10 || type == 0, name != 0, index != 0, Int(index) < sections.count
                    else { continue }
                    let section = sections[Int(index)]
                    guard section.isExecutable, value &- section.address < section.size else { continue }
                    let binding = info >> 4
                    // Typed before untyped, `poll` before `__poll`, global before weak before local.
                    let rank =
                        (type == 0 ? 16 : 0) + underscores(names, name) * 4
                        + (binding == 1 ? 0 : binding == 2 ? 1 : 2)
                    entries.append(
                        Entry(
                            start: value, size: min(size, section.size), name: name, rank: rank,
                            sectionEnd: section.address &+ section.size))
                }
            }
            first += amount
        }
        return entries
    }

    /// The number of underscores a name begins with, up to 3.
    private static func underscores(_ names: [UInt8]?, _ offset: UInt32) -> UInt8 {
        guard let names else { return 0 }
        var count: UInt8 = 0
        while count < 3, Int(offset) + Int(count) < names.count, names[Int(offset) + Int(count)] == 0x5f { count += 1 }
        return count
    }

    private static func flatten(_ entries: [Entry]) -> [Range] {
        var entries = entries
        // Outer before inner at the same start; the best name last among equals, so that it wins.
        entries.sort {
            if $0.start != $1.start { return $0.start < $1.start }
            if $0.size != $1.size { return $0.size > $1.size }
            return $0.rank > $1.rank
        }
        var ranges: [Range] = []
        ranges.reserveCapacity(entries.count)
        var open: [(end: UInt64, name: UInt32)] = []
        var cursor: UInt64 = 0
        func emit(to end: UInt64) {
            guard let top = open.last, end > cursor else { return }
            ranges.append(
                Range(start: cursor, length: UInt32(clamping: end - cursor), name: top.name))
        }
        for (i, entry) in entries.enumerated() {
            while let top = open.last, top.end <= entry.start {
                emit(to: top.end)
                cursor = max(cursor, top.end)
                open.removeLast()
            }
            var end = entry.start &+ entry.size
            if entry.size == 0 {
                // A label inside of a function says nothing new.
                if !open.isEmpty { continue }
                var next = i + 1
                while next < entries.count, entries[next].start == entry.start { next += 1 }
                end = next < entries.count ? min(entries[next].start, entry.sectionEnd) : entry.sectionEnd
            }
            guard end > entry.start else { continue }
            emit(to: entry.start)
            cursor = entry.start
            // An alias of exactly the same code replaces the name.
            if let top = open.last, top.end == end, i > 0, entries[i - 1].start == entry.start { open.removeLast() }
            if open.count < 64 { open.append((end, entry.name)) }
        }
        while let top = open.last {
            emit(to: top.end)
            cursor = max(cursor, top.end)
            open.removeLast()
        }
        return ranges
    }
}
