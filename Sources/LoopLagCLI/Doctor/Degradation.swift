/// What an agent says it cannot do, and why samples were dropped, in words with the remedy.
///
/// Called by the doctor's checks, on the main thread. Pure. A name that a later agent uses is shown as it is.

import LoopLagModel

enum Degradation {
    static func explain(_ agent: AgentSnapshot, id: String, into checkup: inout Checkup) {
        for name in agent.degraded {
            let (what, remedy) = words[name] ?? ("the agent reports '\(name)'", "see the documentation of its version")
            checkup.warning("\(id)-\(name)", what, remedy)
        }
    }

    static func explainDrops(_ agent: AgentSnapshot, into checkup: inout Checkup) {
        for (reason, count) in agent.samplesDropped.sorted(by: { $0.key < $1.key }) {
            let (what, remedy) = drops[reason] ?? ("for the reason '\(reason)'", nil)
            checkup.note("drops-\(reason)", "\(count) of its samples dropped: \(what)", remedy)
        }
    }

    private static let words: [String: (String, String)] = [
        "no-syscall-file": (
            "the agent may not read /proc/self/task/TID/syscall: blocked threads are shown without a stack",
            "a process that dropped privileges is not dumpable: prctl(PR_SET_DUMPABLE, 1) after that, or in systemd no"
                + " capabilities that force it"
        ),
        "no-signal": (
            "no realtime signal is free: running threads are shown without a stack",
            "name one that the server leaves alone: LOOPLAG_SIGNAL=50"
        ),
        "no-safe-read": (
            "process_vm_readv is refused inside the process: no stacks of blocked threads",
            "allow process_vm_readv in its seccomp profile"
        ),
        "small-segment": (
            "/dev/shm had no room for a full segment: counters only, few or no stacks",
            "more room in /dev/shm (docker: --shm-size), or LOOPLAG_DIR=/path, then start the server again"
        ),
        "no-private-fds": (
            "close_range is refused: the agent shares the server's descriptor table",
            "Linux 5.9 or later, or a seccomp profile that knows close_range; harmless unless the server closes"
                + " descriptors it does not own"
        ),
        "budget": (
            "the agent is over its budget (1 % of a core unless LOOPLAG_BUDGET says otherwise) and looks less often",
            "raise the threshold (--threshold), so that it wakes up less, or start the server with LOOPLAG_BUDGET=5"
        ),
        "modules-full": (
            "more loaded objects than the module table holds: some frames are bare addresses",
            "nothing to do for 'dump', which reads the map itself"
        ),
        "loops-full": (
            "more loops than slots: the newest are not measured", "measure fewer worker threads in one process"
        ),
        "no-task-dir": (
            "its threads are not in the /proc that it sees (a foreign pid namespace): no thread states",
            "mount the container's own /proc"
        ),
        "memfd": (
            "no folder took its segment: it lives in memory only and dies with the process",
            "a writable /dev/shm, or LOOPLAG_DIR=/path, so that a killed server's last stalls can be read"
        ),
        "no-javascript": (
            "this build of V8 hides its layout, or V8's own stacks disagreed with what was read: native stacks only",
            "a node of the project's own builds, 18 to 24; a shared libnode must export its symbols"
        ),
        "no-pools": (
            "the runtime's thread pools cannot be read here: they are missing from reports",
            "a node that exports libuv's functions; nothing else is affected"
        ),
        "no-python": (
            "it does not know this version of CPython well enough to read its frames: stacks are native only",
            "CPython 3.9 to 3.15, a build without the free-threaded option"
        ),
        "python-fallback": (
            "it does not know this version of CPython: the interpreter's faulthandler gives the frames of a main thread"
                + " that runs; blocked threads have native frames only",
            "CPython 3.9 to 3.15, a build without the free-threaded option"
        ),
        "stacks-off": ("LOOPLAG_STACKS=0: stalls are timed, never shown with a stack", "unset LOOPLAG_STACKS"),
    ]

    private static let drops: [String: (String, String?)] = [
        "timeout": (
            "the thread was not scheduled in time, or blocks the agent's signal", "LOOPLAG_SIGNAL names another"
        ),
        "moved": ("the thread had moved on while it was looked at", nil),
        "no-evidence": (
            "the thread was blocked, and nobody may know in what, so no signal was sent",
            "see the line on /proc/self/task/TID/syscall"
        ),
        "no-room": ("the ring of samples was too small", "more room in /dev/shm, or LOOPLAG_DIR"),
        "read-failed": ("the stack could not be read", nil),
        "no-signal": ("no realtime signal was free, or it was refused", "LOOPLAG_SIGNAL names one"),
        "disabled": ("LOOPLAG_STACKS=0", "unset it"),
        "budget": ("the agent had used up its share of a core", "raise the threshold"),
        "gone": ("the thread ended", nil),
    ]
}
