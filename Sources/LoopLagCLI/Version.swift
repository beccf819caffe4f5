/// What `looplag --version` says: the release, the commit it was built from and the layout of the segments it reads.
///
/// Pure. The commit comes from the build (Sources/LoopLagStamp); where that could not know it, it is said to be unknown.

import LoopLagAttach

enum Version {
    static let number = "0.4.0"

    static let text = text(commit: BuildStamp.commit)

    static func text(commit: String) -> String {
        "looplag \(number) (commit \(commit.isEmpty ? "unknown" : commit), layout \(AgentObject.layoutVersion))"
    }
}
