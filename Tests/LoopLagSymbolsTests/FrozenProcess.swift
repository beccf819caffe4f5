/// One stop of a real process as gdb saw it: registers, stack bytes, modules, and gdb's own backtrace of each thread.
///
/// gdb both takes the sample and is the oracle, so both views are of the same frozen moment. Tests only.

import Foundation
import LoopLagModel

@testable import LoopLagSymbols

struct FrozenThread {
    struct Frame {
        var pc: UInt64
        var name: String?
        var isInlined: Bool
        var isSignal: Bool
        var file: String?
        var line: Int?
    }

    var tid: Int32
    var registers: [UInt64]
    var stackBase: UInt64
    var stack: [UInt8]
    var frames: [Frame] = []

    var functions: [Frame] { frames.filter { !$0.isInlined } }

    /// The sample an agent would have taken; a passive one knows the instruction and stack pointers only.
    func sample(passive: Bool = false, limit: Int = 65536) -> RawSample {
        var known: [UInt64?] = registers
        if passive { for i in 0..<16 where i != 7 { known[i] = nil } }
        let bytes = Array(stack.prefix(limit))
        return RawSample(
            position: 0, stallID: 1, loopSlot: 0, tid: tid, time: MonotonicTime(nanoseconds: 0), offset: .zero,
            pause: .zero, method: passive ? .passive : .signal, threadState: "S", syscallNumber: nil,
            waitChannel: nil, isTruncated: bytes.count < stack.count, noStackReason: nil, registers: known,
            stackBase: stackBase, stack: bytes)
    }
}

struct FrozenProcess {
    var identity: ProcessIdentity
    var modules: [ModuleRecord]
    var threads: [FrozenThread]

    struct Failure: Error { var output: String }

