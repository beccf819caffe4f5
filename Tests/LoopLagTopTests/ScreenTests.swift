import Foundation
import LoopLagDiagnosis
import LoopLagModel
import Testing

@testable import LoopLagTop

@Suite("The screen of top")
struct ScreenTests {
    private static func text(
        _ picture: LivePicture, columns: Int = 120, rows: Int = 30, glyphs: Glyphs = .unicode,
        _ change: (inout TopState) -> Void = { _ in }
    ) -> [String] {
        var state = TopState(threshold: .milliseconds(100))
        change(&state)
        return Screen.lines(picture, state, columns: columns, rows: rows, glyphs: glyphs).map(\.text)
    }

    @Test("Header, loops and pools, stalls, stack and finding stand below each other")
    func everything() throws {
        let lines = Self.text(Sample.picture)
        #expect(lines.count == 30)
        #expect(lines[0].hasPrefix(" LoopLag  2 processes  2 loops  1 pool  ● 1 stall open"))
        #expect(lines[0].hasSuffix("threshold 100 ms   12:03:22  ? help"))
        #expect(lines[2].hasPrefix(" ●   4242  uvicorn         main · uvloop        █████     71 %"))
        #expect(lines[2].contains("3.0 ms  182 ms  412 ms   12  1 open"))
        #expect(lines[3].contains("pool anyio           40 of 40 busy   20 queued · wait p99 980 ms   ⚠ saturated"))
        #expect(lines[4].contains("4310  server.js"))
        #expect(lines[5].hasPrefix("─ STALLS"))
        #expect(lines[5].contains("LASTED  LOOP"))
        #expect(lines[6].hasPrefix("▸●open           312 ms  4242 main"))
        #expect(lines[6].contains("on_cpu"))
        #expect(lines[7].contains("12:03:20.114   409 ms"))
        #expect(lines[7].contains("syscall clock_nanosleep"))
        #expect(lines[9].hasPrefix("─ STACK 2 samples agree, the last after 150 ms (signal) ─"))
        #expect(lines[10] == "   py    cpu  app.py:9     ← your code")
        #expect(lines[11] == "   py    run  main.py:579")
        #expect(lines[12] == " ! CPU-bound work on the event loop: `cpu` (app.py:9)")
        #expect(lines[13] == "   Move the work to a process pool.")
        #expect(try #require(lines.last).contains("q quit"))
    }

