/// The TCP ports on which processes listen, by procfs.
///
/// Called by InspectorRoute, on the main thread. Reads only; a process's descriptors may change at any moment, so an
/// answer is of one moment.

import Glibc

struct Listener: Hashable {
    var inode: UInt64
    var port: Int
    /// To connect to: a wildcard is the loopback's address.
    var host: String

    /// All in the process's network namespace.
    static func all(pid: Int32) -> [Listener] {
        ["tcp", "tcp6"].flatMap { family -> [Listener] in
            guard let bytes = try? ProcFile.read("/proc/\(pid)/net/\(family)", limit: 8 << 20) else { return [] }
            return parse(bytes)
        }
    }

    /// `sl local_address rem_address st ... inode`: state 0A listens.
    static func parse(_ bytes: [UInt8]) -> [Listener] {
        bytes.split(separator: 0x0a).compactMap { line in
            let fields = line.split(separator: 0x20).map { String(decoding: $0, as: UTF8.self) }
            guard fields.count > 9, fields[3] == "0A", let inode = UInt64(fields[9]) else { return nil }
            let local = fields[1].split(separator: ":")
            guard local.count == 2, let port = Int(local[1], radix: 16), let host = address(local[0]) else {
                return nil
            }
            return Listener(inode: inode, port: port, host: host)
        }
    }

    /// The kernel prints each 32-bit word in its own byte order.
    private static func address(_ text: Substring) -> String? {
        let words = stride(from: 0, to: text.count, by: 8).compactMap { at -> UInt32? in
            UInt32(text.dropFirst(at).prefix(8), radix: 16)?.byteSwapped
        }
        if words.count == 1 {
            let word = words[0] == 0 ? 0x7f00_0001 : words[0]
            return (0..<4).map { String(word >> UInt32(24 - 8 * $0) & 0xff) }.joined(separator: ".")
        }
        guard words.count == 4 else { return nil }
        // A mapped address of the older kind.
        if words[0] == 0, words[1] == 0, words[2] == 0xffff {
            return (0..<4).map { String(words[3] >> UInt32(24 - 8 * $0) & 0xff) }.joined(separator: ".")
        }
        if words.allSatisfy({ $0 == 0 }) { return "::1" }
        return words.flatMap { [String($0 >> 16, radix: 16), String($0 & 0xffff, radix: 16)] }.joined(separator: ":")
    }

    /// Those of one process; nil when its descriptors may not be seen.
    static func own(pid: Int32) -> [Listener]? {
        let folder = "/proc/\(pid)/fd"
        guard access(folder, R_OK | X_OK) == 0 else { return nil }
        var inodes: Set<UInt64> = []
        for number in ProcFile.numbers(in: folder) + [0] {
            guard let target = ProcFile.target(ofLink: "\(folder)/\(number)"), target.hasPrefix("socket:["),
                let inode = UInt64(target.dropFirst(8).dropLast())
            else { continue }
            inodes.insert(inode)
        }
        return all(pid: pid).filter { inodes.contains($0.inode) }
    }

    /// Which process listens there, as far as we may see; in words.
    static func holder(of listener: Listener) -> String? {
        for facts in ProcessFacts.all() where own(pid: facts.pid)?.contains(listener) == true {
            return "\(facts.pid) (\(facts.displayName))"
        }
        return nil
    }
}
