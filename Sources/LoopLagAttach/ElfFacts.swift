/// What an ELF file on disk says of itself: what it needs, which versions of glibc, and how much a symbolizer will
/// find in it.
///
/// Called by `doctor`, on the main thread. Reads section headers only and takes the file for hostile: counts and
/// offsets are bounded, and what cannot be read is absent. It judges nothing.

import Glibc

public struct ElfFacts {
    struct Section {
        var name: String
        var type: UInt64
        var offset: UInt64
        var size: UInt64
        var link: Int
        var address: UInt64
    }

    let sections: [Section]
    private let file: OpenFile

    /// nil when the file cannot be read, or is no 64-bit little-endian ELF file with section headers.
    public init?(path: String) {
        guard let file = try? OpenFile(path: path), let head = file.bytes(at: 0, count: 64),
            head.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1])
        else { return nil }
        let offset = Self.little(head, 40, 8)
        let count = Int(Self.little(head, 60, 2))
        let names = Int(Self.little(head, 62, 2))
        guard Self.little(head, 58, 2) == 64, count > 0, count <= 8192, names < count,
            let table = file.bytes(at: offset, count: count * 64)
        else { return nil }
        func field(_ i: Int, _ at: Int, _ width: Int) -> UInt64 { Self.little(table, i * 64 + at, width) }
        let nameSize = Int(min(field(names, 32, 8), 1 << 20))
        let nameBytes = file.bytes(at: field(names, 24, 8), count: nameSize) ?? []
        self.file = file
        sections = (0..<count).map { i in
            Section(
                name: Self.string(nameBytes, Int(field(i, 0, 4))), type: field(i, 4, 4), offset: field(i, 24, 8),
                size: field(i, 32, 8), link: Int(field(i, 40, 4)), address: field(i, 16, 8))
        }
    }

    public func has(_ section: String) -> Bool { sections.contains { $0.name == section && $0.type != 8 } }

    /// Function names for a symbolizer, apart from those that the dynamic linker needs.
    public var hasSymbolTable: Bool { has(".symtab") }
    public var hasDebugInfo: Bool { has(".debug_info") || has(".zdebug_info") }
    public var isGo: Bool { has(".go.buildinfo") || has(".note.go.buildid") }
    public var debugLink: String? {
        contents(".gnu_debuglink").map { Self.string($0, 0) }.flatMap { $0.isEmpty ? nil : $0 }
    }

    /// The libraries that it names.
    public var needed: [String] {
        guard let table = sections.first(where: { $0.name == ".dynamic" }), let entries = bytes(table),
            let strings = linked(table)
        else { return [] }
        // DT_NEEDED is 1.
        return stride(from: 0, to: entries.count & ~15, by: 16).filter { Self.little(entries, $0, 8) == 1 }
            .map { Self.string(strings, Int(truncatingIfNeeded: Self.little(entries, $0 + 8, 8))) }
    }

    /// The newest glibc that one of its imports is of, like "2.34".
    public var glibcNeeded: String? { newest(in: ".gnu.version_r") }
    /// The newest glibc whose symbols it has: the version of a libc.so.6.
    public var glibcProvided: String? { newest(in: ".gnu.version_d") }

    /// A 32-bit number that it exports under `name`, as it stands in the file.
    public func exportedNumber(_ name: String) -> UInt32? {
        guard let table = sections.first(where: { $0.name == ".dynsym" }), let symbols = bytes(table),
            let strings = linked(table)
        else { return nil }
        for at in stride(from: 0, through: symbols.count - 24, by: 24)
        where Self.string(strings, Int(Self.little(symbols, at, 4))) == name {
            let address = Self.little(symbols, at + 8, 8)
            guard Self.little(symbols, at + 16, 8) >= 4,
                let home = sections.first(where: {
                    $0.type == 1 && $0.address > 0 && address >= $0.address && address - $0.address < $0.size
                }), let value = file.bytes(at: home.offset &+ (address - home.address), count: 4)
            else { return nil }
            return UInt32(truncatingIfNeeded: Self.little(value, 0, 4))
        }
        return nil
    }

    /// Whether it exports this function, by its hash table: the symbols of a big program are not read.
    func exports(_ name: String) -> Bool {
        guard let hash = sections.first(where: { $0.type == 0x6fff_fff6 }),
            let symbols = sections.first(where: { $0.name == ".dynsym" }), sections.indices.contains(symbols.link)
        else { return false }
        let strings = sections[symbols.link]
        func word(_ at: UInt64) -> UInt64 {
            file.bytes(at: hash.offset &+ at, count: 4).map { Self.little($0, 0, 4) } ?? 0
        }
        let (buckets, first, bloomWords) = (word(0), word(4), word(8))
        guard buckets > 0, buckets < 1 << 24, bloomWords < 1 << 20 else { return false }
        var code: UInt32 = 5381
        for byte in name.utf8 { code = code &* 33 &+ UInt32(byte) }
        let table = 16 &+ bloomWords &* 8
        var index = word(table &+ (UInt64(code) % buckets) &* 4)
        guard index >= first, index > 0 else { return false }
        let wanted = Array(name.utf8) + [0]
        for _ in 0..<4096 {
            let link = word(table &+ buckets &* 4 &+ (index &- first) &* 4)
            if UInt32(truncatingIfNeeded: link) | 1 == code | 1,
                let entry = file.bytes(at: symbols.offset &+ index &* 24, count: 24), Self.little(entry, 6, 2) != 0,
                file.bytes(at: strings.offset &+ Self.little(entry, 0, 4), count: wanted.count) == wanted
            {
                return true
            }
            if link & 1 != 0 { break }
            index &+= 1
        }
        return false
    }

    /// The strings of both version sections hold "GLIBC_2.34" and the like; which is of which is not asked.
    private func newest(in name: String) -> String? {
        guard let table = sections.first(where: { $0.name == name }), let bytes = bytes(table),
            let strings = linked(table)
        else { return nil }
        var best: [Int] = []
        // Both kinds of records are made of words; one of them is the name. A word that is no name of a version is none.
        for at in stride(from: 0, through: bytes.count - 4, by: 4) {
            let text = Self.string(strings, Int(Self.little(bytes, at, 4)))
            guard text.hasPrefix("GLIBC_2") else { continue }
            let version = text.dropFirst(6).split(separator: ".").compactMap { Int($0) }
            if best.lexicographicallyPrecedes(version) { best = version }
        }
        return best.isEmpty ? nil : best.map(String.init).joined(separator: ".")
    }

    private func contents(_ name: String) -> [UInt8]? { sections.first { $0.name == name }.flatMap(bytes) }

    private func linked(_ section: Section) -> [UInt8]? {
        sections.indices.contains(section.link) ? bytes(sections[section.link]) : nil
    }

    private func bytes(_ section: Section) -> [UInt8]? {
        // SHT_NOBITS holds nothing: a separate debug file has many of those.
        guard section.type != 8, section.size > 0, section.size <= 1 << 20 else { return nil }
        return file.bytes(at: section.offset, count: Int(section.size))
    }

    private static func string(_ bytes: [UInt8], _ at: Int) -> String {
        guard bytes.indices.contains(at) else { return "" }
        return String(decoding: bytes[at...].prefix(4096).prefix { $0 != 0 }, as: UTF8.self)
    }

    private static func little(_ bytes: [UInt8], _ at: Int, _ width: Int) -> UInt64 {
        guard at >= 0, at + width <= bytes.count else { return 0 }
        var result: UInt64 = 0
        for i in 0..<width { result |= UInt64(bytes[at + i]) << UInt64(8 * i) }
        return result
    }
}

/// Versions like "2.34" compared by number.
public enum VersionNumber {
    public static func isOlder(_ a: String, than b: String) -> Bool {
        func numbers(_ text: String) -> [Int] { text.split(separator: ".").compactMap { Int($0) } }
        return numbers(a).lexicographicallyPrecedes(numbers(b))
    }
}
