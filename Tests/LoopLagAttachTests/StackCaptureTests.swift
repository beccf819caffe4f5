/// Stacks from outside, against a host that dies of the first call that comes back early.

import Foundation
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagAttach

/// A C host of Tests/Hosts, compiled here: its threads take EINTR as the end of the world.
private final class Impatient {
    let process = Process()
    private let input = Pipe()
    private let output = Pipe()
    private let folder: TemporaryFolder

    struct Unusable: Error { var reason: String }

    init() throws {
        folder = try TemporaryFolder()
        let hosts = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Hosts")
        let program = try folder.file("impatient", [], mode: 0o755)
        let compiler = Process()
        compiler.executableURL = URL(filePath: "/usr/bin/env")
        compiler.arguments = [
            "cc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-pthread", "-o", program,
            hosts.appending(path: "impatient.c").path,
        ]
        try compiler.run()
        compiler.waitUntilExit()
        guard compiler.terminationStatus == 0 else { throw Unusable(reason: "impatient.c does not compile") }
        process.executableURL = URL(filePath: program)
        process.standardInput = input
        process.standardOutput = output
        try process.run()
        var line = ""
        while !line.hasSuffix("\n") {
            let byte = output.fileHandleForReading.readData(ofLength: 1)
            guard !byte.isEmpty else { throw Unusable(reason: "it did not start: \(line)") }
            line += String(decoding: byte, as: UTF8.self)
        }
    }

    deinit { if process.isRunning { kill(process.processIdentifier, SIGKILL) } }

    var pid: Int32 { process.processIdentifier }
    /// Those that wait; the main thread reads its standard input.
    var threads: [ThreadFacts] { ThreadFacts.all(pid: pid).filter { $0.tid != pid } }

    /// What it says at its end.
    func finish() throws -> (status: Int32, text: String) {
        try input.fileHandleForWriting.close()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return (process.terminationStatus, text)
    }
}

@Suite("Stacks from outside", .serialized)
struct StackCaptureTests {
    @Test("A thousand captures of fifteen kinds of waits cut none of them short")
    func capturesAreNotFelt() throws {
        let host = try Impatient()
        let map = try #require(MemoryMap.read(pid: host.pid))
        let capture = StackCapture(pid: host.pid, map: map)
        let threads = host.threads
        try #require(threads.count == 15)
        var methods: [CaptureMethod: Int] = [:]
        var pause = Duration.zero
        var refused = 0
        for _ in 0..<80 {
            for thread in threads {
                let taken = capture.capture(thread).sample
                // A thread in an uninterruptible sleep (a page fault on a busy machine) is rightly left alone.
                guard taken.noStackReason == nil else {
                    refused += 1
                    continue
                }
                methods[taken.method, default: 0] += 1
                pause = max(pause, taken.pause)
            }
        }
        let end = try host.finish()
        #expect(end.status == 0, "\(end.text)")
        #expect(refused < 80 * 15 / 20)
        #expect((methods[.passive] ?? 0) > (methods[.ptrace] ?? 0))
        print(
            "figure: captures \(methods.map { "\($0.key.rawValue) \($0.value)" }.sorted()), longest \(pause), \(end.text)"
        )
    }

