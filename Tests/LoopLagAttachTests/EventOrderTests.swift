/// In which order a follower tells what one look found, and which threshold `run` uses.

import LoopLagModel
import Testing

@testable import LoopLagCLI

@Suite("Order of events, and the threshold of run")
struct EventOrderTests {
    private func stall(_ id: UInt64, start: UInt64, lasted: UInt64, _ state: StallState) -> StallRecord {
        StallRecord(
            id: id, loop: LoopID(slot: 0, generation: 1), tid: 1, state: state,
            start: MonotonicTime(nanoseconds: start * 1_000_000), duration: .milliseconds(Int(lasted)),
            detectedAt: nil, sampleCount: 0, evidence: StallEvidence())
    }

    @Test("The end of a stall comes before the beginning of the next, whoever notices which first")
    func closedBeforeOpened() throws {
        let limit = Duration.milliseconds(100)
        let closed = FollowedProcess.Change.closed(stall(1, start: 1000, lasted: 300, .closed))
        let opened = FollowedProcess.Change.opened(stall(2, start: 1350, lasted: 120, .open))
        let end = try #require(closed.moment(threshold: limit))
        let beginning = try #require(opened.moment(threshold: limit))
        #expect(end == MonotonicTime(nanoseconds: 1_300_000_000))
        #expect(beginning == MonotonicTime(nanoseconds: 1_450_000_000))
        #expect(FollowedProcess.Change.missed(3).moment(threshold: limit) == nil)
    }

    @Test("A sample taken for a reader with a lower threshold does not come before its stall's beginning")
    func sampleAfterOpening() throws {
        let limit = Duration.milliseconds(100)
        let record = stall(1, start: 1000, lasted: 120, .open)
        let sample = StackSample(
            stallID: 1, position: 0, offset: .milliseconds(20), threadState: "R", method: .signal, frames: [],
            isTruncated: false)
        let opened = try #require(FollowedProcess.Change.opened(record).moment(threshold: limit))
        let sampled = try #require(FollowedProcess.Change.sampled(record, sample).moment(threshold: limit))
        #expect(sampled >= opened)
    }

    @Test("run takes --threshold, else LOOPLAG_THRESHOLD, else 100 ms; nonsense in the variable is told")
    func thresholdOfRun() {
        #expect(ThresholdOption.resolve(given: nil, environment: nil) == (.milliseconds(100), nil))
        #expect(ThresholdOption.resolve(given: nil, environment: "20ms") == (.milliseconds(20), nil))
        #expect(ThresholdOption.resolve(given: .seconds(1), environment: "20ms") == (.seconds(1), nil))
        let nonsense = ThresholdOption.resolve(given: nil, environment: "soon")
        #expect(nonsense.threshold == .milliseconds(100))
        #expect(nonsense.complaint?.contains("LOOPLAG_THRESHOLD=soon") == true)
    }
}