    @Test("Titles stand over their columns", arguments: [80, 92, 108, 114, 143, 180, 300])
    func aligned(columns: Int) throws {
        let lines = Self.text(Sample.picture, columns: columns)
        func place(_ text: String, _ line: String) throws -> Int {
            let range = try #require(line.firstRange(of: text), "\(text) in \(line)")
            return PlainText.columns(of: String(line[..<range.lowerBound]))
        }
        #expect(try place("SERVER", lines[1]) == place("uvicorn", lines[2]))
        #expect(try place("LOOP / POOL", lines[1]) == place("main ·", lines[2]))
        #expect(try place("p50", lines[1]) + 3 == place("3.0 ms", lines[2]) + 6)
        #expect(try place("p99", lines[1]) + 3 == place("182 ms", lines[2]) + 6)
        #expect(try place("max", lines[1]) + 3 == place("412 ms", lines[2]) + 6)
        #expect(try place("STALLS", lines[1]) + 1 == place("12  1 o", lines[2]))
        if columns >= 108 { #expect(try place("LAG, 60 s", lines[1]) == place("▁▁▁", lines[2])) }
        if columns >= 143 { #expect(try place("NOW", lines[1]) == place("on_cpu 312 ms, running", lines[2])) }
    }

    @Test("No line is wider and no screen longer than the terminal, whatever it shows")
    func fits() {
        let terminal = Glyphs.forTerminal()
        let pictures = [
            LivePicture(), Sample.picture, Sample.crowd(30, 4), Sample.hostile, Sample.absurd,
        ]
        let states: [(inout TopState) -> Void] = [
            { _ in }, { $0.isExpanded = true }, { $0.showsHelp = true }, { $0.focus = .loops },
            { $0.filter = "no such thing" },
            {
                $0.isTyping = true; $0.filter = "日本語🚀"
            },
            { $0.message = String(repeating: "wide 🚀 ", count: 60) },
        ]
        for columns in [1, 2, 7, 20] + Array(stride(from: 40, through: 300, by: 26)) + [300] {
            for rows in [1, 4, 10, 24, 100] {
                for (number, picture) in pictures.enumerated() {
                    for change in states {
                        for glyphs in [terminal, .ascii] {
                            let lines = Self.text(picture, columns: columns, rows: rows, glyphs: glyphs, change)
                            #expect(lines.count == rows)
                            for line in lines {
                                let width = line.reduce(0) { $0 + glyphs.measure($1) }
                                #expect(width <= columns, "\(width) of \(columns) in picture \(number): \(line)")
                            }
                        }
                    }
                }
            }
        }
    }

    @Test("Absurd numbers are shown or left out, in every view")
    func absurdNumbers() {
        for stall in Sample.absurd.stalls {
            let lines = Self.text(Sample.absurd, columns: 160, rows: 50) {
                $0.isExpanded = true
                $0.selectedStall = stall.id
            }
            #expect(lines.count == 50)
        }
        #expect(PlainLines.lines(Sample.absurd).count == 11)
    }

    @Test("Nothing that a foreign process calls itself reaches the terminal as it is")
    func hostileNames() {
        for columns in [40, 80, 150, 300] {
            for change: (inout TopState) -> Void in [{ _ in }, { $0.isExpanded = true }] {
                for line in Self.text(Sample.hostile, columns: columns, rows: 60, change) {
                    for scalar in line.unicodeScalars {
                        #expect(scalar.value >= 0x20 && scalar.value != 0x7f && scalar.value != 0x202e, "\(line)")
                    }
                }
            }
        }
        for line in PlainLines.lines(Sample.hostile) {
            #expect(line.unicodeScalars.allSatisfy { $0.value >= 0x20 && $0.value != 0x202e })
            #expect(PlainText.columns(of: line) <= PlainLines.width)
        }
    }

    @Test("Without UTF-8 the screen is plain ASCII, foreign names included")
    func ascii() {
        for picture in [Sample.picture, Sample.hostile] {
            #expect(Self.text(picture, glyphs: .ascii).joined().utf8.allSatisfy { $0 < 0x80 })
        }
        #expect(Self.text(Sample.picture, glyphs: .ascii)[6].hasPrefix(">*open"))
    }

    @Test("Forty columns and ten rows still say what matters", arguments: [40, 50, 62])
    func tiny(columns: Int) {
        let lines = Self.text(Sample.picture, columns: columns, rows: 10)
        #expect(lines[0].contains("1 stall open"))
        #expect(lines[2].contains("4242 main"))
        #expect(lines[2].contains("71 %"))
        #expect(lines[2].contains("182 ms"))
        #expect(lines[2].contains("412 ms"))
        #expect(lines.contains { $0.contains("open") && $0.contains("312 ms") && $0.contains("on_cpu") })
        #expect(lines.contains { $0.contains("cpu") && $0.contains("your code") })
    }

    @Test(
        "What is out of sight is counted, and every row can be reached", arguments: [(40, 10), (120, 30), (300, 100)])
    func overflow(columns: Int, rows: Int) throws {
        let picture = Sample.crowd(100, 8)
        var state = TopState(threshold: .milliseconds(100))
        state.focus = .loops
        var seen: Set<String> = []
        var pages = 0
        while true {
            let lines = Screen.lines(picture, state, columns: columns, rows: rows)
            let foot = try #require(lines.last?.text)
            let match = try #require(foot.firstMatch(of: /rows (\d+)-(\d+) of 800/), "\(foot)")
            for number in try #require(Int(match.1))...(#require(Int(match.2))) { seen.insert("\(number)") }
            #expect(lines.contains { $0.text.contains(/STALLS 1-\d+\/800/) })
            #expect(lines.contains { $0.text.hasPrefix("▸") && $0.isReversed })
            pages += 1
            let before = state.selectedRow
            let page = Screen.page(picture, state, columns: columns, rows: rows)
            _ = TopKeys.handle(.pageDown, &state, picture: picture, page: page + 1)
            if state.selectedRow == before { break }
        }
        #expect(seen.count == 800)
        #expect(pages < 800)
    }

    @Test("Each page of the table names the process of its first line")
    func pagesNameTheirProcess() {
        let lines = Self.text(Sample.crowd(3, 40), columns: 120, rows: 20) {
            $0.focus = .loops
            $0.selectedRow = "5001.20.1"
        }
        #expect(lines[2].contains("5001  server-1"))
    }

    @Test("Saturation and open stalls are words, not colours")
    func neverColourAlone() {
        let lines = Self.text(Sample.picture)
        #expect(lines.contains { $0.contains("saturated") })
        #expect(lines.contains { $0.contains("1 open") })
        let narrow = Self.text(Sample.picture, columns: 44)
        #expect(narrow.contains { $0.contains("saturated") })
    }

    @Test("Colour follows the numbers: under a quarter of the threshold, under it, from it on")
    func colours() throws {
        let lines = Screen.lines(
            Sample.picture, TopState(threshold: .milliseconds(200)), columns: 120, rows: 30)
        func style(_ text: String, _ line: StyledLine) throws -> Style {
            try #require(line.spans.first { $0.text.contains(text) }).style
        }
        #expect(try style("3.0 ms", lines[2]) == .good)
        #expect(try style("182 ms", lines[2]) == .fair)
        #expect(try style("412 ms", lines[2]) == .bad)
        #expect(try style("⚠ saturated", lines[3]) == .bad)
    }

    @Test("Frames of the user's own code stand out from dimmed frameworks")
    func frames() throws {
        var state = TopState(threshold: .milliseconds(100))
        state.selectedStall = "4242.s8"
        let lines = Screen.lines(Sample.picture, state, columns: 120, rows: 40)
        let own = try #require(lines.first { $0.text.contains("charge") && $0.text.contains("your code") })
        #expect(own.spans.first?.style == .bold)
        let framework = try #require(lines.first { $0.text.contains("run_endpoint_function") })
        #expect(framework.spans.first?.style == .dim)
        #expect(!framework.text.contains("your code"))
        #expect(lines.contains { $0.text.hasPrefix("   c     clock_nanosleep") })
    }

    @Test("Enter gives the stack the whole screen, with the evidence and whole paths")
    func expanded() {
        let lines = Self.text(Sample.picture) {
            $0.isExpanded = true
            $0.selectedStall = "4242.s8"
        }
        #expect(lines[0].hasPrefix(" STALL 4242.s8  closed  409 ms  from 12:03:20.114"))
        #expect(lines[1] == " uvicorn (4242), loop main  POST /pay")
        #expect(lines[2].hasPrefix(" syscall clock_nanosleep  looks 4, on_cpu 250 ms"))
        #expect(lines.contains { $0.contains("/srv/app/billing.py:41") })
    }

    @Test("A stall without a stack says why")
    func noStack() {
        var picture = Sample.picture
        picture.stalls[2].noStackReason = "it had ended before the watchdog looked"
        let lines = Self.text(picture) { $0.selectedStall = "4242.s7" }
        #expect(lines.contains("   no stack: it had ended before the watchdog looked"))
    }

    @Test("A stack longer than its pane counts its lines and scrolls")
    func scrolling() {
        var picture = Sample.picture
        let deep = (0..<80).map { Frame(function: "f\($0)", kind: .native, module: "server") }
        picture.stalls = [Sample.stall(1, samples: [Sample.sample(1, deep, truncated: true)])]
        #expect(Self.text(picture).contains { $0.contains(/of 81 lines, Enter: all/) })
        let end = Self.text(picture) { $0.stackTop = 1000 }
        #expect(end.contains { $0.contains("f79") })
        #expect(end.contains { $0.contains("its root was not captured") })
    }

    @Test("An ended process fades with its last figures, and the notice says who went")
    func gone() {
        var picture = Sample.picture
        picture.processes[1].isGone = true
        picture.notice = "4310 (server.js) went away; q quits"
        let lines = Screen.lines(picture, TopState(threshold: .milliseconds(100)), columns: 150, rows: 30)
        #expect(lines[0].text.contains("1 process  1 loop"))
        #expect(lines[4].text.hasSuffix("gone"))
        #expect(lines.last?.text.hasPrefix(" 4310 (server.js) went away; q quits") == true)
    }

    @Test("No process, no stall and no match each say so")
    func empty() {
        #expect(Self.text(LivePicture()).contains { $0.contains("no process with an agent") })
        var quiet = Sample.picture
        quiet.stalls = []
        #expect(Self.text(quiet).contains("   none of 100 ms or more"))
        let none = Self.text(Sample.picture) { $0.filter = "zzz" }
        #expect(none.contains { $0.contains("nothing matches the filter") })
        #expect(none.contains { $0.contains("none that match") })
        var process = LivePicture(processes: [LiveProcess(pid: 7, server: "x", loops: [])])
        #expect(Self.text(process).contains { $0.contains("no event loop seen yet") })
        process.processes[0].isGone = true
        #expect(Self.text(process).contains { $0.hasSuffix("gone") })
    }

    @Test("A sparkline is blank where nothing was measured, and ends with now")
    func sparkline() {
        let table = LoopTable(threshold: .milliseconds(100), columns: 120, glyphs: .unicode)
        let young = table.sparkline([1_000_000, 1_000_000, 1_000_000, 1_000_000, 900_000_000])
        #expect(young.hasPrefix("     "))
        #expect(young.hasSuffix("█"))
        #expect(table.sparkline(Array(repeating: 100_000_000, count: 60)).allSatisfy { $0 == "▆" })
        #expect(table.sparkline([]).isEmpty)
        let wide = LoopTable(threshold: .milliseconds(100), columns: 300, glyphs: .unicode)
        #expect(wide.sparkline(Array(repeating: 0, count: 60)).count == 60)
    }

    @Test("The help names every key and fits small terminals by scrolling")
    func help() {
        let whole = Self.text(LivePicture(), rows: 60) { $0.showsHelp = true }.joined(separator: "\n")
        for (keys, _) in TopKeys.help { #expect(whole.contains(keys)) }
        let small = Self.text(LivePicture(), columns: 40, rows: 10) { $0.showsHelp = true }
        #expect(small.last?.contains("lines 1-9 of") == true)
    }

    @Test("Plain lines carry every number of a loop and a pool")
    func plain() {
        let lines = PlainLines.lines(Sample.picture)
        #expect(lines.count == 3)
        #expect(lines[0].hasPrefix("12:03:22     4242 uvicorn         main·uvloop           busy  71 %  p50 3.0 ms"))
        #expect(lines[0].hasSuffix("p99 182 ms  max 412 ms  stalls 12  open 312 ms on_cpu  cpu app.py:9"))
        #expect(lines[1].hasSuffix("pool anyio            busy 40 of 40  queued 20  wait p99 980 ms"))
        #expect(PlainLines.lines(LivePicture(time: "12:03:22")) == ["12:03:22  no process with an agent"])
    }
}
