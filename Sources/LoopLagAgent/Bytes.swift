/// Byte-level text for the agent: Embedded Swift has no String work that a host could be given (interpolation costs
/// 20 KB, comparison does not load). Everything is bounded and total: no input makes it trap.

import CLoopLag

/// A cursor over bytes that a file of /proc gave us.
struct ByteParser {
    private let bytes: UnsafePointer<UInt8>
    private(set) var position: Int
    let end: Int

    init(_ bytes: UnsafePointer<UInt8>, count: Int, from start: Int = 0) {
        self.bytes = bytes
        self.end = count > 0 ? count : 0
        self.position = start < 0 ? 0 : (start < self.end ? start : self.end)
    }

    var isAtEnd: Bool { position >= end }
    var peek: UInt8? { position < end ? bytes[position] : nil }

    mutating func next() -> UInt8? {
        guard position < end else { return nil }
        let byte = bytes[position]
        position &+= 1
        return byte
    }

    mutating func skip(_ byte: UInt8) {
        while peek == byte { position &+= 1 }
    }

    /// Moves behind the next `byte`; false (and at the end) when there is none.
    @inline(never)
    mutating func passOver(_ byte: UInt8) -> Bool {
        while let found = next() {
            if found == byte { return true }
        }
        return false
    }

    /// Skips `count` blank-separated fields.
    @inline(never)
    mutating func skipFields(_ count: Int) {
        var left = count
        while left > 0, !isAtEnd {
            skip(UInt8(ascii: " "))
            while let byte = peek, byte != UInt8(ascii: " "), byte != UInt8(ascii: "\n") { position &+= 1 }
            left &-= 1
        }
        skip(UInt8(ascii: " "))
    }

    @inline(never)
    mutating func decimal() -> UInt64? {
        var value: UInt64 = 0
        var digits = 0
        while let byte = peek, byte >= 0x30, byte <= 0x39 {
            value = value &* 10 &+ UInt64(byte &- 0x30)
            digits &+= 1
            position &+= 1
        }
        return digits > 0 && digits < 21 ? value : nil
    }

    /// With or without a leading 0x.
    @inline(never)
    mutating func hexadecimal() -> UInt64? {
        if peek == 0x30, position &+ 1 < end, bytes[position &+ 1] | 0x20 == UInt8(ascii: "x") { position &+= 2 }
        var value: UInt64 = 0
        var digits = 0
        while let byte = peek {
            let digit: UInt8
            switch byte {
            case 0x30...0x39: digit = byte &- 0x30
            case 0x41...0x46: digit = byte &- 0x41 &+ 10
            case 0x61...0x66: digit = byte &- 0x61 &+ 10
            default:
                return digits > 0 && digits <= 16 ? value : nil
            }
            value = value &<< 4 | UInt64(digit)
            digits &+= 1
            position &+= 1
        }
        return digits > 0 && digits <= 16 ? value : nil
    }

    /// Whether the bytes from here on begin with `text`; moves behind it if so.
    @inline(never)
    mutating func take(_ text: StaticString) -> Bool {
        // A static string can be a single scalar without memory; to rule it out here spares a trap below.
        guard text.hasPointerRepresentation else { return false }
        let count = text.utf8CodeUnitCount
        guard end &- position >= count else { return false }
        let wanted = text.utf8Start
        var i = 0
        while i < count {
            if bytes[position &+ i] != wanted[i] { return false }
            i &+= 1
        }
        position &+= count
        return true
    }
}

/// Builds a NUL-terminated text, most often a path, in memory that its owner lends. Past its end it stays cut, and
/// `isComplete` says so.
struct ByteBuilder {
    let start: UnsafeMutablePointer<UInt8>
    let capacity: Int
    private(set) var count = 0
    private(set) var isComplete = true

    init(_ start: UnsafeMutablePointer<UInt8>, capacity: Int) {
        self.start = start
        self.capacity = capacity
        if capacity > 0 { start[0] = 0 }
    }

    mutating func append(_ byte: UInt8) {
        guard count &+ 1 < capacity else {
            isComplete = false
            return
        }
        start[count] = byte
        count &+= 1
        start[count] = 0
    }

    mutating func append(_ text: StaticString) {
        guard text.hasPointerRepresentation else { return }
        append(text.utf8Start, count: text.utf8CodeUnitCount)
    }

    mutating func append(decimal value: UInt64) {
        // Digits come last first. They are collected in a number, whose own digits then come in the order wanted; it
        // holds eighteen, so of a longer value the front is written first, and then nine digits with their zeroes.
        let isLong = value >= 1_000_000_000_000_000_000
        if isLong { append(decimal: value / 1_000_000_000) }
        var rest = isLong ? value % 1_000_000_000 : value
        var turned: UInt64 = 0
        var digits = 0
        while rest > 0 || digits == 0 || (isLong && digits < 9) {
            turned = turned &* 10 &+ rest % 10
            rest /= 10
            digits &+= 1
        }
        while digits > 0 {
            append(UInt8(truncatingIfNeeded: 0x30 &+ turned % 10))
            turned /= 10
            digits &-= 1
        }
    }

    mutating func append(_ bytes: UnsafePointer<UInt8>, count: Int) {
        var i = 0
        while i < count {
            append(bytes[i])
            i &+= 1
        }
    }

    mutating func append(cString: UnsafePointer<CChar>, limit: Int) {
        var i = 0
        while i < limit, cString[i] != 0 {
            append(UInt8(bitPattern: cString[i]))
            i &+= 1
        }
    }

    /// The text as C takes it.
    var path: UnsafePointer<CChar> {
        UnsafeRawPointer(start).assumingMemoryBound(to: CChar.self)
    }
}
