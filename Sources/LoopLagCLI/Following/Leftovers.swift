/// Keeps a server that kills and replaces its workers from filling /dev/shm: each killed one leaves a segment of 1 MiB.
///
/// Called by `run` when a process it follows is gone; what the segment held is in the report by then. Removes only
/// segments of processes that this run followed, and leaves the last few for `stalls PID`.

import LoopLagModel
import LoopLagTelemetry

enum Leftovers {
    static let kept = 8

    static func prune(_ follower: Follower) {
        let gone = follower.processes.filter(\.isGone).map(\.identity)
        guard gone.count > kept else { return }
        let old = Set(gone.dropLast(kept))
        for left in SegmentDiscovery.leftovers() {
            if old.contains(ProcessIdentity(pid: left.pid, startTicks: left.startTicks)) {
                SegmentDiscovery.remove(left)
            }
        }
    }
}
