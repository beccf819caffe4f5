/// Reads CPython's objects as they lie in memory: words, texts, dictionaries, attributes of instances.
///
/// Watchdog (and the starting thread, for the layout). Other threads change these objects meanwhile: every read goes
/// through `lag_safe_read`, every length is bounded, every type is compared before an object is taken for one, and what
/// does not fit is "not known". Nothing here takes the interpreter's lock or a reference.

import CLoopLag

struct CPythonMemory {
    /// Where the text of a compact ASCII string begins; a compact one of another kind has two words more.
    let asciiBytes: UInt64

    @inline(never)
    func word(_ address: UInt64) -> UInt64? {
        var value: UInt64 = 0
        guard address != 0, lag_safe_read(address, &value, 8) == 8 else { return nil }
        return value
    }

    @inline(never)
    func int32(_ address: UInt64) -> Int32? {
        var value: Int32 = 0
        guard address != 0, lag_safe_read(address, &value, 4) == 4 else { return nil }
        return value
    }

    func byte(_ address: UInt64) -> UInt8? {
        var value: UInt8 = 0
        guard address != 0, lag_safe_read(address, &value, 1) == 1 else { return nil }
        return value
    }

    /// The type of the object at `address`.
    func type(_ address: UInt64) -> UInt64? {
        guard address & 7 == 0 else { return nil }
        return word(address &+ 8)
    }

    @inline(never)
    func isA(_ type: UInt64, _ address: UInt64) -> Bool { type != 0 && self.type(address) == type }

    // MARK: - texts

    /// Copies a `str` as UTF-8; the number of bytes, 0 when it is none or empty. Cut at `capacity`, never in a character.
    func text(_ address: UInt64, _ into: UnsafeMutablePointer<UInt8>, capacity: Int) -> Int {
        // Most texts are shorter than what is read with their head.
        var block = Self.emptyBlock
        return withUnsafeMutablePointer(to: &block) { raw in
            let head = UnsafeMutableRawPointer(raw)
            guard address & 7 == 0, address != 0 else { return 0 }
            let had = Int(lag_safe_read(address, head, Self.blockBytes))
            let start = Int(truncatingIfNeeded: asciiBytes)
            guard had >= start, head.load(fromByteOffset: 8, as: UInt64.self) == lag_python_found().pointee.unicode_type
            else { return 0 }
            let length = head.load(fromByteOffset: 16, as: UInt64.self)
            let bits = stateBits(head.load(fromByteOffset: 32, as: UInt32.self))
            guard bits.isCompact, length > 0, length < 1 &<< 24 else { return 0 }
            let wanted = Int(truncatingIfNeeded: length)
            if bits.isASCII {
                let count = wanted < capacity ? wanted : capacity
                let first = had &- start < count ? had &- start : count
                lag_copy(into, head + start, first)
                guard first < count else { return count }
                let rest = UInt64(truncatingIfNeeded: first)
                return first &+ Int(lag_safe_read(address &+ asciiBytes &+ rest, into + first, count &- first))
            }
            return encode(
                address &+ asciiBytes &+ 16 &+ (asciiBytes == 48 ? 8 : 0), wanted, Int(bits.kind), into, capacity)
        }
    }

    private typealias Block = (
        UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64,
        UInt64, UInt64
    )
    private static let blockBytes = MemoryLayout<Block>.size
    private static var emptyBlock: Block { (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) }

    /// The bits behind `interned`, which takes two of them, and from 3.14 on, in some builds, more.
    private func stateBits(_ state: UInt32) -> (kind: UInt32, isCompact: Bool, isASCII: Bool) {
        var rest = state &>> 2
        if rest & 15 == 0 { rest = state &>> 8 }
        if rest & 15 == 0 { rest = state &>> 16 }
        return (rest & 7, rest & 8 != 0, rest & 16 != 0)
    }

