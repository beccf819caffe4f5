/// Segments whose process has died: finding them, and taking them away when a person says so.
///
/// Called by `postmortem`, `stalls`, `ps` and, for its own dead workers, by `run`; on any thread, keeps nothing. A file
/// goes only if its name, its head, its owner and the process table all say that nobody needs it any more; whatever is
/// in doubt (a head that cannot be read, another pid namespace, a /proc that is not ours) stays.

import CLoopLagLayout
import Glibc

extension SegmentDiscovery {
    /// Segments whose process has ended, by pid. Those of other pid namespaces are left out: nobody here can tell
    /// whether their processes live.
    public static func leftovers() -> [SegmentSource] { leftovers(in: leftoverFolders) }

    /// What a dead process left under this number, of several the latest; nil when nothing is there. Throws when
    /// something is there and cannot be read.
    public static func leftover(pid: Int32) throws(TelemetryError) -> SegmentSource? {
        try leftover(pid: pid, in: leftoverFolders)
    }

    /// What a segment's file says about its process, for a reader that was given nothing but a path.
    public static func source(ofFile path: String) throws(TelemetryError) -> SegmentSource {
        var source = SegmentSource(pid: 0, startTicks: 0, path: path, isAlive: false)
        let look = try Look(source, owner: .reader)
        source.pid = look.pid
        source.startTicks = look.startTicks
        let isOurs = look.pidNamespace == 0 || look.pidNamespace == ProcFS.ownPIDNamespace()
        if isOurs {
            if let stat = ProcFS.process(look.pid) {
                source.isAlive = stat.isAlive && stat.startTicks == look.startTicks
            }
        } else if let outer = outerPID(of: look) {
            source.pid = outer
            source.isAlive = true
        }
        return source
    }

    /// Our number for a living process of another pid namespace.
    private static func outerPID(of look: Look) -> Int32? {
        ProcFS.processes().first { pid in
            guard let stat = ProcFS.process(pid), stat.isAlive, stat.startTicks == look.startTicks,
                ProcFS.namespace("pid", of: "\(pid)") == look.pidNamespace
            else { return false }
            return ProcFS.status(pid)?.namespacePIDs.last == look.pid
        }
    }

    private static var leftoverFolders: [String] {
        guard let own = ownFolder(), own != sharedMemory else { return [sharedMemory] }
        return [sharedMemory, own]
    }

    private static func names(in folder: String) -> [SegmentName] {
        ProcFS.names(in: folder).compactMap { SegmentName(String(decoding: $0, as: UTF8.self)) }
    }

    static func leftovers(in folders: [String]) -> [SegmentSource] {
        let namespace = ProcFS.ownPIDNamespace()
        var result: [SegmentSource] = []
        for folder in folders {
            for name in names(in: folder) where !name.isOfLivingProcess {
                let source = name.deadSource(in: folder)
                guard let head = try? Look(source, owner: .reader), head.pid == name.pid,
                    head.pidNamespace == 0 || namespace == nil || head.pidNamespace == namespace
                else { continue }
                result.append(source)
            }
        }
        return result.sorted { ($0.pid, $0.startTicks) < ($1.pid, $1.startTicks) }
    }

    static func leftover(pid: Int32, in folders: [String]) throws(TelemetryError) -> SegmentSource? {
        var found: [SegmentSource] = []
        var worst: TelemetryError?
        for folder in folders {
            for name in names(in: folder) where name.pid == pid && !name.isOfLivingProcess {
                let source = name.deadSource(in: folder)
                do throws(TelemetryError) {
                    let head = try Look(source, owner: .reader)
                    guard head.pid == name.pid, head.startTicks == name.startTicks else {
                        throw .untrusted(path: source.path, reason: "it is the segment of process \(head.pid)")
                    }
                    found.append(source)
                } catch {
                    worst = error
                }
            }
        }
        if let latest = found.max(by: { $0.startTicks < $1.startTicks }) { return latest }
        if let worst { throw worst }
        return nil
    }