    private static let script = #"""
        import gdb
        names = ["rax","rdx","rcx","rbx","rsi","rdi","rbp","rsp"] + ["r%d" % i for i in range(8, 16)] + ["rip"]
        pid = gdb.selected_inferior().pid
        maps = []
        out = open(oracle_output, "w")
        out.write("P %d\n" % pid)
        for line in open("/proc/%d/maps" % pid):
            out.write("M " + line)
            low, high = line.split()[0].split("-")
            maps.append((int(low, 16), int(high, 16)))
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda t: t.ptid[1]):
            thread.switch()
            frame = gdb.newest_frame()
            top = frame
            while top.type() == gdb.INLINE_FRAME: top = top.older()
            mask = (1 << 64) - 1
            regs = [int(top.read_register(n)) & mask for n in names]
            sp = regs[7]
            base = sp & ~7
            end = next((h for l, h in maps if l <= sp < h), base)
            size = min(65536, end - base)
            data = gdb.selected_inferior().read_memory(base, size).tobytes() if size > 0 else b""
            out.write("T %d\n" % thread.ptid[1])
            out.write("R " + " ".join("%x" % r for r in regs) + "\n")
            out.write("S %x %s\n" % (base, data.hex()))
            count = 0
            while frame is not None and count < 3000:
                count += 1
                sal = frame.find_sal()
                name = frame.name()
                out.write("F\t%x\t%s\t%d\t%d\t%s\t%d\n" % (frame.pc(), name if name else "",
                    1 if frame.type() == gdb.INLINE_FRAME else 2 if frame.type() == gdb.TAILCALL_FRAME else 0, 1 if frame.type() == gdb.SIGTRAMP_FRAME else 0,
                    sal.symtab.fullname() if sal.symtab else "", sal.line))
                try:
                    frame = frame.older()
                except gdb.error:
                    frame = None
        out.close()
        """#

    /// Stops the process with gdb, records it, and lets it run on.
    init(pid: Int32) throws {
        try self.init(gdb: ["-ex", "attach \(pid)"])
    }

    /// Runs a program under gdb up to the first of `stops` (gdb's words for a place), records it there, and kills it.
    init(program: String, arguments: [String] = [], stops: [String]) throws {
        // Addresses of other modules are known only once the program runs.
        var commands = [
            "-ex", "set args " + arguments.joined(separator: " "), "-ex", "handle SIGUSR1 nostop noprint pass",
        ]
        commands += ["-ex", "break main", "-ex", "run"]
        for stop in stops { commands += ["-ex", "break \(stop)"] }
        try self.init(gdb: ["-ex", "file \(program)"] + commands + ["-ex", "continue"])
    }

    private init(gdb commands: [String]) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "looplag-symbols-\(getpid())-\(UInt64.random(in: 0...UInt64.max))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        let script = folder.appendingPathComponent("oracle.py")
        let output = folder.appendingPathComponent("output").path
        try ("oracle_output = \"\(output)\"\n" + Self.script).write(to: script, atomically: true, encoding: .utf8)
        let log = try run(
            "gdb",
            [
                "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off", "-ex",
                "set backtrace limit 3000", "-ex", "set backtrace past-main on", "-ex", "set confirm off",
            ] + commands + ["-x", script.path])
        guard let text = try? String(contentsOfFile: output, encoding: .utf8) else { throw Failure(output: log) }
        threads = []
        var pid: Int32 = 0
        var maps: [Substring] = []
        for line in text.split(separator: "\n") {
            let fields = line.split(separator: line.hasPrefix("F") ? "\t" : " ", omittingEmptySubsequences: false)
            switch fields[0] {
            case "P": pid = Int32(fields[1]) ?? 0
            case "M": maps.append(line.dropFirst(2))
            case "T":
                threads.append(
                    FrozenThread(tid: Int32(fields[1]) ?? 0, registers: [], stackBase: 0, stack: []))
            case "R": threads[threads.count - 1].registers = fields.dropFirst().map { UInt64($0, radix: 16) ?? 0 }
            case "S":
                threads[threads.count - 1].stackBase = UInt64(fields[1], radix: 16) ?? 0
                threads[threads.count - 1].stack = Self.bytes(hex: fields[2])
            case "F":
                threads[threads.count - 1].frames.append(
                    FrozenThread.Frame(
                        pc: UInt64(fields[1], radix: 16) ?? 0, name: fields[2].isEmpty ? nil : String(fields[2]),
                        isInlined: fields[3] != "0", isSignal: fields[4] == "1",
                        file: fields[5].isEmpty ? nil : String(fields[5]), line: Int(fields[6])))
            default: break
            }
        }
        identity = ProcessIdentity(pid: pid, startTicks: 0)
        modules = Self.modules(pid: pid, maps: maps)
        if threads.isEmpty { throw Failure(output: log) }
    }

    private static func bytes(hex: Substring) -> [UInt8] {
        var result: [UInt8] = []
        result.reserveCapacity(hex.utf8.count / 2)
        var high: UInt8?
        for digit in hex.utf8 {
            let value = digit <= 0x39 ? digit - 0x30 : digit - 0x61 + 10
            if let h = high {
                result.append(h << 4 | value)
                high = nil
            } else {
                high = value
            }
        }
        return result
    }

    /// The module table as an agent writes it, from /proc/PID/maps.
    static func modules(pid: Int32, maps: [Substring]) -> [ModuleRecord] {
        var order: [String] = []
        var ranges: [String: [(start: UInt64, end: UInt64, offset: UInt64, inode: UInt64)]] = [:]
        for line in maps {
            let fields = line.split(separator: " ", maxSplits: 5)
            guard fields.count == 6 else { continue }
            let path = String(fields[5]).trimmingCharacters(in: .whitespaces)
            guard path.hasPrefix("/") || path == "[vdso]" else { continue }
            let range = fields[0].split(separator: "-")
            if ranges[path] == nil { order.append(path) }
            ranges[path, default: []].append(
                (
                    UInt64(range[0], radix: 16) ?? 0, UInt64(range[1], radix: 16) ?? 0,
                    UInt64(fields[2], radix: 16) ?? 0, UInt64(fields[4]) ?? 0
                ))
        }
        return order.compactMap { path in
            guard let mappings = ranges[path], let first = mappings.first, let last = mappings.last else { return nil }
            var record = ModuleRecord(
                path: path, buildID: [], loadBias: first.start, start: first.start, end: last.end,
                isDeleted: path.hasSuffix(" (deleted)"), isVDSO: path == "[vdso]", isMapped: true, device: 0,
                inode: first.inode)
            if record.isVDSO { return record }
            // The process's own view of the file: the same for a deleted one.
            let range = String(first.start, radix: 16) + "-" + String(mappings[0].end, radix: 16)
            guard
                let image = (try? ElfImage(path: path)) ?? (try? ElfImage(path: "/proc/\(pid)/root" + path))
                    ?? (try? ElfImage(path: "/proc/\(pid)/map_files/" + range))
            else { return nil }
            record.buildID = image.buildID
            for segment in image.segments where segment.type == 1 {
                if let mapping = mappings.first(where: { $0.offset == segment.offset & ~0xfff }) {
                    record.loadBias = mapping.start &- (segment.address & ~0xfff)
                    break
                }
            }
            // As the loader says it: a further mapping of the file elsewhere is not part of the module.
            let loads = image.segments.filter { $0.type == 1 }
            record.end = record.loadBias &+ ((loads.map { $0.address &+ $0.memorySize }.max() ?? 0) + 0xfff & ~0xfff)
            return record
        }
    }
}

/// Runs a tool to its end and gives its output, standard error included.
@discardableResult
func run(_ tool: String, _ arguments: [String], in folder: URL? = nil) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [tool] + arguments
    process.currentDirectoryURL = folder
    let pipe = Pipe()
    process.standardOutput = pipe
    process.standardError = pipe
    process.standardInput = FileHandle.nullDevice
    try withUnblockedSignals { try process.run() }
    let data = pipe.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    return String(decoding: data, as: UTF8.self)
}

/// A child inherits the signal mask of the thread that spawns it, tests run on threads that block all signals, and a
/// gdb without SIGCHLD waits for ever.
func withUnblockedSignals<Result>(_ body: () throws -> Result) rethrows -> Result {
    var none = sigset_t()
    var before = sigset_t()
    sigemptyset(&none)
    pthread_sigmask(SIG_SETMASK, &none, &before)
    defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
    return try body()
}
