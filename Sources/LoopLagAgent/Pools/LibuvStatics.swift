/// Finds libuv's private variables of its thread pool in the symbol table of the file that libuv was linked into: the
/// local symbols that follow the file symbol `threadpool.c`.
///
/// Watchdog only, once: a few megabytes are read piece by piece. Where the file is stripped nothing is found, and the pool
/// is estimated.

import CLoopLag

struct LibuvStatics {
    var queue: UInt64 = 0
    var slowQueue: UInt64 = 0
    var slowMark: UInt64 = 0
    var threads: UInt64 = 0
    var idle: UInt64 = 0

    private static let pieceBytes = 48 << 10
    private static let symbolBytes = 24
    private static let mostSymbols: UInt64 = 2_000_000
    private static let mostFiles = 20_000

    var isComplete: Bool { queue != 0 && threads != 0 && idle != 0 }

    static func find() -> LibuvStatics? {
        guard let module = lag_v8_uv_module()?.pointee, module.queue_work != 0,
            let memory = lag_memory_zeroed(pieceBytes)
        else { return nil }
        defer { lag_memory_free(memory, pieceBytes) }
        let descriptor = lag_v8_uv_file()
        guard descriptor >= 0 else { return nil }
        defer { lag_file_close(descriptor) }
        var found = LibuvStatics()
        found.read(descriptor, memory, module.bias)
        return found.isComplete ? found : nil
    }

    private func number(_ memory: UnsafeMutableRawPointer, _ offset: Int, _ bytes: Int) -> UInt64 {
        var value: UInt64 = 0
        var i = bytes
        while i > 0 {
            i &-= 1
            value = value &<< 8 | UInt64(memory.load(fromByteOffset: offset &+ i, as: UInt8.self))
        }
        return value
    }

    private mutating func read(_ file: Int32, _ memory: UnsafeMutableRawPointer, _ bias: UInt64) {
        guard lag_file_read_at(file, 0, memory, 64) == 64, number(memory, 0, 4) == 0x464c_457f,
            number(memory, 4, 1) == 2
        else { return }
        let sections = number(memory, 40, 8)
        let sectionBytes = number(memory, 58, 2)
        let sectionCount = number(memory, 60, 2)
        guard sectionBytes == 64, sectionCount > 0, sectionCount <= 512 else { return }
        let bytes = Int(truncatingIfNeeded: sectionCount &* 64)
        guard lag_file_read_at(file, sections, memory, bytes) == bytes else { return }
        var index = 0
        while index < Int(truncatingIfNeeded: sectionCount) {
            let header = index &* 64
            index &+= 1
            guard number(memory, header &+ 4, 4) == 2 else { continue }  // SHT_SYMTAB
            let table = number(memory, header &+ 24, 8)
            let size = number(memory, header &+ 32, 8)
            let texts = Int(truncatingIfNeeded: number(memory, header &+ 40, 4))
            let locals = number(memory, header &+ 44, 4)
            guard texts >= 0, texts < Int(truncatingIfNeeded: sectionCount) else { return }
            let names = number(memory, texts &* 64 &+ 24, 8)
            let count = locals < size / 24 ? locals : size / 24
            readSymbols(file, memory, table, count < Self.mostSymbols ? count : Self.mostSymbols, names, bias)
            return
        }
    }

    /// Local symbols come first in a table, each object file's behind its file symbol.
    private mutating func readSymbols(
        _ file: Int32, _ memory: UnsafeMutableRawPointer, _ table: UInt64, _ count: UInt64, _ names: UInt64,
        _ bias: UInt64
    ) {
        // The name of one symbol is read behind the piece of symbols.
        let room = 64
        let perPiece = UInt64((Self.pieceBytes &- room) / Self.symbolBytes)
        let name = memory + (Self.pieceBytes &- room)
        var done: UInt64 = 0
        var files = 0
        var isInside = false
        while done < count {
            let batch = count &- done < perPiece ? count &- done : perPiece
            let bytes = Int(truncatingIfNeeded: batch &* 24)
            guard lag_file_read_at(file, table &+ done &* 24, memory, bytes) == bytes else { return }
            var i = 0
            while i < bytes {
                let info = memory.load(fromByteOffset: i &+ 4, as: UInt8.self)
                let kind = info & 15
                if kind == 4 {  // STT_FILE
                    if isInside { return }
                    files &+= 1
                    guard files < Self.mostFiles else { return }
                }
                if kind == 4 || (isInside && kind == 1) {
                    let length = lag_file_read_at(file, names &+ number(memory, i, 4), name, 32)
                    let text = ByteParser(name.assumingMemoryBound(to: UInt8.self), count: length)
                    if kind == 4 {
                        isInside = Self.isName(text, "threadpool.c")
                    } else {
                        take(text, number(memory, i &+ 8, 8) &+ bias)
                    }
                }
                i &+= Self.symbolBytes
            }
            done &+= batch
        }
    }

    private static func isName(_ text: ByteParser, _ wanted: StaticString) -> Bool {
        var parser = text
        return parser.take(wanted) && parser.peek == 0
    }

    private mutating func take(_ text: ByteParser, _ address: UInt64) {
        if Self.isName(text, "wq") { queue = address }
        if Self.isName(text, "slow_io_pending_wq") { slowQueue = address }
        if Self.isName(text, "run_slow_work_message") { slowMark = address }
        if Self.isName(text, "nthreads") { threads = address }
        if Self.isName(text, "idle_threads") { idle = address }
    }
}
