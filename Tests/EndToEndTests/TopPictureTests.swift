/// The README's picture of `looplag top`: taken from the demo, a live session with real stalls.
///
/// The test makes it in a temporary folder and looks at it; with LOOPLAG_UPDATE_PICTURES=1 it also replaces the picture
/// that is committed, in Tests/Pictures.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("top, as a picture")
    struct TopPictureTests {
        private static let columns = 124
        private static let rows = 33

        @Test("The demo, watched while a stall lasts, becomes a picture and a text that show what there was to see")
        func picture() throws {
            let terminal = try TopTerminal(
                ["demo"], columns: Self.columns, rows: Self.rows, environment: ["TERM": "tmux-256color"])
            defer { terminal.end() }
            let isKept = ProcessInfo.processInfo.environment["LOOPLAG_UPDATE_PICTURES"] == "1"
            try terminal.wait(for: "looplag-demo +.*NIO-SGLTN")
            // A sparkline with a shape takes its time.
            letPass(isKept ? .seconds(50) : .seconds(6))
            let parts = [
                "LoopLag  1 process", "stall open", "looplag-demo", "1 open", "● 1 stall open", "← your code", "STACK",
                "samples agree", "▁", "█", "clock_nanosleep", "on_cpu",
            ]
            // The settings of the picture and of the text must be of one moment, so the text is made of the picture. All of
            // that at once is a matter of chance: of ten seconds as a rule, once in a thousand runs of more than a minute.
            let styled = try eventually("a picture with an open stall and its samples", within: .seconds(200)) {
                let picture = try terminal.lines(styled: true).joined(separator: "\n")
                let text = Self.plain(picture)
                return parts.allSatisfy { text.contains($0) } ? picture : nil
            }
            let text = Self.plain(styled).split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
            #expect(text.allSatisfy { $0.count <= Self.columns })
            #expect(text.contains { $0.hasPrefix("▸●open ") })
            try terminal.press("q")
            #expect(try terminal.expectRestored().faults.isEmpty)

            let folder = try TemporaryFolder()
            let capture = folder.path + "/top.ansi"
            let picture = URL(filePath: folder.path + "/top.png")
            try styled.write(toFile: capture, atomically: true, encoding: .utf8)
            let pictures = Tools.repository.appending(path: "Tests/Pictures")
            try run([
                Tools.installed("PYTHON"), pictures.appending(path: "draw.py").path, capture, picture.path,
                "\(Self.columns)", "\(Self.rows)",
            ])
            // Its size, how much of it is ink, and the colours that carry meaning.
            let facts = try run([
                Tools.installed("PYTHON"), "-c",
                """
                import sys
                from PIL import Image
                image = Image.open(sys.argv[1]).convert("RGB")
                colours = {colour: count for count, colour in image.getcolors(1 << 24)}
                ground = colours[(24, 26, 31)] / (image.width * image.height)
                print(image.width, image.height, round(1 - ground, 3), *((c in colours) * 1 for c in
                    [(235, 100, 95), (120, 200, 120), (226, 190, 90)]))
                """, picture.path,
            ]).split(separator: " ").compactMap { Double($0.trimmingCharacters(in: .whitespacesAndNewlines)) }
            try #require(facts.count == 6)
            #expect(facts[0] > 1200 && facts[0] < 1600)
            #expect(facts[1] > 600 && facts[1] < 900)
            #expect(facts[2] > 0.03 && facts[2] < 0.6)
            #expect(facts[3...] == [1, 1, 1])

            if isKept {
                try Data(contentsOf: picture).write(to: pictures.appending(path: "top.png"))
                let trimmed = text.reversed().drop { $0.allSatisfy(\.isWhitespace) }.reversed()
                try (trimmed.joined(separator: "\n") + "\n").write(
                    to: pictures.appending(path: "top.txt"), atomically: true, encoding: .utf8)
            }
        }

        private static func plain(_ styled: String) -> String {
            styled.replacing(/\u{1b}\[[0-9;:]*m|\u{0e}|\u{0f}/, with: "")
        }

        @Test("The committed picture and its text are there")
        func committed() throws {
            let pictures = Tools.repository.appending(path: "Tests/Pictures")
            let image = try Data(contentsOf: pictures.appending(path: "top.png"))
            #expect(image.prefix(4) == Data([0x89, 0x50, 0x4e, 0x47]))
            #expect(image.count < 400_000)
            let text = try String(contentsOf: pictures.appending(path: "top.txt"), encoding: .utf8)
            #expect(text.hasPrefix(" LoopLag  1 process"))
            #expect(text.contains("← your code"))
        }

        @discardableResult
        private func run(_ arguments: [String]) throws -> String {
            let child = try Child(arguments)
            defer { child.end() }
            let status = try child.exitStatus(within: .seconds(30))
            guard status == .exited(0) else {
                throw SpawnFailed(description: "\(arguments[0]) ended with \(status): \(child.errors.text)")
            }
            return try child.output.wholeText()
        }
    }
}
