/// Finds and vets the unwind information (CIE and FDE of `.eh_frame`) for an address of one ELF file.
///
/// Who calls it: the unwinder, for libunwind's find_proc_info, and the frame pointer recovery, which needs function
/// starts. Why not libunwind's own search: that believes the file's table, knows no file without `.eh_frame_hdr`, and
/// interprets whatever expression it finds (a signed division of the smallest number kills the process with SIGFPE, a
/// backward branch never ends). So an FDE is handed on only after CallFrameVetting has read all of it.

struct FrameEntry {
    /// ELF address of the FDE itself.
    var address: UInt64
    /// ELF addresses of the code it covers: [start, end).
    var start: UInt64
    var end: UInt64
}

final class FrameTable {
    private static let maximumEntries = 1 << 20
    private static let maximumTableBytes: UInt64 = 64 << 20

    private let image: ElfImage
    /// Sorted by start: code start and FDE address, both ELF addresses.
    private let starts: [UInt64]
    private let entries: [UInt64]
    private var vetted: [UInt64: FrameEntry?] = [:]

    init(image: ElfImage) {
        self.image = image
        var table = Self.readHeader(image)
        if table.isEmpty { table = Self.walk(image) }
        starts = table.map(\.start)
        entries = table.map(\.entry)
    }

    var isEmpty: Bool { starts.isEmpty }

    /// The vetted FDE that covers `address`, an ELF address.
    func entry(covering address: UInt64) -> FrameEntry? {
        var low = 0
        var high = starts.count
        while low < high {
            let middle = (low + high) / 2
            if starts[middle] <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0 else { return nil }
        let fde = entries[low - 1]
        let entry: FrameEntry?
        if let known = vetted[fde] {
            entry = known
        } else {
            entry = CallFrameParser(image: image).vet(fde)
            if vetted.count > 65536 { vetted.removeAll() }
            vetted[fde] = entry
        }
        guard let entry, address &- entry.start < entry.end &- entry.start else { return nil }
        return entry
    }

    /// `.eh_frame_hdr`, in the one form that linkers write: a sorted table of 32-bit offsets from the header.
    private static func readHeader(_ image: ElfImage) -> [(start: UInt64, entry: UInt64)] {
        guard let header = image.segments.first(where: { $0.type == 0x6474_e550 }),
            header.fileSize >= 12, header.fileSize <= maximumTableBytes,
            let bytes = image.read(offset: header.offset, count: header.fileSize)
        else { return [] }
        var cursor = ByteCursor(bytes)
        // Version 1, count as udata4, table as datarel sdata4; the first pointer only has to be skipped.
        guard cursor.u8() == 1, let pointer = cursor.u8(), cursor.u8() == 0x03, cursor.u8() == 0x3b,
            cursor.skip(pointer & 0x0f == 0x0b || pointer & 0x0f == 0x03 ? 4 : 8), let count = cursor.u32()
        else { return [] }
        let usable = min(Int(count), cursor.remaining / 8, maximumEntries)
        var table: [(start: UInt64, entry: UInt64)] = []
        table.reserveCapacity(usable)
        var isSorted = true
        for _ in 0..<usable {
            guard let start = cursor.u32(), let entry = cursor.u32() else { break }
            let code = header.address &+ UInt64(bitPattern: Int64(Int32(bitPattern: start)))
            if let last = table.last, last.start > code { isSorted = false }
            table.append((code, header.address &+ UInt64(bitPattern: Int64(Int32(bitPattern: entry)))))
        }
        if !isSorted { table.sort { $0.start < $1.start } }
        return table
    }

    /// Every FDE of `.eh_frame`, one after the other: for files without a usable header table.
    private static func walk(_ image: ElfImage) -> [(start: UInt64, entry: UInt64)] {
        guard let section = image.section(named: ".eh_frame"),
            let bytes = image.contents(of: section, atMost: maximumTableBytes)
        else { return [] }
        let parser = CallFrameParser(image: image)
        var table: [(start: UInt64, entry: UInt64)] = []
        var cursor = ByteCursor(bytes)
        while table.count < maximumEntries {
            let address = section.address &+ UInt64(cursor.offset)
            guard let length = cursor.u32(), length != 0, length < 0xffff_fff0, let id = cursor.u32(), length >= 4
            else { break }
            if id != 0, let entry = parser.range(of: address) { table.append((entry.start, address)) }
            guard cursor.skip(UInt64(length) - 4) else { break }
        }
        table.sort { $0.start < $1.start }
        return table
    }
}

/// Reads a single CIE and FDE and decides whether libunwind may see them.
struct CallFrameParser {
    let image: ElfImage

