/// File, line and inline chain of an address, from the DWARF of one ELF file.
///
/// Who calls it: ModuleFile, on the decoder's thread; nothing is read before the first question. Swift binaries have no
/// `.debug_aranges` and thousands of units, so libdw's own address lookup finds nothing: an index of all units' ranges
/// is built once, the functions of a unit as far as the addresses asked for need them. libdw reads through `read`, never by
/// mapping the file, and its memory is bounded by starting afresh after a number of units.

import CLibdw

struct SourceFrame: Equatable {
    /// The linkage name, else the plain name.
    var function: String?
    var file: String?
    var line: Int?
    var column: Int?
    var isInlined: Bool
}

final class DebugInfo {
    private static let maximumDebugBytes: UInt64 = 768 << 20
    private static let maximumRanges = 4 << 20
    private static let maximumOpenUnits = 192
    private static let maximumInlineDepth = 64
    /// Entries of one unit that are looked at.
    private static let maximumEntries = 2_000_000

    private struct Range {
        var start: UInt64
        var end: UInt64
        /// Offset of the unit's or the function's DIE.
        var die: UInt64
    }

    private let image: ElfImage
    private var elf: OpaquePointer?
    private var dwarf: OpaquePointer?
    private var ranges: [Range] = []
    private var functions: [UInt64: Functions] = [:]

    /// The functions of one unit, as far as they have been read: a big unit has tens of thousands of entries, and the
    /// address asked for is rarely in the last one.
    private struct Functions {
        var ranges: [Range] = []
        /// The next child of the unit; nil once all have been read.
        var next: Dwarf_Die?
        /// How many have been: in a file that lies, the entry after the last can be the first.
        var count = 0
        var isDeep = false
    }
    private let codeStart: UInt64
    private let codeEnd: UInt64

    /// nil when the file has no DWARF, or more than may be read.
    init?(image: ElfImage) {
        guard image.section(named: ".debug_info") != nil || image.section(named: ".zdebug_info") != nil else {
            return nil
        }
        var total: UInt64 = 0
        for section in image.sections where section.name.hasPrefix(".debug") || section.name.hasPrefix(".zdebug") {
            var size = section.size
            if section.flags & 0x800 != 0 {
                // Compressed: what matters is the size that it unfolds to.
                guard let header = image.read(offset: section.offset, count: 24) else { return nil }
                var cursor = ByteCursor(header, offset: 8)
                size = cursor.u64() ?? size
            }
            guard size <= Self.maximumDebugBytes else { return nil }
            total += size
        }
        guard total <= Self.maximumDebugBytes else { return nil }
        let code = image.sections.filter { $0.isExecutable && $0.address > 0 }
        guard let low = code.map(\.address).min(), let high = code.map({ $0.address &+ $0.size }).max() else {
            return nil
        }
        self.image = image
        codeStart = low
        codeEnd = high
        guard openHandles() else { return nil }
        buildIndex()
    }

    deinit { closeHandles() }

    /// The frames at an ELF address, innermost first; the last is the function itself. Empty when nothing is known.
    func frames(at address: UInt64) -> [SourceFrame] {
        guard let unit = Self.find(address, in: ranges) else { return [] }
        if functions.count >= Self.maximumOpenUnits {
            closeHandles()
            functions.removeAll()
        }
        guard dwarf != nil || openHandles() else { return [] }
        var unitDie = Dwarf_Die()
        guard dwarf_offdie(dwarf, unit.die, &unitDie) != nil else { return [] }
        var chain: [Dwarf_Die] = []
        if var function = function(at: address, unit: &unitDie) {
            chain.append(function)
            descend(&function, address, &chain)
        }
        return sourceFrames(chain, unit: &unitDie, address: address)
    }

    // MARK: - handles and index

    private func openHandles() -> Bool {
        elf_version(UInt32(EV_CURRENT))
        // ELF_C_READ, not the mapping kind: the file may be truncated while we read it.
        elf = image.withDescriptor { elf_begin($0, ELF_C_READ, nil) }
        guard let elf else { return false }
        dwarf = dwarf_begin_elf(elf, DWARF_C_READ, nil)
        if dwarf == nil {
            closeHandles()
            return false
        }
        return true
    }

    private func closeHandles() {
        if let dwarf { dwarf_end(dwarf) }
        if let elf { elf_end(elf) }
        dwarf = nil
        elf = nil
    }

    private func buildIndex() {
        var unit: OpaquePointer?
        var next: OpaquePointer?
        var die = Dwarf_Die()
        while ranges.count < Self.maximumRanges,
            dwarf_get_units(dwarf, unit, &next, nil, nil, &die, nil) == 0
        {
            unit = next
            appendRanges(of: &die, to: &ranges)
        }
        ranges.sort { $0.start < $1.start }
    }

