/// The agent's readers of other people's text: whatever /proc or the environment says, they answer and never trap.

import CLoopLag
import Glibc
import Testing

@testable import LoopLagAgent

@Suite("Parsers")
struct ParserTests {
    private func afterName(_ stat: String) -> (state: UInt8?, ticks: UInt64?)? {
        withBytes(stat) { bytes, count in
            guard var fields = ThreadLook.fieldsAfterName(bytes, count: count) else { return nil }
            let state = fields.peek
            fields.skipFields(19)
            return (state, fields.decimal())
        }
    }

    @Test(
        "A thread's name may hold blanks and brackets of its own",
        arguments: ["plain", "a b", "a) R 1 2", "((", "))", ") S (", "", "Web Content 1)"])
    func names(name: String) throws {
        let numbers = (4...52).map(String.init).joined(separator: " ")
        let found = try #require(afterName("4242 (\(name)) S \(numbers)\n"))
        #expect(found.state == UInt8(ascii: "S"))
        #expect(found.ticks == 22)
    }

    @Test("A stat line that ends early has no fields", arguments: ["", "12", "12 (name", "12 (name)", "12 (name) "])
    func shortStat(line: String) { #expect(afterName(line)?.ticks == nil) }

    @Test("Decimal numbers stop where the digits do, and none is nothing")
    func decimals() {
        func parse(_ text: String) -> UInt64? {
            withBytes(text) { bytes, count in
                var parser = ByteParser(bytes, count: count)
                return parser.decimal()
            }
        }
        #expect(parse("0") == 0)
        #expect(parse("12 34") == 12)
        #expect(parse("18446744073709551615") == UInt64.max)
        #expect(parse("") == nil)
        #expect(parse("-1") == nil)
        #expect(parse("x") == nil)
        #expect(parse(String(repeating: "9", count: 40)) == nil)
    }

    @Test("Hexadecimal numbers come with and without 0x, in both cases, of 16 digits at most")
    func hexadecimals() {
        func parse(_ text: String) -> UInt64? {
            withBytes(text) { bytes, count in
                var parser = ByteParser(bytes, count: count)
                return parser.hexadecimal()
            }
        }
        #expect(parse("7ffd1234") == 0x7ffd_1234)
        #expect(parse("0xffffffffffffffff") == UInt64.max)
        #expect(parse("0XaB ") == 0xab)
        #expect(parse("0x") == nil)
        #expect(parse("0") == 0)
        #expect(parse("g") == nil)
        #expect(parse("11112222333344445") == nil)
    }

    @Test("Durations have a unit, and nothing behind it")
    func durations() {
        #expect(Settings.duration("250us") == 250_000)
        #expect(Settings.duration("100ms") == 100_000_000)
        #expect(Settings.duration("2s") == 2_000_000_000)
        #expect(Settings.duration("1m") == 60_000_000_000)
        for nonsense in ["", "100", "ms", "0ms", "1.5s", "-1s", "1h", "1s ", "99999999999s", "1 s", "１s"] {
            #expect(Settings.duration(nonsense) == nil, "\(nonsense)")
        }
    }

    @Test("Thresholds are clamped between a millisecond and an hour")
    func clamp() {
        #expect(Settings.clamp(0) == 1_000_000)
        #expect(Settings.clamp(100_000_000) == 100_000_000)
        #expect(Settings.clamp(UInt64.max) == 3_600_000_000_000)
    }

    @Test("epoll is always measured, poll only where it is asked for")
    func families() {
        let epoll = UInt32(LAG_FAMILY_EPOLL)
        let both = epoll | UInt32(LAG_FAMILY_POLL)
        #expect(Settings.families("epoll") == epoll)
        #expect(Settings.families("epoll,poll") == both)
        #expect(Settings.families("poll") == both)
        #expect(Settings.families("poll,,x") == both)
        for text in ["", ",", "polling", "select", "POLL", "xpoll"] {
            #expect(Settings.families(text) == epoll, "\(text)")
        }
    }

    @Test("/proc tells a running thread from a sleeping one")
    func runningAndSleeping() throws {
        let scratch = try #require(Scratch.make())
        defer { scratch.release() }
        let tid = Locked<Int32>(0)
        let mayRun = Locked(true)
        let mayEnd = Locked(false)
        let thread = try TestThread {
            tid.set(lag_gettid())
            while mayRun.value { spin(nanoseconds: 50_000) }
            while !mayEnd.value { lag_sleep_until(lag_clock_now() + 2_000_000) }
        }
        defer {
            mayEnd.set(true)
            thread.join()
        }
        var isReadable = true
        var look = ThreadLook(place: .gone, state: 0)
        func sees(_ wanted: (ThreadLook.Place) -> Bool) -> Bool {
            eventually {
                guard tid.value != 0 else { return false }
                look = ThreadLook.at(tid.value, scratch, syscallReadable: &isReadable)
                return wanted(look.place)
            }
        }
        #expect(sees { $0 == .running })
        #expect(look.state == UInt8(ascii: "R") && look.hasAccount)
        #expect(!ThreadLook.blocksSignal(tid.value, lag_signal_default(), scratch))
        mayRun.set(false)
        #expect(sees { $0 == .inCall(230) })
        #expect(look.stackPointer > 0x1000 && look.programCounter > 0x1000)
        var channel = [UInt8](repeating: 0x7f, count: 33)
        ThreadLook.waitChannel(tid.value, scratch, into: &channel)
        #expect(channel[32] == 0x7f && channel[..<32].contains(0))
        #expect(isReadable)
    }

    @Test("A thread that has ended is gone, and nothing else is")
    func endedThread() throws {
        let scratch = try #require(Scratch.make())
        defer { scratch.release() }
        let tid = try TestThread.run { lag_gettid() }
        var isReadable = true
        #expect(eventually { ThreadLook.at(tid, scratch, syscallReadable: &isReadable).place == .gone })
        #expect(!lag_thread_exists(tid))
        #expect(lag_thread_exists(lag_gettid()))
    }

    @Test("A blocked signal is seen, and one that cannot be judged counts as blocked")
    func blockedSignal() throws {
        let answers = try TestThread.run { () -> [Bool] in
            guard let scratch = Scratch.make() else { return [] }
            defer { scratch.release() }
            var set = sigset_t()
            sigemptyset(&set)
            sigaddset(&set, lag_signal_default())
            pthread_sigmask(SIG_BLOCK, &set, nil)
            let tid = lag_gettid()
            return [
                ThreadLook.blocksSignal(tid, lag_signal_default(), scratch),
                ThreadLook.blocksSignal(tid, lag_signal_default() + 1, scratch),
                ThreadLook.blocksSignal(tid, 0, scratch), ThreadLook.blocksSignal(tid, 65, scratch),
            ]
        }
        #expect(answers == [true, false, true, true])
    }

    @Test("A hundred thousand texts of noise, cut lines and swapped digits make nothing trap")
    func fuzz() throws {
        var generator = SeededGenerator(state: 20_260_729)
        let seeds = [
            "4242 (na me) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22\n",
            "230 0x1 0x0 0x7ffc 0x0 0x0 0x0 0x7ffd12345678 0x7f0011223344\n", "running\n", "-1 0x7ffd 0x7f00\n",
            "SigBlk:\t0000000000010000\nSigIgn:\t0\n", "250us", "epoll,poll", "123456 789012 345\n",
            "7f0000000000-7f0000001000 r-xp 00001000 08:01 1234   /usr/lib/x y.so (deleted)\n",
        ].map { Array($0.utf8) }
        let scratch = try #require(Scratch.make())
        defer { scratch.release() }
        let fixture = try SegmentFixture()
        defer { fixture.release() }
        var table = try #require(ModuleTable(fixture.segment))
        defer { table.release() }
        var answers: UInt64 = 0
        for round in 0..<100_000 {
            var bytes = seeds[round % seeds.count]
            for _ in 0..<Int.random(in: 0...6, using: &generator) where !bytes.isEmpty {
                let at = Int.random(in: 0..<bytes.count, using: &generator)
                switch UInt8.random(in: 0...3, using: &generator) {
                case 0: bytes[at] = UInt8.random(in: 0...255, using: &generator)
                case 1: bytes.removeSubrange(at...)
                case 2: bytes.insert(contentsOf: bytes[..<at], at: at)
                default: bytes[at] = UInt8(ascii: "9")
                }
            }
            bytes.append(0)
            answers &+= bytes.withUnsafeBufferPointer { buffer in
                guard let start = buffer.baseAddress else { return 0 }
                return read(start, count: buffer.count - 1, scratch)
            }
            if round % 16 == 0 {
                bytes.withUnsafeMutableBufferPointer { buffer in
                    guard let start = buffer.baseAddress else { return }
                    table.parse(start, count: buffer.count - 1, now: UInt64(round) + 1)
                }
            }
        }
        #expect(answers != 0)
        #expect(Int(fixture.header.modules_used) <= fixture.segment.moduleCount)
    }

    /// Lets every parser have the text, and folds what they said into a number.
    private func read(_ start: UnsafePointer<UInt8>, count: Int, _ scratch: Scratch) -> UInt64 {
        var sum: UInt64 = 0
        if var fields = ThreadLook.fieldsAfterName(start, count: count) {
            fields.skipFields(9)
            sum &+= fields.decimal() ?? 1
        }
        scratch.text.update(from: start, count: min(count, Scratch.textBytes))
        var look = ThreadLook(place: .blockedSomewhere, state: UInt8(ascii: "S"))
        look.readPlace(scratch, count: count)
        sum &+= look.stackPointer &+ look.programCounter
        sum &+= ThreadLook.blocks(17, in: ByteParser(start, count: count)) ? 1 : 0
        let text = UnsafeRawPointer(start).assumingMemoryBound(to: CChar.self)
        sum &+= Settings.duration(text) ?? 0
        sum &+= UInt64(Settings.families(text))
        var parser = ByteParser(start, count: count, from: count / 2)
        sum &+= parser.hexadecimal() ?? 0
        parser.skipFields(3)
        _ = parser.take("SigBlk:")
        return sum
    }
}

@Suite("Where a thread is")
struct PlaceTests {
    private func place(_ text: String) throws -> ThreadLook {
        let scratch = try #require(Scratch.make())
        defer { scratch.release() }
        var look = ThreadLook(place: .blockedSomewhere, state: UInt8(ascii: "S"))
        withBytes(text) { bytes, count in
            scratch.text.update(from: bytes, count: count)
            look.readPlace(scratch, count: count)
        }
        return look
    }

