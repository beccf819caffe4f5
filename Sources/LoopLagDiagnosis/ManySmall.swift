/// Tells an iteration of many small callbacks from one long one.
///
/// Called by `diagnose` for a stall on the processor. Pure. It needs both numbers: how many events the wait returned, and
/// samples enough that a function with a fifth of the time would have been seen; without them it says nothing.

import LoopLagModel

enum ManySmall {
    /// Events that one wait returns on a server with nothing else to do are fewer.
    static let leastEvents: UInt64 = 16
    /// A function with this share of the samples is to blame for itself.
    static let blamedShare = 0.2
    /// With fewer, a single sample would already be a fifth.
    static let leastSamples = 6

    /// The largest share of one function among the samples where no function is to blame; nil for anything else.
    static func largestShare(_ evidence: StallEvidence, samples: [StackSample], rules: UserCode) -> Double? {
        guard let events = evidence.events, events >= leastEvents else { return nil }
        // What every callback's stack shares (the loop, main) is nobody's own: of each sample the function that counts
        // is the leaf-most of the user's code, else the leaf.
        let functions = samples.compactMap { sample in
            (rules.leaf(of: sample) ?? sample.frames.first).map { [$0.function, $0.module ?? "", $0.file ?? ""] }
        }
        guard functions.count >= leastSamples else { return nil }
        var counts: [[String]: Int] = [:]
        for function in functions { counts[function, default: 0] += 1 }
        let largest = Double(counts.values.max() ?? 0) / Double(functions.count)
        return largest < blamedShare ? largest : nil
    }
}

/// One wait brought so many events that serving them one after another took longer than the threshold.
struct CrowdedIteration: FindingRule {
    func check(_ context: FindingContext) -> Finding? {
        let stalls = context.stalls.filter { $0.cause == .manySmall }
        guard !stalls.isEmpty else { return nil }
        let most = stalls.compactMap { $0.evidence["events"] }.max() ?? 0
        return context.finding(
            "many-small", context.severity(of: stalls), "Many small callbacks in one iteration, none of them long",
            evidence: "\(context.subject): \(context.summary(of: stalls)), up to "
                + "\(Int(clamping: Int64(min(9e15, max(0, most))))) events served in one go.",
            advice: "There is more work than one loop can do: add workers or loops, or serve fewer events at a time.",
            stalls: stalls)
    }
}