    private func encode(
        _ address: UInt64, _ length: Int, _ kind: Int, _ into: UnsafeMutablePointer<UInt8>, _ capacity: Int
    ) -> Int {
        guard kind == 1 || kind == 2 || kind == 4 else { return 0 }
        var used = 0
        var i = 0
        while i < length {
            var raw: UInt32 = 0
            guard lag_safe_read(address &+ UInt64(truncatingIfNeeded: i &* kind), &raw, kind) == kind else {
                return used
            }
            let size = raw < 0x80 ? 1 : (raw < 0x800 ? 2 : (raw < 0x10000 ? 3 : 4))
            guard used &+ size <= capacity, raw < 0x110000, raw & 0xffff_f800 != 0xd800 else { return used }
            switch size {
            case 1: into[used] = UInt8(truncatingIfNeeded: raw)
            case 2:
                into[used] = UInt8(truncatingIfNeeded: 0xc0 | raw &>> 6)
            case 3:
                into[used] = UInt8(truncatingIfNeeded: 0xe0 | raw &>> 12)
                into[used &+ 1] = UInt8(truncatingIfNeeded: 0x80 | raw &>> 6 & 0x3f)
            default:
                into[used] = UInt8(truncatingIfNeeded: 0xf0 | raw &>> 18)
                into[used &+ 1] = UInt8(truncatingIfNeeded: 0x80 | raw &>> 12 & 0x3f)
                into[used &+ 2] = UInt8(truncatingIfNeeded: 0x80 | raw &>> 6 & 0x3f)
            }
            if size > 1 { into[used &+ size &- 1] = UInt8(truncatingIfNeeded: 0x80 | raw & 0x3f) }
            used &+= size
            i &+= 1
        }
        return used
    }

