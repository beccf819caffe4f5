/// One ELF file: headers, segments, sections, build ID, and its bytes by file offset or by ELF address.
///
/// Who calls it: the unwinder (code and unwind tables), the symbol table, the debug information; on the decoder's
/// thread. The file belongs to the measured process and may be hostile or shrink at any moment: it is never mapped (a
/// truncated mapping is SIGBUS) but read with `pread`, where a short read is nil. It refuses everything that is not a
/// 64-bit little-endian x86_64 executable or shared object.

import Glibc

enum ElfError: Error, Equatable {
    case notReadable(errno: Int32)
    case notRegular
    case notElf
    case unsupported
    case malformed
}

final class ElfImage {
    struct Segment {
        var type: UInt32
        var flags: UInt32
        var offset: UInt64
        var address: UInt64
        var fileSize: UInt64
        var memorySize: UInt64
        var isExecutable: Bool { flags & 1 != 0 }
    }

    struct Section {
        var name: String
        var type: UInt32
        var flags: UInt64
        var address: UInt64
        var offset: UInt64
        var size: UInt64
        var link: UInt32
        var entrySize: UInt64
        var isExecutable: Bool { flags & 4 != 0 }
    }

    private enum Source {
        case file(Int32)
        case memory([UInt8])
    }

    static let chunkBytes: UInt64 = 16384
    /// 16 MiB of cached chunks an image, then the cache starts afresh.
    private static let maximumChunks = 1024
    private static let maximumHeaders = 8192

    private let source: Source
    let size: UInt64
    let device: UInt64
    let inode: UInt64
    /// Who owns the file; seconds since the epoch of its last change.
    let owner: UInt32
    let modified: Int
    /// ET_EXEC or ET_DYN.
    let type: UInt16
    let segments: [Segment]
    let sections: [Section]
    let buildID: [UInt8]
    private let loads: [Segment]
    private let firstAddress: UInt64
    private let memorySize: UInt64
    private var chunks: [UInt64: [UInt8]] = [:]
    private var lastChunk: (index: UInt64, bytes: [UInt8])?

