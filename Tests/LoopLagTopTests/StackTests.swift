import LoopLagDiagnosis
import LoopLagModel
import Testing

@testable import LoopLagTop

@Suite("Stacks of top")
struct StackTests {
    @Test("Samples that name the same functions agree, whatever line they were on")
    func agreeing() {
        var moved = Sample.spinning
        moved[0].line = 11
        let merged = MergedStack.merge([
            Sample.sample(1, Sample.spinning, offset: 100), Sample.sample(2, moved, offset: 150),
            Sample.sample(3, Sample.sleeping, offset: 200),
        ])
        #expect(merged.map(\.count) == [2, 1])
        #expect(merged.first?.frames.first?.line == 11)
        #expect(StackLines.agreement(merged[0], of: 3) == "2 of 3 samples agree, the last after 150 ms (signal)")
        #expect(StackLines.agreement(merged[1], of: 3) == "1 of 3 samples, after 200 ms (signal)")
    }

    @Test("Of equally frequent stacks the later stands first")
    func ties() {
        let merged = MergedStack.merge([
            Sample.sample(1, Sample.spinning, offset: 100), Sample.sample(2, Sample.sleeping, offset: 150),
        ])
        #expect(merged.first?.frames.first?.function == "clock_nanosleep")
    }

    @Test("Every differing stack can be scrolled to, under a line that counts it")
    func groups() {
        let stall = Sample.stall(
            1,
            samples: [
                Sample.sample(1, Sample.spinning), Sample.sample(2, Sample.spinning),
                Sample.sample(3, Sample.sleeping, truncated: true),
            ])
        var groups: [String] = []
        var frames = 0
        var notes = 0
        for line in StackLines.lines(stall) {
            switch line {
            case .group(let text): groups.append(text)
            case .frame: frames += 1
            case .note: notes += 1
            }
        }
        #expect(groups == ["1 of 3 samples, after 100 ms (signal)"])
        #expect(frames == Sample.spinning.count + Sample.sleeping.count)
        #expect(notes == 1)
    }

    @Test("The thread that holds the lock stands below, under its name; a line where a function begins has a plus")
    func blocker() {
        var stall = Sample.stall(1, cause: .gilWait)
        stall.diagnosis.blockedBy = BlockingThread(tid: 4250, name: "worker", frames: [Sample.charge])
        var lines: [String] = []
        for line in StackLines.lines(stall) {
            switch line {
            case .group(let text), .note(let text): lines.append(text)
            case .frame(let frame, _): lines.append(frame.function)
            }
        }
        #expect(lines == ["cpu", "run", "held by thread worker (4250)", "charge"])
        var frame = Sample.charge
        frame.approximate = true
        #expect(StackLines.place(frame) == "billing.py:41+")
        #expect(StackLines.place(frame, isLong: true) == "/srv/app/billing.py:41+")
    }

    @Test("Samples without frames do not count as stacks")
    func empty() {
        #expect(MergedStack.merge([Sample.sample(1, [])]).isEmpty)
        #expect(StackLines.count(Sample.stall(1, isOpen: true, samples: [Sample.sample(1, [])])) == 1)
    }

    @Test("Each language has its word")
    func kinds() {
        let words = [FrameKind.native, .swift, .python, .javascript, .kernel].map {
            StackLines.kind(Frame(function: "f", kind: $0))
        }
        #expect(words == ["c", "swift", "py", "js", "kernel"])
    }
}
