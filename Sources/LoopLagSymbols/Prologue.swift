/// How much stack a function takes in its prologue: where its frame pointer must lie above its stack pointer.
///
/// Who calls it: the frame pointer recovery, on the decoder's thread. It decodes the straight-line start of a function
/// (push, sub, and the length of whatever stands between), up to the first call. It refuses to guess: an instruction
/// that it does not know ends the search. Allocation at run time (alloca) comes on top: then the result is only the
/// least distance, and is marked so.

struct Prologue {
    private static let maximumBytes: UInt64 = 192
    private static let maximumScannedBytes: UInt64 = 65536

    /// From the stack pointer at a call up to the saved frame pointer.
    var distance: UInt64
    /// The function moves its stack pointer by an amount that is known only when it runs.
    var isDynamic: Bool

    /// nil when the function sets no frame pointer as far as can be seen.
    ///
    /// - Parameters:
    ///   - start: the function's first byte, an ELF address.
    ///   - end: where the calling instruction ends.
    init?(image: ElfImage, start: UInt64, end: UInt64) {
        guard end > start, let code = image.bytes(at: start, count: min(Self.maximumBytes, end - start))
        else { return nil }
        var at = 0
        var hasFrame = false
        var distance: UInt64 = 0
        while at < code.count {
            let rest = code[at...]
            // push rbp; mov rbp, rsp: from here on rbp stays.
            if rest.starts(with: [0x48, 0x89, 0xe5]) || rest.starts(with: [0x48, 0x8b, 0xec]) {
                hasFrame = true
                distance = 0
                at += 3
                continue
            }
            if rest.starts(with: [0x48, 0x83, 0xec]) || rest.starts(with: [0x48, 0x81, 0xec]) {
                let isByte = code[at + 1] == 0x83
                let length = isByte ? 4 : 7
                guard at + length <= code.count else { break }
                let value =
                    isByte
                    ? Int64(Int8(bitPattern: code[at + 3]))
                    : Int64(
                        Int32(
                            bitPattern: code[(at + 3)..<(at + 7)].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) })
                    )
                // "sub rsp, -128" is how 128 is added; no prologue does that.
                guard value >= 0 else { break }
                distance &+= UInt64(value)
                at += length
                continue
            }
            let first = code[at]
            if (0x50...0x57).contains(first) {
                distance &+= 8
                at += 1
                continue
            }
            if first == 0x41, at + 1 < code.count, (0x50...0x57).contains(code[at + 1]) {
                distance &+= 8
                at += 2
                continue
            }
            guard let length = Instruction.length(code, at) else { break }
            at += length
        }
        guard hasFrame, distance < 1 << 24 else { return nil }
        self.distance = distance
        isDynamic = Self.movesStackPointer(image: image, start: start, end: end)
    }

    /// Looks for `sub rsp, register`, `mov rsp, register` and `and rsp, ...` by their bytes. A chance match costs time,
    /// not correctness.
    private static func movesStackPointer(image: ElfImage, start: UInt64, end: UInt64) -> Bool {
        guard let code = image.bytes(at: start, count: min(maximumScannedBytes, end - start)), code.count > 2 else {
            return true
        }
        for i in 0..<(code.count - 2) where code[i] == 0x48 || code[i] == 0x4c {
            if code[i + 1] == 0x29 || code[i + 1] == 0x89, code[i + 2] & 0xc7 == 0xc4 { return true }
            if code[i + 1] == 0x83 || code[i + 1] == 0x81, code[i + 2] == 0xe4 { return true }
        }
        return false
    }
}

/// Lengths of the x86_64 instructions that compilers put into prologues.
enum Instruction {
    private enum Operand {
        case none
        case modrm(immediate: Int)
        case immediate(Int)
    }

    /// nil for a call, a jump or return that ends straight-line code, and for everything unknown.
    static func length(_ code: [UInt8], _ start: Int) -> Int? {
        var at = start
        var hasOperandPrefix = false
        while at < code.count, [0x66, 0xf2, 0xf3, 0x3e, 0x64].contains(code[at]) {
            if code[at] == 0x66 { hasOperandPrefix = true }
            at += 1
        }
        var isWide = false
        if at < code.count, code[at] & 0xf0 == 0x40 {
            isWide = code[at] & 8 != 0
            at += 1
        }
        guard at < code.count else { return nil }
        let word = hasOperandPrefix ? 2 : 4
        let operand: Operand
        switch code[at] {
        case 0x01, 0x03, 0x09, 0x0b, 0x21, 0x23, 0x29, 0x2b, 0x31, 0x33, 0x38, 0x39, 0x3a, 0x3b, 0x63, 0x84, 0x85,
            0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8d, 0xd1, 0xd3:
            operand = .modrm(immediate: 0)
        case 0x6b, 0x80, 0x83, 0xc0, 0xc1, 0xc6: operand = .modrm(immediate: 1)
        case 0x69, 0x81, 0xc7: operand = .modrm(immediate: word)
        case 0xf6:
            guard at + 1 < code.count else { return nil }
            operand = .modrm(immediate: code[at + 1] & 0x38 == 0 ? 1 : 0)
        case 0xf7:
            guard at + 1 < code.count else { return nil }
            operand = .modrm(immediate: code[at + 1] & 0x38 == 0 ? word : 0)
        case 0xb8...0xbf: operand = .immediate(isWide ? 8 : word)
        case 0xb0...0xb7, 0xa8, 0x3c, 0x70...0x7f: operand = .immediate(1)
        case 0xa9, 0x3d, 0x05, 0x2d, 0x25: operand = .immediate(word)
        case 0x90, 0x98, 0x99: operand = .none
        case 0x0f:
            at += 1
            guard at < code.count else { return nil }
            switch code[at] {
            case 0x10, 0x11, 0x12, 0x13, 0x14, 0x16, 0x17, 0x1e, 0x1f, 0x28, 0x29, 0x2e, 0x2f, 0x40...0x4f,
                0x51...0x6f, 0x7e, 0x7f, 0x90...0x9f, 0xa3, 0xab, 0xaf, 0xb0, 0xb1, 0xb6, 0xb7, 0xbc, 0xbd, 0xbe, 0xbf,
                0xc0, 0xc1, 0xd0...0xfe:
                operand = .modrm(immediate: 0)
            case 0x70, 0xba, 0xc6: operand = .modrm(immediate: 1)
            case 0x80...0x8f: operand = .immediate(4)
            default: return nil
            }
        default: return nil
        }
        at += 1
        switch operand {
        case .none: break
        case .immediate(let count): at += count
        case .modrm(let immediate):
            guard at < code.count else { return nil }
            let mode = code[at] >> 6
            let base = code[at] & 7
            at += 1
            if mode != 3 {
                var displacement = mode == 1 ? 1 : mode == 2 ? 4 : 0
                if base == 4 {
                    guard at < code.count else { return nil }
                    if mode == 0, code[at] & 7 == 5 { displacement = 4 }
                    at += 1
                } else if mode == 0, base == 5 {
                    displacement = 4
                }
                at += displacement
            }
            at += immediate
        }
        return at <= code.count ? at - start : nil
    }
}
