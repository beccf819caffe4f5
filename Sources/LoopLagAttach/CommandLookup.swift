/// Finds the file behind a command name as a shell does, so that `run` can say "not found" (127) apart from "not
/// executable" (126) and can look at the program before it starts it.
///
/// Called once per launch, on the main thread. Does not run anything. The answer can be outdated by the time of the
/// exec; the launcher maps the kernel's own verdict again.

import Glibc

enum CommandLookup {
    /// - Parameters:
    ///   - searchPath: the value of PATH; nil takes the system's default.
    static func find(_ command: String, searchPath: String?) throws(AttachError) -> String {
        guard !command.isEmpty else { throw .commandNotFound("''") }
        if command.contains("/") {
            switch verdict(command) {
            case .executable: return command
            case .missing(let reason) where reason == ENOENT: throw .commandNotFound(command)
            case .missing(let reason), .refused(let reason):
                throw .commandNotExecutable(command, reason: why(command, reason))
            }
        }
        var refused: (path: String, reason: Int32)?
        // An empty entry means the working folder (POSIX).
        for folder in (searchPath ?? "/bin:/usr/bin").split(separator: ":", omittingEmptySubsequences: false) {
            let path = folder.isEmpty ? "./\(command)" : "\(folder)/\(command)"
            switch verdict(path) {
            case .executable: return path
            case .missing: continue
            case .refused(let reason): refused = refused ?? (path, reason)
            }
        }
        if let refused {
            throw .commandNotExecutable(command, reason: why(refused.path, refused.reason))
        }
        throw .commandNotFound(command)
    }

    private enum Verdict {
        case executable
        case missing(Int32)
        case refused(Int32)
    }

    private static func verdict(_ path: String) -> Verdict {
        var status = stat()
        if stat(path, &status) != 0 {
            return errno == EACCES ? .refused(EACCES) : .missing(errno)
        }
        if status.st_mode & S_IFMT == S_IFDIR { return .refused(EISDIR) }
        // The effective ids decide at exec; AT_EACCESS asks for them.
        if faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) != 0 { return .refused(errno) }
        return .executable
    }

    private static func why(_ path: String, _ reason: Int32) -> String {
        switch reason {
        case EISDIR: "\(path) is a directory"
        case EACCES: "\(path) is not executable (permission denied); chmod +x it, or name its interpreter"
        default: "\(path): \(systemReason(reason))"
        }
    }
}