    private struct Common {
        var pointerEncoding: UInt8
        var hasAugmentationData: Bool
        var instructions: [UInt8]
    }

    /// The FDE at an ELF address if it is well-formed throughout; nil otherwise.
    func vet(_ address: UInt64) -> FrameEntry? {
        guard let (entry, common, instructions) = parse(address), CallFrameVetting.accepts(common.instructions),
            CallFrameVetting.accepts(instructions)
        else { return nil }
        return entry
    }

    func range(of address: UInt64) -> FrameEntry? {
        parse(address)?.0
    }

    private func record(at address: UInt64) -> [UInt8]? {
        guard let head = image.bytes(at: address, count: 4) else { return nil }
        var cursor = ByteCursor(head)
        // The 64-bit form (0xffffffff) is not written for x86_64; a terminator is 0.
        guard let length = cursor.u32(), length >= 8, length <= 65000 else { return nil }
        return image.bytes(at: address, count: UInt64(length) + 4)
    }

    private func parse(_ address: UInt64) -> (FrameEntry, Common, [UInt8])? {
        guard let bytes = record(at: address) else { return nil }
        var cursor = ByteCursor(bytes, offset: 4)
        guard let back = cursor.u32(), back != 0,
            let common = common(at: address &+ 4 &- UInt64(back)),
            let start = pointer(&cursor, encoding: common.pointerEncoding, recordAddress: address),
            let length = pointer(&cursor, encoding: common.pointerEncoding & 0x0f, recordAddress: address)
        else { return nil }
        let (end, overflow) = start.addingReportingOverflow(length)
        guard !overflow, length > 0 else { return nil }
        if common.hasAugmentationData {
            guard let size = cursor.uleb(), cursor.skip(size) else { return nil }
        }
        guard let instructions = cursor.take(UInt64(cursor.remaining)) else { return nil }
        return (FrameEntry(address: address, start: start, end: end), common, instructions)
    }

    private func common(at address: UInt64) -> Common? {
        guard let bytes = record(at: address) else { return nil }
        var cursor = ByteCursor(bytes, offset: 4)
        guard cursor.u32() == 0, let version = cursor.u8(), version == 1 || version == 3,
            let augmentation = cursor.string(), let codeAlign = cursor.uleb(), codeAlign > 0, codeAlign <= 16,
            let dataAlign = cursor.sleb(), dataAlign != 0, abs(dataAlign) <= 16,
            // x86_64: the return address column is 16.
            version == 1 ? cursor.u8() == 16 : cursor.uleb() == 16
        else { return nil }
        var result = Common(pointerEncoding: 0, hasAugmentationData: false, instructions: [])
        if augmentation.hasPrefix("z") {
            result.hasAugmentationData = true
            guard let size = cursor.uleb(), size <= UInt64(cursor.remaining) else { return nil }
            let end = cursor.offset + Int(size)
            for letter in augmentation.dropFirst() {
                switch letter {
                case "R":
                    guard let encoding = cursor.u8() else { return nil }
                    result.pointerEncoding = encoding
                case "L":
                    guard cursor.u8() != nil else { return nil }
                case "P":
                    guard let encoding = cursor.u8(), encoding & 0x70 != 0x50,
                        pointer(&cursor, encoding: encoding & 0x7f, recordAddress: address) != nil
                    else { return nil }
                case "S": break
                default: return nil
                }
            }
            guard cursor.offset <= end, cursor.skip(UInt64(end - cursor.offset)) else { return nil }
        } else if !augmentation.isEmpty {
            return nil
        }
        guard let instructions = cursor.take(UInt64(cursor.remaining)) else { return nil }
        result.instructions = instructions
        return result
    }

