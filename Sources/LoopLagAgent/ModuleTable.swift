/// Which ELF files the host has mapped, with build ID and load bias: what a reader needs to name an address, also after
/// the process has died.
///
/// Watchdog only, from /proc/self/maps and fault-proof reads of our own memory: no loader call, hence no loader lock
/// that a fork could leave held. Cost: 0.1-0.5 ms for some hundred mappings, at most once a second and only when a
/// sample is taken.

import CLoopLag

struct ModuleTable {
    private static let bufferBytes = 32 << 10
    private static let pathBytes = 1024
    private static let elfBytes = 8192

    private let segment: Segment
    private let buffer: UnsafeMutablePointer<UInt8>
    private let path: UnsafeMutablePointer<UInt8>
    private let elf: UnsafeMutableRawPointer
    private var lastScan: UInt64 = 0
    /// The file whose lines are being read, and how much of `path` is its name.
    private var group = Group()
    private var pathCount = 0

    /// One file's mappings, gathered from neighbouring lines.
    private struct Group {
        var start: UInt64 = 0
        var end: UInt64 = 0
        /// Where the file's first page is mapped; 0 = nowhere.
        var base: UInt64 = 0
        var hasBase = false
        var isExecutable = false
        var device: UInt64 = 0
        var inode: UInt64 = 0
        var isVDSO = false
    }

    init?(_ segment: Segment) {
        guard let memory = lag_memory_zeroed(Self.bufferBytes &+ Self.pathBytes &+ Self.elfBytes) else {
            return nil
        }
        self.segment = segment
        buffer = memory.assumingMemoryBound(to: UInt8.self)
        path = buffer + Self.bufferBytes
        elf = memory + Self.bufferBytes + Self.pathBytes
    }

    func release() { lag_memory_free(buffer, Self.bufferBytes &+ Self.pathBytes &+ Self.elfBytes) }

    /// Brings the table up to date unless that was done within the last second; whether it now is.
    mutating func refresh(now: UInt64) -> Bool {
        guard segment.moduleCount > 0 else { return true }
        guard lastScan == 0 || now &- lastScan > 1_000_000_000 else { return false }
        lastScan = now
        let descriptor = lag_file_open("/proc/self/maps")
        guard descriptor >= 0 else { return true }
        defer { lag_file_close(descriptor) }

        group = Group()
        pathCount = 0
        var held = 0
        while true {
            let count = lag_file_next(descriptor, buffer + held, Self.bufferBytes &- held)
            // Half a list says nothing about what is gone.
            if count < 0 { return true }
            if count == 0 { break }
            held &+= count
            let taken = takeLines(buffer, count: held, now)
            held &-= taken
            // A line longer than the buffer: no path is.
            if taken == 0, held >= Self.bufferBytes { return true }
            if taken > 0, held > 0 { buffer.update(from: buffer + taken, count: held) }
        }
        finish(now)
        markUnmapped(now)
        return true
    }

    /// Takes a whole list at once, as `refresh` does piece by piece.
    mutating func parse(_ bytes: UnsafeMutablePointer<UInt8>, count: Int, now: UInt64) {
        group = Group()
        pathCount = 0
        _ = takeLines(bytes, count: count, now)
        finish(now)
        markUnmapped(now)
    }

    /// Takes the complete lines; returns how many bytes they have.
    private mutating func takeLines(_ bytes: UnsafeMutablePointer<UInt8>, count: Int, _ now: UInt64) -> Int {
        var lineStart = 0
        var i = 0
        while i < count {
            if bytes[i] == UInt8(ascii: "\n") {
                take(line: bytes + lineStart, count: i &- lineStart, now)
                lineStart = i &+ 1
            }
            i &+= 1
        }
        return lineStart
    }

