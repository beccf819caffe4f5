/// Why an agent did not get into a process, as one typed error; each is a line for people and an exit status.
///
/// Thrown by the injector. `message(pid, name)` is the line without `looplag: `.

public enum InjectError: Error, Hashable, Sendable {
    /// Never, for what the process is: the reason goes on "cannot attach to 42 (name): ".
    case unfit(String)
    /// The kernel or a guard forbids it; with what would help.
    case notPermitted(String)
    case gone
    /// No thread came to a place where it could be borrowed.
    case noSafeThread(waited: Duration, why: String)
    /// A call in the target failed, or its loader said no.
    case failed(String)

    public func message(pid: Int32, name: String) -> String {
        let subject = "\(pid) (\(ProcessFacts.printable(name)))"
        switch self {
        case .unfit(let reason), .notPermitted(let reason), .failed(let reason):
            return "cannot attach to \(subject): \(reason)"
        case .gone: return "cannot attach to \(subject): it went away"
        case .noSafeThread(_, let why):
            return "cannot attach to \(subject): \(why); try again, or with a longer --wait"
        }
    }
}
