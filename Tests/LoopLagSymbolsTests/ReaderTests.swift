import Testing

@testable import LoopLagSymbols

@Suite struct ReaderTests {
    @Test("A cursor reads what is there and refuses the rest")
    func cursor() {
        var cursor = ByteCursor([1, 2, 0, 3, 0, 0, 0, 0xe5, 0x8e, 0x26, 0x7f, 0x61, 0])
        #expect(cursor.u8() == 1 && cursor.u16() == 2 && cursor.u32() == 3)
        #expect(cursor.uleb() == 624_485 && cursor.sleb() == -1 && cursor.string() == "a")
        #expect(cursor.isAtEnd && cursor.u8() == nil && cursor.u64() == nil && cursor.uleb() == nil)
        #expect(!cursor.skip(1) && cursor.skip(0) && !cursor.skip(.max) && cursor.take(.max) == nil)
        var endless = ByteCursor(Array(repeating: 0xff, count: 64))
        #expect(endless.uleb() == nil)
        var unterminated = ByteCursor([0x61, 0x62])
        #expect(unterminated.string() == nil)
    }

    @Test("Call frame programs that could hang or kill libunwind are refused")
    func vetting() {
        #expect(CallFrameVetting.accepts([0x0c, 7, 8, 0x90, 1]))
        // The PLT's: def_cfa_expression with breg7 8; breg16 0; lit15; and; lit11; ge; lit3; shl; plus.
        #expect(
            CallFrameVetting.accepts(
                [0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22]))
        #expect(!CallFrameVetting.accepts([0x0f, 3, 0x31, 0x32, 0x1b]), "division")
        #expect(!CallFrameVetting.accepts([0x0f, 3, 0x2f, 0xfd, 0xff]), "a branch backwards")
        #expect(!CallFrameVetting.accepts([0x0f, 20, 0x31]), "longer than it is")
        #expect(!CallFrameVetting.accepts([0x05, 17, 1]), "no such register")
        #expect(!CallFrameVetting.accepts([0x0b]), "nothing to restore")
        #expect(!CallFrameVetting.accepts(Array(repeating: 0x0a, count: 9)), "remembered too often")
        #expect(!CallFrameVetting.accepts([0x3f]), "unknown")
    }

    @Test("A prologue's distance counts pushes and the reserved bytes")
    func prologue() throws {
        func distance(_ code: [UInt8]) throws -> Prologue? {
            let image = try ElfImage(bytes: Self.executable(code: code))
            return Prologue(image: image, start: 0x1000, end: 0x1000 + UInt64(code.count))
        }
        // endbr64; push rbp; mov rbp, rsp; push r15; push rbx; sub rsp, 0x28; call
        let plain: [UInt8] = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x28, 0xe8, 0, 0, 0, 0,
        ]
        let found = try #require(try distance(plain))
        #expect(found.distance == 16 + 0x28 && !found.isDynamic)
        // ... sub rsp, rax
        let dynamic = try #require(try distance([0x55, 0x48, 0x89, 0xe5, 0x48, 0x29, 0xc4, 0xe8, 0, 0, 0, 0]))
        #expect(dynamic.distance == 0 && dynamic.isDynamic)
        #expect(try distance([0x53, 0x48, 0x83, 0xec, 8, 0xe8, 0, 0, 0, 0]) == nil, "no frame pointer")
    }

    @Test(
        "Instruction lengths",
        arguments: [
            ([0x48, 0x89, 0x7d, 0xf8], 4), ([0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], 9),
            ([0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], 10), ([0x0f, 0x1f, 0x44, 0, 0], 5), ([0xc3], nil),
            ([0xe8, 0, 0, 0, 0], nil), ([0x48, 0x8d, 0x05, 0, 0, 0, 0], 7), ([0x66, 0x81, 0xf9, 1, 2], 5),
            ([0x48, 0x8b], nil), ([], nil),
        ] as [([UInt8], Int?)])
    func lengths(code: [UInt8], expected: Int?) {
        #expect(Instruction.length(code, 0) == expected)
    }

    @Test("Files that lie about their headers are refused, not believed")
    func lyingHeaders() throws {
        let good = Self.executable(code: [0x90])
        #expect(throws: Never.self) { try ElfImage(bytes: good) }
        #expect(throws: ElfError.notElf) { try ElfImage(bytes: []) }
        #expect(throws: ElfError.notElf) { try ElfImage(bytes: Array(good.prefix(63))) }
        var other = good
        other[18] = 3
        #expect(throws: ElfError.unsupported) { try ElfImage(bytes: other) }
        var endless = good
        for i in 32..<40 { endless[i] = 0xff }
        #expect(throws: ElfError.malformed) { try ElfImage(bytes: endless) }
        var sections = good
        for i in 40..<48 { sections[i] = 0xff }
        sections[58] = 64
        sections[60] = 0xff
        #expect(try ElfImage(bytes: sections).sections.isEmpty)
    }

    /// A minimal ELF file with one executable segment at 0x1000.
    static func executable(code: [UInt8]) -> [UInt8] {
        func little(_ value: UInt64, _ count: Int) -> [UInt8] {
            (0..<count).map { UInt8(value >> (8 * UInt64($0)) & 0xff) }
        }
        var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + Array(repeating: 0, count: 9)
        bytes += little(2, 2) + little(62, 2) + little(1, 4) + little(0x1000, 8) + little(64, 8) + little(0, 8)
        bytes +=
            little(0, 4) + little(64, 2) + little(56, 2) + little(1, 2) + little(0, 2) + little(0, 2) + little(0, 2)
        bytes += little(1, 4) + little(5, 4) + little(120, 8) + little(0x1000, 8) + little(0x1000, 8)
        bytes += little(UInt64(code.count), 8) + little(UInt64(code.count), 8) + little(0x1000, 8)
        return bytes + code
    }
}