    @Test("The syscall file in all its shapes")
    func shapes() throws {
        #expect(try place("running\n").place == .running)
        let inCall = try place("230 0x1 0x0 0x7ffc01 0x0 0x0 0x0 0x7ffd12345678 0x7f0011223344\n")
        #expect(inCall.place == .inCall(230))
        #expect(inCall.stackPointer == 0x7ffd_1234_5678)
        #expect(inCall.programCounter == 0x7f00_1122_3344)
        let inFault = try place("-1 0x7ffd12345678 0x7f0011223344\n")
        #expect(inFault.place == .inFault)
        #expect(inFault.stackPointer == 0x7ffd_1234_5678)
        #expect(try place("").place == .blockedSomewhere)
        #expect(try place("99999999 0x1\n").place == .blockedSomewhere)
        #expect(try place("7 0x1\n").stackPointer == 0)
    }

    @Test("What a look counts for")
    func kinds() throws {
        #expect(try place("running").kind == Int(LAG_LOOK_ON_CPU))
        #expect(try place("202 0 0 0 0 0 0 0x1 0x2").kind == Int(LAG_LOOK_LOCK))
        #expect(try place("0 0 0 0 0 0 0 0x1 0x2").kind == Int(LAG_LOOK_SYSCALL))
        #expect(try place("-1 0x1 0x2").kind == Int(LAG_LOOK_PAGE_FAULT))
        #expect(try place("").kind == Int(LAG_LOOK_UNKNOWN))
    }
}

@Suite("Byte builder")
struct ByteBuilderTests {
    private func build(capacity: Int, _ body: (inout ByteBuilder) -> Void) -> (text: String, isComplete: Bool) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 128) { buffer in
            buffer.initialize(repeating: 0x7f)
            guard let start = buffer.baseAddress else { return ("", false) }
            var builder = ByteBuilder(start, capacity: capacity)
            body(&builder)
            for i in max(0, capacity)..<128 { #expect(buffer[i] == 0x7f, "written beyond its end, at \(i)") }
            return (capacity > 0 ? String(cString: builder.path) : "", builder.isComplete)
        }
    }

