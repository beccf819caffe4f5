/// Reads V8's objects and frames: from the copied stack where the address lies in it, else from the host's memory.
///
/// Watchdog only. Every read is fault-proof and every object is checked by its map's instance type before it is believed:
/// the host goes on running while this reads, and its collector moves things.

import CLoopLag

struct V8Memory {
    let layout: UnsafePointer<lag_v8_layout>
    private let stack: UnsafeRawPointer
    private let stackBase: UInt64
    private let stackBytes: UInt64
    /// The end of the thread's stack, 0 = unknown.
    let stackHigh: UInt64
    private let builtins: V8Range
    /// Pieces of memory that were read for this sample: what belongs together lies together.
    private let tags: UnsafeMutablePointer<UInt64>
    private let lines: UnsafeMutablePointer<UInt8>
    private static let lineBytes: UInt64 = 128
    private static let lineCount: UInt64 = 64
    static let cacheBytes = Int(lineCount) &* (Int(lineBytes) &+ 8)

    init(
        _ layout: UnsafePointer<lag_v8_layout>, _ capture: UnsafePointer<lag_capture>, stackHigh: UInt64,
        builtins: V8Range,
        cache: UnsafeMutableRawPointer
    ) {
        self.layout = layout
        self.builtins = builtins
        tags = cache.bindMemory(to: UInt64.self, capacity: Int(Self.lineCount))
        lines = (cache + Int(Self.lineCount) &* 8).bindMemory(
            to: UInt8.self, capacity: Int(Self.lineCount &* Self.lineBytes))
        lag_zero(tags, Int(Self.lineCount) &* 8)
        stack = lag_capture_stack(capture)
        stackBase = capture.pointee.stack_base
        stackBytes = UInt64(capture.pointee.stack_bytes)
        self.stackHigh = stackHigh != 0 ? stackHigh : capture.pointee.stack_base &+ (1 << 30)
    }

    var lowest: UInt64 { stackBase }

    @inline(never)
    func word(_ address: UInt64) -> UInt64? {
        let offset = address &- stackBase
        if address >= stackBase, offset < stackBytes, stackBytes &- offset >= 8 {
            return (stack + Int(truncatingIfNeeded: offset)).loadUnaligned(as: UInt64.self)
        }
        let inLine = address & (Self.lineBytes &- 1)
        guard inLine <= Self.lineBytes &- 8 else {
            var value: UInt64 = 0
            return lag_safe_read(address, &value, 8) == 8 ? value : nil
        }
        let start = address &- inLine
        let index = (start / Self.lineBytes ^ start / (Self.lineBytes &* 97)) % Self.lineCount
        let line = lines + Int(truncatingIfNeeded: index &* Self.lineBytes)
        if tags[Int(truncatingIfNeeded: index)] != start {
            tags[Int(truncatingIfNeeded: index)] = 0
            guard lag_safe_read(start, line, Int(Self.lineBytes)) == Int(Self.lineBytes) else { return nil }
            tags[Int(truncatingIfNeeded: index)] = start
        }
        return UnsafeRawPointer(line + Int(truncatingIfNeeded: inLine)).loadUnaligned(as: UInt64.self)
    }

    @inline(never)
    func word(_ address: UInt64, _ offset: Int32) -> UInt64? {
        word(address &+ UInt64(truncatingIfNeeded: Int64(offset)))
    }

    static func isObject(_ tagged: UInt64) -> Bool { tagged & 3 == 1 && tagged > 0x1000 }
    static func isInteger(_ tagged: UInt64) -> Bool { tagged & 0xffff_ffff == 0 }

    /// A field of an object; offsets are from the object's start.
    @inline(never)
    func field(_ tagged: UInt64, _ offset: Int32) -> UInt64? { word(tagged &- 1, offset) }

    /// The object and its type. While a collection runs an object may have left its new address in the map's place.
    @inline(never)
    func object(_ tagged: UInt64) -> (tagged: UInt64, type: Int32)? {
        guard Self.isObject(tagged), var map = word(tagged &- 1) else { return nil }
        var place = tagged
        if map & 3 == 0, map > 0x1000 {
            place = map | 1
            guard let moved = word(place &- 1) else { return nil }
            map = moved
        }
        guard Self.isObject(map) else { return nil }
        guard let word = word(map &- 1, layout.pointee.map_instance_type & ~7) else { return nil }
        return (
            place, Int32((word &>> UInt64(truncatingIfNeeded: (layout.pointee.map_instance_type & 6) &* 8)) & 0xffff)
        )
    }