    /// Opens `path` without following it into a device, a pipe or a terminal.
    convenience init(path: String) throws(ElfError) {
        // O_NONBLOCK: a FIFO in the place of a library must not hold us up.
        let fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard fd >= 0 else { throw .notReadable(errno: errno) }
        var status = stat()
        guard fstat(fd, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_size >= 64 else {
            close(fd)
            throw .notRegular
        }
        do {
            try self.init(source: .file(fd), size: UInt64(status.st_size), status: status)
        } catch {
            // The instance never came to be, so `deinit` does not close it.
            close(fd)
            throw error
        }
    }

    /// An ELF file that lies in memory: the vdso, and mutated files under test.
    convenience init(bytes: [UInt8]) throws(ElfError) {
        try self.init(source: .memory(bytes), size: UInt64(bytes.count), status: stat())
    }

    private init(source: Source, size: UInt64, status: stat) throws(ElfError) {
        func bytes(_ offset: UInt64, _ count: UInt64) -> [UInt8]? {
            Self.read(source, offset: offset, count: count, size: size)
        }
        guard let header = bytes(0, 64), header.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { throw .notElf }
        // 64-bit, little-endian, x86_64.
        guard header[4] == 2, header[5] == 1, header[18] == 62, header[19] == 0 else { throw .unsupported }
        var cursor = ByteCursor(header, offset: 16)
        guard let type = cursor.u16(), cursor.skip(14), let programOffset = cursor.u64(),
            let sectionOffset = cursor.u64(), cursor.skip(6), let programEntry = cursor.u16(),
            let programCount = cursor.u16(), let sectionEntry = cursor.u16(), let sectionCount = cursor.u16(),
            let nameIndex = cursor.u16()
        else { throw .malformed }
        guard type == 2 || type == 3 else { throw .unsupported }

        var segments: [Segment] = []
        if programCount > 0 {
            guard programEntry == 56, programCount <= Self.maximumHeaders,
                let table = bytes(programOffset, UInt64(programCount) * 56)
            else { throw .malformed }
            var cursor = ByteCursor(table)
            for _ in 0..<programCount {
                guard let type = cursor.u32(), let flags = cursor.u32(), let offset = cursor.u64(),
                    let address = cursor.u64(), cursor.skip(8), let fileSize = cursor.u64(),
                    let memorySize = cursor.u64(), cursor.skip(8)
                else { throw .malformed }
                segments.append(
                    Segment(
                        type: type, flags: flags, offset: offset, address: address, fileSize: fileSize,
                        memorySize: memorySize))
            }
        }

        // Section headers are optional: a file without them still unwinds through its program headers.
        let sections =
            sectionEntry == 64
            ? Self.readSections(
                offset: sectionOffset, count: UInt64(sectionCount), nameIndex: UInt32(nameIndex), read: bytes) : []

        self.source = source
        self.size = size
        device = UInt64(status.st_dev)
        inode = UInt64(status.st_ino)
        owner = status.st_uid
        modified = status.st_mtim.tv_sec
        self.type = type
        self.segments = segments
        self.sections = sections
        self.loads = segments.filter { $0.type == 1 && $0.fileSize > 0 }.sorted { $0.address < $1.address }
        let loaded = segments.filter { $0.type == 1 && $0.memorySize > 0 }
        let first = loaded.map(\.address).min() ?? 0
        firstAddress = first
        memorySize = loaded.map { $0.address &- first &+ $0.memorySize }.max() ?? 0
        self.buildID = Self.findBuildID(segments: segments, sections: sections, read: bytes)
    }

    deinit {
        if case .file(let fd) = source { close(fd) }
    }

    /// Lends the open file, to libelf; nil for an image in memory.
    func withDescriptor<Result>(_ body: (Int32) -> Result?) -> Result? {
        guard case .file(let fd) = source else { return nil }
        return body(fd)
    }

    // MARK: - bytes

    /// `count` bytes at `offset` of the file, or nil when they are not all there.
    func read(offset: UInt64, count: UInt64) -> [UInt8]? {
        Self.read(source, offset: offset, count: count, size: size)
    }

    func contents(of section: Section, atMost limit: UInt64) -> [UInt8]? {
        // SHT_NOBITS has no bytes; SHF_COMPRESSED is libdw's affair.
        guard section.type != 8, section.flags & 0x800 == 0, section.size <= limit else { return nil }
        return read(offset: section.offset, count: section.size)
    }

    func section(named name: String) -> Section? {
        sections.first { $0.name == name }
    }

    /// Does an ELF address belong to the file's image in memory at all?
    func contains(_ address: UInt64) -> Bool { address &- firstAddress < memorySize }

    func isExecutable(_ address: UInt64) -> Bool {
        guard let load = load(containing: address) else { return false }
        return load.isExecutable
    }

    /// `count` bytes (at most 64 KiB) at an ELF address, all within one segment.
    func bytes(at address: UInt64, count: UInt64) -> [UInt8]? {
        guard count <= 65536, let load = load(containing: address) else { return nil }
        let delta = address &- load.address
        guard count <= load.fileSize &- delta else { return nil }
        let (offset, overflow) = load.offset.addingReportingOverflow(delta)
        guard !overflow else { return nil }
        let start = offset % Self.chunkBytes
        if start + count <= Self.chunkBytes, let chunk = chunk(offset / Self.chunkBytes) {
            guard start + count <= UInt64(chunk.count) else { return nil }
            return Array(chunk[Int(start)..<Int(start + count)])
        }
        return read(offset: offset, count: count)
    }

    /// The little-endian word at an ELF address.
    func word(at address: UInt64) -> UInt64? {
        guard let load = load(containing: address) else { return nil }
        let delta = address &- load.address
        guard load.fileSize &- delta >= 8 else { return nil }
        let (offset, overflow) = load.offset.addingReportingOverflow(delta)
        guard !overflow else { return nil }
        let start = offset % Self.chunkBytes
        if start <= Self.chunkBytes - 8, let chunk = chunk(offset / Self.chunkBytes) {
            guard start + 8 <= UInt64(chunk.count) else { return nil }
            return chunk.withUnsafeBytes {
                UInt64(littleEndian: $0.loadUnaligned(fromByteOffset: Int(start), as: UInt64.self))
            }
        }
        guard let bytes = read(offset: offset, count: 8) else { return nil }
        return bytes.withUnsafeBytes { UInt64(littleEndian: $0.loadUnaligned(as: UInt64.self)) }
    }

    private func load(containing address: UInt64) -> Segment? {
        for load in loads where address &- load.address < load.fileSize { return load }
        return nil
    }

    private func chunk(_ index: UInt64) -> [UInt8]? {
        if let lastChunk, lastChunk.index == index { return lastChunk.bytes }
        if let bytes = chunks[index] {
            lastChunk = (index, bytes)
            return bytes
        }
        let offset = index * Self.chunkBytes
        guard offset < size, let bytes = read(offset: offset, count: min(Self.chunkBytes, size - offset)) else {
            return nil
        }
        if chunks.count >= Self.maximumChunks { chunks.removeAll() }
        chunks[index] = bytes
        lastChunk = (index, bytes)
        return bytes
    }

    private static func read(_ source: Source, offset: UInt64, count: UInt64, size: UInt64) -> [UInt8]? {
        guard offset <= size, count <= size - offset, count <= 1 << 31 else { return nil }
        if count == 0 { return [] }
        switch source {
        case .memory(let bytes):
            return Array(bytes[Int(offset)..<Int(offset + count)])
        case .file(let fd):
            let wanted = Int(count)
            let bytes = [UInt8](unsafeUninitializedCapacity: wanted) { buffer, filled in
                filled = 0
                while filled < wanted {
                    guard let base = buffer.baseAddress else { break }
                    let got = pread(fd, base + filled, wanted - filled, off_t(offset) + off_t(filled))
                    if got < 0 && errno == EINTR { continue }
                    guard got > 0 else { break }
                    filled += got
                }
            }
            return bytes.count == wanted ? bytes : nil
        }
    }

    // MARK: - headers

    private static func readSections(
        offset: UInt64, count: UInt64, nameIndex: UInt32, read: (UInt64, UInt64) -> [UInt8]?
    ) -> [Section] {
        guard offset > 0 else { return [] }
        var count = count
        var nameIndex = nameIndex
        if count == 0 || nameIndex == 0xffff {
            // More than 0xff00 sections: the real numbers stand in section 0.
            guard let first = read(offset, 64) else { return [] }
            var cursor = ByteCursor(first, offset: 32)
            guard let large = cursor.u64(), let link = cursor.u32() else { return [] }
            if count == 0 { count = large }
            if nameIndex == 0xffff { nameIndex = link }
        }
        guard count > 0, count <= UInt64(maximumHeaders), let table = read(offset, count * 64) else { return [] }
        var sections: [Section] = []
        var nameOffsets: [UInt32] = []
        var cursor = ByteCursor(table)
        for _ in 0..<count {
            guard let name = cursor.u32(), let type = cursor.u32(), let flags = cursor.u64(),
                let address = cursor.u64(), let offset = cursor.u64(), let size = cursor.u64(),
                let link = cursor.u32(), cursor.skip(12), let entrySize = cursor.u64()
            else { return [] }
            nameOffsets.append(name)
            sections.append(
                Section(
                    name: "", type: type, flags: flags, address: address, offset: offset, size: size, link: link,
                    entrySize: entrySize))
        }
        guard Int(nameIndex) < sections.count else { return sections }
        let names = sections[Int(nameIndex)]
        guard names.size <= 1 << 20, let bytes = read(names.offset, names.size) else { return sections }
        for i in sections.indices {
            var cursor = ByteCursor(bytes, offset: Int(nameOffsets[i]))
            sections[i].name = cursor.string() ?? ""
        }
        return sections
    }

    private static func findBuildID(
        segments: [Segment], sections: [Section], read: (UInt64, UInt64) -> [UInt8]?
    ) -> [UInt8] {
        for segment in segments where segment.type == 4 && segment.fileSize <= 1 << 16 {
            if let bytes = read(segment.offset, segment.fileSize), let id = buildID(inNotes: bytes) { return id }
        }
        // Separate debug files keep the note's section, but their program headers lie.
        for section in sections where section.type == 7 && section.size <= 1 << 16 {
            if let bytes = read(section.offset, section.size), let id = buildID(inNotes: bytes) { return id }
        }
        return []
    }

    private static func buildID(inNotes bytes: [UInt8]) -> [UInt8]? {
        var cursor = ByteCursor(bytes)
        while let nameSize = cursor.u32(), let size = cursor.u32(), let type = cursor.u32() {
            guard let name = cursor.take(UInt64(nameSize)),
                cursor.skip(UInt64(-Int64(nameSize) & 3)), let value = cursor.take(UInt64(size))
            else { return nil }
            if type == 3, name == [0x47, 0x4e, 0x55, 0], !value.isEmpty, value.count <= 64 { return value }
            guard cursor.skip(UInt64(-Int64(size) & 3)) else { return nil }
        }
        return nil
    }
}
