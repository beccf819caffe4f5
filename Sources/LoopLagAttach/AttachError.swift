/// Everything that can go wrong while finding, inspecting or launching a process, as one typed error.
///
/// Thrown by this module, turned into one line on stderr and an exit status by the command line. `message` is that
/// line without the leading `looplag: `: what failed, on what, why, what to do.

public enum AttachError: Error, Hashable, Sendable {
    /// No such process, or it ended while we looked.
    case noSuchProcess(pid: Int32)
    /// The kernel does not let this user look at the process.
    case notPermitted(pid: Int32, action: String, reason: String)
    /// procfs answered something that cannot be understood.
    case unreadable(pid: Int32, reason: String)
    /// `liblooplag-agent.so` is nowhere to be found.
    case agentMissing(searched: [String])
    /// The agent's path cannot stand in LD_PRELOAD or is no object we may load.
    case agentUnusable(path: String, reason: String)
    case commandNotFound(String)
    case commandNotExecutable(String, reason: String)
    /// The kernel refused to make the process although the command is fine.
    case launchFailed(String, reason: String)

    public var message: String {
        switch self {
        case .noSuchProcess(let pid):
            "no process \(pid)"
        case .notPermitted(let pid, let action, let reason):
            "cannot \(action) \(pid): \(reason); run as that user or as root"
        case .unreadable(let pid, let reason):
            "cannot read what /proc says of \(pid): \(reason)"
        case .agentMissing(let searched):
            "cannot find liblooplag-agent.so: looked for \(searched.joined(separator: ", "));"
                + " put it beside the looplag executable or name it in LOOPLAG_AGENT"
        case .agentUnusable(let path, let reason):
            "cannot load the agent \(path): \(reason)"
        case .commandNotFound(let command):
            "cannot run \(command): not found; check its spelling and PATH"
        case .commandNotExecutable(let command, let reason):
            "cannot run \(command): \(reason)"
        case .launchFailed(let command, let reason):
            "cannot start \(command): \(reason)"
        }
    }
}
