/// What a stall costs and how true it is told: pause per sample, rate and drops, when it was seen, errors of lengths
/// and delays; then what the command line needs to unwind the samples.
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

    static func addPauses(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let (limit, bar): (Double, String) =
            switch kind {
            case .nio: (20e3, "p50 <= 20 us")
            case .python, .fastapi, .fastapiUvloop: (150e3, "p50 <= 150 us")
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
                what,
                "p50 \(microseconds(pauses.median)), p99 \(microseconds(pauses.at(0.99))), \(pauses.count) samples",
                bar: bar, holds: pauses.median <= limit)
        }

        let spins = run.episodes.filter { !$0.wasBlocked && $0.stall.duration <= StallRun.longestDense }
        let denseStalls = Set(spins.map(\.stall.id))
        let dense = taken.filter { denseStalls.contains($0.stallID) }.count
        let due = spins.reduce(0) { $0 + StallRun.due($1.stall) }
        let stalled = spins.reduce(0.0) { $0 + $1.stall.duration.secondsAsDouble }
        if due > 0, stalled > 0 {
            let agent = run.telemetry.latest.agent
            let drops = agent.samplesDropped.sorted { $0.key < $1.key }
                .map { "\($0.key) \($0.value)" }.joined(separator: ", ")
            table.note(
                "samples taken, \(kind.rawValue) spinning",
                "\(dense) of \(due) due, \(rounded(Double(dense) / stalled, digits: 0)) a second of stall; "
                    + "dropped: \(drops.isEmpty ? "none" : drops); "
                    + "agent \(rounded(agentShare(run))) % of a core"
                    + (agent.degraded.contains("budget") ? ", backing off" : "")
            )
        }

        addBlocked(run, kind, &table)
    }

    /// A thread that is blocked in a call is read from outside: no pause, no signal, and the call lasts as long as it
    /// should.
    private static func addBlocked(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let what = "pause per sample, \(kind.rawValue) blocked"
        // The handler also runs, before and after its call.
        let samples = run.samples(ofBlocked: true).filter { $0.noStackReason == nil && $0.threadState != "R" }
        guard !samples.isEmpty else {
            table.skip(what, because: "no sample was taken of a blocked thread", bar: "0")
            return
        }
        let most = Figures(samples.map { nanoseconds($0.pause) }).most
        let signals = samples.count { $0.method == .signal }
        // Clocks of runtimes count in milliseconds.
        let cut = run.episodes.count { $0.wasBlocked && $0.measured < $0.asked - .milliseconds(1) }
        table.add(
            what,
            "\(microseconds(most)) at most, \(signals) signals, \(samples.count) samples, \(cut) calls cut short",
            bar: "0, no signal", holds: most == 0 && signals == 0 && cut == 0)
    }

    /// The agent's CPU time while the server spun, in per cent; its account is renewed once a second.
    private static func agentShare(_ run: StallRun) -> Double {
        let window = nanoseconds(run.last.takenAt.since(run.first.takenAt))
        return window > 0 ? nanoseconds(run.last.agent.cpu - run.first.agent.cpu) / window * 100 : 0
    }

    private static func addTruth(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let seenBar = "<= threshold/4 + 50 ms, while it runs"
        let what = "stall seen, after its threshold, \(kind.rawValue)"
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
        let limit = StallRun.threshold / 4 + .milliseconds(50)
        // One that ends before the limit may be told after its end; a watchdog that the machine kept from its core says
        // so.
        var starved = 0
        var missed = 0
        for episode in run.episodes where episode.stall.duration > StallRun.threshold + limit {
            let end = episode.stall.start.advanced(by: StallRun.threshold + limit)
            guard episode.stall.detectedAt.map({ $0 > end }) ?? true else { continue }
            let late = episode.stall.evidence.watchdogLate
            let isStarved = episode.stall.detectedAt.map { $0 <= end.advanced(by: late) } ?? (late >= limit)
            if isStarved { starved += 1 } else { missed += 1 }
        }
        table.add(
            what,
            "p50 \(milliseconds(seen.median)), most \(milliseconds(seen.most)); \(late) of "
                + "\(run.episodes.count + run.unrecorded) after their end"
                + (starved > 0 ? "; watchdog starved \(starved) times" : ""),
            bar: seenBar, holds: missed == 0 && run.unrecorded == 0)

        let errors = Figures(run.episodes.map { abs(nanoseconds($0.stall.duration) - nanoseconds($0.measured)) })
        table.add(
            "stall duration, error, \(kind.rawValue)",
            "p50 \(microseconds(errors.median)), p90 \(microseconds(errors.at(0.9))) of 35 to 155 ms; "
                + "\(run.episodes.count { isLonger($0) }) of \(errors.count) longer than that, "
                + "\(run.episodes.count { isShorter($0) }) shorter",
            bar: "p90 <= max(3 %, 5 ms), none shorter",
            holds: errors.at(0.9) <= 5e6 && !run.episodes.contains { isShorter($0) })
        addDelay(run, kind, &table)
    }

    private static func allowed(_ episode: StallRun.Episode) -> Double {
        max(nanoseconds(episode.measured) * 0.03, 5e6)
    }

    private static func isLonger(_ episode: StallRun.Episode) -> Bool {
        nanoseconds(episode.stall.duration) > nanoseconds(episode.measured) + allowed(episode)
    }

    private static func isShorter(_ episode: StallRun.Episode) -> Bool {
        nanoseconds(episode.stall.duration) < nanoseconds(episode.measured) - allowed(episode)
    }

    /// The delay that one arrival in ten (and one in a hundred) exceeds, from the handlers' clock and from the
    /// histogram.
    private static func addDelay(_ run: StallRun, _ kind: ServerKind, _ table: inout Table) {
        let spins = run.episodes.filter { !$0.wasBlocked }
        let window = run.last.takenAt.since(run.first.takenAt)
        guard let loop = spins.first?.stall.loop, run.unrecorded == 0,
            spins.allSatisfy({ $0.stall.loop == loop }),
            let after = run.last.loops.first(where: { $0.id == loop })
        else { return }
        let preempted = spins.count { isLonger($0) }
        guard preempted == 0 else {
            table.skip(
                "delay, error, \(kind.rawValue)",
                because: "\(preempted) iterations lost their core outside of the handler, its clock is no witness",
                bar: "<= max(3 %, 5 ms)")
            return
        }
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
        table.note(
            "first sample of a server, \(kind.rawValue)",
            "\(milliseconds(Double(now() - start))), its files read for the first time")

        var unwound: [Double] = []
        var reconstructed: [Double] = []
        var frames: [Double] = []
        var rooted = 0
        for sample in samples {
            let stack = decoder.decode(sample)
            frames.append(Double(stack.frames.count))
            if !stack.isTruncated { rooted += 1 }
            // The least of five: noise on a shared machine only ever adds.
            let least =
                (0..<5).map { _ in
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
