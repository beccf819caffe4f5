/// Finding segments: this test process plays the host, in each of the three places where an agent may have put one.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Discovery", .serialized)
struct DiscoveryTests {
    private let name = SegmentName(pid: getpid(), startTicks: Own.startTicks).fileName

    private func failure(_ pid: Int32) -> TelemetryError? {
        do throws(TelemetryError) {
            _ = try SegmentDiscovery.live(pid: pid)
            return nil
        } catch {
            return error
        }
    }

    @Test("finds a segment in the host's /dev/shm, through the host's own root")
    func sharedMemory() throws {
        let image = try SegmentImage(path: "/dev/shm/\(name)")
        let source = try SegmentDiscovery.live(pid: getpid())
        #expect(source.path == "/proc/\(getpid())/root/dev/shm/\(name)")
        #expect(source.isAlive)
        #expect(source.startTicks == Own.startTicks)
        #expect(try SegmentReader(source).snapshot().isAlive)
        #expect(SegmentDiscovery.allLive().contains(source))
        #expect(!SegmentDiscovery.leftovers().contains { $0.path == image.path })
    }

    @Test("finds a segment in any other folder by the host's mapping of it")
    func mapping() throws {
        let folder = try Folder()
        let image = try SegmentImage(path: folder.file(name))
        let source = try SegmentDiscovery.live(pid: getpid())
        #expect(source.path == "/proc/\(getpid())/root\(image.path)")
        #expect(try SegmentReader(source).snapshot().isAlive)
    }

    @Test("prefers no file that somebody else has put in the first place")
    func occupied() throws {
        let folder = try Folder()
        let image = try SegmentImage(path: folder.file(name))
        let squatter = "/dev/shm/\(name)"
        symlink("/etc/passwd", squatter)
        defer { unlink(squatter) }
        #expect(try SegmentDiscovery.live(pid: getpid()).path.hasSuffix(image.path))
    }

    @Test("says why not when the only candidate is refused")
    func refusedCandidate() throws {
        let image = try SegmentImage(path: "/dev/shm/\(name)")
        let seen = "/proc/\(getpid())/root/dev/shm/\(name)"
        image.header.pointee.abi_version = 7
        #expect(failure(getpid()) == .otherVersion(path: seen, found: 7, known: 1))
        image.header.pointee.abi_version = 1
        image.header.pointee.pid += 1
        guard case .untrusted = failure(getpid()) else {
            Issue.record("a stranger's segment was taken")
            return
        }
        image.header.pointee.pid -= 1
        chmod(image.path, 0o644)
        guard case .untrusted = failure(getpid()) else {
            Issue.record("an open file was taken")
            return
        }
    }

    @Test("finds a memory file by the agent's thread")
    func memoryFile() throws {
        let memory = try #require(MemoryFile())
        let image = try SegmentImage(path: "memory", descriptor: memory.descriptor)
        #expect(failure(getpid()) == .noAgent(pid: getpid()))
        let thread = NamedThread()
        defer { thread.end() }
        let source = try SegmentDiscovery.live(pid: getpid())
        #expect(source.path == "/proc/\(getpid())/task/\(thread.tid)/fd/\(memory.descriptor)")
        image.startLoop(0)
        let reader = try SegmentReader(source)
        #expect(try reader.snapshot().loops.count == 1)
        #expect(!reader.isUnlinked)
        #expect(reader.hold(threshold: .milliseconds(10)))
        #expect(SegmentDiscovery.allLive().contains(source))
    }

    @Test("takes the segment that an exec left behind for none, unless the agent's thread is there")
    func stale() throws {
        let image = try SegmentImage(path: "/dev/shm/\(name)")
        image.header.pointee.heartbeat_ns -= 60_000_000_000
        #expect(failure(getpid()) == .noAgent(pid: getpid()))
        let thread = NamedThread()
        defer { thread.end() }
        #expect(failure(getpid()) == nil)
    }

    @Test("tells a missing process from one without an agent")
    func absence() throws {
        let sleeper = try Sleeper()
        #expect(failure(sleeper.pid) == .noAgent(pid: sleeper.pid))
        sleeper.end()
        #expect(failure(sleeper.pid) == .noSuchProcess(pid: sleeper.pid))
        #expect(failure(0) == .noSuchProcess(pid: 0))
        #expect(failure(-1) == .noSuchProcess(pid: -1))
    }

