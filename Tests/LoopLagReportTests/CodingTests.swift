import Foundation
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import Testing

@Suite("Reports as JSON")
struct CodingTests {
    @Test("A report survives being written and read")
    func roundTrip() throws {
        let report = SampleReport.everything
        #expect(try ReportCoding.decode(ReportCoding.encode(report)) == report)
    }

    @Test("What is not known is absent, never null and never zero")
    func absent() throws {
        let text = String(decoding: try ReportCoding.encode(SampleReport.everything), as: UTF8.self)
        #expect(!text.contains("null"))
        let process = ReportInput.Process(
            from: nil, to: makeProcess(runtime: nil, executable: nil, loops: [makeLoop(registered: 60_000)]), stalls: []
        )
        let bare = String(
            decoding: try ReportCoding.encode(ReportBuilder.build(SampleReport.input([process]))), as: UTF8.self)
        for key in [
            "utilization", "runtime", "executable", "started", "run_queue_wait_ns", "hdr", "p99_ns", "gil_wait_ns",
        ] {
            #expect(!bare.contains("\"\(key)\""), "\(key)")
        }
    }

    @Test("Keys are snake_case and stand in order, slashes stay readable")
    func keys() throws {
        let text = String(decoding: try ReportCoding.encode(SampleReport.everything), as: UTF8.self)
        #expect(text.contains("/srv/app/billing.py"))
        #expect(text.hasSuffix("}\n"))
        let keys = text.split(separator: "\n").compactMap { line -> Substring? in
            let trimmed = line.drop { $0 == " " }
            return trimmed.first == "\"" ? trimmed.dropFirst().prefix { $0 != "\"" } : nil
        }
        #expect(keys.filter { $0.contains(where: \.isUppercase) && text.contains("\"\($0)\" :") }.isEmpty)
    }

    private static func error(_ text: String) -> ReportError? {
        do throws(ReportError) {
            _ = try ReportCoding.decode(Data(text.utf8))
            return nil
        } catch {
            return error
        }
    }

    @Test(
        "What is no report is refused in one line that says so",
        arguments: [
            ("", ReportError.empty), ("  \n", .empty), ("hello", .notAReport), ("[1]", .notAReport),
            ("{}", .notAReport),
            ("{\"schema\": 3}", .notAReport), ("{\"schema\": \"other/1\"}", .notAReport),
            ("{\"schema\": \"looplag.report/2\", \"x\": []}", .newerSchema("looplag.report/2")),
            ("{\"schema\": \"looplag.report/0\"}", .notAReport), ("{\"schema\": \"loopl", .truncated),
            ("{\"schema\": oops}", .damaged("it is not valid JSON")),
        ])
    func refused(text: String, expected: ReportError) {
        #expect(Self.error(text) == expected)
        #expect(!expected.message.contains("\n"))
    }

    @Test("A report cut off anywhere is refused, never half read")
    func truncated() throws {
        let data = try ReportCoding.encode(SampleReport.everything)
        for length in stride(from: 1, to: data.count - 2, by: 997) {
            let error = Self.error(String(decoding: data.prefix(length), as: UTF8.self))
            #expect(
                error == .truncated || error == .damaged("it is not valid JSON"),
                "at \(length): \(String(describing: error))")
        }
    }

    @Test("A damaged report says where it is")
    func damaged() throws {
        let text = String(decoding: try ReportCoding.encode(SampleReport.everything), as: UTF8.self)
        let missing = Self.error(text.replacing("\"hostname\"", with: "\"host\""))
        #expect(missing?.message == "the report is damaged: machine.hostname is missing")
        let wrong = Self.error(text.replacing("\"role\" : \"server\"", with: "\"role\" : \"boss\""))
        #expect(wrong?.message == "the report is damaged: processes[0].loops[0].role has a wrong value")
    }

    @Test("A stack that points beyond the frames, or a stall without its loop, is refused")
    func dangling() throws {
        var report = SampleReport.everything
        report.processes[0].stalls[0].samples[0].stack = [0, 99_999]
        #expect(
            Self.error(String(decoding: try ReportCoding.encode(report), as: UTF8.self))?.message.contains("frame")
                == true)
        report = SampleReport.everything
        report.processes[0].stalls[0].loopID = "nowhere"
        #expect(
            Self.error(String(decoding: try ReportCoding.encode(report), as: UTF8.self))?.message.contains("loop")
                == true)
    }

    @Test("A number that JSON cannot hold is an error, not a crash")
    func notFinite() {
        var report = SampleReport.everything
        report.processes[0].agent.cpuShare = .nan
        #expect(throws: ReportError.self) { try ReportCoding.encode(report) }
    }

    @Test("Later fields are ignored")
    func laterFields() throws {
        let text = String(decoding: try ReportCoding.encode(SampleReport.everything), as: UTF8.self)
        let later = text.replacing("\"schema\" :", with: "\"novelty\" : {\"a\" : [1]},\n  \"schema\" :")
        #expect(Self.error(later) == nil)
    }

    @Test("A report with bytes flipped anywhere is refused or prints, and never traps", arguments: 1...8)
    func fuzzed(seed: UInt64) throws {
        let original = try ReportCoding.encode(SampleReport.everything)
        var state = seed &* 0x9e37_79b9_7f4a_7c15
        func next(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % bound
        }
        // Digits become other digits and signs, so that many of them stay valid JSON with absurd numbers in it.
        let alphabet = Array("0123456789-9999e.\"".utf8)
        for _ in 0..<40 {
            var data = original
            for _ in 0...next(6) {
                var place = next(data.count)
                if next(4) > 0, let digit = data[place...].firstIndex(where: { (0x30...0x39).contains($0) }) {
                    place = digit
                }
                data[place] = alphabet[next(alphabet.count)]
                if next(3) == 0 { data.insert(contentsOf: Array(repeating: 0x39, count: next(16)), at: place) }
            }
            do throws(ReportError) {
                let report = try ReportCoding.decode(data)
                #expect(!TextReport.render(report).isEmpty)
                #expect(findings(for: report).count >= 0)
            } catch {
                #expect(!error.message.isEmpty)
            }
        }
    }
}