    @Test("Even a stop in the middle of any of these waits is not felt: the kernel starts the call again")
    func stopsAreNotFelt() throws {
        let host = try Impatient()
        let memory = ProcessMemory(pid: host.pid)
        let threads = host.threads
        try #require(threads.count == 15)
        var calls: [Int: Int] = [:]
        for _ in 0..<60 {
            for thread in threads {
                let traced = try ThreadTrace.take(tid: thread.tid, memory: memory, deadline: .seconds(2)) { _ in 4096 }
                #expect(traced.stack.count > 0)
                calls[traced.call ?? -1, default: 0] += 1
            }
        }
        let end = try host.finish()
        #expect(end.status == 0, "\(end.text)")
        // It did stop them there, or it would prove nothing: the epoll waits, a recv, a semaphore set, a signal wait.
        for call in [232, 281, 45, 220, 128] { #expect((calls[call] ?? 0) > 10, "call \(call)") }
        print("figure: stops by call \(calls.sorted { $0.key < $1.key }.map { "\($0.key): \($0.value)" }), \(end.text)")
    }

    @Test("A signal that is due when a wait is stopped still interrupts it")
    func signalsStillInterrupt() throws {
        // A python counts them; a test's thread blocks most signals, and a child inherits that.
        let host = Process()
        let output = Pipe()
        host.executableURL = URL(filePath: "/usr/bin/env")
        host.arguments = [
            "python3", "-c",
            """
            import os, select, signal
            count = 0
            def handler(number, frame):
                global count
                count += 1
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            signal.signal(signal.SIGUSR1, handler)
            signal.signal(signal.SIGTERM, lambda n, f: (os.write(1, b"%d\\n" % count), os._exit(0)))
            os.write(1, b"ready\\n")
            wait = select.epoll()
            while True: wait.poll(0.05)
            """,
        ]
        host.standardOutput = output
        try host.run()
        defer { if host.isRunning { kill(host.processIdentifier, SIGKILL) } }
        #expect(output.fileHandleForReading.readData(ofLength: 6) == Data("ready\n".utf8))
        let pid = host.processIdentifier
        let memory = ProcessMemory(pid: pid)
        for _ in 0..<100 {
            kill(pid, SIGUSR1)
            _ = try ThreadTrace.take(tid: pid, memory: memory, deadline: .seconds(2)) { _ in 512 }
        }
        kill(pid, SIGTERM)
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        host.waitUntilExit()
        // Signals of one number merge while one is pending; none is lost altogether.
        let count = try #require(Int(text.trimmingCharacters(in: .whitespacesAndNewlines)))
        #expect(host.terminationStatus == 0)
        #expect(count > 10 && count <= 100)
    }

    @Test("A thread that has ended, and a number that never was one, are told")
    func missingThreads() throws {
        let map = try #require(MemoryMap.read(pid: getpid()))
        let nobody = ThreadFacts(tid: 0x3fff_fff0, innerTID: 0x3fff_fff0, name: "nobody", state: "S")
        let taken = StackCapture(pid: getpid(), map: map).capture(nobody)
        #expect(taken.sample.stack.isEmpty)
        #expect(taken.sample.noStackReason != nil)
        let memory = ProcessMemory(pid: getpid())
        #expect(throws: TraceFailure.self) {
            _ = try ThreadTrace.take(tid: 0x3fff_fff0, memory: memory, deadline: .seconds(1)) { _ in 8 }
        }
    }
}

@Suite("What /proc says of threads and mappings")
struct ThreadFactsTests {
    @Test("The syscall file is read in all its forms, and nonsense is nothing")
    func syscallForms() {
        func look(_ text: String) -> SyscallLook? { SyscallLook(Array(text.utf8)) }
        #expect(look("running\n") == .running)
        #expect(
            look("-1 0x7ffd10 0x7f01\n")
                == .blocked(number: nil, arguments: [], stackPointer: 0x7ffd10, pc: 0x7f01))
        #expect(
            look("232 0x5 0x6 0x7 0xffffffffffffffff 0x0 0x1 0x7ffd10 0x7f01\n")
                == .blocked(number: 232, arguments: [5, 6, 7, .max, 0, 1], stackPointer: 0x7ffd10, pc: 0x7f01))
        for text in ["", "\n", "232", "232 0x5 0x6", "x 0x1 0x2", "-1 0x1", "232 0x5 0x6 0x7 zz 0x0 0x1 0x2 0x3"] {
            #expect(look(text) == nil, "\(text)")
        }
    }

    @Test("Mappings are parsed; lines that are none are passed over")
    func mappings() throws {
        let text = """
            55d0c0a00000-55d0c0a01000 r-xp 00001000 fd:01 1234 /srv/a b.so (deleted)
            7ffd0000-7ffe0000 rw-p 00000000 00:00 0                  [stack]
            zz-7ffe0000 rw-p 0 00:00 0
            2000-1000 rw-p 0 00:00 0
            3000-4000 rw-p
            """
        let mappings = MemoryMap.parse(Array(text.utf8))
        #expect(mappings.count == 2)
        let first = try #require(mappings.first)
        #expect(first.path == "/srv/a b.so (deleted)")
        #expect(first.isExecutable)
        #expect(first.offset == 0x1000)
        #expect(first.inode == 1234)
        #expect(mappings.last?.path == "[stack]")
    }

    @Test("Our own modules are found, each once, with build ID and load address")
    func ownModules() throws {
        let map = try #require(MemoryMap.read(pid: getpid()))
        let modules = map.modules(memory: ProcessMemory(pid: getpid()))
        let symbol = UInt64(UInt(bitPattern: try #require(dlsym(nil, "qsort"))))
        let libc = try #require(modules.first { $0.start <= symbol && symbol < $0.end })
        #expect(libc.path.contains("libc"))
        // The C library is linked at address zero.
        #expect(libc.loadBias == libc.start)
        #expect(libc.buildID.count == 20)
        #expect(modules.contains { $0.isVDSO })
        #expect(Set(modules.map(\.start)).count == modules.count)
    }
}
