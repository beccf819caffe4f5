/// What a stall costs and how true it is told: pause per sample, rate and drops, when it was seen, errors of lengths and
/// delays; then what the command line needs to unwind the samples.
///
/// Used by Bench; one run of each server serves all rows. A server that is not installed gives one row that says so.

import LoopLagModel
import LoopLagSymbols
import LoopLagTelemetry

enum StallCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        for kind in [ServerKind.nio, .node, .python] {
            table.attempt("stalls, \(kind.rawValue)", bar: "") { (table) throws(BenchError) in
                let run = try StallRun(kind, plan)
                defer { run.server.host.end() }
                addPauses(run, kind, &table)
                addTruth(run, kind, &table)
                addUnwinding(run, kind, &table)
            }
        }
    }

    // MARK: - in the host

    private static func addPauses(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let (limit, bar): (Double, String) =
            switch kind {
            case .nio: (20e3, "p50 <= 20 us")
            case .python: (150e3, "p50 <= 150 us")
            case .node: (1e6, "p50 <= 1 ms")
            }
        let what = "pause per sample, \(kind.rawValue) spinning"
        let taken = run.samples(ofBlocked: false).filter { $0.noStackReason == nil }
        let signalled = taken.filter { $0.method == .signal }
        let pauses = Figures(signalled.map { nanoseconds($0.pause) })
        if pauses.isEmpty {
            table.skip(what, because: "no sample was taken by signal", bar: bar)
        } else {
            table.add(
                what, "p50 \(microseconds(pauses.median)), p99 \(microseconds(pauses.at(0.99))), \(pauses.count) samples",
                bar: bar, holds: pauses.median <= limit)
        }

        let spins = run.episodes.filter { !$0.wasBlocked }
        let due = spins.reduce(0) { $0 + StallRun.due($1.stall) }
        let stalled = spins.reduce(0.0) { $0 + $1.stall.duration.secondsAsDouble }
        if due > 0, stalled > 0 {
            let drops = run.telemetry.latest.agent.samplesDropped.sorted { $0.key < $1.key }
                .map { "\($0.key) \($0.value)" }.joined(separator: ", ")
            table.note(
                "samples taken, \(kind.rawValue) spinning",
                "\(taken.count) of \(due) due, \(rounded(Double(taken.count) / stalled, digits: 0)) a second of stall; "
                    + "dropped: \(drops.isEmpty ? "none" : drops)")
        }

        let blocked = run.samples(ofBlocked: true).filter { $0.noStackReason == nil }
        let what2 = "pause per sample, \(kind.rawValue) blocked"
        if blocked.isEmpty {
            table.skip(what2, because: "no sample was taken of a blocked thread", bar: "0")
        } else {
            let most = Figures(blocked.map { nanoseconds($0.pause) }).most
            let count = blocked.filter { $0.method == .signal }.count
            table.add(
                what2, "\(microseconds(most)) at most, \(count) signals, \(blocked.count) samples", bar: "0, no signal",
                holds: most == 0 && count == 0)
        }
    }

    private static func addTruth(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let seenBar = "<= threshold/4 + 50 ms, while it runs"
        let what = "stall seen after its threshold, \(kind.rawValue)"
        guard !run.episodes.isEmpty else {
            table.skip(what, because: "no stall was recorded", bar: seenBar)
            return
        }
        let seen = Figures(
            run.episodes.compactMap { episode in
                episode.stall.detectedAt.map {
                    nanoseconds($0.since(episode.stall.start)) - nanoseconds(StallRun.threshold)
                }
            })
        let late = run.episodes.count - seen.count + run.unrecorded
        let limit = nanoseconds(StallRun.threshold / 4) + 50e6
        table.add(
            what,
            "p50 \(milliseconds(seen.median)), most \(milliseconds(seen.most)); \(late) of "
                + "\(run.episodes.count + run.unrecorded) only after their end",
            bar: seenBar, holds: seen.most <= limit && late == 0)

        let errors = run.episodes.map { episode in
            (
                error: abs(nanoseconds(episode.stall.duration) - nanoseconds(episode.measured)),
                allowed: max(nanoseconds(episode.measured) * 0.03, 5e6)
            )
        }
        let sizes = Figures(errors.map(\.error))
        table.add(
            "stall duration, error, \(kind.rawValue)",
            "p50 \(microseconds(sizes.median)), most \(microseconds(sizes.most)) of 30 to 90 ms",
            bar: "<= max(3 %, 5 ms) of the handler's clock", holds: errors.allSatisfy { $0.error <= $0.allowed })
        addDelay(run, kind, &table)
    }

    /// The delay that one arrival in ten (and one in a hundred) exceeds, from the handlers' clock and from the histogram.
    private static func addDelay(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let spins = run.episodes.filter { !$0.wasBlocked }
        let window = run.last.takenAt.since(run.first.takenAt)
        guard let loop = spins.first?.stall.loop, run.unrecorded == 0,
            spins.allSatisfy({ $0.stall.loop == loop }),
            let after = run.last.loops.first(where: { $0.id == loop })
        else { return }
        let before = run.first.loops.first { $0.id == loop }?.histogram ?? IterationHistogram()
        var counts = after.histogram.since(before).counts
        for spin in spins {
            let i = IterationHistogram.index(of: UInt64(clamping: spin.stall.duration.nanosecondCount))
            counts[i] = counts[i] > 0 ? counts[i] - 1 : 0
        }
        let told = DelayDistribution(
            histogram: IterationHistogram(counts: counts), exact: spins.map(\.stall.duration), window: window)
        let witness = spins.map { nanoseconds($0.measured) }
        var parts: [String] = []
        var holds = true
        for (name, quantile) in [("p90", 0.9), ("p99", 0.99)] {
            guard let delay = told.delay(atQuantile: quantile) else { return }
            let expected = exceeded(by: 1 - quantile, of: witness, window: nanoseconds(window))
            let error = abs(nanoseconds(delay) - expected)
            holds = holds && error <= max(expected * 0.03, 5e6)
            parts.append("\(name) \(milliseconds(nanoseconds(delay))) for \(milliseconds(expected))")
        }
        table.add(
            "delay, error, \(kind.rawValue)", parts.joined(separator: ", "), bar: "<= max(3 %, 5 ms)", holds: holds)
    }

    /// The x with sum of max(0, d - x) = share * window, by halving: on purpose not the way the model does it.
    private static func exceeded(by share: Double, of lengths: [Double], window: Double) -> Double {
        var low = 0.0
        var high = lengths.max() ?? 0
        for _ in 0..<60 {
            let middle = (low + high) / 2
            if lengths.reduce(0, { $0 + max(0, $1 - middle) }) > share * window { low = middle } else { high = middle }
        }
        return high
    }

    // MARK: - in the command line

    private static func addUnwinding(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let decoder = StackDecoder(identity: run.telemetry.latest.identity, modules: run.telemetry.latest.modules)
        let samples = run.samples.filter { $0.noStackReason == nil }
        guard let opening = samples.first else { return }
        let start = now()
        _ = decoder.decode(opening)
        table.note("first sample of a server, \(kind.rawValue)", "\(milliseconds(Double(now() - start))) with reading its files")

        var unwound: [Double] = []
        var reconstructed: [Double] = []
        var frames: [Double] = []
        var rooted = 0
        for sample in samples {
            let stack = decoder.decode(sample)
            frames.append(Double(stack.frames.count))
            if !stack.isTruncated { rooted += 1 }
            // The least of five: noise on a shared machine only ever adds.
            let least = (0..<5).map { _ in
                let start = now()
                _ = decoder.decode(sample)
                return Double(now() - start)
            }.min() ?? 0
            if stack.method == .passiveReconstructed { reconstructed.append(least) } else { unwound.append(least) }
        }
        let warm = Figures(unwound)
        if !warm.isEmpty {
            table.add(
                "unwind one sample, warm, \(kind.rawValue)",
                "p50 \(microseconds(warm.median)), most \(microseconds(warm.most)); \(warm.count) samples, "
                    + "\(rounded(Figures(frames).median, digits: 0)) frames",
                bar: "p50 <= 50 us", holds: warm.median <= 50e3)
        }
        let tried = Figures(reconstructed)
        let what = "reconstruct one sample, \(kind.rawValue)"
        if tried.isEmpty {
            table.skip(what, because: "no stack of this server needed it", bar: "<= 10 ms")
        } else {
            table.add(
                what, "p50 \(milliseconds(tried.median)), most \(milliseconds(tried.most)); \(tried.count) samples",
                bar: "<= 10 ms", holds: tried.most <= 10e6)
        }
        table.note("stacks with their root, \(kind.rawValue)", "\(rooted) of \(samples.count)")
    }

    private static func nanoseconds(_ duration: Duration) -> Double { Double(duration.nanosecondCount) }
}
