/// The mappings of a running process, and the modules among them, with what the unwinder must know of each.
///
/// Called by `dump` and `doctor`, on the main thread. Needs no agent: build ID and load bias are read from the ELF
/// headers as they lie in the process's memory, so a file that was replaced on disk deceives nobody. The memory is the
/// process's own and may hold anything: every count and address is checked.

import CLoopLagTrace
import Glibc
import LoopLagModel

/// Another process's memory, read without stopping it.
public struct ProcessMemory: Sendable {
    let pid: Int32

    public init(pid: Int32) { self.pid = pid }

    /// As many of `count` bytes as can be read at `address`; empty when none can.
    func bytes(at address: UInt64, count: Int) -> [UInt8] {
        guard count > 0 else { return [] }
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
            let got = lag_trace_read(pid, address, buffer.baseAddress, count)
            filled = max(0, min(got, count))
        }
    }

    /// Why memory cannot be read at `address`; nil when it can.
    public func refusal(at address: UInt64) -> String? {
        var byte: UInt8 = 0
        return lag_trace_read(pid, address, &byte, 1) == 1 ? nil : systemReason(errno)
    }
}

public struct MemoryMap: Sendable {
    struct Mapping: Hashable {
        var start: UInt64
        var end: UInt64
        var offset: UInt64
        var device: UInt64
        var inode: UInt64
        var isExecutable: Bool
        var path: String
    }

    let mappings: [Mapping]

    /// Nothing is known of it.
    public static let empty = MemoryMap(mappings: [])

    /// nil when the process may not be looked into, or has no memory (a zombie, a kernel thread).
    public static func read(pid: Int32) -> MemoryMap? {
        guard let bytes = try? ProcFile.read("/proc/\(pid)/maps", limit: 32 << 20) else { return nil }
        let mappings = parse(bytes)
        return mappings.isEmpty ? nil : MemoryMap(mappings: mappings)
    }

    /// `start-end perms offset dev inode   path`, ascending.
    static func parse(_ bytes: [UInt8]) -> [Mapping] {
        bytes.split(separator: 0x0a).compactMap { line in
            let fields = line.split(separator: 0x20, maxSplits: 5).map { String(decoding: $0, as: UTF8.self) }
            guard fields.count >= 5 else { return nil }
            let range = fields[0].split(separator: "-")
            let device = fields[3].split(separator: ":").map { UInt64($0, radix: 16) ?? 0 }
            guard range.count == 2, let start = UInt64(range[0], radix: 16), let end = UInt64(range[1], radix: 16),
                start < end, let offset = UInt64(fields[2], radix: 16), let inode = UInt64(fields[4])
            else { return nil }
            let path = fields.count > 5 ? String(fields[5].drop { $0 == " " }) : ""
            // As makedev(3) puts them together for small numbers.
            let number = device.count == 2 ? (device[0] & 0xfff) << 8 | device[1] & 0xff | (device[1] & ~0xff) << 12 : 0
            return Mapping(
                start: start, end: end, offset: offset, device: number, inode: inode,
                isExecutable: fields[1].dropFirst(2).first == "x", path: path)
        }
    }

    /// Whether a file with such a name, without its folders, is mapped.
    public func hasFile(_ isWanted: (Substring) -> Bool) -> Bool {
        mappings.contains { mapping in
            guard let slash = mapping.path.lastIndex(of: "/") else { return false }
            return isWanted(mapping.path[mapping.path.index(after: slash)...])
        }
    }

    func mapping(at address: UInt64) -> Mapping? {
        var low = 0
        var high = mappings.count
        while low < high {
            let middle = (low + high) / 2
            if mappings[middle].end > address { high = middle } else { low = middle + 1 }
        }
        guard low < mappings.count, mappings[low].start <= address else { return nil }
        return mappings[low]
    }

    /// Every file of which code is mapped, once.
    public var executableFiles: [String] {
        var seen: Set<String> = []
        return mappings.filter { $0.isExecutable && $0.path.hasPrefix("/") }.map(\.path).filter {
            seen.insert($0).inserted
        }
    }

