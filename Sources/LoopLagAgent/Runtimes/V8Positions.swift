/// From a place in bytecode to a place in the source: the table of source positions of a function, and the line ends of
/// its script.
///
/// Watchdog only; reads through V8Memory, bounded. Where the table was never made (V8 makes it when it is first needed)
/// there is no line, and the caller says so.

import CLoopLag

extension V8Memory {
    private static var longestTable: UInt64 { 1 << 18 }

    /// The source position of the bytecode at `offset`, or of the function's first one (`nil`).
    @inline(never)
    func position(inBytecode bytecode: UInt64, offset: UInt64?, _ buffer: UnsafeMutablePointer<UInt8>, _ capacity: Int)
        -> UInt64?
    {
        guard let table = field(bytecode, layout.pointee.bytecode_positions), let found = object(table),
            found.type == layout.pointee.type_byte_array
                || (layout.pointee.type_trusted_byte_array != 0
                    && found.type == layout.pointee.type_trusted_byte_array),
            let lengthWord = field(found.tagged, layout.pointee.fixed_array_length), Self.isInteger(lengthWord)
        else { return nil }
        let length = lengthWord &>> 32
        guard length > 0, length <= Self.longestTable else { return nil }
        var source = V8ByteSource(
            at: found.tagged &- 1 &+ UInt64(truncatingIfNeeded: Int64(layout.pointee.byte_array_data)), count: length,
            buffer,
            capacity)
        // Counted from the function's entry, which lies one before its first bytecode.
        var code: Int64 = -1
        var position: Int64 = 0
        var result: Int64?
        // Pairs of differences: to the bytecode offset (its sign says whether a statement begins), to the position.
        while let codeStep = source.signed(), let positionStep = source.signed() {
            code &+= codeStep >= 0 ? codeStep : 0 &- (codeStep &+ 1)
            position &+= positionStep
            guard let offset else {
                result = position
                break
            }
            if code > Int64(bitPattern: offset) { break }
            result = position
        }
        // Bit 0 tells inlined from external positions; the script offset lies above it.
        guard let result, result >= 0 else { return nil }
        return (UInt64(bitPattern: result) &>> 1) & 0x3fff_ffff
    }

    @inline(never)
    func place(_ position: UInt64, inScript script: UInt64, _ known: inout V8LineCache)
        -> (line: UInt32, column: UInt32)?
    {
        // `position` counts from 1: 0 is "nowhere".
        guard position > 0, let source = field(script, layout.pointee.script_source) else { return nil }
        if let place = known.find(script, source, position) { return place }
        var line: UInt32 = 0
        var column: UInt32 = 0
        guard lag_v8_line(source, position &- 1, &line, &column) else { return nil }
        known.add(script, source, position, line, column)
        return (line, column)
    }
}

/// Places that were looked up before: most of a stack is the same from sample to sample, and to count the lines of a large
/// file takes long. Scripts and their sources are old objects, which hardly ever move; both and the position must agree.
struct V8LineCache {
    private struct Entry {
        var script: UInt64
        var source: UInt64
        var position: UInt64
        var line: UInt32
        var column: UInt32
    }

    private static let count = 128
    static let bytes = count &* MemoryLayout<Entry>.stride

    private let entries: UnsafeMutablePointer<Entry>
    private var next = 0

    init(_ memory: UnsafeMutableRawPointer) { entries = memory.bindMemory(to: Entry.self, capacity: Self.count) }

    func find(_ script: UInt64, _ source: UInt64, _ position: UInt64) -> (line: UInt32, column: UInt32)? {
        var i = 0
        while i < Self.count {
            if entries[i].position == position, entries[i].script == script, entries[i].source == source {
                return (entries[i].line, entries[i].column)
            }
            i &+= 1
        }
        return nil
    }

    mutating func add(_ script: UInt64, _ source: UInt64, _ position: UInt64, _ line: UInt32, _ column: UInt32) {
        entries[next] = Entry(script: script, source: source, position: position, line: line, column: column)
        next = next &+ 1 < Self.count ? next &+ 1 : 0
    }
}

/// A run of the host's bytes, read piece by piece.
struct V8ByteSource {
    private let buffer: UnsafeMutablePointer<UInt8>
    private let capacity: UInt64
    private var address: UInt64
    private var left: UInt64
    private var filled = 0
    private var next = 0

    init(at address: UInt64, count: UInt64, _ buffer: UnsafeMutablePointer<UInt8>, _ capacity: Int) {
        self.address = address
        left = count
        self.buffer = buffer
        self.capacity = UInt64(truncatingIfNeeded: capacity)
    }

    mutating func byte() -> UInt8? {
        if next >= filled {
            let wanted = left < capacity ? left : capacity
            guard wanted > 0 else { return nil }
            let got = lag_safe_read(address, buffer, Int(truncatingIfNeeded: wanted))
            guard got > 0 else { return nil }
            address &+= UInt64(truncatingIfNeeded: got)
            left &-= UInt64(truncatingIfNeeded: got)
            filled = got
            next = 0
        }
        let byte = buffer[next]
        next &+= 1
        return byte
    }

    /// Seven bits a byte, lowest first, zig-zag: small numbers of either sign are short.
    mutating func signed() -> Int64? {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while let byte = byte() {
            value |= UInt64(byte & 0x7f) &<< shift
            if byte & 0x80 == 0 {
                return Int64(bitPattern: (value &>> 1) ^ (0 &- (value & 1)))
            }
            shift &+= 7
            guard shift < 63 else { return nil }
        }
        return nil
    }
}
