/// Names the linker's PLT stubs, which no symbol table knows: `poll@plt`.
///
/// Who calls it: ModuleFile, for an address that no symbol covers; on the decoder's thread. The stub's jump says which
/// GOT slot it uses, the relocation of that slot says which symbol.

final class StubTable {
    private static let maximumRelocationBytes: UInt64 = 16 << 20

    private let image: ElfImage
    /// GOT slot to index into `.dynsym`, read at first need.
    private lazy var slots: [UInt64: UInt32] = readSlots()

    init(image: ElfImage) { self.image = image }

    func name(at address: UInt64) -> String? {
        guard
            let section = image.sections.first(where: {
                $0.isExecutable && $0.name.hasPrefix(".plt") && address &- $0.address < $0.size
            })
        else { return nil }
        // Stubs are 16 bytes long, in .plt.got 8.
        for length: UInt64 in section.name == ".plt.got" ? [8, 16] : [16] {
            let start = address &- (address &- section.address) % length
            guard let bytes = image.bytes(at: start, count: min(length, section.size &- (start &- section.address))),
                let jump = Stub.jumpOffset(bytes), jump + 6 <= bytes.count
            else { continue }
            let offset = bytes[(jump + 2)..<(jump + 6)].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
            let slot = start &+ UInt64(jump) &+ 6 &+ UInt64(bitPattern: Int64(Int32(bitPattern: offset)))
            if let index = slots[slot], let name = symbolName(index) { return name + "@plt" }
        }
        return nil
    }

    private func readSlots() -> [UInt64: UInt32] {
        var result: [UInt64: UInt32] = [:]
        for section in image.sections where section.type == 4 && section.entrySize == 24 {
            guard let bytes = image.contents(of: section, atMost: Self.maximumRelocationBytes) else { continue }
            var cursor = ByteCursor(bytes)
            while let slot = cursor.u64(), let info = cursor.u64(), cursor.skip(8) {
                // R_X86_64_JUMP_SLOT and R_X86_64_GLOB_DAT.
                if info & 0xffff_ffff == 7 || info & 0xffff_ffff == 6 { result[slot] = UInt32(info >> 32) }
            }
        }
        return result
    }

    private func symbolName(_ index: UInt32) -> String? {
        guard let table = image.sections.first(where: { $0.type == 11 }), Int(table.link) < image.sections.count,
            UInt64(index) < table.size / 24
        else { return nil }
        let names = image.sections[Int(table.link)]
        let (offset, overflow) = table.offset.addingReportingOverflow(UInt64(index) * 24)
        guard !overflow, let entry = image.read(offset: offset, count: 4) else { return nil }
        var cursor = ByteCursor(entry)
        guard let name = cursor.u32(), UInt64(name) < names.size else { return nil }
        let (position, overflowed) = names.offset.addingReportingOverflow(UInt64(name))
        guard !overflowed, let bytes = image.read(offset: position, count: min(512, names.size - UInt64(name))) else {
            return nil
        }
        var text = ByteCursor(bytes)
        return text.string().flatMap { $0.isEmpty ? nil : $0 }
    }
}
