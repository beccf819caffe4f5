/// A process that means harm to whoever looks at it, most of all to root: what it puts where its segment should be, and
/// what it does with the file while it is read. Nothing of it may be followed, opened, waited for or written.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("A hostile process")
struct HostileProcessTests {
    let folder: Folder

    init() throws { folder = try Folder() }

    private func failure(_ pid: Int32) -> TelemetryError? {
        do throws(TelemetryError) {
            _ = try SegmentDiscovery.live(pid: pid)
            return nil
        } catch {
            return error
        }
    }

    private func reason(_ pid: Int32) -> String {
        switch failure(pid) {
        case .untrusted(_, let reason), .corrupt(_, let reason): reason
        case nil: "nothing"
        case let other?: other.message
        }
    }

    /// Waits for what a child does on its own.
    private func eventually(_ what: String, _ condition: () -> Bool) async throws {
        let end = monotonicNanoseconds() &+ 20_000_000_000
        while !condition() {
            try #require(monotonicNanoseconds() < end, "\(what)")
            await Task.yield()
        }
    }

    private func place(_ sleeper: Sleeper, innerPID: Int32? = nil) -> String {
        "/dev/shm/" + SegmentName(pid: innerPID ?? sleeper.pid, startTicks: sleeper.startTicks).fileName
    }

    private func image(_ path: String, pid: Int32, ticks: UInt64) throws -> SegmentImage {
        let image = try SegmentImage(path: path)
        image.header.pointee.pid = UInt32(pid)
        image.header.pointee.start_ticks = ticks
        return image
    }