    /// A DWARF pointer (DW_EH_PE_*), absolute or relative to where it stands.
    private func pointer(_ cursor: inout ByteCursor, encoding: UInt8, recordAddress: UInt64) -> UInt64? {
        let place = recordAddress &+ UInt64(cursor.offset)
        let value: UInt64?
        switch encoding & 0x0f {
        case 0x00, 0x04, 0x0c: value = cursor.u64()
        case 0x02: value = cursor.u16().map(UInt64.init)
        case 0x03: value = cursor.u32().map(UInt64.init)
        case 0x0a: value = cursor.u16().map { UInt64(bitPattern: Int64(Int16(bitPattern: $0))) }
        case 0x0b: value = cursor.u32().map { UInt64(bitPattern: Int64(Int32(bitPattern: $0))) }
        default: return nil
        }
        guard let value else { return nil }
        switch encoding & 0xf0 {
        case 0x00: return value
        case 0x10: return value &+ place
        default: return nil
        }
    }
}

/// Call frame instructions that libunwind 1.6 interprets safely, and nothing else.
enum CallFrameVetting {
    private static let maximumRegister: UInt64 = 16
    private static let maximumDepth = 8

    static func accepts(_ instructions: [UInt8]) -> Bool {
        var cursor = ByteCursor(instructions)
        var depth = 0
        while let opcode = cursor.u8() {
            switch opcode {
            case 0x00: break  // nop
            case 0x01: guard cursor.skip(8) else { return false }  // set_loc
            case 0x02: guard cursor.skip(1) else { return false }  // advance_loc1
            case 0x03: guard cursor.skip(2) else { return false }
            case 0x04: guard cursor.skip(4) else { return false }
            case 0x05, 0x0c, 0x14:  // offset_extended, def_cfa, val_offset
                guard register(&cursor), cursor.uleb() != nil else { return false }
            case 0x06, 0x07, 0x08, 0x0d:  // restore_extended, undefined, same_value, def_cfa_register
                guard register(&cursor) else { return false }
            case 0x09: guard register(&cursor), register(&cursor) else { return false }
            case 0x0a:  // remember_state
                depth += 1
                guard depth <= maximumDepth else { return false }
            case 0x0b:  // restore_state
                guard depth > 0 else { return false }
                depth -= 1
            case 0x0e, 0x2e: guard cursor.uleb() != nil else { return false }  // def_cfa_offset, GNU_args_size
            case 0x0f: guard expression(&cursor) else { return false }  // def_cfa_expression
            case 0x10, 0x16: guard register(&cursor), expression(&cursor) else { return false }
            case 0x11, 0x12, 0x15: guard register(&cursor), cursor.sleb() != nil else { return false }
            case 0x13: guard cursor.sleb() != nil else { return false }  // def_cfa_offset_sf
            case 0x40...0x7f: break  // advance_loc
            case 0x80...0xbf:  // offset
                guard UInt64(opcode & 0x3f) <= maximumRegister, cursor.uleb() != nil else { return false }
            case 0xc0...0xff: guard UInt64(opcode & 0x3f) <= maximumRegister else { return false }  // restore
            default: return false
            }
        }
        return true
    }

    private static func register(_ cursor: inout ByteCursor) -> Bool {
        guard let number = cursor.uleb() else { return false }
        return number <= maximumRegister
    }

    /// A DWARF expression of straight-line arithmetic: no division, no branch, no call.
    private static func expression(_ cursor: inout ByteCursor) -> Bool {
        guard let size = cursor.uleb(), size <= 256, let bytes = cursor.take(size) else { return false }
        var cursor = ByteCursor(bytes)
        while let opcode = cursor.u8() {
            switch opcode {
            case 0x03, 0x0e, 0x0f: guard cursor.skip(8) else { return false }  // addr, const8
            case 0x08, 0x09: guard cursor.skip(1) else { return false }
            case 0x0a, 0x0b: guard cursor.skip(2) else { return false }
            case 0x0c, 0x0d: guard cursor.skip(4) else { return false }
            case 0x10, 0x23: guard cursor.uleb() != nil else { return false }  // constu, plus_uconst
            case 0x11: guard cursor.sleb() != nil else { return false }
            case 0x06, 0x12, 0x13, 0x14, 0x16, 0x17: break  // deref, dup, drop, over, swap, rot
            case 0x15, 0x94: guard cursor.skip(1) else { return false }  // pick, deref_size
            // abs, and, minus, mul, neg, not, or, plus, shl, shr, shra, xor, eq...ne
            case 0x19, 0x1a, 0x1c, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x29...0x2e: break
            case 0x30...0x4f: break  // lit
            case 0x70...0x80: guard cursor.sleb() != nil else { return false }  // breg0...breg16
            case 0x50...0x60: break  // reg0...reg16
            case 0x92: guard register(&cursor), cursor.sleb() != nil else { return false }
            case 0x96: break  // nop
            default: return false
            }
        }
        return true
    }
}
