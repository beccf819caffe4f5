import Foundation
import LoopLagModel
import Testing

@testable import LoopLagSymbols

/// Files and stacks that lie: nothing may trap, hang or grow without bound. A failure names its seed.
@Suite(.serialized) struct FuzzTests {
    private struct Generator {
        var state: UInt64

        init(seed: Int) { state = UInt64(seed) &* 0x9e37_79b9_7f4a_7c15 | 1 }

        mutating func next() -> UInt64 {
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return state
        }

        mutating func below(_ limit: Int) -> Int { Int(next() % UInt64(max(1, limit))) }
    }

    /// Changes a few bytes of the chosen sections (or of the headers), and sometimes cuts the file.
    private func mutate(
        _ bytes: [UInt8], _ sections: [ElfImage.Section], prefix: String, _ generator: inout Generator
    ) -> [UInt8] {
        var bytes = bytes
        let chosen = sections.filter { $0.type != 8 && $0.size > 0 && $0.name.hasPrefix(prefix) }
        for _ in 0...generator.below(30) {
            let isHeader = prefix.isEmpty && generator.below(3) == 0
            let section = chosen[generator.below(chosen.count)]
            let at = isHeader ? generator.below(1024) : Int(section.offset) + generator.below(Int(section.size))
            guard at < bytes.count else { continue }
            switch generator.below(4) {
            case 0: bytes[at] = UInt8(truncatingIfNeeded: generator.next())
            case 1: bytes[at] ^= 1 << UInt8(generator.below(8))
            case 2: bytes[at] = 0xff
            default:
                for i in at..<min(at + 8, bytes.count) { bytes[i] = generator.below(2) == 0 ? 0xff : 0x80 }
            }
        }
        if generator.below(16) == 0 { bytes.removeLast(generator.below(bytes.count)) }
        return bytes
    }

