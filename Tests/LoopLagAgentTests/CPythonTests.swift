/// The formats of CPython's line tables, held against what the interpreters themselves say; and the reading of layouts.
///
/// The fixtures are the tables of one function as compiled by each version, and the interpreter's own line of every
/// instruction (`LINExCOUNT`, 0 = no line).

import CLoopLag
import Testing

@testable import LoopLagAgent

@Suite("CPython's tables")
struct CPythonTests {
    struct Fixture: Sendable, CustomTestStringConvertible {
        var minor: Int
        var first: Int32
        var table: [UInt8]
        var lines: [UInt32]

        init(_ minor: Int, _ first: Int32, _ hex: String, _ runs: String) {
            self.minor = minor
            self.first = first
            let digits = Array(hex.utf8).map { $0 < 0x3a ? $0 - 0x30 : $0 - 0x57 }
            table = stride(from: 0, to: digits.count - 1, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
            lines = runs.split(separator: " ").flatMap { run -> [UInt32] in
                let parts = run.split(separator: "x").compactMap { UInt32($0) }
                return parts.count == 2 ? Array(repeating: parts[0], count: Int(parts[1])) : []
            }
        }

        var testDescription: String { "3.\(minor)" }
    }

    static let fixtures = [
        Fixture(
            9, 1,
            "00010402080104010201020102ff02ff060502011e010e01020102ff020102ff1a7f001c0a01",
            "2x2 4x4 5x2 6x1 7x1 8x1 7x1 6x3 11x1 12x15 13x7 14x1 15x1 14x1 15x1 14x13 169x5 170x26"),
        Fixture(
            10, 1,
            "04010802040102010201020102ff06ff02051e010e010201020102ff020102ff088002ff007f0a1d100124ff",
            "2x2 4x4 5x2 6x1 7x1 8x1 7x1 6x3 11x1 12x15 13x7 14x1 15x1 14x1 15x1 14x1 0x4 13x1 169x5 170x8 "
                + "169x18"),
        Fixture(
            11, 1,
            "f88000d80c0d8045e01015f0000b0525f0000b05258804d80b0ff0000a0925d80c11d81014d81011f103011112f10303"
                + "0d0e88458845f00a040d25d81015d01931d01931a555a834a15ba45bd01931d11931d41931b021d41934d11034900590"
                + "05f8dd131df000020d25f000020d25f000020d25dd1620d81419f10301171bf40001171bd82024f003011125f8f8f8f8"
                + "f003020d25f8f8f8f57804000a0e886389198c19f0000105299064d80f149064984c984c984c984cd00f28f003010529"
                + "f000010529f000010529f000010529f100010529f400010529f000010529f000010529f000010529f000010529f00001"
                + "0529f000010529f8f8f8f000010529f000010529f000010529f000010529f000010529f000010529",
            "0x1 1x1 2x2 4x4 5x2 6x1 7x1 8x1 7x2 6x4 11x1 12x35 0x1 13x9 14x6 15x1 14x7 15x1 14x1 0x4 13x1 "
                + "0x3 169x16 170x7 169x17 0x3 169x6"),
        Fixture(
            12, 1,
            "f88000d80c0d8045e01015f2000b05258804d90b0fd80c11d81014d81011f103011112f103030d0e8945f00a040d25d8"
                + "1015a455a834a35bd61931a0019a21d21931b021d11934d110349105f0110b0525f44a05000a0e88638b19f000010529"
                + "9064d80f1490649b4cd00f28f703010529f100010529f9f27b04001a32f8dc131df200020d25dc1620d81419f3030117"
                + "1bd82024f003011125fbf003020d25faf77804010529f000010529fa",
            "0x1 1x1 2x2 4x5 5x2 6x1 7x1 8x1 7x2 6x4 11x1 12x32 4x1 169x12 170x7 169x10 0x2 12x3 0x1 13x8 "
                + "14x5 15x1 14x4 15x1 14x1 0x4 13x1 0x3 169x9 0x3"),
        Fixture(
            13, 1,
            "f88000d80c0d8045e310158804de0b0fd80c11d81014d81011f103011112f103030d0e8a45f00a040d25d81015a455a8"
                + "34a45bd31931a15ba0019a21a15bd11931b021d11934d110349205f111001116f44a05000a0e88638c199064d80f149c"
                + "4cd00f28f703000a138919f9f27b04001a32f8dc131df300020d25dc1620d81419f30301171bd82024f003011125fbf0"
                + "03020d25faf77804000a138d19fa",
            "0x1 1x1 2x2 4x5 5x7 6x1 7x1 8x1 7x2 6x5 11x1 12x34 4x2 169x12 170x7 169x10 0x2 12x3 0x1 13x9 "
                + "14x5 15x1 14x4 15x1 14x1 0x4 13x1 0x3 169x14 0x3"),
    ]

