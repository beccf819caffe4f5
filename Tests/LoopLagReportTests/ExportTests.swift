import Foundation
import LoopLagDiagnosis
import LoopLagExport
import LoopLagModel
import Testing

@Suite("Prometheus metrics and the dashboard")
struct ExportTests {
    private static let naming = PrometheusText.Naming(process: { serverName($0) }) { process, loop in
        let kind = classify(loop, process: process, caller: nil)
        return (kind.name, kind.kind, kind.role)
    }

    private static func process(stalls: [StallRecord] = [], lengths: [Int] = [200, 1, 1]) -> ProcessSnapshot {
        makeProcess(
            loops: [
                makeLoop(busySince: 59_700, busy: lengths.reduce(0, +), idle: 2_300, lengths: lengths),
                makeLoop(slot: 1, tid: 4250, name: "ispatch-manager", idleSince: 1, lengths: [7]),
            ],
            pools: [
                PoolSnapshot(
                    slot: 0, kind: "libuv", name: "a\"b\\c\nd", threads: 4, busy: Gauge(last: 4, mean: 3, max: 4),
                    queueDepth: Gauge(last: 12, mean: 3, max: 12), inFlight: nil, queueWaitP50: .milliseconds(5),
                    queueWaitP99: .milliseconds(1300), queueWaitMax: nil, method: .exact)
            ], stalls: stalls)
    }

    private static func values(_ text: String, _ series: String) -> [Double] {
        text.split(separator: "\n").filter { $0.hasPrefix(series) }
            .compactMap { $0.split(separator: " ").last.flatMap { Double($0) } }
    }

    @Test("The exposition is well formed: HELP and TYPE once each, then all series of the metric")
    func wellFormed() throws {
        let text = PrometheusText.render([Self.process()], naming: Self.naming)
        #expect(text.hasSuffix("\n"))
        let series = try Regex(
            #"^([a-z_]+?)(_bucket|_sum|_count)?\{([a-z]+="([^"\\\n]|\\["\\n])*",?)*\} (-?[0-9.e+-]+|\+Inf)$"#)
        var current = ""
        var seen: Set<String> = []
        var all: Set<Substring> = []
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            if line.hasPrefix("# HELP") {
                current = String(words[2])
                #expect(seen.insert(current).inserted)
            } else if line.hasPrefix("# TYPE") {
                #expect(String(words[2]) == current)
                #expect(["counter", "gauge", "histogram", "summary"].contains(String(words[3])))
            } else {
                #expect(line.wholeMatch(of: series) != nil, "\(line)")
                #expect(line.hasPrefix(current))
                #expect(all.insert(line.split(separator: "}")[0]).inserted, "twice: \(line)")
            }
        }
        #expect(seen.isSubset(of: Set(PrometheusText.metricNames)))
        #expect(text.contains(#"pool="a\"b\\c\nd""#))
    }

    @Test("Buckets are cumulative and end at the count; delay is weighted by time")
    func histograms() throws {
        let text = PrometheusText.render([Self.process()], naming: Self.naming)
        for metric in ["looplag_loop_iteration_seconds", "looplag_loop_delay_seconds"] {
            let buckets = Self.values(text, metric + "_bucket")
            #expect(buckets == buckets.sorted())
            #expect(try #require(buckets.last) == #require(Self.values(text, metric + "_count").first))
        }
        // 2.3 s idle and 202 ms in iterations: an event waits at most 0.1 s but in the first 100 ms of the stall.
        let tenth = try #require(Self.values(text, "looplag_loop_delay_seconds_bucket{").dropFirst(10).first)
        #expect(abs(tenth - 2.402) < 0.001)
        #expect(try abs(#require(Self.values(text, "looplag_loop_delay_seconds_sum").first) - 0.02) < 0.0013)
        #expect(try abs(#require(Self.values(text, "looplag_loop_stall_open_seconds").first) - 0.3) < 1e-9)
    }

