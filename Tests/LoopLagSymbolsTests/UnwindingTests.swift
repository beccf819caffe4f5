import Foundation
import LoopLagModel
import Testing

@testable import LoopLagSymbols

/// Real processes, stopped by gdb, whose own backtrace is the truth.
@Suite(.serialized) struct UnwindingTests {
    /// How the two views of one stack compare: by PC, frame for frame.
    private struct Comparison {
        var frames = 0
        var samePC = 0
        var sameName = 0
        var namedFrames = 0
        var differences: [String] = []

        mutating func add(_ decoder: StackDecoder, _ thread: FrozenThread, modules: AddressMap) {
            let ours = decoder.decode(thread.sample()).frames.filter { $0.inlined != true }
            let theirs = thread.functions
            for i in 0..<max(ours.count, theirs.count) {
                frames += 1
                guard i < ours.count, i < theirs.count else {
                    differences.append("tid \(thread.tid) frame \(i): only \(i < ours.count ? "ours" : "gdb's")")
                    continue
                }
                let bias = modules.index(at: theirs[i].pc).map { modules.modules[$0].loadBias } ?? 0
                if ours[i].address == theirs[i].pc &- bias {
                    samePC += 1
                } else {
                    differences.append("tid \(thread.tid) frame \(i): \(ours[i]) | \(theirs[i])")
                }
                guard let name = theirs[i].name, !theirs[i].isSignal else { continue }
                namedFrames += 1
                if Self.sameFunction(ours[i].function, name) {
                    sameName += 1
                } else {
                    differences.append("name: \(ours[i].function) | \(name)")
                }
            }
        }

        /// gdb shows another alias of libc's functions, C++ with parameters, and Swift as it is mangled.
        static func sameFunction(_ ours: String, _ gdb: String) -> Bool {
            func plain(_ name: String) -> String {
                var name = name
                for word in ["__GI_", "__new_", "_new", "___", "__", "_impl", "64", "new"] {
                    name = name.replacingOccurrences(of: word, with: "")
                }
                return name
            }
            let demangled = Demangler.demangle(gdb).name
            let base = CxxName.simplify(gdb)
            return ours == gdb || ours == demangled || ours == base || plain(ours) == plain(gdb)
        }
    }

    private func compare(_ frozen: FrozenProcess) -> Comparison {
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        let map = AddressMap(frozen.modules)
        var comparison = Comparison()
        for thread in frozen.threads { comparison.add(decoder, thread, modules: map) }
        return comparison
    }

    private func check(_ frozen: FrozenProcess, _ what: String) {
        let comparison = compare(frozen)
        #expect(comparison.frames > 0)
        #expect(comparison.samePC == comparison.frames, "\(what): \(comparison.differences)")
        #expect(
            Double(comparison.sameName) >= 0.95 * Double(comparison.namedFrames),
            "\(what): \(comparison.differences)")
    }