    @Test("is refused what is no plain file, without a wait and without opening it")
    func wrongFiles() throws {
        let sleeper = try Sleeper()
        let path = place(sleeper)
        let precious = folder.file("precious")
        close(open(precious, O_CREAT | O_WRONLY | O_CLOEXEC, 0o600))
        func attempt(_ words: String, _ plant: () -> Int32) {
            #expect(plant() == 0, "\(words)")
            #expect(reason(sleeper.pid).contains(words), "\(reason(sleeper.pid))")
            #expect(!SegmentDiscovery.allLive().contains { $0.pid == sleeper.pid })
            if unlink(path) != 0 { rmdir(path) }
        }
        attempt("symbolic link") { symlink(precious, path) }
        attempt("symbolic link") { symlink("/proc/self/mem", path) }
        attempt("a pipe") { mkfifo(path, 0o600) }
        attempt("a folder") { mkdir(path, 0o600) }
        if geteuid() == 0 {
            // The kernel's log, whose reader waits; the full device, and a disk's number that nothing answers.
            for number in [0x10b, 0x107, 0x7f00] as [UInt] {
                attempt("not a regular file") { mknod(path, S_IFCHR | 0o600, number) }
            }
        }
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0o600))
        truncate(path, 1 << 40)
        #expect(reason(sleeper.pid).contains("more than any agent writes"))
        unlink(path)
        let good = try image(path, pid: sleeper.pid, ticks: sleeper.startTicks)
        #expect(failure(sleeper.pid) == nil)
        let second = good.path + ".second"
        link(good.path, second)
        defer { unlink(second) }
        #expect(reason(sleeper.pid).contains("2 names"))
    }

    @Test("cannot pass off a file of root's as its own", .enabled(if: geteuid() == 0))
    func filesOfRoot() async throws {
        let sleeper = try Sleeper(["/usr/bin/setpriv", "--reuid", "65534", "--clear-groups", "/bin/sleep", "600"])
        try await eventually("the other user") { ProcFS.status(sleeper.pid)?.users == [65534, 65534, 65534, 65534] }
        // As a mount in its own /dev/shm would show it: whole, root's, and not opened by the process.
        let image = try image(place(sleeper), pid: sleeper.pid, ticks: sleeper.startTicks)
        #expect(reason(sleeper.pid).contains("has not mapped it"))
        var source = image.source
        source.pid = sleeper.pid
        source.startTicks = sleeper.startTicks
        #expect(throws: TelemetryError.self) { try SegmentReader(source) }
        #expect(image.header.pointee.leases.0.beat == 0)
        // Its own is read by root.
        chown(image.path, 65534, 65534)
        #expect(failure(sleeper.pid) == nil)
        chown(image.path, 65533, 65533)
        #expect(reason(sleeper.pid).contains("uid 65533"))
    }

    @Test("in a mount namespace of its own is read there, and can lead nobody out of it", .enabled(if: geteuid() == 0))
    func mountNamespace() async throws {
        let sleeper = try Sleeper([
            "/usr/bin/unshare", "--mount", "/bin/sh", "-c", "mount -t tmpfs none /dev/shm && exec /bin/sleep 600",
        ])
        let inside = "/proc/\(sleeper.pid)/root"
        try await eventually("the private folder") {
            ProcFS.link("/proc/\(sleeper.pid)/exe")?.hasSuffix("/sleep") ?? false
        }
        #expect(failure(sleeper.pid) == .noAgent(pid: sleeper.pid))
        let image = try image(inside + place(sleeper), pid: sleeper.pid, ticks: sleeper.startTicks)
        #expect(access(place(sleeper), F_OK) != 0)
        let source = try SegmentDiscovery.live(pid: sleeper.pid)
        #expect(source.path == image.path)
        #expect(try SegmentReader(source).snapshot().isAlive)
        // A link that is absolute inside leads out for whoever follows it.
        unlink(image.path)
        let outside = try self.image(folder.file("outside"), pid: sleeper.pid, ticks: sleeper.startTicks)
        symlink(outside.path, image.path)
        #expect(reason(sleeper.pid).contains("symbolic link"))
        unlink(image.path)
    }

    @Test("in a pid namespace of its own is known by the number that it has there", .enabled(if: geteuid() == 0))
    func pidNamespace() async throws {
        let outer = try Sleeper(["/usr/bin/unshare", "--pid", "--fork", "--kill-child", "/bin/sleep", "600"])
        var found: Int32?
        try await eventually("the child") {
            found = SegmentDiscovery.children(of: outer.pid).first {
                ProcFS.link("/proc/\($0)/exe")?.hasSuffix("/sleep") ?? false
            }
            return found != nil
        }
        let pid = try #require(found)
        let stat = try #require(ProcFS.process(pid))
        #expect(ProcFS.status(pid)?.namespacePIDs == [pid, 1])
        let path = "/dev/shm/" + SegmentName(pid: 1, startTicks: stat.startTicks).fileName
        let image = try image(path, pid: 1, ticks: stat.startTicks)
        image.header.pointee.pid_namespace = ProcFS.namespace("pid", of: "\(pid)") ?? 0
        let source = try SegmentDiscovery.live(pid: pid)
        #expect(source.pid == pid)
        let reader = try SegmentReader(source)
        #expect(try reader.snapshot().identity == ProcessIdentity(pid: pid, startTicks: stat.startTicks))
        // By the file alone its process is found all the same, and nobody cleans away what it needs.
        #expect(try SegmentDiscovery.source(ofFile: path).isAlive)
        #expect(try SegmentDiscovery.source(ofFile: path).pid == pid)
        image.header.pointee.pid = UInt32(pid)
        #expect(failure(pid)?.message.contains("segment of process \(pid)") == true)
        image.header.pointee.pid = 1
        outer.end()
        try await eventually("its end") { !(ProcFS.process(pid)?.isAlive ?? false) }
        #expect(!SegmentDiscovery.leftovers().contains { $0.path == path })
    }

    @Test("cannot turn a reader's lease against another file, nor a swapped one against the reader")
    func swapped() throws {
        let sleeper = try Sleeper()
        let image = try image(place(sleeper), pid: sleeper.pid, ticks: sleeper.startTicks)
        image.startLoop(0)
        let reader = try SegmentReader(SegmentDiscovery.live(pid: sleeper.pid))
        let precious = folder.file("precious")
        let bytes = [UInt8](repeating: 7, count: 4096)
        let descriptor = open(precious, O_CREAT | O_RDWR | O_CLOEXEC, 0o600)
        defer { close(descriptor) }
        #expect(pwrite(descriptor, bytes, bytes.count, 0) == bytes.count)
        // A look at the file, then a link in its place, then the first write.
        unlink(image.path)
        symlink(precious, image.path)
        #expect(reader.hold(threshold: .milliseconds(10)))
        #expect(image.header.pointee.leases.0.threshold_ns == 10_000_000)
        var after = [UInt8](repeating: 0, count: 4096)
        #expect(pread(descriptor, &after, after.count, 0) == after.count)
        #expect(after == bytes)
        #expect(reader.isUnlinked)
        #expect(try reader.snapshot().loops.count == 1)
        // Cut to nothing: the lease writes its own few bytes into the process's own file, and reading says what happened.
        ftruncate(image.ownDescriptor, 0)
        _ = reader.hold(threshold: .milliseconds(20))
        #expect(throws: TelemetryError.self) { try reader.snapshot() }
        #expect(throws: TelemetryError.self) { try reader.samples(after: nil) }
    }
}