    @Test("lists what dead processes have left, and not what lives or belongs to another namespace")
    func leftovers() throws {
        let folder = try Folder()
        let sleeper = try Sleeper()
        let (pid, ticks) = (sleeper.pid, sleeper.startTicks)
        func image(_ name: SegmentName) throws -> SegmentImage {
            let image = try SegmentImage(path: folder.file(name.fileName))
            image.header.pointee.pid = UInt32(name.pid)
            image.header.pointee.start_ticks = name.startTicks
            image.header.pointee.pid_namespace = ProcFS.ownPIDNamespace() ?? 0
            return image
        }
        let own = try image(SegmentName(pid: pid, startTicks: ticks))
        let reused = try image(SegmentName(pid: pid, startTicks: ticks - 1))
        let foreign = try image(SegmentName(pid: pid, startTicks: ticks - 2))
        foreign.header.pointee.pid_namespace = 1
        let damaged = try image(SegmentName(pid: pid, startTicks: ticks - 3))
        damaged.header.pointee.magic = 0
        symlink(reused.path, folder.file("looplag-1-1"))

        #expect(SegmentDiscovery.leftovers(in: [folder.path]).map(\.path) == [reused.path])
        #expect(try SegmentReader(path: own.path).snapshot().isAlive)
        sleeper.end()
        let dead = SegmentDiscovery.leftovers(in: [folder.path, "/nonexistent"])
        #expect(dead.map(\.path) == [reused.path, own.path])
        #expect(dead.allSatisfy { $0.pid == pid && !$0.isAlive })
        let snapshot = try SegmentReader(path: own.path).snapshot()
        #expect(!snapshot.isAlive)
        #expect(snapshot.identity == ProcessIdentity(pid: pid, startTicks: ticks))
    }

    @Test("knows all living descendants")
    func children() async throws {
        let sleeper = try Sleeper(["/bin/sh", "-c", "/bin/sleep 600 & /bin/sleep 601 & wait"])
        var found: [Int32] = []
        while found.count < 2 {
            found = SegmentDiscovery.children(of: sleeper.pid)
            await Task.yield()
        }
        #expect(found.count == 2)
        #expect(SegmentDiscovery.children(of: getpid()).contains(sleeper.pid))
        #expect(SegmentDiscovery.children(of: getpid()).contains(found[0]))
        found.forEach { kill($0, SIGKILL) }
        sleeper.end()
        #expect(SegmentDiscovery.children(of: sleeper.pid).isEmpty)
    }

    @Test("reads names and the files of /proc as they may come")
    func parsing() {
        #expect(SegmentName("looplag-12-34") == SegmentName(pid: 12, startTicks: 34))
        for name in ["looplag-+1-2", "looplag-01-2", "looplag-1", "looplag-1-2-3", "looplag--1-2", "looplag-0-1",
            "xlooplag-1-2", "looplag-99999999999-1", "looplag-1-", ""] {
            #expect(SegmentName(name) == nil, "\(name)")
        }
        let line = "7 (a) S 1 (x) R 3 7 7 0 -1 4 1 2 3 4 5 6 7 8 20 0 9 0 12345 6 7"
        let stat = line.utf8.withContiguousStorageIfAvailable { ProcessStat(UnsafeRawBufferPointer($0)) } ?? nil
        #expect(stat?.state == UInt8(ascii: "R"))
        #expect(stat?.parent == 3)
        #expect(stat?.threads == 9)
        #expect(stat?.startTicks == 12345)
        let status = ProcessStatus(Array("Name:\tx\nUid:\t1\t2\t3\t4\nNSpid:\t77\t5\n".utf8))
        #expect(status?.users == [1, 2, 3, 4])
        #expect(status?.namespacePIDs == [77, 5])
        #expect(ProcessStatus([0xff, 0x0a]) == nil)
    }
}

/// memfd_create is not in the Glibc module.
private final class MemoryFile {
    let descriptor: Int32

    init?() {
        typealias Create = @convention(c) (UnsafePointer<CChar>, UInt32) -> Int32
        guard let symbol = dlsym(dlopen(nil, RTLD_NOW), "memfd_create") else { return nil }
        descriptor = unsafeBitCast(symbol, to: Create.self)("looplag", 1)
        if descriptor < 0 { return nil }
    }

    deinit { close(descriptor) }
}

/// A thread called "looplag", as the agent's watchdog is, that waits until it is ended.
final class NamedThread {
    private(set) var tid: Int32 = 0
    private var thread = pthread_t()
    private var ends: [Int32] = [-1, -1]

    init() {
        pipe(&ends)
        let start = Unmanaged.passRetained(Box(ends[0])).toOpaque()
        pthread_create(&thread, nil, { raw in
            guard let raw else { return nil }
            let box = Unmanaged<Box>.fromOpaque(raw).takeRetainedValue()
            let file = open("/proc/thread-self/comm", O_WRONLY)
            write(file, "looplag", 7)
            close(file)
            var byte: UInt8 = 0
            read(box.descriptor, &byte, 1)
            return nil
        }, start)
        while tid == 0 { tid = ProcFS.watchdogThreads(of: getpid()).first ?? 0 }
    }

    func end() {
        close(ends[1])
        pthread_join(thread, nil)
        close(ends[0])
    }

    private final class Box {
        let descriptor: Int32
        init(_ descriptor: Int32) { self.descriptor = descriptor }
    }
}