    @Test("Helpers and dead processes are left out, and loops of one name are one series")
    func merged() {
        #expect(!PrometheusText.render([Self.process()], naming: Self.naming).contains("ispatch"))
        var dead = Self.process()
        dead.isAlive = false
        #expect(PrometheusText.render([dead], naming: Self.naming).isEmpty)
        var twice = Self.process()
        twice.loops[1] = makeLoop(slot: 1, generation: 2, busy: 1_000, lengths: [500, 500])
        let text = PrometheusText.render([twice], naming: Self.naming)
        #expect(Self.values(text, "looplag_loop_busy_seconds_total") == [1.202])
    }

    @Test("Labels hold no arguments")
    func secrets() {
        let process = makeProcess(
            runtime: .cpython, executable: "/usr/bin/python3", command: ["python3", "app.py", "--key=hunter2"])
        let text = PrometheusText.render([process], naming: Self.naming)
        #expect(text.contains(#"process="app.py",runtime="cpython",command="python3"} 1"#))
        #expect(!text.contains("hunter2"))
    }

    @Test("Stalls count by cause, each once, and one whose record was lost as unknown")
    func tally() {
        var tally = StallTally()
        func look(_ stalls: [StallRecord], lengths: [Int]) -> [String: Double] {
            let process = Self.process(stalls: stalls, lengths: lengths)
            tally.observe([process]) { stall, _ in stall.id == 1 ? .syscall : .onCPU }
            let text = PrometheusText.render([process], naming: Self.naming, stalls: tally)
            var result: [String: Double] = [:]
            for cause in Cause.allCases {
                let lines = text.split(separator: "\n").filter {
                    $0.hasPrefix("looplag_loop_stalls_total") && $0.contains("cause=\"\(cause.rawValue)\"")
                }
                result[cause.rawValue] = lines.first.flatMap { $0.split(separator: " ").last }.flatMap { Double($0) }
            }
            return result
        }
        let first = makeStall(id: 1, length: 200)
        #expect(look([first], lengths: [200]) == ["syscall": 1])
        #expect(look([first], lengths: [200]) == ["syscall": 1])
        // The second has closed, its record follows a moment later.
        #expect(look([first, makeStall(id: 2, state: .open, length: 150)], lengths: [200, 150]) == ["syscall": 1])
        let both = [first, makeStall(id: 2, length: 150)]
        #expect(look(both, lengths: [200, 150]) == ["syscall": 1, "on_cpu": 1])
        // Three more, of which the ring kept one.
        let later = [makeStall(id: 5, length: 150)]
        _ = look(later, lengths: [200, 150, 150, 150, 150])
        #expect(look(later, lengths: [200, 150, 150, 150, 150]) == ["syscall": 1, "on_cpu": 2, "unknown": 2])
    }

    @Test("The Grafana dashboard uses the exporter's metrics and no others")
    func dashboard() throws {
        let file = URL(fileURLWithPath: #filePath)
            .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("dashboards/looplag-grafana.json")
        let text = try String(contentsOf: file, encoding: .utf8)
        let dashboard = try #require(try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
        let panels = try #require(dashboard["panels"] as? [[String: Any]])
        #expect(Set(panels.compactMap { $0["id"] as? Int }).count == panels.count)
        var used: Set<String> = []
        for panel in panels {
            for target in try #require(panel["targets"] as? [[String: Any]]) {
                let expression = try #require(target["expr"] as? String)
                for match in expression.matches(of: /looplag_[a-z_]+/) { used.insert(String(match.output)) }
            }
        }
        let suffixes = ["_bucket", "_sum", "_count"]
        let names = Set(PrometheusText.metricNames)
        let plain = Set(
            used.map { name in
                suffixes.first { name.hasSuffix($0) && names.contains(String(name.dropLast($0.count))) }
                    .map { String(name.dropLast($0.count)) } ?? name
            })
        #expect(plain == names)
    }
}
