/// What an attach decides before it touches a process: filters, functions, threads.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagAttach

@Suite("Before an attach")
struct InjectionTests {
    private static func instruction(_ code: UInt16, _ yes: UInt8, _ no: UInt8, _ k: UInt32) -> UInt64 {
        UInt64(code) | UInt64(yes) << 16 | UInt64(no) << 24 | UInt64(k) << 32
    }

    private static let kill: UInt32 = 0x8000_0000
    private static let allow: UInt32 = 0x7fff_0000

    @Test("A seccomp filter is run as the kernel runs it")
    func filters() {
        func i(_ code: UInt16, _ yes: UInt8, _ no: UInt8, _ k: UInt32) -> UInt64 { Self.instruction(code, yes, no, k) }
        // ld [0]; jeq #319 kill; ld [4]; jeq arch allow, else kill
        let exact = Seccomp.Filter([
            i(0x20, 0, 0, 0), i(0x15, 3, 0, 319), i(0x20, 0, 0, 4), i(0x15, 0, 1, 0xc000_003e),
            i(0x06, 0, 0, Self.allow), i(0x06, 0, 0, Self.kill),
        ])
        #expect(exact.verdict(319) == .kill)
        #expect(exact.verdict(9) == .allow)
        // Everything above 300 is refused with EPERM.
        let range = Seccomp.Filter([
            i(0x20, 0, 0, 0), i(0x25, 0, 1, 300), i(0x06, 0, 0, 0x0005_0001), i(0x06, 0, 0, Self.allow),
        ])
        #expect(range.verdict(319) == .refuse)
        #expect(range.verdict(300) == .allow)
        // A traced or notified call is somebody else's decision; LOG lets it through.
        for (action, verdict) in [
            (UInt32(0x7ff0_0000), Seccomp.Verdict.kill), (0x7fc0_0000, .kill), (0x7ffc_0000, .allow),
            (0x0003_0000, .kill),
        ] {
            #expect(Seccomp.Filter([i(0x06, 0, 0, action)]).verdict(1) == verdict)
        }
    }

    @Test("A filter that makes no sense counts as one that kills")
    func brokenFilters() {
        #expect(Seccomp.Filter([]).verdict(1) == .kill)
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<2_000 {
            let code = (0..<Int.random(in: 1...40, using: &generator)).map { _ in generator.next() as UInt64 }
            // Whatever it says, it ends.
            _ = Seccomp.Filter(code).verdict(UInt32.random(in: 0...500, using: &generator))
        }
        #expect(Seccomp.Filter([Self.instruction(0x05, 0, 0, .max)]).verdict(1) == .kill)
        #expect(Seccomp.Filter([Self.instruction(0x20, 0, 0, 64)]).verdict(1) == .kill)
    }

    @Test("Functions of a C library in memory are found where the loader put them")
    func remoteFunctions() throws {
        let pid = getpid()
        let memory = ProcessMemory(pid: pid)
        let map = try #require(MemoryMap.read(pid: pid))
        let modules = map.modules(memory: memory)
        let library = try #require(modules.first { $0.path.contains("/libc.so.6") })
        let object = try #require(RemoteObject(library, memory: memory))
        for name in ["getpid", "munmap", "dlopen", "__errno_location", "epoll_pwait"] {
            let here = dlsym(nil, name).map { UInt64(UInt(bitPattern: $0)) }
            #expect(object.address(of: name) == here, "\(name)")
        }
        #expect(object.address(of: "no_such_function_at_all") == nil)
        let target = try TargetLibrary(modules: modules, map: map, memory: memory)
        #expect(memory.bytes(at: target.restorer, count: 9) == [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05])
    }

    @Test("What is no process, or none that could take an agent, is refused before anything is touched")
    func obstacles() {
        #expect(throws: InjectError.gone) { try Obstacle.check(pid: 4_194_301) }
        #expect(throws: InjectError.gone) { try Obstacle.check(pid: -1) }
        let errors: [InjectError] = [
            .unfit("a"), .notPermitted("b"), .gone, .noSafeThread(waited: .seconds(1), why: "c"), .failed("d"),
        ]
        for error in errors {
            let line = error.message(pid: 42, name: "x\u{1b}[2J")
            #expect(line.hasPrefix("cannot attach to 42 (x?[2J)"))
            #expect(!line.contains("\n"))
        }
    }

    @Test("A process whose threads all wait for a lock offers none to borrow")
    func noFutexWaiter() throws {
        // This test's own process: whatever its threads do, a thread in a futex is never offered.
        for thread in SafeThread.candidates(pid: getpid()) {
            #expect(WaitCall.isLoopWait(thread.call))
        }
    }
}