    @Test("An idle redis has gdb's frames on every thread, whether its registers are known or not")
    func redis() throws {
        let socket = FileManager.default.temporaryDirectory.appendingPathComponent("looplag-\(getpid()).sock").path
        defer { unlink(socket) }
        let host = try Host(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""], until: "eady to accept")
        let frozen = try FrozenProcess(pid: host.pid)
        check(frozen, "redis")
        expectPassiveEqualsFull(frozen, atLeastReconstructed: 0)
    }

    @Test("A redis that runs a Lua loop has gdb's frames, the Lua interpreter's among them")
    func redisLua() throws {
        let socket = FileManager.default.temporaryDirectory.appendingPathComponent("looplag-\(getpid()).lua").path
        defer { unlink(socket) }
        let host = try Host(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--save", ""], until: "eady to accept")
        let client = try Host(["redis-cli", "-s", socket, "eval", "while true do end", "0"], until: "")
        try withExtendedLifetime(client) {
            #expect(try host.waitUntil(state: "R"))
            let frozen = try FrozenProcess(pid: host.pid)
            check(frozen, "redis in Lua")
            let main = try #require(frozen.threads.first { $0.tid == host.pid })
            let sample = StackDecoder(identity: frozen.identity, modules: frozen.modules).decode(main.sample())
            #expect(sample.frames.contains { $0.function.hasPrefix("lua") }, "\(sample.frames)")
            #expect(sample.frames.last?.function == "_start" && !sample.isTruncated)
        }
    }

    @Test("A Python thread in a C call has gdb's frames")
    func python() throws {
        let program = """
            import threading, time
            def nap(): time.sleep(1000)
            def outer(): sorted([1, 2], key=lambda _: nap())
            threading.Thread(target=outer, daemon=True).start()
            print("ready", flush=True)
            nap()
            """
        let host = try Host(["python3", "-u", "-c", program], until: "ready")
        try host.waitUntilAllSleep()
        let frozen = try FrozenProcess(pid: host.pid)
        check(frozen, "python")
        expectPassiveEqualsFull(frozen, atLeastReconstructed: 0)
    }

    @Test("Node unwinds through interpreted and compiled JavaScript to _start, where gdb fails")
    func node() throws {
        let folder = FileManager.default.temporaryDirectory.path
        let program = """
            function inner(n) { if (n > 0) return inner(n - 1);
              console.log('ready'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000000); return n; }
            setTimeout(() => { [1].forEach(() => inner(4)); }, 10);
            """
        // With the map comes a log that lands in the working directory unless it is told where to go.
        let log = folder + "/looplag-v8-\(getpid()).log"
        let host = try Host(
            [
                Host.installed("NODE", or: "node"), "--perf-basic-prof", "--no-logfile-per-isolate", "--logfile=\(log)",
                "--always-sparkplug", "-e", program,
            ], until: "ready")
        let map = "/tmp/perf-\(host.pid).map"
        defer {
            unlink(map)
            unlink(log)
            unlink(folder + "/jit-\(host.pid).dump")
        }
        try host.waitUntilAllSleep()
        let frozen = try FrozenProcess(pid: host.pid)
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        let main = try #require(frozen.threads.first { $0.tid == host.pid })
        let sample = decoder.decode(main.sample())
        #expect(!sample.isTruncated)
        #expect(sample.frames.last?.function == "_start")
        // Every frame outside of the modules is a function that V8 says it has compiled there.
        let ranges = try String(contentsOfFile: map, encoding: .utf8).split(separator: "\n").compactMap {
            line -> (start: UInt64, size: UInt64, name: Substring)? in
            let fields = line.split(separator: " ", maxSplits: 2)
            guard fields.count == 3, let start = UInt64(fields[0], radix: 16), let size = UInt64(fields[1], radix: 16)
            else { return nil }
            return (start, size, fields[2])
        }
        let compiled = sample.frames.filter { $0.module == nil }
        #expect(compiled.count >= 6)
        for frame in compiled {
            let address = try #require(frame.address)
            let function = ranges.last { address &- 1 &- $0.start < $0.size }
            #expect(function != nil, "\(frame)")
        }
        expectPassiveEqualsFull(frozen, atLeastReconstructed: 0)
    }

    @Test(
        "Over 50 threads blocked in 17 kinds of call have gdb's frames, and the same ones without their registers",
        arguments: [
            ["cc", "-O2", "-fno-omit-frame-pointer"], ["cc", "-O0"], ["cc", "-O2"],
            ["clang", "-O1", "-fno-omit-frame-pointer"],
        ])
    func blocked(_ compiler: [String]) throws {
        let workshop = try Workshop()
        let host = try Host([try workshop.compile("blocked.c", compiler + ["-g", "-w", "-pthread"])], until: "ready")
        try host.waitUntilAllSleep()
        let frozen = try FrozenProcess(pid: host.pid)
        #expect(frozen.threads.count >= 119)
        check(frozen, compiler.joined(separator: " "))
        expectPassiveEqualsFull(frozen, atLeastReconstructed: compiler == ["cc", "-O2"] ? 20 : 50)
    }

    /// Reconstruction knows the instruction and stack pointers alone, and must find what all registers give.
    private func expectPassiveEqualsFull(_ frozen: FrozenProcess, atLeastReconstructed minimum: Int) {
        let decoder = StackDecoder(identity: frozen.identity, modules: frozen.modules)
        var reconstructed = 0
        for thread in frozen.threads {
            let full = decoder.decode(thread.sample())
            let passive = decoder.decode(thread.sample(passive: true))
            if passive.method == .passiveReconstructed { reconstructed += 1 }
            #expect(full.method == .signal)
            #expect(passive.frames.map(\.function) == full.frames.map(\.function), "tid \(thread.tid)")
            #expect(passive.frames.map(\.address) == full.frames.map(\.address))
            #expect(passive.isTruncated == full.isTruncated)
        }
        #expect(reconstructed >= minimum)
    }

    struct Moment: Sendable, CustomTestStringConvertible {
        var word: String
        var stop: String
        var leaf: String
        var testDescription: String { "\(word) at \(stop)" }
    }

    @Test(
        "Hard moments have gdb's frames",
        arguments: [
            Moment(word: "leaf", stop: "*leaf", leaf: "leaf"), Moment(word: "leaf", stop: "*(leaf+1)", leaf: "leaf"),
            Moment(word: "stub", stop: "*'getppid@plt'", leaf: "getppid@plt"),
            Moment(word: "signal", stop: "leaf", leaf: "leaf"), Moment(word: "alloca", stop: "leaf", leaf: "leaf"),
            Moment(word: "clock", stop: "*__vdso_clock_gettime", leaf: "clock_gettime"),
        ])
    func moments(_ moment: Moment) throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O2", "-g", "-w", "-fno-omit-frame-pointer"])
        let frozen = try FrozenProcess(program: program, arguments: [moment.word], stops: [moment.stop])
        check(frozen, moment.word)
        // gdb has killed it: what is known now is what is known post-mortem.
        let decoder = StackDecoder(identity: nil, modules: frozen.modules)
        let sample = decoder.decode(frozen.threads[0].sample())
        #expect(sample.frames.first { $0.inlined != true }?.function.hasSuffix(moment.leaf) == true)
        #expect(sample.frames.last?.function == "_start")
        #expect(!sample.isTruncated)
        if moment.word == "signal" {
            let names = sample.frames.map(\.function)
            #expect(names.contains("handler") && names.contains("interrupted"))
            #expect(frozen.threads[0].frames.contains { $0.isSignal })
        }
    }

    @Test("A stack cut short by the copy is marked truncated, and what is left of it is right")
    func truncation() throws {
        let workshop = try Workshop()
        let program = try workshop.compile("moments.c", ["cc", "-O0", "-g", "-w"])
        let frozen = try FrozenProcess(program: program, arguments: ["alloca"], stops: ["leaf"])
        let decoder = StackDecoder(identity: nil, modules: frozen.modules)
        let whole = decoder.decode(frozen.threads[0].sample()).frames
        #expect(whole.count >= 7)
        for limit in stride(from: 0, through: 1400, by: 40) {
            let sample = decoder.decode(frozen.threads[0].sample(limit: limit))
            if sample.isTruncated {
                #expect(sample.frames == Array(whole.prefix(sample.frames.count)))
                #expect(sample.frames.count < whole.count)
            } else {
                #expect(sample.frames == whole)
            }
        }
        #expect(decoder.decode(frozen.threads[0].sample(limit: 8)).isTruncated)
    }

    @Test("A sample without registers or stack gives what it has, and says why there is no more")
    func emptySamples() {
        let decoder = StackDecoder(identity: nil, modules: [])
        var sample = RawSample(
            position: 7, stallID: 3, loopSlot: 0, tid: 1, time: MonotonicTime(nanoseconds: 0),
            offset: .milliseconds(5), pause: .zero, method: .passive, threadState: "S", syscallNumber: nil,
            waitChannel: nil, isTruncated: false, noStackReason: "the thread moved on", registers: [], stackBase: 0,
            stack: [])
        let none = decoder.decode(sample)
        #expect(none.frames.isEmpty && !none.isTruncated && none.noStackReason == "the thread moved on")
        #expect(none.stallID == 3 && none.position == 7 && none.offset == .milliseconds(5))
        sample.noStackReason = nil
        sample.registers = Array(repeating: nil, count: 17)
        #expect(decoder.decode(sample).noStackReason != nil)
        sample.registers[16] = 0x1234
        sample.registers[7] = 0x7fff_0000
        let leaf = decoder.decode(sample)
        #expect(leaf.frames.map(\.function) == ["0x1234"])
        #expect(leaf.isTruncated && leaf.noStackReason == nil)
    }
}
