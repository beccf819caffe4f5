/// Finds the separate debug file of a stripped binary: by build ID, else by `.gnu_debuglink`.
///
/// Who calls it: ModuleFile, once a module, on the decoder's thread. A candidate counts only if it carries the same
/// build ID or, where the binary has none, the checksum that the link names.

import Glibc
import LoopLagModel

struct DebugFileLocator {
    private static let maximumChecksummedBytes: UInt64 = 1 << 30

    let identity: ProcessIdentity?
    /// The binary's own path in the process's mount namespace.
    let path: String

    func find(for image: ElfImage) -> ElfImage? {
        // Our own folders first, then those that the process sees.
        let roots = [""] + (identity.map { ["/proc/\($0.pid)/root"] } ?? [])
        if image.buildID.count >= 2 {
            let name =
                "/usr/lib/debug/.build-id/" + hexadecimal(image.buildID.prefix(1)) + "/"
                + hexadecimal(image.buildID.dropFirst()) + ".debug"
            for root in roots {
                if let found = try? ElfImage(path: root + name), found.buildID == image.buildID { return found }
            }
        }
        guard let (name, checksum) = link(image) else { return nil }
        let folder = path.lastIndex(of: "/").map { String(path[..<$0]) } ?? ""
        for root in roots {
            for candidate in [folder + "/" + name, folder + "/.debug/" + name, "/usr/lib/debug" + folder + "/" + name] {
                guard let found = try? ElfImage(path: root + candidate), found.inode != image.inode else { continue }
                if image.buildID.isEmpty ? Self.checksum(of: found) == checksum : found.buildID == image.buildID {
                    return found
                }
            }
        }
        return nil
    }

    private func link(_ image: ElfImage) -> (name: String, checksum: UInt32)? {
        guard let section = image.section(named: ".gnu_debuglink"),
            let bytes = image.contents(of: section, atMost: 4096)
        else { return nil }
        var cursor = ByteCursor(bytes)
        // A file name only: a path in it could lead anywhere.
        guard let name = cursor.string(), !name.isEmpty, !name.contains("/"), name != "..",
            cursor.skip(UInt64(-cursor.offset & 3)), let checksum = cursor.u32()
        else { return nil }
        return (name, checksum)
    }

    /// CRC-32 as `objcopy --add-gnu-debuglink` computes it.
    private static func checksum(of image: ElfImage) -> UInt32? {
        guard image.size <= maximumChecksummedBytes else { return nil }
        let table = (0..<256).map { (byte: UInt32) -> UInt32 in
            (0..<8).reduce(byte) { value, _ in value & 1 == 1 ? value >> 1 ^ 0xedb8_8320 : value >> 1 }
        }
        var value: UInt32 = ~0
        var offset: UInt64 = 0
        while offset < image.size {
            let count = min(1 << 20, image.size - offset)
            guard let bytes = image.read(offset: offset, count: count) else { return nil }
            for byte in bytes { value = value >> 8 ^ table[Int((value ^ UInt32(byte)) & 0xff)] }
            offset += count
        }
        return ~value
    }
}
