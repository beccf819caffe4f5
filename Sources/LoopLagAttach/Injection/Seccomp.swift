/// Whether a process's seccomp filter would let an attach's calls through: a filter that kills on one of them would
/// take the server down.
///
/// Called before anything is stopped.

import Glibc

enum Seccomp {
    static func check(pid: Int32) throws(InjectError) {
        let fields = Obstacle.status(pid)
        guard fields["Seccomp"] == "2" else { return }
        // Filters are inherited and only ever added: as many as we have in the same container are our own.
        let own = Obstacle.status(getpid())
        if own["Seccomp"] == "2", let count = fields["Seccomp_filters"], count == own["Seccomp_filters"] { return }
        throw .unfit(
            "it runs under a seccomp filter of its own, which may kill it for the calls that an attach makes;"
                + " start it with 'looplag run -- ...'")
    }
}
