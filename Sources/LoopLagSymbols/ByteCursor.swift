/// A bounds-checked reader over bytes of an ELF file.
///
/// Used by every parser of this module, on the decoder's thread. The bytes come from a file that the measured process
/// controls: a read past the end is nil, never a trap, and no length is believed before it is checked.

struct ByteCursor {
    private let bytes: [UInt8]
    private(set) var offset: Int
    /// One past the last byte that may be read.
    let limit: Int

    init(_ bytes: [UInt8], offset: Int = 0, limit: Int? = nil) {
        self.bytes = bytes
        self.limit = max(0, min(limit ?? bytes.count, bytes.count))
        self.offset = max(0, min(offset, self.limit))
    }

    var remaining: Int { limit - offset }
    var isAtEnd: Bool { offset >= limit }

    mutating func skip(_ count: UInt64) -> Bool {
        guard count <= UInt64(remaining) else { return false }
        offset += Int(count)
        return true
    }

    mutating func u8() -> UInt8? {
        guard offset < limit else { return nil }
        defer { offset += 1 }
        return bytes[offset]
    }

    mutating func u16() -> UInt16? { integer(UInt16.self) }
    mutating func u32() -> UInt32? { integer(UInt32.self) }
    mutating func u64() -> UInt64? { integer(UInt64.self) }

    private mutating func integer<T: FixedWidthInteger>(_: T.Type) -> T? {
        guard MemoryLayout<T>.size <= remaining else { return nil }
        let start = offset
        offset += MemoryLayout<T>.size
        return bytes.withUnsafeBytes { T(littleEndian: $0.loadUnaligned(fromByteOffset: start, as: T.self)) }
    }

    /// An unsigned LEB128 number; bits beyond 64 are refused.
    mutating func uleb() -> UInt64? {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while let byte = u8() {
            guard shift < 64 else { return nil }
            value |= UInt64(byte & 0x7f) << shift
            if byte & 0x80 == 0 { return value }
            shift += 7
        }
        return nil
    }

    mutating func sleb() -> Int64? {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while let byte = u8() {
            guard shift < 64 else { return nil }
            value |= UInt64(byte & 0x7f) << shift
            shift += 7
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0, shift < 64 { value |= ~0 << shift }
                return Int64(bitPattern: value)
            }
        }
        return nil
    }

    /// The bytes up to the next NUL, which is consumed.
    mutating func string() -> String? {
        let start = offset
        while offset < limit {
            if bytes[offset] == 0 {
                defer { offset += 1 }
                return String(decoding: bytes[start..<offset], as: UTF8.self)
            }
            offset += 1
        }
        return nil
    }

    mutating func take(_ count: UInt64) -> [UInt8]? {
        guard count <= UInt64(remaining) else { return nil }
        defer { offset += Int(count) }
        return Array(bytes[offset..<(offset + Int(count))])
    }
}
