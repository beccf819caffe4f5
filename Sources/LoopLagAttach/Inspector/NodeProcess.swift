/// Whether a process is node, and whether SIGUSR1 would open its inspector and do nothing else: a process that has no
/// handler for it would die of it.
///
/// Called by InspectorRoute before anything is sent, on the main thread. Reads procfs and files only. What the kernel
/// cannot tell is whose handler it is, node's or the program's own: the program's source is asked, as far as it is found.

import Glibc
import LoopLagModel

struct NodeProcess {
    private static let mostFiles = 200
    private static let largestFile = 4 << 20

    let pid: Int32
    /// Of the command line and NODE_OPTIONS, those that begin with a dash.
    let options: [String]
    private let command: [String]

    /// nil when it is not node: neither the program nor a libnode in it exports node's native interface.
    init?(facts: ProcessFacts) {
        pid = facts.pid
        command = facts.command
        let libraries = (MemoryMap.read(pid: facts.pid)?.executableFiles ?? []).filter {
            $0.split(separator: "/").last?.hasPrefix("libnode.so") == true
        }
        let files = ["/proc/\(facts.pid)/exe"] + libraries.map { "/proc/\(facts.pid)/root\($0)" }
        guard files.contains(where: { ElfFacts(path: $0)?.exports("napi_create_function") == true }) else { return nil }
        let more = ProcessFacts.environment(pid: facts.pid)["NODE_OPTIONS"] ?? ""
        options =
            facts.command.dropFirst().filter { $0.hasPrefix("-") }
            + more.split(separator: " ").map(String.init).filter { $0.hasPrefix("-") }
    }

    // MARK: Its inspector

    /// The port that its inspector would use; nil for any that is free.
    var inspectorPort: Int? {
        let names = ["--inspect", "--inspect-brk", "--inspect-wait", "--inspect-port", "--debug-port"]
        for option in options.reversed() {
            let parts = option.split(separator: "=", maxSplits: 1)
            guard parts.count == 2, names.contains(String(parts[0])),
                let port = parts[1].split(separator: ":").last.flatMap({ Int($0) })
            else { continue }
            return port == 0 ? nil : port
        }
        return 9229
    }

    /// Why SIGUSR1 must not be sent; nil when it may.
    func signalRefusal(trustsHandler: Bool) -> String? {
        if options.contains("--no-addons") { return "it runs with --no-addons and loads no native modules" }
        let fields = Obstacle.status(pid)
        let mask = { (name: String) in fields[name].flatMap { UInt64($0, radix: 16) } ?? 0 }
        let bit: UInt64 = 1 << UInt64(SIGUSR1 - 1)
        guard mask("SigCgt") & bit != 0 else {
            for option in ["--disable-sigusr1", "--permission", "--experimental-permission"]
            where options.contains(where: { $0 == option || $0.hasPrefix(option + "=") }) {
                return "it runs with \(option), which keeps its inspector closed"
            }
            return "it has no handler for SIGUSR1, which asks node for its inspector, and would end"
        }
        // A signal that is blocked in the main thread waits there, and opens the inspector at some later time.
        guard mask("SigBlk") & bit == 0 else { return "it blocks SIGUSR1, which asks node for its inspector" }
        if !trustsHandler, let file = sourceWithHandler() {
            return "\(ProcessFacts.printable(file)) names SIGUSR1, so that signal may be the program's own and not"
                + " node's; --inspector always sends it all the same"
        }
        return nil
    }

    /// What the main thread does, for one that did not open its inspector.
    var isInEventLoop: Bool {
        guard let wait = try? ProcFile.read("/proc/\(pid)/task/\(pid)/wchan", limit: 64) else { return false }
        return String(decoding: wait, as: UTF8.self).contains("ep_poll")
            || String(decoding: wait, as: UTF8.self).contains("epoll")
    }

    // MARK: Its source

    /// The first file among the program's own that names the signal: its main module, and what that loads by a relative
    /// path. Packages are left out.
    private func sourceWithHandler() -> String? {
        if command.contains(where: { $0.contains("SIGUSR1") }) { return "its command line" }
        let root = "/proc/\(pid)/root"
        guard let folder = ProcFile.target(ofLink: "/proc/\(pid)/cwd") else { return nil }
        var queue = command.dropFirst().prefix(32).filter { !$0.hasPrefix("-") }.prefix(2).flatMap {
            Self.candidates($0, in: folder)
        }
        var seen: Set<String> = []
        let wanted = Array("SIGUSR1".utf8)
        while !queue.isEmpty, seen.count < Self.mostFiles {
            let path = queue.removeFirst()
            guard seen.insert(path).inserted, let file = try? OpenFile(path: root + path), let status = file.status,
                status.st_mode & S_IFMT == S_IFREG, status.st_size <= Self.largestFile,
                let bytes = try? file.read(limit: Self.largestFile)
            else { continue }
            if Self.contains(bytes, wanted) { return path }
            let home = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
            for name in Self.relativeNames(bytes) { queue += Self.candidates(name, in: home) }
        }
        return nil
    }

    /// What node would try for a name.
    private static func candidates(_ name: String, in folder: String) -> [String] {
        let path = name.hasPrefix("/") ? name : folder + "/" + name
        return ["", ".js", ".mjs", ".cjs", ".ts", "/index.js"].map { path + $0 }
    }

    /// Texts in quotes that begin with a dot and a slash.
    static func relativeNames(_ bytes: [UInt8]) -> [String] {
        var names: [String] = []
        var at = 0
        while at + 3 < bytes.count, names.count < mostFiles {
            let quote = bytes[at]
            guard quote == 0x22 || quote == 0x27 || quote == 0x60, bytes[at + 1] == 0x2e,
                bytes[at + 2] == 0x2f || bytes[at + 2] == 0x2e,
                let end = bytes[(at + 1)...].prefix(512).firstIndex(of: quote)
            else {
                at += 1
                continue
            }
            names.append(String(decoding: bytes[(at + 1)..<end], as: UTF8.self))
            at = end + 1
        }
        return names
    }

    private static func contains(_ bytes: [UInt8], _ wanted: [UInt8]) -> Bool {
        bytes.withUnsafeBytes { bytes in
            guard let start = bytes.baseAddress, let first = wanted.first else { return false }
            var at = 0
            while at + wanted.count <= bytes.count, let found = memchr(start + at, Int32(first), bytes.count - at) {
                at = UnsafeRawPointer(found) - start
                if at + wanted.count <= bytes.count, memcmp(found, wanted, wanted.count) == 0 { return true }
                at += 1
            }
            return false
        }
    }
}