    /// The mapped ELF files that hold code.
    public func modules(memory: ProcessMemory) -> [ModuleRecord] {
        var result: [ModuleRecord] = []
        for mapping in mappings where mapping.offset == 0 || mapping.path == "[vdso]" {
            let isVDSO = mapping.path == "[vdso]"
            guard isVDSO || mapping.path.hasPrefix("/") else { continue }
            // A small file's later segments can begin in its first page too.
            if let last = result.last, mapping.start < last.end, mapping.start >= last.start { continue }
            guard let header = ElfHeader(memory: memory, at: mapping.start) else { continue }
            let bias = mapping.start &- header.lowest
            let end = bias &+ header.highest
            guard end > mapping.start, end &- mapping.start < 1 << 40 else { continue }
            let own = mappings.filter { $0.start >= mapping.start && $0.start < end && $0.path == mapping.path }
            guard own.contains(where: \.isExecutable) else { continue }
            result.append(
                ModuleRecord(
                    path: mapping.path, buildID: header.buildID(memory: memory, bias: bias), loadBias: bias,
                    start: mapping.start, end: max(end, own.last?.end ?? end),
                    isDeleted: mapping.path.hasSuffix(" (deleted)"), isVDSO: isVDSO, isMapped: true,
                    device: mapping.device, inode: mapping.inode))
        }
        return result
    }
}

/// The program headers of a file in memory.
private struct ElfHeader {
    /// The page of the lowest loaded address, and the end of the highest, as the file counts them.
    var lowest: UInt64 = .max
    var highest: UInt64 = 0
    private var notes: [(address: UInt64, size: UInt64)] = []

    init?(memory: ProcessMemory, at start: UInt64) {
        let head = memory.bytes(at: start, count: 64)
        guard head.count == 64, head.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]) else { return nil }
        let offset = Self.little(head, 32, 8)
        let count = Int(Self.little(head, 56, 2))
        guard Self.little(head, 54, 2) == 56, count > 0, count <= 512, offset < 1 << 32 else { return nil }
        let table = memory.bytes(at: start &+ offset, count: count * 56)
        guard table.count == count * 56 else { return nil }
        for i in 0..<count {
            let at = i * 56
            let address = Self.little(table, at + 16, 8)
            switch Self.little(table, at, 4) {
            case 1:  // PT_LOAD
                lowest = min(lowest, address & ~0xfff)
                highest = max(highest, address &+ Self.little(table, at + 40, 8))
            case 4:  // PT_NOTE
                notes.append((address, Self.little(table, at + 32, 8)))
            default: break
            }
        }
        guard lowest < highest else { return nil }
    }

    /// Empty when the file has none, or its note is not mapped.
    func buildID(memory: ProcessMemory, bias: UInt64) -> [UInt8] {
        for note in notes.prefix(16) {
            let bytes = memory.bytes(at: bias &+ note.address, count: Int(min(note.size, 4096)))
            var at = 0
            while at + 12 <= bytes.count {
                let nameSize = Int(Self.little(bytes, at, 4))
                let size = Int(Self.little(bytes, at + 4, 4))
                let name = at + 12
                guard nameSize <= 4096, size <= 4096 else { break }
                let start = name + (nameSize + 3) & ~3
                guard start + size <= bytes.count else { break }
                // NT_GNU_BUILD_ID
                if Self.little(bytes, at + 8, 4) == 3,
                    bytes[name..<(name + nameSize)].elementsEqual([0x47, 0x4e, 0x55, 0])
                {
                    return Array(bytes[start..<(start + size)])
                }
                at = start + (size + 3) & ~3
            }
        }
        return []
    }

    private static func little(_ bytes: [UInt8], _ at: Int, _ width: Int) -> UInt64 {
        guard at >= 0, at + width <= bytes.count else { return 0 }
        var result: UInt64 = 0
        for i in 0..<width { result |= UInt64(bytes[at + i]) << UInt64(8 * i) }
        return result
    }
}
