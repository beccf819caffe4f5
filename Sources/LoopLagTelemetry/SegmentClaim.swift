/// Whether an opened segment really is the one of the process it was found for.
///
/// Asked by discovery and, since the path may lead elsewhere by then, by every SegmentReader once more; on their thread.
/// A process chooses what its /dev/shm shows: with a mount namespace of its own it can put any file of the machine
/// there, also one that only root may read. So its head must name this process, and a file of root's counts only if
/// the process has it mapped, which it cannot do with a file that it may not open.

import CLoopLagLayout
import Glibc

struct SegmentClaim {
    /// As the file's head says: the pid in the process's own namespace.
    var pid: UInt32
    var startTicks: UInt64
    /// Which file it is.
    var device: UInt
    var inode: UInt
    var owner: UInt32

    init(_ header: UnsafePointer<lag_header>, _ condition: SegmentFile.Condition) {
        pid = header.pointee.pid
        startTicks = header.pointee.start_ticks
        device = condition.device
        inode = condition.inode
        owner = condition.owner
    }

    /// Throws unless the file is that of the living process `source`.
    func check(of source: SegmentSource, status: ProcessStatus, path: String) throws(TelemetryError) {
        let innerPID = status.namespacePIDs.last ?? source.pid
        guard pid == UInt32(bitPattern: innerPID) else {
            throw .untrusted(path: path, reason: "it is the segment of process \(pid)")
        }
        guard startTicks == source.startTicks || Self.hasOtherClock(source.pid) else {
            throw .untrusted(path: path, reason: "it is the segment of an earlier process \(pid)")
        }
        guard status.users.contains(owner) || isMapped(by: source.pid) else {
            throw .untrusted(
                path: path, reason: "it belongs to uid \(owner), and its process has not mapped it")
        }
    }

    /// In a time namespace a process counts its start from another boot.
    private static func hasOtherClock(_ pid: Int32) -> Bool {
        guard let theirs = ProcFS.namespace("time", of: "\(pid)"), let ours = ProcFS.namespace("time", of: "self")
        else {
            return false
        }
        return theirs != ours
    }

    /// Asked only of a process that has changed its user since the agent began: reading the mappings takes its time.
    private func isMapped(by pid: Int32) -> Bool {
        guard let maps = try? ProcFS.read("/proc/\(pid)/maps", limit: 32 << 20) else { return false }
        let wanted = Array("\(inode)".utf8)
        for line in maps.split(separator: UInt8(ascii: "\n")) {
            // address perms offset dev inode path
            let fields = line.split(separator: UInt8(ascii: " "), maxSplits: 5)
            guard fields.count >= 5, fields[4].elementsEqual(wanted), fields[1].elementsEqual("rw-s".utf8) else {
                continue
            }
            // The device of maps is not that of stat on every file system; the mapping's own link is exact.
            let range = String(decoding: fields[0], as: UTF8.self)
            var info = stat()
            if stat("/proc/\(pid)/map_files/\(range)", &info) == 0 {
                if info.st_dev == device, info.st_ino == inode { return true }
            } else if Self.device(String(decoding: fields[3], as: UTF8.self)) == device {
                return true
            }
        }
        return false
    }

    /// "00:1b" as st_dev has it.
    private static func device(_ text: String) -> UInt? {
        let parts = text.split(separator: ":")
        guard parts.count == 2, let major = UInt(parts[0], radix: 16), let minor = UInt(parts[1], radix: 16) else {
            return nil
        }
        // gnu_dev_makedev of sys/sysmacros.h.
        return (major & 0xfff) << 8 | (major & ~0xfff) << 32 | minor & 0xff | (minor & ~0xff) << 12
    }
}
