import Foundation
import LoopLagDiagnosis
import LoopLagModel
import Testing

@testable import LoopLagReport

@Suite("Reports and stalls as text")
struct TextTests {
    private static let utc = TimeZone(secondsFromGMT: 0) ?? .current

    private static func isPlain(_ text: String) -> Bool {
        text.unicodeScalars.allSatisfy { $0 == "\n" || $0.value >= 0x20 && $0.value != 0x7f }
    }

    @Test("A report opens with its headline, then findings, tables and the worst stall", arguments: [60, 80, 100, 140])
    func sections(width: Int) throws {
        let text = TextReport.render(SampleReport.everything, width: width)
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        #expect(lines.allSatisfy { PlainText.columns(of: $0) <= width })
        #expect(Self.isPlain(text))
        #expect(lines[0].hasPrefix("LoopLag: 60 s from 2026-03-01 12:03:22 UTC"))
        let order = ["FINDINGS", "LOOPS", "POOLS", "STALLS by culprit", "WORST STALL"]
        let places = order.map { title in lines.firstIndex { $0.hasPrefix(title) } }
        #expect(places.allSatisfy { $0 != nil })
        #expect(places.compactMap { $0 } == places.compactMap { $0 }.sorted())
    }

    @Test("The headline says how long, how busy, how many stalls, how much time was lost and who is to blame")
    func headline() {
        let text = TextReport.render(SampleReport.everything)
        #expect(
            text.contains(
                "4242 uvicorn (cpython): 1 loop, 8.2 % busy, 3 stalls, 800 ms stalled (1.3 % of the time), the"))
        #expect(text.contains("charge billing.py:41, syscall clock_nanosleep"))
        #expect(text.contains("99 redis-server: no event loop was seen."))
        #expect(text.contains("on web-1 (4 CPUs, limited to 2.5)"))
    }

    @Test("Stalls are grouped by culprit with count, total and worst, the costliest first")
    func groups() throws {
        let lines = TextReport.render(SampleReport.everything).split(separator: "\n").map(String.init)
        let start = try #require(lines.firstIndex { $0.hasPrefix("STALLS") })
        let words = lines[(start + 2)...(start + 4)].map { $0.split(separator: " ").map(String.init) }
        #expect(words[0].starts(with: ["1", "500", "ms", "500", "ms", "on_cpu", "debugCommand"]))
        #expect(words[1].starts(with: ["2", "400", "ms", "200", "ms", "syscall", "clock_nanosleep", "charge"]))
        #expect(words[2].starts(with: ["1", "400", "ms", "400", "ms", "on_cpu", "cpu"]))
    }

    @Test("The worst stall's stack marks the user's own frame")
    func worst() {
        let text = TextReport.render(ReportBuilder.build(SampleReport.input([SampleReport.python])))
        #expect(text.contains("WORST STALL 4242 uvicorn main, 2026-03-01 12:03:31.000 UTC, lasted 400 ms, on_cpu"))
        #expect(text.contains("  py cpu "))
        #expect(text.contains("<- your code"))
    }

    @Test("Helper loops stay out of the table unless they stalled")
    func helpers() {
        #expect(!TextReport.render(SampleReport.everything).contains("dispatch"))
    }

    @Test("A report from anywhere, with absurd numbers and names, prints without a trap")
    func hostile() {
        var report = SampleReport.everything
        let evil = "\u{1b}[2J\r\n\u{202e}" + String(repeating: "w", count: 5000)
        report.machine.hostname = evil
        report.machine.cgroupLimits?.cpus = .infinity
        report.recorded.durationNS = .min
        report.settings.thresholdNS = .max
        for i in report.processes.indices {
            report.processes[i].command = [evil]
            for j in report.processes[i].loops.indices {
                report.processes[i].loops[j].threadName = evil
                report.processes[i].loops[j].kind = evil
                report.processes[i].loops[j].utilization = .nan
                report.processes[i].loops[j].stalledNS = .max
                report.processes[i].loops[j].stallCount = .max
                report.processes[i].loops[j].delay.p99NS = .min
            }
            for j in report.processes[i].stalls.indices {
                report.processes[i].stalls[j].durationNS = .max
                report.processes[i].stalls[j].syscall = evil
                report.processes[i].stalls[j].samples.append(
                    ReportStall.Sample(
                        offsetNS: .min, threadState: evil, stack: [-1, .max], truncated: true, late: false,
                        method: .signal))
            }
        }
        for i in report.frames.indices {
            report.frames[i].function = evil
            report.frames[i].file = evil
            report.frames[i].line = .min
        }
        report.findings += findings(for: report)
        let text = TextReport.render(report, width: 100)
        #expect(Self.isPlain(text))
        #expect(text.split(separator: "\n").allSatisfy { PlainText.columns(of: String($0)) <= 100 })
    }

    private static func event(_ kind: StallEvent.Kind, state: StallState = .closed) -> StallEvent {
        let culprit = Frame(function: "cpu", kind: .python, file: "/srv/app.py", line: 9)
        let diagnosis = StallDiagnosis(cause: .syscall, evidence: ["looks": 4], syscall: "nanosleep", culprit: culprit)
        return StallEvent(
            kind: kind, wallNanoseconds: 1_772_366_602_410_000_000, pid: 4242, server: "uvicorn",
            loopID: LoopID(slot: 0, generation: 1), loop: LoopClass(kind: "uvloop", role: .server, name: "main"),
            stall: makeStall(id: 7, state: state, length: 412), threshold: .milliseconds(100),
            diagnosis: kind == .opened ? nil : diagnosis, stack: kind == .sampled ? [culprit] : nil)
    }

    @Test("A stall's lines read as in the sketch")
    func stallText() {
        let opened = StallLine.text(Self.event(.opened, state: .open), zone: Self.utc)
        #expect(opened == "12:03:22.410     4242 uvicorn       main·uvloop         open      >100 ms")
        let closed = StallLine.text(Self.event(.closed), zone: Self.utc)
        #expect(closed.hasSuffix("closed     412 ms  syscall nanosleep         cpu app.py:9"))
        #expect(StallLine.text(Self.event(.closed, state: .dropped), zone: Self.utc).hasSuffix("dropped"))
    }

    @Test("A time zone shifts the clock only")
    func zones() throws {
        let zone = try #require(TimeZone(secondsFromGMT: -5 * 3600))
        #expect(StallLine.text(Self.event(.closed), zone: zone).hasPrefix("07:03:22.410"))
    }

    @Test("A stall's JSON is one line with the report's fields")
    func stallJSON() throws {
        func fields(_ event: StallEvent) throws -> [String: Any] {
            let line = StallLine.json(event)
            #expect(!line.contains("\n"))
            return try #require(try JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any])
        }
        let opened = try fields(Self.event(.opened, state: .open))
        #expect(opened["event"] as? String == "opened")
        #expect(opened["time"] as? String == "2026-03-01T12:03:22.410000Z")
        #expect(opened["pid"] as? Int == 4242)
        #expect(opened["loop_id"] as? String == "4242.0.1")
        #expect(opened["stall_id"] as? String == "4242.s7")
        #expect(opened["elapsed_ns"] as? Int == 412_000_000)
        #expect(opened["duration_ns"] == nil)
        #expect(opened["cause"] == nil)
        let sampled = try fields(Self.event(.sampled, state: .open))
        #expect((sampled["stack"] as? [[String: Any]])?.first?["function"] as? String == "cpu")
        let closed = try fields(Self.event(.closed))
        #expect(closed["duration_ns"] as? Int == 412_000_000)
        #expect(closed["elapsed_ns"] == nil)
        #expect(closed["cause"] as? String == "syscall")
        #expect((closed["culprit"] as? [String: Any])?["line"] as? Int == 9)
        let dropped = try fields(Self.event(.closed, state: .dropped))
        #expect(dropped["duration_ns"] == nil)
        #expect(dropped["dropped"] as? Bool == true)
    }

    @Test("Names of a foreign process cannot break a line")
    func hostileEvent() {
        var event = Self.event(.closed)
        event.server = "a\nb"
        event.loop.name = "\u{1b}[31m"
        event.diagnosis?.culprit?.function = "x\ny"
        event.diagnosis?.evidence["odd"] = .infinity
        #expect(!StallLine.text(event, zone: Self.utc).contains("\n"))
        #expect(Self.isPlain(StallLine.text(event, zone: Self.utc)))
        #expect(!StallLine.json(event).contains("\n"))
    }

    @Test(
        "Wall-clock times follow the calendar",
        arguments: [
            (0, "1970-01-01T00:00:00.000000Z"), (951_782_400_000_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999Z"),
            (4_107_542_400_000_001_000, "2100-03-01T00:00:00.000001Z"),
            (.max, "2554-07-21T23:34:33.709551Z"),
        ] as [(UInt64, String)])
    func calendar(nanoseconds: UInt64, text: String) {
        #expect(WallClock.timestamp(nanoseconds) == text)
    }
}
