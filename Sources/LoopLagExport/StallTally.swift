/// Closed stalls by cause since the agent started, as a counter that never falls.
///
/// Held by the exporter between scrapes and shown each round of snapshots; not shared between threads. A segment's ring
/// keeps the last stalls only and its slots count without causes: the tally joins the two. A stall whose record was
/// lost counts as `unknown`.

import LoopLagModel

public struct StallTally: Sendable {
    private struct Entry {
        var causes: [Cause: UInt64] = [:]
        /// The slot's count at the round before: by now each of those stalls has its record, or has lost it.
        var settled: UInt64 = 0

        var total: UInt64 { causes.values.reduce(0, &+) }
    }

    private struct Process {
        var loops: [LoopID: Entry] = [:]
        /// Stalls already counted that are still in the ring.
        var counted: Set<UInt64> = []
    }

    private var processes: [ProcessIdentity: Process] = [:]

    public init() {}

    /// Takes one round of snapshots; processes that are not among them are forgotten.
    /// - Parameter cause: the cause of a closed stall (LoopLagDiagnosis' `diagnose`).
    public mutating func observe(
        _ snapshots: [ProcessSnapshot], cause: (StallRecord, ProcessSnapshot) -> Cause
    ) {
        var next: [ProcessIdentity: Process] = [:]
        for snapshot in snapshots {
            var process = processes[snapshot.identity] ?? Process()
            for stall in snapshot.stalls where stall.state == .closed && stall.duration >= snapshot.startThreshold {
                guard process.counted.insert(stall.id).inserted else { continue }
                process.loops[stall.loop, default: Entry()].causes[cause(stall, snapshot), default: 0] += 1
            }
            process.counted.formIntersection(snapshot.stalls.map(\.id))
            for loop in snapshot.loops {
                var entry = process.loops[loop.id] ?? Entry()
                let total = entry.total
                if entry.settled > total { entry.causes[.unknown, default: 0] &+= entry.settled - total }
                entry.settled = loop.stallCount
                process.loops[loop.id] = entry
            }
            next[snapshot.identity] = process
        }
        processes = next
    }

    func counts(_ process: ProcessIdentity, _ loop: LoopID) -> [Cause: UInt64] {
        processes[process]?.loops[loop]?.causes ?? [:]
    }
}
