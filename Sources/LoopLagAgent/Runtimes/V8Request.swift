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
        guard layout.pointee.has_properties else { return nil }
        // The receiver lies lowest, the arguments above it.
        var index: Int32 = 1
        while index <= 6 {
            if let argument = word(fp, layout.pointee.fp_args &+ index &* 8), let found = message(argument) {
                return found
            }
            index &+= 1
        }
        return nil
    }

    private func message(_ tagged: UInt64) -> V8Request? {
        guard let object = object(tagged), object.type > layout.pointee.not_string_mask & 0xff,
            let map = word(object.tagged &- 1), Self.isObject(map),
            let bits = word(map &- 1, layout.pointee.map_bit_field3 & ~7)
        else { return nil }
        let field3 = UInt32(truncatingIfNeeded: layout.pointee.map_bit_field3 & 4 == 0 ? bits : bits &>> 32)
        guard field3 & (1 &<< (layout.pointee.dictionary_shift & 31)) == 0 else { return nil }
        let count = (field3 & layout.pointee.own_descriptors_mask) &>> (layout.pointee.own_descriptors_shift & 31)
        guard count > 0, count <= 128, let descriptors = field(map, layout.pointee.map_descriptors),
            Self.isObject(descriptors)
        else { return nil }
        // A router shortens `url` while it serves what is mounted in it: the original one comes first.
        var url: UInt64?
        var original: UInt64?
        var method: UInt64?
        var i: UInt32 = 0
        var place = descriptors &- 1 &+ UInt64(truncatingIfNeeded: Int64(layout.pointee.descriptors_header))
        while i < count {
            if let key = word(place), let details = word(place &+ 8), Self.isInteger(details) {
                let value = UInt32(truncatingIfNeeded: details &>> 32)
                let name = lag_v8_property_name(key)
                if name != 0, value & layout.pointee.property_location_mask == 0 {
                    let index =
                        (value & layout.pointee.property_index_mask) &>> (layout.pointee.property_index_shift & 31)
                    let content = property(object.tagged, index, map)
                    if name == LAG_V8_URL { url = content }
                    if name == LAG_V8_ORIGINAL_URL { original = content }
                    if name == LAG_V8_METHOD { method = content }
                }
            }
            place &+= 24
            i &+= 1
        }
        guard let path = original ?? url, let method, isString(path), isString(method) else { return nil }
        return V8Request(method: method, path: path)
    }

    private func isString(_ tagged: UInt64) -> Bool {
        guard let found = object(tagged) else { return false }
        return found.type & layout.pointee.not_string_mask == 0
    }

    /// The value of a field property: within the object, or in the array that holds the rest.
    private func property(_ tagged: UInt64, _ index: UInt32, _ map: UInt64) -> UInt64? {
        guard let head = word(map &- 1, layout.pointee.map_size_in_words & ~7) else { return nil }
        func byte(_ offset: Int32) -> UInt64 { (head &>> UInt64(truncatingIfNeeded: (offset & 7) &* 8)) & 0xff }
        let size = byte(layout.pointee.map_size_in_words)
        let start = byte(layout.pointee.map_inobject_start)
        guard size >= start, start > 0 else { return nil }
        let position = UInt64(index)
        if position < size &- start { return word(tagged &- 1 &+ (start &+ position) &* 8) }
        guard let rest = word(tagged &+ 7), Self.isObject(rest) else { return nil }
        return word(rest &- 1 &+ 16 &+ (position &- (size &- start)) &* 8)
    }
}