    private func appendRanges(of die: inout Dwarf_Die, to list: inout [Range]) {
        let offset = dwarf_dieoffset(&die)
        var base: Dwarf_Addr = 0
        var start: Dwarf_Addr = 0
        var end: Dwarf_Addr = 0
        var position = 0
        while list.count < Self.maximumRanges {
            position = dwarf_ranges(&die, position, &base, &start, &end)
            guard position > 0 else { return }
            // Functions that the linker dropped keep ranges near address 0.
            if end > start, start >= codeStart, end <= codeEnd {
                list.append(Range(start: start, end: end, die: offset))
            }
        }
    }

    private static func find(_ address: UInt64, in ranges: [Range]) -> Range? {
        var low = 0
        var high = ranges.count
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].start <= address { low = middle + 1 } else { high = middle }
        }
        // Ranges of different functions do not overlap, except in files that lie.
        var i = low - 1
        while i >= 0, i >= low - 8 {
            if address < ranges[i].end { return ranges[i] }
            i -= 1
        }
        return nil
    }

    // MARK: - functions

    private func function(at address: UInt64, unit: inout Dwarf_Die) -> Dwarf_Die? {
        let key = dwarf_dieoffset(&unit)
        // Out of the table while it grows, so that its array is not copied.
        var known = functions.removeValue(forKey: key) ?? begun(&unit)
        defer { functions[key] = known }
        var found = known.ranges.first { $0.start <= address && address < $0.end }
        while found == nil, known.next != nil { found = readOne(&known, until: address) }
        if found == nil, !known.isDeep {
            // C++ puts the code of a lambda into a class within a block within a function.
            known.isDeep = true
            known.ranges = []
            var budget = Self.maximumEntries
            collect(&unit, isDeep: true, depth: 0, budget: &budget, into: &known.ranges)
            found = known.ranges.first { $0.start <= address && address < $0.end }
        }
        guard let found else { return nil }
        var die = Dwarf_Die()
        return dwarf_offdie(dwarf, found.die, &die) != nil ? die : nil
    }

    private func begun(_ unit: inout Dwarf_Die) -> Functions {
        var die = Dwarf_Die()
        return Functions(next: dwarf_child(&unit, &die) == 0 ? die : nil)
    }

    /// Reads the next child of the unit; the range that holds the address, if it is there.
    private func readOne(_ known: inout Functions, until address: UInt64) -> Range? {
        guard var die = known.next else { return nil }
        let before = known.ranges.count
        var budget = Self.maximumEntries
        take(&die, isDeep: false, depth: 0, budget: &budget, into: &known.ranges)
        known.count += 1
        known.next = known.count < Self.maximumEntries && lag_dw_advance_to_sibling(&die) == 0 ? die : nil
        return known.ranges[before...].first { $0.start <= address && address < $0.end }
    }

    private func collect(
        _ parent: inout Dwarf_Die, isDeep: Bool, depth: Int, budget: inout Int, into list: inout [Range]
    ) {
        guard depth < 24 else { return }
        var die = Dwarf_Die()
        guard dwarf_child(&parent, &die) == 0 else { return }
        repeat {
            take(&die, isDeep: isDeep, depth: depth, budget: &budget, into: &list)
        } while budget > 0 && lag_dw_advance_to_sibling(&die) == 0
    }

    /// The function that an entry is, or those within what it contains.
    private func take(
        _ die: inout Dwarf_Die, isDeep: Bool, depth: Int, budget: inout Int, into list: inout [Range]
    ) {
        budget -= 1
        switch Int(dwarf_tag(&die)) {
        case DW_TAG_subprogram:
            appendRanges(of: &die, to: &list)
            if isDeep { collect(&die, isDeep: true, depth: depth + 1, budget: &budget, into: &list) }
        case DW_TAG_module, DW_TAG_namespace, DW_TAG_structure_type, DW_TAG_class_type, DW_TAG_enumeration_type,
            DW_TAG_union_type, DW_TAG_interface_type:
            collect(&die, isDeep: isDeep, depth: depth + 1, budget: &budget, into: &list)
        case DW_TAG_lexical_block, DW_TAG_inlined_subroutine:
            if isDeep { collect(&die, isDeep: true, depth: depth + 1, budget: &budget, into: &list) }
        default: break
        }
    }

    /// Appends the inlined calls below `parent` that hold the address, outermost first.
    private func descend(_ parent: inout Dwarf_Die, _ address: UInt64, _ chain: inout [Dwarf_Die], depth: Int = 0) {
        guard depth < Self.maximumInlineDepth else { return }
        var die = Dwarf_Die()
        guard dwarf_child(&parent, &die) == 0 else { return }
        var budget = 100_000
        repeat {
            budget -= 1
            let tag = Int(dwarf_tag(&die))
            guard
                tag == DW_TAG_inlined_subroutine || tag == DW_TAG_lexical_block || tag == DW_TAG_try_block
                    || tag == DW_TAG_catch_block
            else { continue }
            let holds = dwarf_haspc(&die, address)
            if holds > 0 {
                if tag == DW_TAG_inlined_subroutine { chain.append(die) }
                descend(&die, address, &chain, depth: depth + 1)
                return
            }
            // A block without an address range of its own says nothing: look inside.
            if tag == DW_TAG_lexical_block, dwarf_hasattr(&die, UInt32(DW_AT_low_pc)) == 0,
                dwarf_hasattr(&die, UInt32(DW_AT_ranges)) == 0
            {
                let before = chain.count
                descend(&die, address, &chain, depth: depth + 1)
                if chain.count > before { return }
            }
        } while budget > 0 && lag_dw_advance_to_sibling(&die) == 0
    }

    // MARK: - names and lines

    /// - Parameter chain: the function, then the inlined calls inwards.
    private func sourceFrames(_ chain: [Dwarf_Die], unit: inout Dwarf_Die, address: UInt64) -> [SourceFrame] {
        var file: String?
        var line: Int?
        var column: Int?
        if let row = dwarf_getsrc_die(&unit, address) {
            file = dwarf_linesrc(row, nil, nil).map { String(cString: $0) }
            var number: CInt = 0
            if dwarf_lineno(row, &number) == 0 { line = Int(number) }
            if dwarf_linecol(row, &number) == 0 { column = Int(number) }
        }
        var files: OpaquePointer?
        var fileCount = 0
        if chain.count > 1, dwarf_getsrcfiles(&unit, &files, &fileCount) != 0 { files = nil }
        let folder = text(&unit, DW_AT_comp_dir)
        var result: [SourceFrame] = []
        for (i, entry) in chain.enumerated().reversed() {
            var die = entry
            result.append(
                Self.frame(
                    function: name(of: &die), file: file, folder: folder, line: line, column: column,
                    isInlined: i > 0))
            guard i > 0 else { break }
            // Where this inlined call stands is the line of the next frame outwards.
            file = nil
            if let files, let index = number(&die, DW_AT_call_file), index < UInt64(fileCount) {
                file = dwarf_filesrc(files, Int(index), nil, nil).map { String(cString: $0) }
            }
            line = number(&die, DW_AT_call_line).flatMap { Int(exactly: $0) }
            column = number(&die, DW_AT_call_column).flatMap { Int(exactly: $0) }
        }
        if result.isEmpty, file != nil {
            result.append(
                Self.frame(
                    function: nil, file: file, folder: folder, line: line, column: column, isInlined: false))
        }
        return result
    }

    /// Line 0 and `<compiler-generated>` mean that no line of a person's stands behind the code.
    private static func frame(
        function: String?, file: String?, folder: String?, line: Int?, column: Int?, isInlined: Bool
    ) -> SourceFrame {
        guard var path = file, !path.isEmpty, !path.hasSuffix("<compiler-generated>"), !path.hasSuffix("<stdin>") else {
            return SourceFrame(function: function, file: nil, line: nil, column: nil, isInlined: isInlined)
        }
        if !path.hasPrefix("/"), let folder, folder.hasPrefix("/") { path = folder + "/" + path }
        let knownLine = line.flatMap { $0 > 0 ? $0 : nil }
        return SourceFrame(
            function: function, file: SourcePath.normalized(path), line: knownLine,
            column: knownLine == nil ? nil : column.flatMap { $0 > 0 ? $0 : nil }, isInlined: isInlined)
    }

    private func number(_ die: inout Dwarf_Die, _ name: Int) -> UInt64? {
        var attribute = Dwarf_Attribute()
        var value: Dwarf_Word = 0
        guard dwarf_attr(&die, UInt32(name), &attribute) != nil, dwarf_formudata(&attribute, &value) == 0 else {
            return nil
        }
        return value
    }

    private func name(of die: inout Dwarf_Die) -> String? {
        for attribute in [DW_AT_linkage_name, DW_AT_MIPS_linkage_name, DW_AT_name] {
            if let name = text(&die, attribute) { return name }
        }
        return nil
    }

    private func text(_ die: inout Dwarf_Die, _ name: Int) -> String? {
        var attribute = Dwarf_Attribute()
        guard dwarf_attr_integrate(&die, UInt32(name), &attribute) != nil, let text = dwarf_formstring(&attribute)
        else { return nil }
        return String(cString: text)
    }
}

enum SourcePath {
    /// Without `.` and `..` components, as far as the text alone tells.
    static func normalized(_ path: String) -> String {
        guard path.contains("/.") || path.hasPrefix("./") || path.contains("//") else { return path }
        var parts: [Substring] = []
        for part in path.split(separator: "/") where part != "." {
            if part == "..", let last = parts.last, last != ".." { parts.removeLast() } else { parts.append(part) }
        }
        return (path.hasPrefix("/") ? "/" : "") + parts.joined(separator: "/")
    }
}
