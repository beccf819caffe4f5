/// Samples by the hundred of a node that moves its memory about as much as it can (`stress.js`): does it live, are its
/// answers right, and is every frame one that its source has? LOOPLAG_STRESS_SAMPLES sets how many are wanted of each
/// node (200 in a usual run; ten thousand take a few minutes a node).

import Foundation
import Glibc
import LoopLagModel
import LoopLagTelemetry
import Testing

extension EndToEnd {
    @Suite("Samples of a node under stress")
    struct NodeStressTests {
        static let wanted =
            ProcessInfo.processInfo.environment["LOOPLAG_STRESS_SAMPLES"].flatMap { UInt64($0) } ?? 200

        /// What `stress.js` says at its end.
        private struct Account: Decodable {
            var units: Int
            var requests: Int
            var workers: Int
            var wrong: Int
        }

        /// Functions of the fixture, and the lines that each may be at.
        private static func ranges(_ source: String) -> [String: ClosedRange<Int>] {
            let lines = source.split(separator: "\n", omittingEmptySubsequences: false)
            var result: [String: ClosedRange<Int>] = [:]
            for (name, head) in ["collect", "compile", "match", "parse", "nest"].map({ ($0, "  \($0)(n) {") })
                + [("work", "function work() {")]
            {
                guard let first = lines.firstIndex(where: { $0 == head }) else { continue }
                let end = head.prefix { $0 == " " } + "}"
                guard let last = lines[first...].firstIndex(where: { $0.hasPrefix(end) }) else { continue }
                result[name] = first + 1...last + 1
            }
            return result
        }

        @Test(
            "Collections, compiling, matching, parsing, and workers that are born and die: no crash, no wrong answer",
            arguments: ["NODE18", "NODE", "NODE22", "NODE24", "NODE_DEBIAN"])
        func torture(node: String) throws {
            let script = Tools.host("stress.js")
            let ranges = Self.ranges(try String(contentsOfFile: script, encoding: .utf8))
            #expect(ranges.count == 6)
            let child = try Child(
                [Tools.installed(node), "--expose-gc", script, "--seconds=3600"],
                environment: Agent.preload(threshold: "1ms", ["LOOPLAG_BUDGET": "100"]))
            defer { child.end() }
            let telemetry = try eventually("the agent") {
                (try? SegmentDiscovery.live(pid: child.pid)).flatMap { try? ProcessTelemetry($0) }
            }
            var taken: UInt64 = 0
            var seen = 0
            var late = 0
            var frames = 0
            var wrong: [Frame] = []
            let began = MonotonicTime.now()
            while taken < Self.wanted {
                try #require(child.isRunning, "\(child.output.text)\(child.errors.text)")
                let limit = Duration.seconds(60 + Int(Self.wanted / 10))
                try #require(MonotonicTime.now().since(began) < limit, "\(taken) samples")
                letPass(.milliseconds(20))
                let update = try telemetry.poll()
                taken = update.snapshot.agent.samplesTaken
                for sample in update.newSamples {
                    seen += 1
                    if sample.isLate { late += 1 }
                    for frame in (sample.managed?.frames ?? []).map(\.frame) {
                        frames += 1
                        if !Self.isRight(frame, script, ranges) { wrong.append(frame) }
                    }
                }
            }
            let agent = telemetry.latest.agent
            let took = MonotonicTime.now().since(began).secondsAsDouble
            child.send(SIGTERM)
            #expect(try child.exitStatus(within: .seconds(40)) == .exited(0), "\(child.errors.text)")
            let line = try child.output.wholeText().split(separator: "\n").last
            let account = try JSONDecoder().decode(Account.self, from: Data((line ?? "").utf8))
            #expect(account.wrong == 0)
            #expect(account.units > 0 && account.requests > 0 && account.workers >= 3)
            #expect(frames > 0)
            // Read while everything moves: what does not check out is left out, and next to nothing may slip through.
            #expect(wrong.count * 1000 <= max(frames, 1000), "\(wrong.prefix(5))")
            let dropped = agent.samplesDropped.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }
            figure(
                "\(node): \(agent.samplesTaken) samples in \(Int(took)) s, dropped \(dropped.joined(separator: ", ")); of "
                    + "\(seen) read \(late) late, \(wrong.count) of \(frames) JavaScript frames wrong; \(account.workers) "
                    + "workers, \(account.units) units of work and \(account.requests) answers, none wrong; agent "
                    + "\(Int(agent.cpu.secondsAsDouble / took * 100)) % of a core")
        }

        /// A frame of the fixture lies in its function; any other one in node's own scripts, or in code made from a text.
        private static func isRight(_ frame: Frame, _ script: String, _ ranges: [String: ClosedRange<Int>]) -> Bool {
            guard frame.kind == .javascript else { return false }
            guard let file = frame.file else { return true }
            guard file == script else { return file.hasPrefix("node:") || file.hasPrefix("evalmachine") }
            guard let range = ranges[frame.function], let line = frame.line else { return true }
            return range.contains(line)
        }
    }
}
