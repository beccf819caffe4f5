/// Finding segments: children that only sleep play the hosts, and the test puts their segments where agents would.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Discovery")
struct DiscoveryTests {
    /// A process and a segment in its name, in the first place where an agent would put it.
    private struct Host {
        let sleeper: Sleeper
        let image: SegmentImage

        init(_ sleeper: Sleeper) throws {
            self.sleeper = sleeper
            image = try SegmentImage(path: "/dev/shm/\(Self.name(sleeper))")
            image.header.pointee.pid = UInt32(sleeper.pid)
            image.header.pointee.start_ticks = sleeper.startTicks
        }

        /// As the process itself sees it.
        var seenPath: String { "/proc/\(sleeper.pid)/root\(image.path)" }

        static func name(_ sleeper: Sleeper) -> String {
            SegmentName(pid: sleeper.pid, startTicks: sleeper.startTicks).fileName
        }
    }

    private func failure(_ pid: Int32) -> TelemetryError? {
        do throws(TelemetryError) {
            _ = try SegmentDiscovery.live(pid: pid)
            return nil
        } catch {
            return error
        }
    }

    /// A process whose thread has the name of an agent's; it inherits what may be inherited.
    private func watchdogLike(_ folder: Folder) throws -> Sleeper {
        symlink("/bin/sleep", folder.file("looplag"))
        return try Sleeper([folder.file("looplag"), "600"])
    }

    @Test("finds a segment in the host's /dev/shm, through the host's own root")
    func sharedMemory() throws {
        let host = try Host(Sleeper())
        let source = try SegmentDiscovery.live(pid: host.sleeper.pid)
        #expect(source.path == host.seenPath)
        #expect(source.isAlive)
        #expect(source.startTicks == host.sleeper.startTicks)
        #expect(try SegmentReader(source).snapshot().isAlive)
        #expect(SegmentDiscovery.allLive().contains(source))
        #expect(!SegmentDiscovery.leftovers().contains { $0.path == host.image.path })
        host.sleeper.end()
        #expect(SegmentDiscovery.leftovers().contains { $0.path == host.image.path })
        #expect(!SegmentDiscovery.allLive().contains(source))
    }

    @Test(
        "finds a segment in any other folder by the host's mapping of it",
        .enabled(if: access("/dev/shm/\(SegmentName(pid: getpid(), startTicks: Own.startTicks).fileName)", F_OK) != 0))
    func mapping() throws {
        let folder = try Folder()
        let name = SegmentName(pid: getpid(), startTicks: Own.startTicks).fileName
        let image = try SegmentImage(path: folder.file(name))
        let source = try SegmentDiscovery.live(pid: getpid())
        #expect(source.path == "/proc/\(getpid())/root\(image.path)")
        #expect(try SegmentReader(source).snapshot().isAlive)
    }

    @Test("says why not when the only candidate is refused")
    func refusedCandidate() throws {
        let host = try Host(Sleeper())
        let header = host.image.header
        let pid = host.sleeper.pid
        header.pointee.abi_version = 7
        #expect(failure(pid) == .otherVersion(path: host.seenPath, found: 7, known: UInt32(LAG_ABI_VERSION)))
        header.pointee.abi_version = UInt32(LAG_ABI_VERSION)
        header.pointee.pid += 1
        #expect(
            failure(pid) == .untrusted(path: host.seenPath, reason: "it is the segment of process \(pid + 1)"))
        header.pointee.pid -= 1
        header.pointee.start_ticks -= 1
        #expect(
            failure(pid) == .untrusted(path: host.seenPath, reason: "it is the segment of an earlier process \(pid)"))
        header.pointee.start_ticks += 1
        chmod(host.image.path, 0o644)
        #expect(failure(pid) == .untrusted(path: host.seenPath, reason: "its mode is 0644 and not 0600"))
    }

    @Test("finds a memory file by the agent's thread, whatever a stranger has put in the first place")
    func memoryFile() throws {
        let memory = try #require(MemoryFile())
        let folder = try Folder()
        let sleeper = try watchdogLike(folder)
        let image = try SegmentImage(path: "memory", descriptor: memory.descriptor)
        image.header.pointee.pid = UInt32(sleeper.pid)
        image.header.pointee.start_ticks = sleeper.startTicks
        image.startLoop(0)
        let squatter = "/dev/shm/\(Host.name(sleeper))"
        symlink("/etc/passwd", squatter)
        defer { unlink(squatter) }

        let source = try SegmentDiscovery.live(pid: sleeper.pid)
        #expect(source.path == "/proc/\(sleeper.pid)/task/\(sleeper.pid)/fd/\(memory.descriptor)")
        let reader = try SegmentReader(source)
        #expect(try reader.snapshot().loops.count == 1)
        #expect(!reader.isUnlinked)
        #expect(reader.hold(threshold: .milliseconds(10)))
        #expect(SegmentDiscovery.allLive().contains(source))
    }

    @Test("takes the segment that an exec left behind for none, unless the agent's thread is there")
    func stale() throws {
        let plain = try Host(Sleeper())
        plain.image.header.pointee.heartbeat_ns -= 60_000_000_000
        #expect(failure(plain.sleeper.pid) == .noAgent(pid: plain.sleeper.pid))
        let folder = try Folder()
        let stopped = try Host(watchdogLike(folder))
        stopped.image.header.pointee.heartbeat_ns -= 60_000_000_000
        #expect(failure(stopped.sleeper.pid) == nil)
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
        for name in [
            "looplag-+1-2", "looplag-01-2", "looplag-1", "looplag-1-2-3", "looplag--1-2", "looplag-0-1",
            "xlooplag-1-2", "looplag-99999999999-1", "looplag-1-", "",
        ] {
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

/// A memory file that children inherit. memfd_create is not in the Glibc module.
private final class MemoryFile {
    let descriptor: Int32

    init?() {
        typealias Create = @convention(c) (UnsafePointer<CChar>, UInt32) -> Int32
        guard let symbol = dlsym(dlopen(nil, RTLD_NOW), "memfd_create") else { return nil }
        descriptor = unsafeBitCast(symbol, to: Create.self)("looplag", 0)
        if descriptor < 0 { return nil }
    }

    deinit { close(descriptor) }
}