    @Test(
        "Mutated ELF and DWARF never trap the readers",
        arguments: ["", ".debug", ".eh_frame", ".dynsym", ".rela", ".note"])
    func files(prefix: String) throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O2", "-g", "-w"])
        let original = [UInt8](try Data(contentsOf: URL(fileURLWithPath: program)))
        let sections = try ElfImage(bytes: original).sections
        let mutated = workshop.folder.appendingPathComponent("mutated").path
        for seed in 1...60 {
            var generator = Generator(seed: seed)
            let bytes = mutate(original, sections, prefix: prefix, &generator)
            // Anew each time: an open file of the round before must not change.
            unlink(mutated)
            try Data(bytes).write(to: URL(fileURLWithPath: mutated))
            guard let image = try? ElfImage(path: mutated) else { continue }
            let table = FrameTable(image: image)
            let symbols = SymbolTable(image: image)
            let stubs = StubTable(image: image)
            let information = DebugInfo(image: image)
            for section in image.sections where section.isExecutable && section.size > 0 {
                for _ in 0..<20 {
                    let address = section.address &+ generator.next() % section.size
                    _ = table.entry(covering: address)
                    _ = symbols.symbol(at: address)
                    _ = stubs.name(at: address)
                    _ = information?.frames(at: address)
                    _ = Prologue(image: image, start: address, end: address &+ 200)
                }
            }
        }
    }

    @Test("Stacks and unwind tables of random bytes end, within bounds")
    func stacks() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O2", "-g", "-w", "-fno-omit-frame-pointer"])
        let frozen = try FrozenProcess(program: program, arguments: ["alloca"], stops: ["leaf"])
        let thread = frozen.threads[0]
        let original = [UInt8](try Data(contentsOf: URL(fileURLWithPath: program)))
        let sections = try ElfImage(bytes: original).sections
        let mutated = workshop.folder.appendingPathComponent("mutated").path
        let clock = ContinuousClock()
        for seed in 1...200 {
            var generator = Generator(seed: seed)
            var modules = frozen.modules
            if seed % 2 == 0, let i = modules.firstIndex(where: { $0.path == program }) {
                unlink(mutated)
                try Data(mutate(original, sections, prefix: ".eh_frame", &generator))
                    .write(to: URL(fileURLWithPath: mutated))
                modules[i].path = mutated
                modules[i].inode = 0
            }
            let decoder = StackDecoder(identity: nil, modules: modules)
            var sample = thread.sample(passive: seed % 3 == 0)
            for _ in 0..<generator.below(200) {
                let at = generator.below(sample.stack.count - 8)
                // Values that lead somewhere: up and down the stack, into code, anywhere.
                let value: UInt64
                switch generator.below(4) {
                case 0: value = sample.stackBase &+ generator.next() % UInt64(sample.stack.count) & ~7
                case 1: value = frozen.modules[0].start &+ generator.next() % 0x4000
                case 2: value = generator.next()
                default: value = sample.stackBase &+ UInt64(at & ~7)
                }
                for i in 0..<8 { sample.stack[at & ~7 | i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i)) }
            }
            for register in 0..<17 where generator.below(6) == 0 { sample.registers[register] = generator.next() }
            if generator.below(8) == 0 { sample.stackBase = .max - UInt64(generator.below(4096)) }
            if generator.below(8) == 0 { sample.registers[7] = .max - 7 }
            let time = clock.measure {
                let decoded = decoder.decode(sample)
                #expect(decoded.frames.count <= Unwinder.maximumFrames * 64, "seed \(seed)")
            }
            #expect(time < .seconds(5), "seed \(seed)")
        }
    }

    @Test("A stack that is a ring of frame pointers ends and is marked truncated")
    func ring() {
        let base: UInt64 = 0x7fff_0000_0000
        var stack = [UInt8](repeating: 0, count: 4096)
        for i in stride(from: 0, to: 4096, by: 16) {
            let next = base &+ UInt64((i + 16) % 4096)
            for k in 0..<8 {
                stack[i + k] = UInt8(truncatingIfNeeded: next >> UInt64(8 * k))
                stack[i + 8 + k] = UInt8(truncatingIfNeeded: 0x4000_0000 >> UInt64(8 * k))
            }
        }
        var registers = [UInt64?](repeating: 0, count: 17)
        registers[16] = 0x4000_0000
        registers[7] = base
        registers[6] = base
        let sample = RawSample(
            position: 0, stallID: 0, loopSlot: 0, tid: 1, time: MonotonicTime(nanoseconds: 0), offset: .zero,
            pause: .zero, method: .signal, threadState: "R", syscallNumber: nil, waitChannel: nil, isTruncated: false,
            noStackReason: nil, registers: registers, stackBase: base, stack: stack)
        let decoded = StackDecoder(identity: nil, modules: []).decode(sample)
        #expect(decoded.isTruncated)
        #expect(decoded.frames.count > 1 && decoded.frames.count <= 260)
    }

    @Test("Hostile mangled names end")
    func names() {
        var generator = Generator(seed: 7)
        let seeds = [
            "$s6Server4MenuV5totalySiSaySSGFTf4nd_n", "_ZN4node5StartEiPPc",
            "$s5block4MenuV5price2of_SiSS_SitFTf4nnd_n",
            "_ZNSt6vectorISsSaISsEE9push_backERKSs",
        ].map { Array($0.utf8) }
        for _ in 0..<3000 {
            var bytes = seeds[generator.below(seeds.count)]
            for _ in 0...generator.below(6) {
                bytes[2 + generator.below(bytes.count - 2)] = UInt8(33 + generator.below(93))
            }
            _ = Demangler.demangle(String(decoding: bytes, as: UTF8.self))
        }
        for text in [
            "<(<(<(", "static static ", "(extension in ", "a.< ", " in in  in ", "closure #", "((((((((((", "::::(",
            "operator", "{{{",
        ] {
            _ = SwiftName.simplify(text)
            _ = CxxName.simplify(text)
        }
    }
}
