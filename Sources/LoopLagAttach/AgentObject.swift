/// Finds `liblooplag-agent.so`, the object that `run` preloads and `attach` loads.
///
/// Called by the command line before it starts or touches a process. LOOPLAG_AGENT wins; else the object lies beside
/// our own executable (a build folder, a tarball) or in ../lib (an installation). Never searches the working folder:
/// a preload from there would run whatever somebody left in it.

import Glibc

public struct AgentObject: Hashable, Sendable {
    public static let fileName = "liblooplag-agent.so"

    /// Absolute, fit for LD_PRELOAD.
    public var path: String

    public static func locate() throws(AttachError) -> AgentObject {
        let named = getenv("LOOPLAG_AGENT").map { String(cString: $0) }
        return try locate(named: named, executable: ProcFile.target(ofLink: "/proc/self/exe"))
    }

    static func locate(named: String?, executable: String?) throws(AttachError) -> AgentObject {
        var candidates: [String] = []
        if let named, !named.isEmpty {
            // Only this one: falling back to another object than the one asked for would mislead.
            candidates = [named]
        } else if let executable, let slash = executable.lastIndex(of: "/") {
            let folder = String(executable[..<slash])
            candidates = ["\(folder)/\(fileName)", "\(folder)/../lib/\(fileName)"]
        }
        for candidate in candidates {
            guard let resolved = realpath(candidate, nil) else { continue }
            defer { free(resolved) }
            return try checked(String(cString: resolved))
        }
        throw .agentMissing(searched: candidates)
    }

    private static func checked(_ path: String) throws(AttachError) -> AgentObject {
        if path.contains(where: { $0 == " " || $0 == ":" }) {
            // ld.so(8): the list's items are separated by spaces or colons and neither can be escaped.
            throw .agentUnusable(
                path: path,
                reason: "LD_PRELOAD cannot name a path with a space or a colon; move it and set LOOPLAG_AGENT")
        }
        do {
            let file = try OpenFile(path: path)
            guard let status = file.status, status.st_mode & S_IFMT == S_IFREG else {
                throw AttachError.agentUnusable(path: path, reason: "it is not a regular file")
            }
            guard file.bytes(at: 0, count: 5) == [0x7f, 0x45, 0x4c, 0x46, 2] else {
                throw AttachError.agentUnusable(path: path, reason: "it is not a 64-bit ELF object")
            }
        } catch let error as FileError {
            throw .agentUnusable(path: path, reason: error.reason)
        } catch let error as AttachError {
            throw error
        } catch {
            throw .agentUnusable(path: path, reason: "\(error)")
        }
        return AgentObject(path: path)
    }
}