    /// Reads one instruction's line, through a buffer so small that every table is read in pieces.
    private func line(_ fixture: Fixture, table: [UInt8], at instruction: Int64) -> CPythonFrames.Line {
        table.withUnsafeBytes { bytes in
            withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 7) { chunk in
                guard let memory = chunk.baseAddress, let start = bytes.baseAddress else { return .none }
                var reader = LineTableBytes(
                    memory: memory, capacity: 7, at: UInt64(UInt(bitPattern: start)), count: UInt64(bytes.count))
                switch fixture.minor {
                case 9: return CPythonLines.notab(&reader, fixture.first, instruction)
                case 10: return CPythonLines.ranges(&reader, fixture.first, instruction)
                default: return CPythonLines.locations(&reader, fixture.first, instruction)
                }
            }
        }
    }

    @Test("Every instruction has the line that the interpreter says", arguments: fixtures)
    func lines(fixture: Fixture) {
        #expect(fixture.lines.count > 30)
        for (index, expected) in fixture.lines.enumerated() {
            let found = line(fixture, table: fixture.table, at: Int64(index) * 2)
            #expect(found == (expected == 0 ? .none : .at(expected)), "instruction \(index)")
        }
    }

    @Test("A table that ends early or holds anything at all gives no trap", arguments: fixtures)
    func hostile(fixture: Fixture) {
        var random = SystemRandomNumberGenerator()
        for length in 0..<fixture.table.count {
            _ = line(fixture, table: Array(fixture.table[..<length]) + [0xff], at: .max)
        }
        for _ in 0..<300 {
            let table = (0..<64).map { _ in UInt8.random(in: 0...255, using: &random) }
            _ = line(fixture, table: table, at: Int64.random(in: -2...(1 << 40), using: &random))
        }
    }

    @Test("Versions that are not known have no layout, and those that are known have one")
    func versions() {
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { empty in
            _ = empty.initializeMemory(as: UInt8.self, repeating: 0)
            let runtime = UInt64(UInt(bitPattern: empty.baseAddress))
            for minor: UInt32 in 0..<32 {
                let layout = CPythonLayout.of(version: 3 << 24 | minor << 16, runtime: runtime)
                // From 3.13 on the interpreter describes itself: without a description there is no layout.
                #expect((layout != nil) == (9...12).contains(minor), "3.\(minor)")
            }
            #expect(CPythonLayout.of(version: 2 << 24 | 7 << 16, runtime: runtime) == nil)
            #expect(CPythonLayout.of(version: 3 << 24 | 11 << 16, runtime: 0) == nil)
        }
    }

