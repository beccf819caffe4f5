/// Finds the file that a process really mapped, wherever it can still be read, and refuses every other.
///
/// Who calls it: ModuleStore, on the decoder's thread. A file counts only if its build ID (or, without one, its inode)
/// is that of the module record: a replaced library gives addresses, never wrong names. A process in another mount
/// namespace is read through /proc/PID/root, a deleted file through /proc/PID/exe or map_files.

import CLibunwind
import Glibc
import LoopLagModel

struct ModuleLocator {
    let identity: ProcessIdentity?

    func open(_ module: ModuleRecord) -> ElfImage? {
        if module.isVDSO { return vdso(module) }
        for path in candidates(module) {
            if let image = try? ElfImage(path: path), Self.matches(image, module) { return image }
        }
        return nil
    }

    /// Cheapest and most likely first; each is only tried if the ones before it did not match.
    private func candidates(_ module: ModuleRecord) -> [String] {
        let path = Self.plainPath(module.path)
        var result: [String] = []
        if path.hasPrefix("/") { result.append(path) }
        guard let identity else { return result }
        let process = "/proc/\(identity.pid)"
        if path.hasPrefix("/") { result.append(process + "/root" + path) }
        result.append(process + "/exe")
        // Any one mapping of the file will do: its name is the exact range, which only maps tells.
        if let range = mappedRange(module, process: process) { result.append(process + "/map_files/" + range) }
        return result
    }

    private func mappedRange(_ module: ModuleRecord, process: String) -> String? {
        guard let maps = readSmallFile(process + "/maps", atMost: 16 << 20) else { return nil }
        for line in maps.split(separator: "\n") {
            let fields = line.split(separator: " ", maxSplits: 5)
            guard fields.count >= 5, let inode = UInt64(fields[4]), inode != 0,
                let dash = fields[0].firstIndex(of: "-"), let start = UInt64(fields[0][..<dash], radix: 16)
            else { continue }
            if start &- module.start < module.end &- module.start { return String(fields[0]) }
        }
        return nil
    }

    /// The executable memory of the live process, JIT code included; nil when it cannot be read.
    func runtimeCode() -> [(start: UInt64, end: UInt64)]? {
        guard let identity, let maps = readSmallFile("/proc/\(identity.pid)/maps", atMost: 16 << 20) else { return nil }
        var ranges: [(start: UInt64, end: UInt64)] = []
        for line in maps.split(separator: "\n") {
            let fields = line.split(separator: " ", maxSplits: 5)
            guard fields.count >= 5, fields[1].dropFirst(2).first == "x" else { continue }
            let range = fields[0].split(separator: "-")
            guard range.count == 2, let start = UInt64(range[0], radix: 16), let end = UInt64(range[1], radix: 16)
            else { continue }
            ranges.append((start, end))
        }
        // A process that has just ended has an empty map.
        return ranges.isEmpty ? nil : ranges
    }

    static func plainPath(_ path: String) -> String {
        path.hasSuffix(" (deleted)") ? String(path.dropLast(" (deleted)".count)) : path
    }

    static func matches(_ image: ElfImage, _ module: ModuleRecord) -> Bool {
        if !module.buildID.isEmpty { return sameBuildID(image.buildID, module.buildID) }
        // Without a build ID the file itself must be the mapped one. Overlay file systems report another device
        // number in maps than in stat, hence the inode alone decides there.
        return module.inode == 0 || module.inode == image.inode
    }

    /// The agent keeps at most 24 bytes of a build ID.
    static func sameBuildID(_ whole: [UInt8], _ recorded: [UInt8]) -> Bool {
        recorded.count >= 24 ? whole.starts(with: recorded) : whole == recorded
    }

    /// The vdso is the kernel's: ours is the target's on the same boot, which build ID or size confirm.
    private func vdso(_ module: ModuleRecord) -> ElfImage? {
        let address = UInt64(getauxval(33))  // AT_SYSINFO_EHDR
        guard address != 0, let maps = readSmallFile("/proc/self/maps", atMost: 16 << 20) else { return nil }
        for line in maps.split(separator: "\n") where line.hasSuffix("[vdso]") {
            let range = line.prefix { $0 != " " }.split(separator: "-")
            guard range.count == 2, let start = UInt64(range[0], radix: 16), let end = UInt64(range[1], radix: 16),
                start == address, end > start, end - start <= 1 << 20,
                let pointer = UnsafeRawPointer(bitPattern: UInt(start))
            else { continue }
            let bytes = [UInt8](UnsafeRawBufferPointer(start: pointer, count: Int(end - start)))
            guard let image = try? ElfImage(bytes: bytes) else { return nil }
            if !module.buildID.isEmpty { return Self.sameBuildID(image.buildID, module.buildID) ? image : nil }
            return end - start == module.end &- module.start ? image : nil
        }
        return nil
    }
}

/// The text of a small file, such as one of procfs; nil when it cannot be read or is larger than `limit`.
func readSmallFile(_ path: String, atMost limit: Int) -> String? {
    let fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
    guard fd >= 0 else { return nil }
    defer { close(fd) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let got = read(fd, &buffer, buffer.count)
        if got < 0 && errno == EINTR { continue }
        guard got >= 0 else { return nil }
        if got == 0 { return String(decoding: bytes, as: UTF8.self) }
        bytes.append(contentsOf: buffer[..<got])
        if bytes.count > limit { return nil }
    }
}
