/// What /proc says of one thread at one moment: the evidence on which a stall is explained and a capture is decided.
///
/// Watchdog only. Three or four small files are opened, read and closed per look (about 10 us): with a descriptor table
/// of the watchdog's own there is nothing to keep, to verify, or to lose to the host's closefrom.

import CLoopLag

/// Memory that the watchdog lends to whoever reads a file or builds a path.
struct Scratch {
    static let textBytes = 16 << 10
    static let pathBytes = 320

    let text: UnsafeMutablePointer<UInt8>
    let path: UnsafeMutablePointer<UInt8>

    static func make() -> Scratch? {
        guard let memory = lag_memory_zeroed(textBytes &+ pathBytes) else { return nil }
        let bytes = memory.assumingMemoryBound(to: UInt8.self)
        return Scratch(text: bytes, path: bytes + textBytes)
    }

    func release() { lag_memory_free(text, Self.textBytes &+ Self.pathBytes) }

    /// Reads /proc/self/task/TID/NAME into `text`; the byte count, or a negative errno.
    func read(task tid: Int32, _ name: StaticString) -> Int {
        lag_file_read(taskPath(tid, name).path, text, Self.textBytes)
    }

    func taskPath(_ tid: Int32, _ name: StaticString) -> ByteBuilder {
        var builder = ByteBuilder(path, capacity: Self.pathBytes)
        builder.append("/proc/self/task/")
        builder.append(decimal: UInt64(truncatingIfNeeded: tid))
        builder.append(UInt8(ascii: "/"))
        builder.append(name)
        return builder
    }
}

struct ThreadLook {
    enum Place: Equatable {
        /// On a CPU, or waiting for one.
        case running
        /// Blocked in this system call.
        case inCall(Int32)
        /// In the kernel but not in a call: a page fault.
        case inFault
        /// Blocked, and /proc may not be read: nothing is known, and nothing may be done.
        case blockedSomewhere
        case stopped
        case gone
    }

    var place: Place
    /// The state letter of /proc, 0 = unknown.
    var state: UInt8
    /// The first three arguments of that call.
    var arguments: (UInt64, UInt64, UInt64) = (0, 0, 0)
    var stackPointer: UInt64 = 0
    var programCounter: UInt64 = 0
    var majorFaults: UInt64 = 0
    /// Scheduler account: time on a CPU, and time runnable without one.
    var runTime: UInt64 = 0
    var waitTime: UInt64 = 0
    var hasAccount = false

    static let noEntry = -2
    static let noProcess = -3

    /// Looks at a thread of this process.
    static func at(_ tid: Int32, _ scratch: Scratch, syscallReadable: inout Bool) -> ThreadLook {
        var look = ThreadLook(place: .blockedSomewhere, state: 0)
        var count = scratch.read(task: tid, "stat")
        if count == noEntry || count == noProcess {
            // Or there is no /proc here, or that of another pid namespace: then nothing is known.
            if !lag_thread_exists(tid) { look.place = .gone }
            return look
        }
        if var fields = fieldsAfterName(UnsafePointer(scratch.text), count: count) {
            look.state = fields.peek ?? 0
            fields.skipFields(9)
            look.majorFaults = fields.decimal() ?? 0
        }
        count = scratch.read(task: tid, "schedstat")
        if count > 0 {
            var fields = ByteParser(scratch.text, count: count)
            if let run = fields.decimal() {
                fields.skip(UInt8(ascii: " "))
                if let wait = fields.decimal() {
                    look.runTime = run
                    look.waitTime = wait
                    look.hasAccount = true
                }
            }
        }
        look.findPlace(tid, scratch, &syscallReadable)
        return look
    }

    /// Looks once more, only at where the thread is: one or two files instead of four.
    static func place(of tid: Int32, like before: ThreadLook, _ scratch: Scratch) -> ThreadLook {
        var look = ThreadLook(place: .blockedSomewhere, state: before.state)
        var isReadable = true
        look.findPlace(tid, scratch, &isReadable)
        // Without that file the state letter is all there is.
        return isReadable ? look : at(tid, scratch, syscallReadable: &isReadable)
    }

