/// Finds `liblooplag-agent.so`, the object that `run` preloads and `attach` loads.
///
/// Called by the command line before it starts or touches a process. LOOPLAG_AGENT wins; else the object lies beside
/// our own executable (a build folder, a tarball) or in ../lib (an installation). Never searches the working folder:
/// a preload from there would run whatever somebody left in it. An object that would write what this command line
/// cannot read is refused here, from its file, before anything is started.

import CLoopLagLayout
import Glibc

public struct AgentObject: Hashable, Sendable {
    public static let fileName = "liblooplag-agent.so"

    /// Absolute, fit for LD_PRELOAD.
    public var path: String

    /// The layout of telemetry segments that this command line reads, and that its agent has to write.
    public static let layoutVersion = UInt32(LAG_ABI_VERSION)
    /// The number that the object exports for us.
    private static let layoutSymbol = "lag_agent_layout"

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

    /// Whether `locate` would take this file.
    public static func isUsable(_ path: String) -> Bool { (try? checked(path)) != nil }

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
            try checkObject(path, head: file.bytes(at: 0, count: 20) ?? [])
        } catch let error as FileError {
            throw .agentUnusable(path: path, reason: error.reason)
        } catch let error as AttachError {
            throw error
        } catch {
            throw .agentUnusable(path: path, reason: "\(error)")
        }
        return AgentObject(path: path)
    }

    private static func checkObject(_ path: String, head: [UInt8]) throws(AttachError) {
        func refuse(_ reason: String) -> AttachError { .agentUnusable(path: path, reason: reason) }
        guard head.count == 20, head.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else { throw refuse("it is no ELF object") }
        guard head[4] == 2 else { throw refuse("it is a 32-bit ELF object, and LoopLag measures 64-bit programs") }
        // e_type ET_DYN, e_machine EM_X86_64.
        guard head[16...].elementsEqual([3, 0, 62, 0]) else { throw refuse("it is no shared object for x86_64") }
        let remedy = "take looplag and \(fileName) from one build, or set LOOPLAG_AGENT"
        guard let layout = ElfFacts(path: path)?.exportedNumber(layoutSymbol) else {
            throw refuse("it does not say which telemetry layout it writes: no LoopLag agent, or an old one; \(remedy)")
        }
        guard layout == layoutVersion else {
            throw refuse(
                "it writes telemetry layout \(layout), and this looplag reads layout \(layoutVersion); \(remedy)")
        }
    }
}
