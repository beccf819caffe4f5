/// What /proc says of a host: CPU time to the nanosecond, resident memory, mappings.
///
/// Used by the measurements around a host that they started themselves; any thread, keeps nothing. nil = not known.

import Glibc

/// A small file as text; bytes that are no UTF-8 are replaced.
func readFile(_ path: String, atMost limit: Int = 4 << 20) -> String? {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    while bytes.count < limit {
        let count = read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return count < 0 && bytes.isEmpty ? nil : String(decoding: bytes, as: UTF8.self) }
        bytes.append(contentsOf: buffer[..<count])
    }
    return String(decoding: bytes, as: UTF8.self)
}

enum ProcFigures {
    static func threads(of pid: pid_t) -> [Int32] {
        guard let stream = opendir("/proc/\(pid)/task") else { return [] }
        defer { closedir(stream) }
        var result: [Int32] = []
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let thread = Int32(name) { result.append(thread) }
        }
        return result
    }

    /// On-CPU nanoseconds of one thread: schedstat, since stat counts in steps of 10 ms.
    static func cpu(of pid: pid_t, thread: Int32) -> UInt64? {
        readFile("/proc/\(pid)/task/\(thread)/schedstat")?.split(separator: " ").first.flatMap { UInt64($0) }
    }

    /// On-CPU nanoseconds of all living threads.
    static func cpu(of pid: pid_t) -> UInt64? {
        let threads = threads(of: pid)
        guard !threads.isEmpty else { return nil }
        return threads.reduce(0) { $0 &+ (cpu(of: pid, thread: $1) ?? 0) }
    }

    /// Resident bytes, shared and private, the segment's pages included.
    static func resident(_ pid: pid_t) -> UInt64? { kibibytes("Rss:", in: "/proc/\(pid)/smaps_rollup") }

    /// A `Name:   1234 kB` line, in bytes.
    static func kibibytes(_ name: String, in path: String) -> UInt64? {
        for line in (readFile(path) ?? "").split(separator: "\n") where line.hasPrefix(name) {
            return line.dropFirst(name.count).split(whereSeparator: \.isWhitespace).first.flatMap { UInt64($0) }.map {
                $0 * 1024
            }
        }
        return nil
    }

    static func executable(of pid: pid_t) -> String? {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/\(pid)/exe", &buffer, buffer.count)
        return count > 0 ? String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) : nil
    }

    static func size(of path: String) -> Int? {
        var status = stat()
        return stat(path, &status) == 0 ? Int(status.st_size) : nil
    }
}
