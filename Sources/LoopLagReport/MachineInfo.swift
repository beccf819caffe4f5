/// The machine a report was made on: name, kernel, processors, and the limits a container puts on them.
///
/// Called once by the verbs that report. It reads procfs and the cgroup files, and nothing else; what it cannot read is
/// absent.

import Foundation
import LoopLagDiagnosis
import LoopLagModel

public enum MachineInfo {
    public static func current() -> Report.Machine {
        let kernel = read("/proc/sys/kernel/osrelease").map { "Linux " + trimmed($0) } ?? "Linux"
        let hostname = read("/proc/sys/kernel/hostname").map(trimmed) ?? ProcessInfo.processInfo.hostName
        return Report.Machine(
            hostname: PlainText.printable(hostname), kernel: PlainText.printable(kernel),
            cpus: ProcessInfo.processInfo.activeProcessorCount,
            cgroupLimits: cgroupLimits(memberships: read("/proc/self/cgroup") ?? "", root: "/sys/fs/cgroup", read: read)
        )
    }

    /// The tightest limits on the way from the process's own cgroup up to the root; nil where there are none.
    /// - Parameters:
    ///   - memberships: the text of /proc/self/cgroup, lines of `id:controllers:path`.
    ///   - read: a file's text; nil when there is none.
    static func cgroupLimits(memberships: String, root: String, read: (String) -> String?) -> Report.CgroupLimits? {
        var cpus: Double?
        var memory: Int64?
        func tighten(_ limits: (cpus: Double?, memory: Int64?)) {
            if let new = limits.cpus { cpus = min(cpus ?? new, new) }
            if let new = limits.memory { memory = min(memory ?? new, new) }
        }
        for line in memberships.split(separator: "\n") {
            let parts = line.split(separator: ":", maxSplits: 2, omittingEmptySubsequences: false).map(String.init)
            guard parts.count == 3 else { continue }
            let controllers = parts[1].split(separator: ",")
            for folder in ancestors(of: parts[2]) {
                if controllers.isEmpty {
                    tighten(version2(root + folder, read))
                    // A mixed machine mounts version 2 beside the controllers of version 1.
                    tighten(version2(root + "/unified" + folder, read))
                }
                for name in controllers where name == "cpu" || name == "memory" {
                    tighten(version1(root + "/" + name + folder, read))
                    // The two CPU controllers often share a mount.
                    if controllers.count > 1 { tighten(version1(root + "/" + parts[1] + folder, read)) }
                }
            }
        }
        return cpus == nil && memory == nil ? nil : Report.CgroupLimits(cpus: cpus, memoryBytes: memory)
    }

    /// "/a/b" gives "/a/b", "/a" and "". Inside a container the path may be the host's, which is not mounted there; the
    /// root then is the container's own cgroup.
    private static func ancestors(of path: String) -> [String] {
        var parts = path.split(separator: "/").map(String.init)
        if parts.contains("..") { parts = [] }
        return (0...min(parts.count, 32)).reversed().map { n in parts.prefix(n).map { "/" + $0 }.joined() }
    }

    private static func version2(_ folder: String, _ read: (String) -> String?) -> (Double?, Int64?) {
        var cpus: Double?
        if let fields = read(folder + "/cpu.max")?.split(whereSeparator: \.isWhitespace), fields.count == 2,
            let quota = Double(fields[0]), let period = Double(fields[1]), quota > 0, period > 0
        {
            cpus = quota / period
        }
        return (cpus, read(folder + "/memory.max").flatMap { Int64(trimmed($0)) })
    }

    private static func version1(_ folder: String, _ read: (String) -> String?) -> (Double?, Int64?) {
        var cpus: Double?
        if let quota = read(folder + "/cpu.cfs_quota_us").flatMap({ Double(trimmed($0)) }), quota > 0,
            let period = read(folder + "/cpu.cfs_period_us").flatMap({ Double(trimmed($0)) }), period > 0
        {
            cpus = quota / period
        }
        // "No limit" reads as the largest multiple of the page size.
        let memory = read(folder + "/memory.limit_in_bytes").flatMap { Int64(trimmed($0)) }
        return (cpus, memory.flatMap { $0 < 1 << 60 ? $0 : nil })
    }

    private static func read(_ path: String) -> String? {
        // Files of procfs and cgroupfs say they are empty; FileHandle reads until they end.
        guard let handle = FileHandle(forReadingAtPath: path) else { return nil }
        defer { try? handle.close() }
        guard let data = try? handle.read(upToCount: 64 << 10) else { return nil }
        return String(decoding: data, as: UTF8.self)
    }

    private static func trimmed(_ text: String) -> String {
        text.trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
