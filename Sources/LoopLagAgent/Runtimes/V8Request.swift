/// The request that is being served at this very moment, read from the arguments of node's `parserOnIncoming`: the frame
/// is on the stack exactly as long as the request's handler runs synchronously, so it can never be another one's.
///
/// Watchdog only; reads through V8Memory. Nothing on the stack, nothing found: no request is reported.

import CLoopLag

struct V8Request {
    var method: UInt64
    var path: UInt64
}

extension V8Memory {
    /// Looks through the arguments of a frame for an incoming message.
    func request(inFrame fp: UInt64) -> V8Request? {
        guard layout.has_properties else { return nil }
        // The receiver lies lowest, the arguments above it.
        var index: Int32 = 1
        while index <= 6 {
            if let argument = word(fp, layout.fp_args &+ index &* 8), let found = message(argument) { return found }
            index &+= 1
        }
        return nil
    }

    private func message(_ tagged: UInt64) -> V8Request? {
        guard let object = object(tagged), object.type > layout.not_string_mask & 0xff else { return nil }
        var url: UInt64?
        var original: UInt64?
        var method: UInt64?
        eachOwnProperty(object.tagged) { name, index, map in
            if name.isEqual("url") {
                url = property(object.tagged, index, map)
            } else if name.isEqual("originalUrl") {
                // A router shortens `url` while it serves what is mounted in it.
                original = property(object.tagged, index, map)
            } else if name.isEqual("method") {
                method = property(object.tagged, index, map)
            }
        }
        guard let path = original ?? url, let method, isString(path), isString(method) else { return nil }
        return V8Request(method: method, path: path)
    }

    private func isString(_ tagged: UInt64) -> Bool {
        guard let found = object(tagged) else { return false }
        return found.type & layout.not_string_mask == 0
    }

    private func eachOwnProperty(_ tagged: UInt64, _ body: (V8Name, UInt32, UInt64) -> Void) {
        guard let map = word(tagged &- 1), Self.isObject(map), let bits = word(map &- 1, layout.map_bit_field3 & ~7)
        else { return }
        let field3 = UInt32(truncatingIfNeeded: layout.map_bit_field3 & 4 == 0 ? bits : bits &>> 32)
        guard field3 & (1 &<< layout.dictionary_shift) == 0 else { return }
        let count = (field3 & layout.own_descriptors_mask) &>> layout.own_descriptors_shift
        guard count > 0, count <= 128, let descriptors = field(map, layout.map_descriptors), Self.isObject(descriptors)
        else { return }
        var i: UInt32 = 0
        var place = descriptors &- 1 &+ UInt64(truncatingIfNeeded: Int64(layout.descriptors_header))
        while i < count {
            if let key = word(place), let details = word(place &+ 8), Self.isInteger(details),
                let name = V8Name(self, key)
            {
                let value = UInt32(truncatingIfNeeded: details &>> 32)
                if value & layout.property_location_mask == 0 {
                    body(name, (value & layout.property_index_mask) &>> layout.property_index_shift, map)
                }
            }
            place &+= 24
            i &+= 1
        }
    }

    /// The value of a field property: within the object, or in the array that holds the rest.
    private func property(_ tagged: UInt64, _ index: UInt32, _ map: UInt64) -> UInt64? {
        guard let head = word(map &- 1, layout.map_size_in_words & ~7) else { return nil }
        func byte(_ offset: Int32) -> UInt64 { (head &>> UInt64(truncatingIfNeeded: (offset & 7) &* 8)) & 0xff }
        let size = byte(layout.map_size_in_words)
        let start = byte(layout.map_inobject_start)
        guard size >= start, start > 0 else { return nil }
        let position = UInt64(index)
        if position < size &- start { return word(tagged &- 1 &+ (start &+ position) &* 8) }
        guard let rest = word(tagged &+ 7), Self.isObject(rest) else { return nil }
        return word(rest &- 1 &+ 16 &+ (position &- (size &- start)) &* 8)
    }
}

/// The name of a property, as far as the ones that are looked for are long.
struct V8Name {
    private var bytes: UInt64 = 0
    private var rest: UInt64 = 0
    private let length: UInt64

    /// An internalized name of eight bits a character; nil for anything else or longer.
    init?(_ memory: V8Memory, _ tagged: UInt64) {
        guard V8Memory.isObject(tagged), let lengths = memory.field(tagged, memory.layout.string_length & ~7) else {
            return nil
        }
        length = memory.layout.string_length & 4 == 0 ? lengths & 0xffff_ffff : lengths &>> 32
        guard length > 0, length <= 16, let object = memory.object(tagged),
            object.type & memory.layout.not_string_mask == 0,
            object.type & memory.layout.encoding_mask == memory.layout.one_byte,
            let first = memory.field(tagged, memory.layout.string_chars)
        else { return nil }
        bytes = first
        if length > 8 { rest = memory.field(tagged, memory.layout.string_chars &+ 8) ?? 0 }
    }

    func isEqual(_ text: StaticString) -> Bool {
        guard text.hasPointerRepresentation, UInt64(truncatingIfNeeded: text.utf8CodeUnitCount) == length else {
            return false
        }
        var i: UInt64 = 0
        while i < length {
            let word = i < 8 ? bytes : rest
            let byte = UInt8(truncatingIfNeeded: word &>> ((i & 7) &* 8))
            if byte != text.utf8Start[Int(truncatingIfNeeded: i)] { return false }
            i &+= 1
        }
        return true
    }
}