    @Test(
        "Numbers come out digit by digit",
        arguments: [
            0, 1, 9, 10, 100, 4_242, 1_000_000_000, 999_999_999_999_999_999, 1_000_000_000_000_000_000,
            1_000_000_000_000_000_001, 10_000_000_000_000_000_000, UInt64.max,
        ])
    func decimals(value: UInt64) {
        let built = build(capacity: 64) { $0.append(decimal: value) }
        #expect(built.text == String(value))
        #expect(built.isComplete)
    }

    @Test("What does not fit is cut, said, and ends with a NUL within the capacity", arguments: 0...20)
    func limits(capacity: Int) {
        let whole = "/proc/self/task/1"
        let built = build(capacity: capacity) { builder in
            builder.append("/proc/self/task/")
            builder.append(decimal: 1)
        }
        #expect(built.text == String(whole.prefix(max(0, capacity - 1))))
        #expect(built.isComplete == (capacity > whole.utf8.count))
    }

    @Test("Random numbers come out as Swift writes them")
    func randomDecimals() {
        var generator = SeededGenerator(state: 7)
        for _ in 0..<2_000 {
            let value =
                UInt64.random(in: 0...UInt64.max, using: &generator) >> UInt64.random(in: 0...63, using: &generator)
            #expect(build(capacity: 64) { $0.append(decimal: value) }.text == String(value))
        }
    }
}
