/// The module table of this very process against two other readings of the same facts: /proc/self/maps taken apart by the
/// standard library, and the ELF files themselves.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

@Suite("Module table")
struct ModuleTableTests {
    private struct Module {
        var path: String
        var raw: lag_module
        var buildID: [UInt8]
    }

    private func modules(_ fixture: SegmentFixture) -> [Module] {
        (0..<Int(fixture.header.modules_used)).map { i in
            let raw = fixture.segment.modules[i]
            let bytes = UnsafeBufferPointer(
                start: fixture.segment.strings + Int(raw.path_offset), count: Int(raw.path_bytes))
            let id = withUnsafeBytes(of: raw.build_id) { Array($0.prefix(Int(raw.build_id_bytes))) }
            return Module(path: String(decoding: bytes, as: UTF8.self), raw: raw, buildID: id)
        }
    }

    private func contents(of path: String) throws -> [UInt8] {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        try #require(descriptor >= 0, "\(path)")
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 1 << 16)
        while true {
            let count = read(descriptor, &chunk, chunk.count)
            guard count > 0 else { return bytes }
            bytes.append(contentsOf: chunk[..<count])
        }
    }

    /// NT_GNU_BUILD_ID by way of the file's section headers: the agent goes by the program headers in memory.
    private func buildID(ofFile path: String) throws -> [UInt8]? {
        let bytes = try contents(of: path)
        func word<T: FixedWidthInteger>(_ at: Int, _: T.Type) -> Int {
            guard at >= 0, at + MemoryLayout<T>.size <= bytes.count else { return 0 }
            return bytes.withUnsafeBytes { Int(truncatingIfNeeded: $0.loadUnaligned(fromByteOffset: at, as: T.self)) }
        }
        guard bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { return nil }
        let sections = word(40, UInt64.self)
        for i in 0..<word(60, UInt16.self) {
            let section = sections + i * word(58, UInt16.self)
            guard word(section + 4, UInt32.self) == 7 else { continue }
            var at = word(section + 24, UInt64.self)
            let end = at + word(section + 32, UInt64.self)
            while at + 12 <= end {
                let name = word(at, UInt32.self)
                let value = word(at + 4, UInt32.self)
                let start = at + 12 + (name + 3) / 4 * 4
                if word(at + 8, UInt32.self) == 3, name == 4,
                    bytes[at + 12..<at + 16].elementsEqual([0x47, 0x4e, 0x55, 0])
                {
                    return Array(bytes[start..<start + value])
                }
                at = start + (value + 3) / 4 * 4
            }
        }
        return nil
    }

    @Test("This process's files are all there, with bounds, bias and build ID")
    func ownProcess() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        let isFresh = table.refresh(now: lag_clock_now())
        #expect(isFresh)
        let found = modules(fixture)

        var expected: [String: (low: UInt64, high: UInt64)] = [:]
        var executable: Set<String> = []
        for line in String(decoding: try contents(of: "/proc/self/maps"), as: UTF8.self).split(separator: "\n") {
            let fields = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
            guard fields.count == 6, let slash = fields[5].firstIndex(of: "/") else { continue }
            let bounds = fields[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
            try #require(bounds.count == 2)
            let path = String(fields[5][slash...])
            if fields[1].contains("x") { executable.insert(path) }
            let old = expected[path]
            expected[path] = (min(old?.low ?? bounds[0], bounds[0]), max(old?.high ?? bounds[1], bounds[1]))
        }
        #expect(Set(found.map(\.path)).subtracting(["[vdso]"]) == executable)
        #expect(found.contains { $0.path == "[vdso]" && $0.raw.flags & UInt32(LAG_MODULE_VDSO) != 0 })
        for module in found where module.path != "[vdso]" {
            let bounds = try #require(expected[module.path])
            #expect(module.raw.start == bounds.low && module.raw.end == bounds.high, "\(module.path)")
            #expect(try buildID(ofFile: module.path) ?? [] == module.buildID, "\(module.path)")
            var status = stat()
            #expect(stat(module.path, &status) == 0 && UInt64(status.st_ino) == module.raw.inode)
        }
        // A function's address less the bias is where the loader's own reckoning says it is.
        let address = UInt64(UInt(bitPattern: dlsym(nil, "getpid")))
        let home = try #require(found.first { address >= $0.raw.start && address < $0.raw.end })
        #expect(home.path.contains("libc"))
        #expect(home.raw.load_bias == home.raw.start)
    }

    @Test("A second look adds nothing, and within a second there is none")
    func secondLook() throws {
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        let now = lag_clock_now()
        var answers = [table.refresh(now: now)]
        let used = fixture.header.modules_used
        answers.append(table.refresh(now: now + 1_000_000_000))
        answers.append(table.refresh(now: now + 1_000_000_001))
        #expect(answers == [true, false, true])
        #expect(fixture.header.modules_used == used)
        #expect(modules(fixture).allSatisfy { $0.raw.unmapped_ns == 0 })
    }

    /// Lines about a mapping of this process, whose ELF header the table can read.
    private func parse(_ text: String, into table: inout ModuleTable, now: UInt64) {
        var bytes = Array(text.utf8)
        let count = bytes.count
        bytes.withUnsafeMutableBufferPointer { buffer in
            guard let start = buffer.baseAddress else { return }
            table.parse(start, count: count, now: now)
        }
    }

    private func ownImage() throws -> UInt64 {
        let lines = String(decoding: try contents(of: "/proc/self/maps"), as: UTF8.self).split(separator: "\n")
        let line = try #require(lines.first { $0.contains("libc.so") || $0.contains("libc-") })
        return try #require(UInt64(line.prefix { $0 != "-" }, radix: 16))
    }

    private func hex(_ value: UInt64) -> String { String(value, radix: 16) }

    @Test("Blanks in a path stay, \" (deleted)\" goes, .bss between does not part a file")
    func shapesOfLines() throws {
        let base = try ownImage()
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        let name = "/tmp/my server/bin (x)"
        parse(
            """
            \(hex(base))-\(hex(base + 0x1000)) r--p 00000000 08:01 77                         \(name) (deleted)
            \(hex(base + 0x1000))-\(hex(base + 0x2000)) r-xp 00001000 08:01 77                         \(name) (deleted)
            \(hex(base + 0x2000))-\(hex(base + 0x3000)) rw-p 00000000 00:00 0
            \(hex(base + 0x3000))-\(hex(base + 0x4000)) rw-p 00003000 08:01 77                         \(name) (deleted)
            \(hex(base + 0x4000))-\(hex(base + 0x5000)) rw-p 00000000 00:00 0                          [heap]

            """, into: &table, now: 1)
        let found = modules(fixture)
        try #require(found.count == 1)
        #expect(found[0].path == name)
        #expect(found[0].raw.flags & UInt32(LAG_MODULE_DELETED) != 0)
        #expect(found[0].raw.end == base + 0x4000)
        #expect(found[0].raw.inode == 77 && found[0].raw.device == 8 << 32 | 1)
    }

    @Test("Files without code, without an ELF header, or with an endless path are no modules")
    func noModules() throws {
        let base = try ownImage()
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        let long = "/" + String(repeating: "x", count: 5_000)
        parse(
            """
            \(hex(base))-\(hex(base + 0x1000)) r--p 00000000 08:01 1  /data/only
            10000-11000 r-xp 00000000 08:01 2  /not/mapped
            \(hex(base))-\(hex(base + 0x1000)) r-xp 00000000 08:01 3  \(long)
            \(hex(base))-\(hex(base + 0x1000)) r-xp 00001000 08:01 4  /no/first/page

            """, into: &table, now: 1)
        #expect(modules(fixture).isEmpty)
    }

    @Test("What is unmapped stays, marked; what comes back to its place keeps its entry")
    func unmapping() throws {
        let base = try ownImage()
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        let line = "\(hex(base))-\(hex(base + 0x1000)) r-xp 00000000 08:01 9  /lib/plugin.so\n"
        parse(line, into: &table, now: 1)
        parse("", into: &table, now: 2)
        #expect(modules(fixture).map(\.raw.unmapped_ns) == [2])
        let generation = fixture.header.modules_generation
        parse(line, into: &table, now: 3)
        #expect(modules(fixture).map(\.raw.unmapped_ns) == [0])
        #expect(fixture.header.modules_generation != generation)
        // The same place, another file.
        parse(line.replacing("08:01 9", with: "08:01 10"), into: &table, now: 4)
        #expect(modules(fixture).map(\.raw.unmapped_ns) == [4, 0])
    }

    @Test("A full table says so and stays as it is")
    func full() throws {
        let base = try ownImage()
        let fixture = try SegmentFixture(modules: 3)
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        for inode in 1...5 {
            parse(
                "\(hex(base))-\(hex(base + 0x1000)) r-xp 00000000 08:01 \(inode)  /lib/\(inode).so\n", into: &table,
                now: UInt64(inode))
        }
        #expect(modules(fixture).map(\.path) == ["/lib/1.so", "/lib/2.so", "/lib/3.so"])
        #expect(fixture.header.degraded & UInt64(LAG_DEGRADED_MODULES_FULL) != 0)
    }
}