    /// `start-end perms offset major:minor inode   path`
    private mutating func take(line: UnsafeMutablePointer<UInt8>, count: Int, _ now: UInt64) {
        var parser = ByteParser(line, count: count)
        guard let start = parser.hexadecimal(), parser.next() == UInt8(ascii: "-"), let end = parser.hexadecimal()
        else { return }
        parser.skip(UInt8(ascii: " "))
        _ = parser.next()
        _ = parser.next()
        let isExecutable = parser.next() == UInt8(ascii: "x")
        _ = parser.next()
        parser.skip(UInt8(ascii: " "))
        guard let offset = parser.hexadecimal() else { return }
        parser.skip(UInt8(ascii: " "))
        let major = parser.hexadecimal() ?? 0
        _ = parser.next()
        let minor = parser.hexadecimal() ?? 0
        parser.skip(UInt8(ascii: " "))
        let inode = parser.decimal() ?? 0
        parser.skip(UInt8(ascii: " "))
        var probe = parser
        let isVDSO = probe.take("[vdso]")
        guard isVDSO || inode != 0 else {
            // Anonymous memory between a file's mappings (its .bss) does not end the file.
            return
        }
        let pathStart = parser.position
        let length = count &- pathStart
        if !isSamePath(line + pathStart, length) || inode != group.inode {
            finish(now)
            group = Group()
            pathCount = length < Self.pathBytes ? length : 0
            if pathCount > 0 { path.update(from: line + pathStart, count: pathCount) }
            group.start = start
            group.device = major &<< 32 | minor
            group.inode = inode
            group.isVDSO = isVDSO
        }
        group.end = end
        if isExecutable { group.isExecutable = true }
        if offset == 0, !group.hasBase {
            group.base = start
            group.hasBase = true
        }
    }

    private func isSamePath(_ bytes: UnsafeMutablePointer<UInt8>, _ count: Int) -> Bool {
        guard count == pathCount else { return false }
        var i = 0
        while i < count {
            if bytes[i] != path[i] { return false }
            i &+= 1
        }
        return true
    }

    /// Enters a file that has code and an ELF header, unless the table has it already.
    private func finish(_ now: UInt64) {
        guard group.isExecutable, group.hasBase, pathCount > 0 else { return }
        let known = Int(segment.header.pointee.modules_used)
        let limit = known < segment.moduleCount ? known : segment.moduleCount
        var i = 0
        while i < limit {
            let entry = segment.modules + i
            if entry.pointee.start == group.start, entry.pointee.inode == group.inode,
                entry.pointee.device == group.device
            {
                // One that comes and goes at the same place keeps its entry.
                if entry.pointee.end != group.end || entry.pointee.unmapped_ns != 0 {
                    entry.pointee.end = group.end
                    entry.pointee.unmapped_ns = 0
                    segment.header.pointee.modules_generation &+= 1
                }
                entry.pointee.seen_ns = now
                return
            }
            i &+= 1
        }
        guard limit < segment.moduleCount else {
            segment.header.pointee.degraded |= UInt64(LAG_DEGRADED_MODULES_FULL)
            return
        }
        var module = lag_module()
        guard describe(group.base, &module) else { return }
        module.start = group.start
        module.end = group.end
        module.device = group.device
        module.inode = group.inode
        module.seen_ns = now
        if group.isVDSO { module.flags |= UInt32(LAG_MODULE_VDSO) }
        var length = pathCount
        if endsWithDeleted(pathCount) {
            module.flags |= UInt32(LAG_MODULE_DELETED)
            length &-= 10
        }
        guard let offset = segment.intern(path, count: length) else {
            segment.header.pointee.degraded |= UInt64(LAG_DEGRADED_MODULES_FULL)
            return
        }
        module.path_offset = offset
        module.path_bytes = UInt32(truncatingIfNeeded: length)
        segment.modules[limit] = module
        lag_store_u32(&segment.header.pointee.modules_used, UInt32(truncatingIfNeeded: limit &+ 1))
        lag_store_u32(
            &segment.header.pointee.modules_generation, segment.header.pointee.modules_generation &+ 1)
    }

    private func endsWithDeleted(_ count: Int) -> Bool {
        guard count > 10 else { return false }
        var tail = ByteParser(path, count: count, from: count &- 10)
        return tail.take(" (deleted)")
    }