    /// How `_PyRuntime` of 3.13.0, 3.14.8 and 3.15.0 begins: the interpreter's own description.
    static let descriptions: [UInt32: String] = [
        13: "283320 608 632 194968 7272 7264 7344 7400 7656 7640 7648 16 7752 0 7768 7760 304 0 8 16 72 152 "
            + "160 232 32 80 8 0 56 72 70 208 112 120 128 136 68 52 96 104 200 16 8 416 24 88 168 32 24 16 40 "
            + "24 16 48 32 40 24 16 32 16 24 40 16 32 64 32 16 40 240 200",
        14: "316616 784 808 225864 7280 7272 7344 7360 7408 7688 7672 7680 16 7784 0 7800 7792 7992 0 832 0 8 "
            + "16 72 152 160 232 32 88 8 0 56 80 74 64 0 216 112 120 128 136 68 52 96 104 208 0 16 8 416 24 88 "
            + "168 40 32 16 40 24 16 200 24 40 32 48 32 40 24 16 32 16 24 40 16 32 64 32 16 40 264 192 160 24 "
            + "72",
        15: "346568 912 936 226240 7272 7264 7336 7352 7400 7592 7576 7584 16 7736 0 7752 7744 7944 0 888 0 8 "
            + "16 72 80 88 96 176 184 256 32 36 40 136 288 0 88 8 0 56 80 74 64 0 216 112 120 128 136 68 52 96 "
            + "104 208 0 16 8 424 24 88 168 32 288 944 888 40 32 16 40 24 16 200 24 40 32 48 32 40 24 16 32 16 "
            + "24 40 16 32 64 32 16 40 56 176 112 120 1112 104 160 24 72",
    ]

    private func words(_ minor: UInt32, says version: UInt32? = nil) -> [UInt64] {
        let numbers = (Self.descriptions[minor] ?? "").split(separator: " ").compactMap { UInt64($0) }
        let head = [0x7970_6775_6265_6478, UInt64(0x0300_00f0 | (version ?? minor) << 16), 0]
        return head + numbers + [UInt64](repeating: 0, count: 512 - numbers.count)
    }

    private func layout(_ minor: UInt32, _ words: [UInt64]) -> CPythonLayout? {
        words.withUnsafeBytes {
            CPythonLayout.of(version: 0x0300_0000 | minor << 16, runtime: UInt64(UInt(bitPattern: $0.baseAddress)))
        }
    }

    @Test("Each interpreter's description of itself is read at its own places")
    func descriptions() throws {
        // offsetof() with that version's headers: thread_id, gc.collecting, imports.modules, co_code_adaptive,
        // asyncio_running_task, gi_iframe, ht_cached_keys, a tuple's first item.
        let expected: [UInt32: [UInt64]] = [
            13: [152, 7600, 7656, 200, 0, 72, 880, 24], 14: [152, 7600, 7688, 208, 872, 72, 880, 32],
            15: [176, 7512, 7592, 208, 1032, 72, 888, 32],
        ]
        for (minor, places) in expected {
            let found = try #require(layout(minor, words(minor)), "3.\(minor)")
            #expect(found.isCertain)
            #expect(
                [
                    found.threadID, found.collecting, found.modules, found.codeStart, found.threadTask,
                    found.generatorFrame, found.cachedKeys, found.tupleItems,
                ] == places, "3.\(minor)")
        }
    }

    @Test("A description is taken only where it fits what is known of its version")
    func doubtfulDescriptions() {
        // Another cookie, another version, a free-threaded build, other places: nothing is believed.
        for (index, value) in [(0, 1), (1, 0x030e_0000), (2, 1), (5, 640), (29, 16), (33, 71), (43, 1 << 20)] {
            var changed = words(13)
            changed[index] = UInt64(value)
            #expect(layout(13, changed) == nil, "word \(index)")
        }
        #expect(layout(14, words(15, says: 14)) == nil)
        #expect(layout(15, words(14, says: 15)) == nil)
    }

    @Test("A version later than all known ones is read like the last, and not believed before the self-check")
    func laterVersion() throws {
        let found = try #require(layout(16, words(15, says: 16)))
        #expect(!found.isCertain)
        #expect(found.threadID == 176 && found.threadTask == 0)
        #expect(layout(16, words(14, says: 16)) == nil)
    }

    @Test("Objects that are none are not read as texts, dictionaries or numbers")
    func objects() {
        let memory = CPythonMemory(asciiBytes: 48)
        for address: UInt64 in [0, 1, 8, 4096, .max, .max - 7, 0x7fff_ffff_f000] {
            #expect(memory.word(address) == nil)
            #expect(!memory.isText(address, "scope"))
            #expect(memory.value(address, "path") == nil)
            #expect(memory.attribute(address, "_name", cachedKeys: 872) == nil)
            #expect(memory.smallInt(address) == nil)
        }
    }
}