    // -- taking away ---------------------------------------------------------------------------------------------

    /// What became of one file under a segment's name.
    public struct Removal: Sendable {
        public var path: String
        public var bytes: Int
        /// Why it is still there; nil when it is gone.
        public var kept: String?
    }

    /// Removes the segments of dead processes: the caller's own, or everybody's for root. What lives is not mentioned.
    public static func clean() -> [Removal] { leftoverFolders.flatMap { clean(folder: $0) } }

    static func clean(folder: String) -> [Removal] {
        let names = names(in: folder).filter { !$0.isOfLivingProcess }
        guard !names.isEmpty else { return [] }
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return [] }
        defer { close(descriptor) }
        return names.sorted { ($0.pid, $0.startTicks) < ($1.pid, $1.startTicks) }
            .map { remove($0, folder: folder, descriptor: descriptor) }
    }

    /// Removes one leftover that discovery gave out; false when it stays.
    @discardableResult
    public static func remove(_ source: SegmentSource) -> Bool {
        guard !source.isAlive, let slash = source.path.lastIndex(of: "/"),
            let name = SegmentName(String(source.path[source.path.index(after: slash)...]))
        else { return false }
        let folder = String(source.path[..<slash])
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return false }
        defer { close(descriptor) }
        return remove(name, folder: folder, descriptor: descriptor).kept == nil
    }

    private static func remove(_ name: SegmentName, folder: String, descriptor: Int32) -> Removal {
        var removal = Removal(path: "\(folder)/\(name.fileName)", bytes: 0)
        do throws(TelemetryError) {
            let look = try Look(name.deadSource(in: folder), owner: .reader)
            removal.bytes = look.fileBytes
            removal.kept = obstacle(name, look)
            guard removal.kept == nil else { return removal }
            // The file that was judged must be the one that goes. Between these two calls only its owner, or root,
            // could put another one of this name there: one more leftover of the same owner's.
            var info = stat()
            guard fstatat(descriptor, name.fileName, &info, AT_SYMLINK_NOFOLLOW) == 0 else {
                removal.kept = SystemError.last.text.lowercased()
                return removal
            }
            guard info.st_dev == look.claim.device, info.st_ino == look.claim.inode else {
                removal.kept = "it was replaced while it was looked at"
                return removal
            }
            if unlinkat(descriptor, name.fileName, 0) != 0 { removal.kept = SystemError.last.text.lowercased() }
        } catch {
            removal.kept = reason(error)
        }
        return removal
    }

    /// What speaks against removing it.
    private static func obstacle(_ name: SegmentName, _ look: Look) -> String? {
        guard look.pid == name.pid, look.startTicks == name.startTicks else {
            return "its head names process \(look.pid)"
        }
        guard ProcFS.showsOwnNumbers, let namespace = ProcFS.ownPIDNamespace() else {
            return "/proc does not show this pid namespace"
        }
        guard look.pidNamespace == namespace else { return "its process lives or lived in another pid namespace" }
        // Asked last: a process that was just starting, and took the number meanwhile, has other start ticks.
        return name.isOfLivingProcess ? "its process lives" : nil
    }

    private static func reason(_ error: TelemetryError) -> String {
        switch error {
        case .notPermitted(_, _, let detail): detail.prefix(1).lowercased() + detail.dropFirst()
        case .untrusted(_, let reason): reason
        case .corrupt(_, let reason): "it is damaged or not yet whole (\(reason))"
        case .otherVersion(_, let found, _): "it has layout version \(found)"
        case .io(_, let code): SystemError(code: code).text.lowercased()
        case .noSuchProcess, .noAgent, .gone: "it is gone"
        }
    }
}

extension SegmentName {
    fileprivate func deadSource(in folder: String) -> SegmentSource {
        SegmentSource(pid: pid, startTicks: startTicks, path: "\(folder)/\(fileName)", isAlive: false)
    }
}
