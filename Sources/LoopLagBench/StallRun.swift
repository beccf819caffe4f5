/// Makes one server stall a number of times and gathers what the handlers and the agent each say of it.
///
/// Used by StallCost, from the bench's one thread. The handlers' clock is the same CLOCK_MONOTONIC as the agent's but
/// read by other code at other places: it is the independent witness for lengths and delays.

import Glibc
import LoopLagModel
import LoopLagTelemetry

final class StallRun {
    /// Low, so that short stalls give many samples; the watchdog looks every 5 ms then, and samples every 10.
    static let thresholdMilliseconds = 20
    static let threshold = Duration.milliseconds(thresholdMilliseconds)
    /// The longest outlasts the bar for being seen, a quarter of the threshold and 50 ms after it.
    /// None ends in the moment in which a sample falls due.
    private static let lengths = [35, 65, 95, 155]
    /// Up to its eighth sample of a stall the agent keeps the dense rhythm.
    static let longestDense = Duration.milliseconds(99)

    struct Episode {
        var wasBlocked: Bool
        /// How long the handler was to spin or to block.
        var asked: Duration
        /// By the handler's own clock. The iteration is this and what the server does round it; on a busy machine also
        /// the time for which it lost its core before and after, so it may be longer and never shorter.
        var measured: Duration
        var stall: StallRecord
    }

    let server: Server
    let telemetry: ProcessTelemetry
    private(set) var episodes: [Episode] = []
    /// Handlers' lengths for which no record came.
    private(set) var unrecorded = 0
    private(set) var samples: [RawSample] = []
    /// The spins alone: the window of the delay.
    private(set) var first: ProcessSnapshot
    private(set) var last: ProcessSnapshot

    init(_ kind: ServerKind, _ plan: Plan) throws(BenchError) {
        server = try kind.start(withAgent: true, threshold: Self.thresholdMilliseconds, plan: plan)
        telemetry = try Segments.of(server.host, within: 5)
        first = telemetry.latest
        last = telemetry.latest
        let connection = try Connection(server)
        for _ in 0..<20 { _ = try connection.ask(.ok, within: 5) }
        // Whatever a server does at its start is not ours.
        _ = try poll()
        samples = []
        first = telemetry.latest
        for turn in 0..<(plan.isQuick ? 12 : 48) {
            let length = Self.lengths[turn % Self.lengths.count]
            try stall(connection, .spin(milliseconds: length), length, wasBlocked: false)
        }
        _ = try poll()
        last = telemetry.latest
        for turn in 0..<(plan.isQuick ? 8 : 20) {
            let length = Self.lengths[turn % Self.lengths.count]
            try stall(connection, .block(milliseconds: length), length, wasBlocked: true)
        }
        _ = try poll()
    }

    /// Samples of the stalls that this run made, by how they were made.
    func samples(ofBlocked wasBlocked: Bool) -> [RawSample] {
        let stalls = Set(episodes.filter { $0.wasBlocked == wasBlocked }.map(\.stall.id))
        return samples.filter { stalls.contains($0.stallID) }
    }

    /// How many samples the agent owes a stall: one at the threshold, then one every half of it.
    static func due(_ stall: StallRecord) -> Int {
        1 + Int(max(0, (stall.duration - threshold).nanosecondCount) / (threshold / 2).nanosecondCount)
    }

    private func stall(
        _ connection: Connection, _ wish: Wish, _ length: Int, wasBlocked: Bool
    ) throws(BenchError) {
        // Stalls without a pause would spend the agent's CPU budget, and it would sample less often.
        pause(milliseconds: 250)
        let asked = MonotonicTime(nanoseconds: now())
        try connection.send(server.speech.request(wish))
        let answer = try connection.answer(within: 10) { () throws(BenchError) in }
        guard let blocked = answer.blocked else { throw BenchError("the handler did not say how long it took") }
        // The record closes at the watchdog's next look.
        let deadline = Deadline(seconds: 1)
        var found: StallRecord?
        while found == nil, !deadline.hasPassed {
            pause(milliseconds: 4)
            found = try poll().filter { $0.start >= asked }.max { $0.duration < $1.duration }
        }
        guard let found else {
            unrecorded += 1
            return
        }
        episodes.append(
            Episode(
                wasBlocked: wasBlocked, asked: .milliseconds(length), measured: .nanoseconds(Int64(blocked)),
                stall: found))
    }

    /// Stalls that have closed since the last look.
    private func poll() throws(BenchError) -> [StallRecord] {
        do throws(TelemetryError) {
            let update = try telemetry.poll()
            samples += update.newSamples
            return update.closed
        } catch {
            throw BenchError("the segment: \(error.message)")
        }
    }
}
