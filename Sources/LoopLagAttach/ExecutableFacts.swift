/// What kind of program a file is, as far as it decides whether the agent can be preloaded into it.
///
/// Called before a launch (`run`) and for `ps --all`, on the main thread. Reads the ELF header, the program headers and
/// PT_INTERP, follows `#!` lines, looks at setuid bits and file capabilities. The file is hostile: every offset and
/// count is checked, and what cannot be read is `unknown`, never a verdict.

import Glibc

public struct ExecutableFacts: Hashable, Sendable {
    public enum Kind: Hashable, Sendable {
        /// x86_64, loaded by glibc's dynamic linker.
        case dynamic
        /// No dynamic linker: nothing reads LD_PRELOAD.
        case statically
        case musl
        case thirtyTwoBit
        case otherMachine
        case unknown
    }

    /// The program that ends up in the process: of a script, its interpreter.
    public var path: String
    public var kind: Kind
    /// It gains rights when it starts, so the dynamic linker ignores our preload.
    public var gainsPrivileges: Bool

    /// Why the agent cannot get into it, as the end of "cannot be measured: it is ..."; nil when it can, as far as we
    /// could see.
    public var obstacle: String? {
        if gainsPrivileges { return "it runs with raised privileges (setuid, setgid or file capabilities)" }
        switch kind {
        case .dynamic, .unknown: return nil
        case .statically: return "it is linked statically, so no agent can be preloaded"
        case .musl: return "it uses musl, and the agent needs glibc"
        case .thirtyTwoBit: return "it is a 32-bit program, and the agent is x86_64"
        case .otherMachine: return "it is built for another machine, and the agent is x86_64"
        }
    }

    /// Looks at the file at `path`, following up to five `#!` lines as the kernel does.
    public static func inspect(_ path: String) -> ExecutableFacts {
        var current = path
        for _ in 0..<5 {
            guard let file = try? OpenFile(path: current) else { break }
            guard let head = file.bytes(at: 0, count: 2), head == [0x23, 0x21] else {
                return ExecutableFacts(
                    path: current, kind: kind(of: file), gainsPrivileges: gainsPrivileges(file))
            }
            guard let line = try? file.read(limit: 256), let next = interpreter(ofScript: line) else { break }
            current = next
        }
        return ExecutableFacts(path: current, kind: .unknown, gainsPrivileges: false)
    }

    /// The kind of a running process's program, through /proc/PID/exe (which also reaches a deleted file).
    public static func inspect(pid: Int32) -> ExecutableFacts {
        let path = "/proc/\(pid)/exe"
        guard let file = try? OpenFile(path: path) else {
            return ExecutableFacts(path: path, kind: .unknown, gainsPrivileges: false)
        }
        return ExecutableFacts(path: path, kind: kind(of: file), gainsPrivileges: isSecure(pid: pid) ?? false)
    }

    static func interpreter(ofScript bytes: [UInt8]) -> String? {
        let line = bytes.dropFirst(2).prefix { $0 != 0x0a }
        guard let word = line.split(whereSeparator: { $0 == 0x20 || $0 == 0x09 }).first else { return nil }
        return String(decoding: word, as: UTF8.self)
    }

    static func kind(of file: OpenFile) -> Kind {
        guard let ident = file.bytes(at: 0, count: 64) else { return .unknown }
        guard ident.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { return .unknown }
        // EI_CLASS 1 = 32-bit (also the x32 ABI); EI_DATA 1 = little-endian; e_machine 62 = x86_64.
        if ident[4] == 1 { return .thirtyTwoBit }
        guard ident[4] == 2, ident[5] == 1, little(ident, 18, 2) == 62 else { return .otherMachine }
        let offset = little(ident, 32, 8)
        let stride = Int(little(ident, 54, 2))
        let count = Int(little(ident, 56, 2))
        guard stride >= 56, count > 0, count <= 4096 else { return .unknown }
        for i in 0..<count {
            let (at, overflow) = offset.addingReportingOverflow(UInt64(i * stride))
            guard !overflow, let header = file.bytes(at: at, count: 56) else { return .unknown }
            guard little(header, 0, 4) == 3 else { continue }  // PT_INTERP
            let length = little(header, 32, 8)
            guard length > 1, length <= 4096, let name = file.bytes(at: little(header, 8, 8), count: Int(length))
            else { return .unknown }
            let path = String(decoding: name.prefix { $0 != 0 }, as: UTF8.self)
            return path.contains("/ld-musl") ? .musl : .dynamic
        }
        // The dynamic linker itself has no PT_INTERP, yet honours LD_PRELOAD when it is run as a program.
        let name = file.path.split(separator: "/").last ?? ""
        return name.hasPrefix("ld-linux") ? .dynamic : .statically
    }

    /// Whether running this file sets AT_SECURE for us: the dynamic linker then drops any preload with a slash.
    private static func gainsPrivileges(_ file: OpenFile) -> Bool {
        guard let status = file.status else { return false }
        if status.st_mode & S_ISUID != 0 && status.st_uid != getuid() { return true }
        // setgid without group execution marks mandatory locking and changes no group.
        if status.st_mode & S_ISGID != 0 && status.st_mode & S_IXGRP != 0 && status.st_gid != getgid() { return true }
        return getuid() != 0 && hasFileCapabilities(file)
    }

    /// Swift's Glibc module leaves out <sys/xattr.h>, so the function is looked up by name in the loaded libc.
    private static func hasFileCapabilities(_ file: OpenFile) -> Bool {
        typealias Fgetxattr = @convention(c) (Int32, UnsafePointer<CChar>, UnsafeMutableRawPointer?, Int) -> Int
        guard let symbol = dlsym(nil, "fgetxattr") else { return false }
        let fgetxattr = unsafeBitCast(symbol, to: Fgetxattr.self)
        return fgetxattr(file.descriptor, "security.capability", nil, 0) > 0
    }

    /// AT_SECURE (23) of a running process; nil when its auxiliary vector may not be read.
    private static func isSecure(pid: Int32) -> Bool? {
        guard let bytes = try? ProcFile.read("/proc/\(pid)/auxv", limit: 4096), bytes.count >= 16 else { return nil }
        for at in stride(from: 0, through: bytes.count - 16, by: 16) where little(bytes, at, 8) == 23 {
            return little(bytes, at + 8, 8) != 0
        }
        return false
    }

    /// A little-endian integer; zero where the bytes do not reach.
    private static func little(_ bytes: [UInt8], _ at: Int, _ width: Int) -> UInt64 {
        guard at >= 0, at + width <= bytes.count else { return 0 }
        var result: UInt64 = 0
        for i in 0..<width { result |= UInt64(bytes[at + i]) << UInt64(8 * i) }
        return result
    }
}
