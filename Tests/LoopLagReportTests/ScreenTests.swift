import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagTop
import Testing

@Suite("The table of top")
struct ScreenTests {
    private static func lines(columns: Int = 110, rows: Int = 24, glyphs: Glyphs = .unicode) -> [String] {
        let history = ["4242.0.1": (0..<60).map { Int64($0 == 30 ? 400_000_000 : 1_000_000) }]
        return Screen.lines(
            processes: SampleReport.everything.processes, threshold: .milliseconds(100), time: "12:03:22",
            history: history, columns: columns, rows: rows, glyphs: glyphs)
    }

    @Test("Header, titles, one line for each serving loop and pool")
    func table() {
        let lines = Self.lines()
        #expect(lines.count == 6)
        #expect(lines[0].hasPrefix(" LoopLag  3 processes  2 loops  1 pool "))
        #expect(lines[0].hasSuffix("threshold 100 ms   12:03:22  ? help"))
        #expect(lines[2].contains("4242  uvicorn"))
        #expect(lines[2].contains("main · asyncio"))
        #expect(lines[2].hasSuffix("▁▁▁▁▁▁█▁▁▁▁▁"))
        #expect(lines[3].contains("40 of 40 busy   20 queued · wait p99 980 ms   ⚠ saturated"))
        #expect(lines[4].contains("1 open"))
        #expect(lines[5].contains("no event loop seen yet"))
    }

    @Test("Titles stand over their columns")
    func aligned() throws {
        let lines = Self.lines()
        func place(_ text: String, _ line: String) throws -> Int {
            let range = try #require(line.firstRange(of: text))
            return PlainText.columns(of: String(line[..<range.lowerBound]))
        }
        #expect(try place("SERVER", lines[1]) == place("uvicorn", lines[2]))
        #expect(try place("LOOP / POOL", lines[1]) == place("main · asyncio", lines[2]))
        #expect(try place("LAG, 60 s", lines[1]) == place("▁▁▁▁", lines[2]))
        #expect(try place("p50", lines[1]) + 3 == place("0 ms", lines[2]) + 4)
    }

    @Test(
        "No line is wider and no screen longer than the terminal", arguments: [0, 1, 20, 79, 110, 300], [0, 1, 3, 24])
    func fits(columns: Int, rows: Int) {
        for glyphs in [Glyphs.unicode, .ascii] {
            let lines = Self.lines(columns: columns, rows: rows, glyphs: glyphs)
            #expect(lines.count <= rows)
            #expect(lines.allSatisfy { PlainText.columns(of: $0) <= columns })
        }
    }

    @Test("Eighty columns hold every number")
    func narrow() {
        let lines = Self.lines(columns: 80)
        #expect(lines[1].hasSuffix("DELAY p50    p99    max  STALLS"))
        #expect(lines[2].hasSuffix("8.2 %     0 ms  67 ms 400 ms  3"))
        #expect(lines[4].hasSuffix("1  1 open"))
    }

    @Test("What does not fit is counted")
    func overflow() {
        #expect(Self.lines(rows: 4).last == "   ... 3 more lines")
    }

    @Test("Without UTF-8 the screen is plain ASCII")
    func ascii() {
        #expect(Self.lines(glyphs: .ascii).joined().utf8.allSatisfy { $0 < 0x80 })
    }

    @Test("The terminal's own measure counts wide characters as ncurses does")
    func measure() {
        let glyphs = Glyphs.forTerminal()
        let lines = Screen.lines(
            processes: [], threshold: .milliseconds(100), time: "12:03:22", columns: 40, rows: 5, glyphs: glyphs)
        #expect(lines.count == 3)
        #expect(lines.allSatisfy { PlainText.columns(of: $0) <= 40 })
    }
}
