/// Reads the call instruction in front of a return address.
///
/// Who calls it: the frame pointer recovery, to tell a true caller from a chance value on the stack; on the decoder's
/// thread. It knows the x86_64 encodings of CALL and of the linker's PLT stubs, and nothing else.

enum CallSite: Equatable {
    /// The code before the address is known and is no call.
    case none
    /// No code is known there: made at run time, or its file cannot be read.
    case unknown
    /// `call target`.
    case direct(UInt64)
    /// `call *...`.
    case indirect

    /// - Parameters:
    ///   - address: a run-time return address.
    ///   - module: the module it lies in.
    static func before(_ address: UInt64, in module: LoadedModule?) -> CallSite {
        guard let module, let image = module.image else { return .unknown }
        let elf = module.elfAddress(address)
        guard elf >= 8, image.isExecutable(elf &- 1), let bytes = image.bytes(at: elf &- 8, count: 8) else {
            return .none
        }
        let isIndirect = endsWithIndirectCall(bytes)
        if bytes[3] == 0xe8 {
            let offset = bytes[4...7].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
            let target = address &+ UInt64(bitPattern: Int64(Int32(bitPattern: offset)))
            // The five bytes could be the tail of a longer indirect call; a target outside of the code says so.
            if image.isExecutable(module.elfAddress(target)) || !isIndirect { return .direct(target) }
        }
        return isIndirect ? .indirect : .none
    }

    /// FF /2 in each of its lengths, ending at the eighth byte.
    private static func endsWithIndirectCall(_ bytes: [UInt8]) -> Bool {
        func operand(_ length: Int) -> (mode: UInt8, base: UInt8)? {
            let at = 8 - length
            guard bytes[at] == 0xff, (bytes[at + 1] >> 3) & 7 == 2 else { return nil }
            return (bytes[at + 1] >> 6, bytes[at + 1] & 7)
        }
        if let (mode, base) = operand(2), mode == 3 || (mode == 0 && base != 4 && base != 5) { return true }
        if let (mode, base) = operand(3), (mode == 0 && base == 4) || (mode == 1 && base != 4) { return true }
        if let (mode, base) = operand(4), mode == 1, base == 4 { return true }
        if let (mode, base) = operand(6), (mode == 0 && base == 5) || (mode == 2 && base != 4) { return true }
        if let (mode, base) = operand(7), base == 4, mode == 2 || (mode == 0 && bytes[3] & 7 == 5) { return true }
        return false
    }

    /// True if the code at a run-time address is a jump through the GOT.
    static func isStub(_ address: UInt64, in module: LoadedModule?) -> Bool {
        guard let module, let bytes = module.image?.bytes(at: module.elfAddress(address), count: 7) else {
            return false
        }
        return Stub.jumpOffset(bytes) != nil
    }
}

/// The linker's stubs: an optional ENDBR64, an optional BND prefix, `jmp *slot(%rip)`.
enum Stub {
    /// Where in `bytes` the FF 25 of the jump stands.
    static func jumpOffset(_ bytes: [UInt8]) -> Int? {
        var at = 0
        if bytes.count >= 4, bytes[0] == 0xf3, bytes[1] == 0x0f, bytes[2] == 0x1e, bytes[3] == 0xfa { at = 4 }
        if at < bytes.count, bytes[at] == 0xf2 { at += 1 }
        guard at + 1 < bytes.count, bytes[at] == 0xff, bytes[at + 1] == 0x25 else { return nil }
        return at
    }
}