    /// `running`, or number, six arguments, SP and PC, or -1, SP and PC.
    private mutating func findPlace(_ tid: Int32, _ scratch: Scratch, _ syscallReadable: inout Bool) {
        switch state {
        case UInt8(ascii: "T"), UInt8(ascii: "t"):
            place = .stopped
            return
        case UInt8(ascii: "X"), UInt8(ascii: "Z"):
            place = .gone
            return
        default: break
        }
        let count = scratch.read(task: tid, "syscall")
        guard count > 0 else {
            // Not readable (a non-dumpable process, a hardened kernel): the state letter alone decides.
            guard count != Self.noEntry, count != Self.noProcess else {
                place = .gone
                return
            }
            syscallReadable = false
            place = state == UInt8(ascii: "R") ? .running : .blockedSomewhere
            return
        }
        readPlace(scratch, count: count)
    }

    /// What the first `count` bytes of the scratch text say.
    mutating func readPlace(_ scratch: Scratch, count: Int) {
        var fields = ByteParser(scratch.text, count: count)
        if fields.take("running") {
            place = .running
            return
        }
        if fields.take("-1") {
            place = .inFault
        } else {
            guard let number = fields.decimal(), number < 4096 else {
                place = .blockedSomewhere
                return
            }
            place = .inCall(Int32(truncatingIfNeeded: number))
            arguments.0 = Self.argument(&fields)
            arguments.1 = Self.argument(&fields)
            arguments.2 = Self.argument(&fields)
            fields.skipFields(3)
        }
        fields.skip(UInt8(ascii: " "))
        stackPointer = fields.hexadecimal() ?? 0
        fields.skip(UInt8(ascii: " "))
        programCounter = fields.hexadecimal() ?? 0
    }

    @inline(never)
    private static func argument(_ fields: inout ByteParser) -> UInt64 {
        fields.skip(UInt8(ascii: " "))
        return fields.hexadecimal() ?? 0
    }

    /// /proc/PID/stat behind its name, which may hold blanks and brackets of its own: at field 3, the state.
    static func fieldsAfterName(_ bytes: UnsafePointer<UInt8>, count: Int) -> ByteParser? {
        var last = count &- 1
        while last >= 0, bytes[last] != UInt8(ascii: ")") { last &-= 1 }
        guard last >= 0, last &+ 2 < count else { return nil }
        return ByteParser(bytes, count: count, from: last &+ 2)
    }

    /// Whether the thread has this signal blocked, when /proc says. A signal to it would stay pending, or be read by the host's
    /// own signalfd: it must not be sent.
    static func blocksSignal(_ tid: Int32, _ number: Int32, _ scratch: Scratch) -> Bool {
        let count = scratch.read(task: tid, "status")
        guard count > 0 else { return true }
        return blocks(number, in: ByteParser(scratch.text, count: count))
    }

    /// The same from the lines of a status file; what they do not say counts as blocked.
    static func blocks(_ number: Int32, in status: ByteParser) -> Bool {
        var lines = status
        while !lines.isAtEnd {
            if lines.take("SigBlk:") {
                lines.skip(UInt8(ascii: "\t"))
                guard let mask = lines.hexadecimal(), number > 0, number < 65 else { return true }
                return mask & (1 &<< UInt64(number &- 1)) != 0
            }
            _ = lines.passOver(UInt8(ascii: "\n"))
        }
        return true
    }

    /// What the kernel calls the place where a blocked thread sleeps; at most 31 bytes and a NUL into `into`.
    static func waitChannel(_ tid: Int32, _ scratch: Scratch, into: UnsafeMutablePointer<UInt8>) {
        into[0] = 0
        let count = scratch.read(task: tid, "wchan")
        guard count > 1 else { return }
        var out = ByteBuilder(into, capacity: 32)
        out.append(scratch.text, count: count < 31 ? count : 31)
    }

    /// The class of LAG_LOOK_* that the time before this look counts for.
    var kind: Int {
        switch place {
        case .running: return Int(LAG_LOOK_ON_CPU)
        case .inCall(let number): return number == 202 ? Int(LAG_LOOK_LOCK) : Int(LAG_LOOK_SYSCALL)
        case .inFault: return Int(LAG_LOOK_PAGE_FAULT)
        case .stopped: return Int(LAG_LOOK_STOPPED)
        case .blockedSomewhere, .gone: return Int(LAG_LOOK_UNKNOWN)
        }
    }
}