    @inline(never)
    func isType(_ tagged: UInt64, _ type: Int32) -> Bool {
        guard type != 0, let found = object(tagged) else { return false }
        return found.type == type
    }

    /// The function's SharedFunctionInfo, if that is what lies where a frame has its function.
    func shared(ofFunction tagged: UInt64) -> UInt64? {
        guard let function = object(tagged), let shared = field(function.tagged, layout.pointee.function_shared),
            let found = object(shared), found.type == layout.pointee.type_shared
        else { return nil }
        return found.tagged
    }

    /// The script of a function; a debugger may have put its own record in between.
    @inline(never)
    func script(ofShared shared: UInt64) -> UInt64? {
        guard let tagged = field(shared, layout.pointee.shared_script), let found = object(tagged) else { return nil }
        if found.type == layout.pointee.type_script { return found.tagged }
        guard layout.pointee.type_debug_info != 0, found.type == layout.pointee.type_debug_info else { return nil }
        var offset: Int32 = 8
        while offset <= 48 {
            if let inner = field(found.tagged, offset), isType(inner, layout.pointee.type_script) { return inner }
            offset &+= 8
        }
        return nil
    }

    /// The bytecode behind a function, however it is compiled: in the function's data itself, or one or two objects
    /// further (baseline code, a code container, the interpreter's data).
    @inline(never)
    func bytecode(ofShared shared: UInt64) -> UInt64? { bytecode(in: shared, words: 5, depth: 3) }

    private func bytecode(in tagged: UInt64, words: Int32, depth: Int) -> UInt64? {
        var index: Int32 = 1
        while index <= words {
            if let inner = field(tagged, index &* 8), let found = object(inner) {
                if found.type == layout.pointee.type_bytecode { return found.tagged }
                if depth > 0, isContainer(found.type),
                    let deeper = bytecode(in: found.tagged, words: 6, depth: depth &- 1)
                {
                    return deeper
                }
            }
            index &+= 1
        }
        return nil
    }

    private func isContainer(_ type: Int32) -> Bool {
        type == layout.pointee.type_code || (type == layout.pointee.type_code_data_container && type != 0)
            || (type == layout.pointee.type_interpreter_data && type != 0)
    }

    /// Whether an address lies among V8's own builtins: the interpreter, not code made at run time.
    func isBuiltin(_ pc: UInt64) -> Bool {
        (pc >= layout.pointee.text_low && pc < layout.pointee.text_high) || (pc >= builtins.low && pc < builtins.high)
    }
}

/// A range of addresses; empty = none.
struct V8Range {
    var low: UInt64 = 0
    var high: UInt64 = 0

    /// Where an isolate's builtins lie. V8 may have mapped them a second time, near the code that it makes, and then the
    /// executable's own copy is not what runs. An isolate begins with the table of their entries: by far the longest run
    /// of aligned addresses that are close to one another.
    static func ofBuiltins(_ isolate: UnsafeRawPointer, bytes: Int) -> V8Range {
        var best = V8Range()
        var bestCount = 0
        var run = V8Range()
        var count = 0
        var offset = 0
        while offset &+ 8 <= bytes {
            let value = isolate.load(fromByteOffset: offset, as: UInt64.self)
            offset &+= 8
            let isAddress = value & 31 == 0 && value >= 1 << 16 && value < 1 << 47
            let low = value < run.low ? value : run.low
            let high = value > run.high ? value : run.high
            if isAddress, count > 0, high &- low < 8 << 20 {
                run = V8Range(low: low, high: high)
                count &+= 1
            } else {
                run = V8Range(low: value, high: value)
                count = isAddress ? 1 : 0
            }
            if count > bestCount {
                best = run
                bestCount = count
            }
        }
        // A few hundred would be something else; the last builtin has a length of its own.
        return bestCount >= 500 ? V8Range(low: best.low, high: best.high &+ (64 << 10)) : V8Range()
    }
}
