/// What dead processes left: found by number, and removed only where nobody can need it any more.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Leftovers")
struct LeftoverTests {
    let folder: Folder

    init() throws { folder = try Folder() }

    private func image(_ pid: Int32, _ ticks: UInt64) throws -> SegmentImage {
        let name = SegmentName(pid: pid, startTicks: ticks)
        let image = try SegmentImage(path: folder.file(name.fileName))
        image.header.pointee.pid = UInt32(pid)
        image.header.pointee.start_ticks = ticks
        image.header.pointee.pid_namespace = ProcFS.ownPIDNamespace() ?? 0
        return image
    }

    /// The number of a process that has ended.
    private func deadPID() throws -> (pid: Int32, ticks: UInt64) {
        let sleeper = try Sleeper()
        let found = (sleeper.pid, sleeper.startTicks)
        sleeper.end()
        return found
    }

    private func kept(_ image: SegmentImage) -> String? {
        let name = image.path.split(separator: "/").last.map(String.init) ?? ""
        return SegmentDiscovery.clean(folder: folder.path).first { $0.path.hasSuffix("/" + name) }?.kept
    }

    @Test("are removed when their process is dead, and only they")
    func clean() throws {
        let (pid, ticks) = try deadPID()
        let alive = try Sleeper()
        let dead = try image(pid, ticks)
        let reused = try image(alive.pid, alive.startTicks &- 1)
        let living = try image(alive.pid, alive.startTicks)
        for name in ["looplag-1", "looplag-01-2", "other", "looplag-\(pid)-\(ticks)x"] {
            close(open(folder.file(name), O_CREAT | O_WRONLY, 0o600))
        }
        let removals = SegmentDiscovery.clean(folder: folder.path)
        #expect(Set(removals.map(\.path)) == [dead.path, reused.path])
        #expect(removals.allSatisfy { $0.kept == nil && $0.bytes == dead.bytes })
        #expect(access(dead.path, F_OK) != 0 && access(reused.path, F_OK) != 0)
        #expect(access(living.path, F_OK) == 0)
        #expect(access(folder.file("looplag-\(pid)-\(ticks)x"), F_OK) == 0)
        #expect(SegmentDiscovery.clean(folder: folder.path).isEmpty)
        #expect(SegmentDiscovery.clean(folder: "/nonexistent").isEmpty)
    }

    @Test("stay where anything is in doubt, and say why")
    func doubts() throws {
        let (pid, ticks) = try deadPID()
        let foreign = try image(pid, ticks)
        foreign.header.pointee.pid_namespace = 1
        #expect(kept(foreign)?.contains("namespace") == true)
        foreign.header.pointee.pid_namespace = 0
        #expect(kept(foreign)?.contains("namespace") == true)
        foreign.header.pointee.pid_namespace = ProcFS.ownPIDNamespace() ?? 0
        foreign.header.pointee.start_ticks &+= 1
        #expect(kept(foreign)?.contains("its head names") == true)
        foreign.header.pointee.start_ticks &-= 1
        foreign.header.pointee.magic = 0
        #expect(kept(foreign)?.contains("not yet whole") == true)
        foreign.header.pointee.magic = LAG_SEGMENT_MAGIC
        chmod(foreign.path, 0o644)
        #expect(kept(foreign)?.contains("mode") == true)
        chmod(foreign.path, 0o600)
        link(foreign.path, folder.file("second"))
        #expect(kept(foreign)?.contains("2 names") == true)
        unlink(folder.file("second"))

        let target = folder.file("precious")
        close(open(target, O_CREAT | O_WRONLY, 0o600))
        let names = (1...3).map { SegmentName(pid: pid, startTicks: ticks &+ 10 &+ UInt64($0)).fileName }
        symlink(target, folder.file(names[0]))
        mkfifo(folder.file(names[1]), 0o600)
        mkdir(folder.file(names[2]), 0o700)
        let removals = SegmentDiscovery.clean(folder: folder.path)
        #expect(removals.filter { $0.kept == nil }.map(\.path) == [foreign.path])
        #expect(removals.count == 4)
        #expect(access(target, F_OK) == 0)
        #expect(names.allSatisfy { name in ProcFS.names(in: folder.path).contains(Array(name.utf8)) })
    }

    @Test("of other users are root's to remove", .enabled(if: geteuid() == 0))
    func owners() throws {
        let (pid, ticks) = try deadPID()
        let other = try image(pid, ticks)
        chown(other.path, 12_345, 12_345)
        chmod(folder.path, 0o777)
        // In a child of its own: the effective user is the whole process's.
        let outcome = asUser(65_534) { SegmentDiscovery.clean(folder: folder.path).first?.kept != nil ? 0 : 1 }
        #expect(outcome == 0)
        #expect(access(other.path, F_OK) == 0)
        #expect(SegmentDiscovery.clean(folder: folder.path).map(\.kept) == [nil])
    }

    /// The effective user of this thread alone; glibc's seteuid would change all threads', and with them other tests.
    private func asUser(_ user: UInt32, _ body: () -> Int32) -> Int32 {
        typealias SetID = @convention(c) (Int, Int, Int, Int) -> Int
        guard let symbol = dlsym(dlopen(nil, RTLD_NOW), "syscall") else { return -1 }
        let setresuid = unsafeBitCast(symbol, to: SetID.self)
        guard setresuid(117, -1, Int(user), -1) == 0 else { return -1 }
        defer { _ = setresuid(117, -1, 0, -1) }
        return body()
    }

    @Test("are found by number, the latest of a reused one, and what cannot be read is said")
    func byNumber() throws {
        let (pid, ticks) = try deadPID()
        let folders = ["/nonexistent", folder.path]
        #expect(try SegmentDiscovery.leftover(pid: pid, in: folders) == nil)
        let old = try image(pid, ticks &- 5)
        let late = try image(pid, ticks)
        #expect(try SegmentDiscovery.leftover(pid: pid, in: folders)?.path == late.path)
        truncate(late.path, 100)
        #expect(try SegmentDiscovery.leftover(pid: pid, in: folders)?.path == old.path)
        truncate(old.path, 100)
        #expect(throws: TelemetryError.self) { try SegmentDiscovery.leftover(pid: pid, in: folders) }
    }
}
