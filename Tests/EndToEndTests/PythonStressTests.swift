/// Samples by the hundred of each CPython at the most awkward work there is (the bench's `torture.py`), taken by the agent
/// itself: does it live, and is every frame one that its source has? LOOPLAG_STRESS_SAMPLES sets how many are wanted of
/// each (200 in a usual run); for ten thousand at over 1 kHz LOOPLAG_TEST_AGENT names the build that `PythonSafetyTests`
/// tells how to make.

import Foundation
import Glibc
import LoopLagModel
import LoopLagTelemetry
import Testing

extension EndToEnd {
    @Suite("Samples of a Python under stress")
    struct PythonStressTests {
        /// Those whose frames the agent reads by itself.
        static let minors = PythonVersionsTests.minors.filter { $0 >= 9 }

        @Test(
            "Generators, recursion, exec, exceptions and coroutines: no crash, and next to no frame is wrong",
            arguments: minors)
        func torture(minor: Int) throws {
            let name = PythonVersionsTests.name(minor)
            guard let python = Tools.optional(name) else {
                figure("CPython 3.\(minor): not on this machine (\(name) in the env file)")
                return
            }
            let script = Tools.repository.appending(path: "Sources/LoopLagBench/torture.py").path
            let folder = try TemporaryFolder()
            let account = folder.path + "/lines"
            let child = try Child(
                [python, script, account], environment: Agent.preload(threshold: "1ms", ["LOOPLAG_BUDGET": "100"]))
            defer { child.end() }
            let telemetry = try eventually("the agent") {
                (try? SegmentDiscovery.live(pid: child.pid)).flatMap { try? ProcessTelemetry($0) }
            }
            let truth = try eventually("the script's own account") {
                (try? String(contentsOfFile: account, encoding: .utf8)).flatMap { $0.hasSuffix("\nend\n") ? $0 : nil }
            }
            let lines = Set(truth.split(separator: "\n").map(String.init))
            let wanted = NodeStressTests.wanted
            var taken: UInt64 = 0
            var pauses: [Duration] = []
            var frames = 0
            var unread = 0
            var wrong: [Frame] = []
            let began = MonotonicTime.now()
            while taken < wanted {
                try #require(child.isRunning, "\(child.output.text)\(child.errors.text)")
                try #require(MonotonicTime.now().since(began) < .seconds(20 + Int(wanted / 50)), "\(taken) samples")
                letPass(.milliseconds(5))
                let update = try telemetry.poll()
                taken = update.snapshot.agent.samplesTaken
                for sample in update.newSamples {
                    if sample.method == .signal { pauses.append(sample.pause) }
                    for frame in (sample.managed?.frames ?? []).map(\.frame) {
                        frames += 1
                        guard let file = frame.file else {
                            unread += 1
                            continue
                        }
                        // No line: the interpreter says that the instruction has none.
                        guard file == script || file.hasPrefix("<made"), let line = frame.line else { continue }
                        if !lines.contains("\(file)\t\(frame.function)\t\(line)") { wrong.append(frame) }
                    }
                }
            }
            let took = MonotonicTime.now().since(began).secondsAsDouble
            let agent = telemetry.latest.agent
            try "".write(toFile: account + ".stop", atomically: true, encoding: .utf8)
            #expect(try child.exitStatus(within: .seconds(40)) == .exited(0), "\(child.errors.text)")
            #expect(!agent.degraded.contains { $0.contains("python") }, "\(agent.degraded)")
            #expect(frames > Int(wanted))
            // One in four hundred; a few hundred samples hold some thousand frames.
            #expect((wrong.count + unread) * 400 <= frames, "\(unread) not read; \(wrong.prefix(5))")
            pauses.sort()
            func pause(_ share: Double) -> Int64 {
                pauses.isEmpty ? 0 : pauses[Int(Double(pauses.count - 1) * share)].nanosecondCount / 1000
            }
            let drops = agent.samplesDropped.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }
            figure(
                "3.\(minor): \(taken) samples, \(Int(Double(taken) / took)) a second, dropped "
                    + "\(drops.joined(separator: ", ")); of \(frames) frames read \(wrong.count) wrong, \(unread) not "
                    + "read; pause p50 \(pause(0.5)) us, p99 \(pause(0.99)) us, longest \(pause(1)) us")
        }
    }
}