    /// Whether the `str` at `address` is exactly this ASCII text.
    @inline(never)
    func isText(_ address: UInt64, _ text: StaticString) -> Bool {
        var bytes: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0)
        return withUnsafeMutablePointer(to: &bytes) { raw in
            raw.withMemoryRebound(to: UInt8.self, capacity: 48) { buffer in
                let count = self.text(address, buffer, capacity: 48)
                guard count > 0, count < 48 else { return false }
                var parser = ByteParser(buffer, count: count)
                return parser.take(text) && parser.isAtEnd
            }
        }
    }

    /// Whether an object's type has this name.
    @inline(never)
    func isNamed(_ object: UInt64, _ name: StaticString) -> Bool {
        var bytes: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        guard let type = type(object), let at = word(type &+ 24), lag_safe_read(at, &bytes, 31) > 0 else {
            return false
        }
        return withUnsafePointer(to: &bytes) { raw in
            raw.withMemoryRebound(to: UInt8.self, capacity: 32) {
                var parser = ByteParser($0, count: 32)
                return parser.take(name) && parser.peek == 0
            }
        }
    }

    /// An `int` that fits 30 bits.
    func smallInt(_ address: UInt64) -> Int64? {
        guard isA(lag_python_found().pointee.long_type, address), let tag = word(address &+ 16),
            let digit = int32(address &+ 24)
        else { return nil }
        if lag_python_found().pointee.version &>> 16 >= 0x30c {
            // 3.12: three low bits of sign, the number of digits above them.
            guard tag &>> 3 <= 1 else { return nil }
            return tag & 3 == 1 ? 0 : (tag & 3 == 2 ? 0 &- Int64(digit) : Int64(digit))
        }
        if tag == 0 { return 0 }
        return tag == 1 ? Int64(digit) : (tag == UInt64.max ? 0 &- Int64(digit) : nil)
    }

    // MARK: - dictionaries

    /// The entries of a dictionary, one by one, at most `limit`.
    struct Entries {
        private let memory: CPythonMemory
        private var at: UInt64
        private var left: UInt64
        private let stride: UInt64
        private var values: UInt64

        fileprivate init(_ memory: CPythonMemory, at: UInt64, count: UInt64, stride: UInt64, values: UInt64) {
            self.memory = memory
            self.at = at
            left = count
            self.stride = stride
            self.values = values
        }

        /// Key and value; values that are not set are passed over.
        @inline(never)
        mutating func next() -> (key: UInt64, value: UInt64)? {
            while left > 0 {
                left &-= 1
                var words: (UInt64, UInt64, UInt64) = (0, 0, 0)
                let bytes = Int(truncatingIfNeeded: stride)
                guard Int(lag_safe_read(at, &words, bytes)) == bytes else { return nil }
                at &+= stride
                let key = stride == 24 ? words.1 : words.0
                var value = stride == 24 ? words.2 : words.1
                if values != 0 {
                    value = memory.word(values) ?? 0
                    values &+= 8
                }
                if key != 0, value != 0 { return (key, value) }
            }
            return nil
        }

        /// The keys of all that is left, as far as they fit, read in pieces; how many. Not of a split dictionary.
        @inline(never)
        mutating func keys(
            into list: UnsafeMutablePointer<UInt64>, capacity: Int, piece: UnsafeMutablePointer<UInt64>, words: Int
        ) -> Int {
            let width = stride == 24 ? 3 : 2
            let most = stride == 24 ? words / 3 : words / 2
            var found = 0
            while left > 0, most > 0, values == 0, found < capacity {
                let batch = left < UInt64(truncatingIfNeeded: most) ? Int(truncatingIfNeeded: left) : most
                guard Int(lag_safe_read(at, piece, batch &* width &* 8)) == batch &* width &* 8 else { break }
                at &+= UInt64(truncatingIfNeeded: batch) &* stride
                left &-= UInt64(truncatingIfNeeded: batch)
                var i = 0
                while i < batch, found < capacity {
                    let value = piece[i &* width &+ width &- 1]
                    list[found] = piece[i &* width &+ width &- 2]
                    if value != 0, list[found] != 0 { found &+= 1 }
                    i &+= 1
                }
            }
            return found
        }
    }

    func entries(_ dictionary: UInt64, limit: UInt64 = 4096) -> Entries? {
        guard let keys = word(dictionary &+ 32), let values = word(dictionary &+ 40) else { return nil }
        return entries(keys: keys, values: values == 0 ? 0 : values &+ valuesStart, limit: limit)
    }

    /// The first of a split dictionary's values; 3.13 keeps its counts before them.
    private var valuesStart: UInt64 { lag_python_found().pointee.version &>> 16 >= 0x30d ? 8 : 0 }

    private func entries(keys: UInt64, values: UInt64, limit: UInt64) -> Entries? {
        if lag_python_found().pointee.version &>> 16 <= 0x30a {
            guard let size = word(keys &+ 8), let count = word(keys &+ 32), count <= 1 &<< 24 else { return nil }
            let index: UInt64 = size <= 0xff ? 1 : (size <= 0xffff ? 2 : 4)
            return Entries(
                self, at: keys &+ 40 &+ size &* index, count: count < limit ? count : limit, stride: 24, values: values)
        }
        guard let shape = word(keys &+ 8), let count = word(keys &+ 24), count <= 1 &<< 24 else { return nil }
        let indexBytes = shape &>> 8 & 0xff
        let kind = shape &>> 16 & 0xff
        guard indexBytes < 32, kind <= 2 else { return nil }
        return Entries(
            self, at: keys &+ 32 &+ (1 &<< indexBytes), count: count < limit ? count : limit,
            stride: kind == 0 ? 24 : 16, values: values)
    }

    /// The value of a text key in an exact `dict`.
    func value(_ dictionary: UInt64, _ name: StaticString, limit: UInt64 = 4096) -> UInt64? {
        guard isA(lag_python_found().pointee.dict_type, dictionary), var list = entries(dictionary, limit: limit)
        else { return nil }
        while let entry = list.next() {
            if isText(entry.key, name) { return entry.value }
        }
        return nil
    }

    // MARK: - instances

    /// An attribute that lies in an instance's own dictionary, wherever this version keeps that.
    func attribute(_ instance: UInt64, _ name: StaticString, cachedKeys: UInt64) -> UInt64? {
        guard let type = type(instance), let offset = word(type &+ 288), let flags = word(type &+ 168) else {
            return nil
        }
        let minor = lag_python_found().pointee.version &>> 16 & 0xff
        let isManaged = minor >= 11 && flags & (1 &<< 4) != 0
        guard isManaged else {
            guard offset > 0, offset < 4096, let dictionary = word(instance &+ offset) else { return nil }
            return value(dictionary, name)
        }
        var values: UInt64 = 0
        switch minor {
        case 11:
            values = word(instance &- 32) ?? 0
            if values == 0 { return value(word(instance &- 24) ?? 0, name) }
        case 12:
            let either = word(instance &- 24) ?? 0
            guard either & 1 == 1 else { return value(either, name) }
            values = either &+ 1
        default:
            if let dictionary = word(instance &- 24), dictionary != 0 { return value(dictionary, name) }
            guard flags & (1 &<< 2) != 0, let size = word(type &+ 32), size < 4096 else { return nil }
            values = instance &+ size
        }
        guard let keys = word(type &+ cachedKeys),
            var list = entries(keys: keys, values: values &+ valuesStart, limit: 64)
        else { return nil }
        while let entry = list.next() {
            if isText(entry.key, name) { return entry.value }
        }
        return nil
    }
}