    /// A mapping that this scan did not see is gone; its entry stays for older samples.
    private func markUnmapped(_ now: UInt64) {
        var i = 0
        let known = Int(segment.header.pointee.modules_used)
        while i < known, i < segment.moduleCount {
            let entry = segment.modules + i
            if entry.pointee.unmapped_ns == 0, entry.pointee.seen_ns != now {
                entry.pointee.unmapped_ns = now
                segment.header.pointee.modules_generation &+= 1
            }
            i &+= 1
        }
    }

    /// Reads the ELF header, the load bias and the build ID from memory.
    private func describe(_ base: UInt64, _ module: inout lag_module) -> Bool {
        let count = lag_safe_read(base, elf, 4096)
        guard count >= 64, elf.loadUnaligned(as: UInt32.self) == 0x464c_457f else { return false }
        let headersAt = elf.loadUnaligned(fromByteOffset: 32, as: UInt64.self)
        let headerBytes = UInt64(elf.loadUnaligned(fromByteOffset: 54, as: UInt16.self))
        let headerCount = UInt64(elf.loadUnaligned(fromByteOffset: 56, as: UInt16.self))
        guard headerBytes >= 56, headerBytes <= 128, headersAt < 4096, headerCount < 64,
            headersAt &+ headerBytes &* headerCount <= UInt64(truncatingIfNeeded: count)
        else { return false }
        var bias: UInt64 = base
        var foundLoad = false
        var noteAddresses: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        var noteSizes: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        var notes = 0
        var i: UInt64 = 0
        while i < headerCount {
            let at = Int(truncatingIfNeeded: headersAt &+ i &* headerBytes)
            let type = elf.loadUnaligned(fromByteOffset: at, as: UInt32.self)
            let address = elf.loadUnaligned(fromByteOffset: at &+ 16, as: UInt64.self)
            if type == 1, !foundLoad {
                bias = base &- (address & ~4095)
                foundLoad = true
            } else if type == 4, notes < 4 {
                let size = elf.loadUnaligned(fromByteOffset: at &+ 40, as: UInt64.self)
                switch notes {
                case 0: (noteAddresses.0, noteSizes.0) = (address, size)
                case 1: (noteAddresses.1, noteSizes.1) = (address, size)
                case 2: (noteAddresses.2, noteSizes.2) = (address, size)
                default: (noteAddresses.3, noteSizes.3) = (address, size)
                }
                notes &+= 1
            }
            i &+= 1
        }
        guard foundLoad else { return false }
        module.load_bias = bias
        if notes > 0, buildID(bias &+ noteAddresses.0, noteSizes.0, &module) { return true }
        if notes > 1, buildID(bias &+ noteAddresses.1, noteSizes.1, &module) { return true }
        if notes > 2, buildID(bias &+ noteAddresses.2, noteSizes.2, &module) { return true }
        if notes > 3, buildID(bias &+ noteAddresses.3, noteSizes.3, &module) { return true }
        return true
    }

    /// Finds NT_GNU_BUILD_ID (type 3, owner "GNU") in a note segment.
    private func buildID(_ address: UInt64, _ size: UInt64, _ module: inout lag_module) -> Bool {
        let notes = elf + 4096
        let count = Int(truncatingIfNeeded: size < 4096 ? size : 4096)
        guard lag_safe_read(address, notes, count) == count else { return false }
        var at = 0
        while at &+ 16 <= count {
            let nameBytes = Int(notes.loadUnaligned(fromByteOffset: at, as: UInt32.self) & 0xffff)
            let valueBytes = Int(notes.loadUnaligned(fromByteOffset: at &+ 4, as: UInt32.self) & 0xffff)
            let type = notes.loadUnaligned(fromByteOffset: at &+ 8, as: UInt32.self)
            let value = at &+ 12 &+ (nameBytes &+ 3 & ~3)
            if type == 3, nameBytes == 4, value &+ valueBytes <= count,
                notes.loadUnaligned(fromByteOffset: at &+ 12, as: UInt32.self) == 0x0055_4e47
            {
                let kept = valueBytes < 24 ? valueBytes : 24
                withUnsafeMutablePointer(to: &module.build_id) { lag_copy($0, notes + value, kept) }
                module.build_id_bytes = UInt32(truncatingIfNeeded: kept)
                return true
            }
            at = value &+ (valueBytes &+ 3 & ~3)
        }
        return false
    }
}
