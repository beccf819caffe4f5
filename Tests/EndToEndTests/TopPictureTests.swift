/// The README's picture of `looplag top`: taken from a live session over real servers with real stalls.
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

        @Test("A live session with stalls becomes a picture and a text that show what there was to see")
        func picture() throws {
            let web = try Host.uvicorn(loop: "asyncio", environment: Agent.preload())
            defer { web.end() }
            let redis = try Host.redis(environment: Agent.preload())
            defer { redis.end() }
            let terminal = try TopTerminal(
                ["top", "\(web.pid)", "\(redis.pid)"], columns: Self.columns, rows: Self.rows,
                environment: ["TERM": "tmux-256color"])
            defer { terminal.end() }
            try terminal.wait(for: "uvicorn +main · asyncio")
            try terminal.wait(for: "redis-server +main · epoll")
            // A load that leaves a minute with a shape: stalls of several lengths and causes, and quiet between.
            for (path, pause) in [
                ("/sleep?ms=180", 900), ("/cpu?ms=260", 700), ("/sleep?ms=420", 1300), ("/cpu?ms=70", 800),
                ("/cpu?ms=640", 600), ("/sleep?ms=240", 1100),
            ] {
                _ = try Client.getAnswer(path, of: web.address)
                letPass(.milliseconds(pause))
            }
            let asked = try Connection(redis.address, timeout: .seconds(20))
            try asked.send("DEBUG SLEEP 0.3\r\n")
            _ = try asked.readLine()
            letPass(.milliseconds(1200))
            let last = try Connection(web.address, timeout: .seconds(30))
            try last.send("GET /cpu?ms=5000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            // Grown, and seen by more than one sample.
            try terminal.wait(for: #"●open +[1-4]\.\d s.*on_cpu"#)
            try terminal.wait(for: "samples agree")

            let styled = try terminal.lines(styled: true).joined(separator: "\n")
            let text = try terminal.lines()
            for part in [
                "LoopLag  2 processes  2 loops  ● 1 stall open", "uvicorn", "redis-server", "1 open", "on_cpu",
                "syscall clock_nanosleep", "asgi.py:", "← your code", "STACK",
                "CPU-bound work on the event loop: `cpu`",
                "▁", "█",
            ] {
                #expect(text.contains { $0.contains(part) }, "\(part) is not in\n\(text.joined(separator: "\n"))")
            }
            #expect(text.allSatisfy { $0.count <= Self.columns })

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

            if ProcessInfo.processInfo.environment["LOOPLAG_UPDATE_PICTURES"] == "1" {
                try Data(contentsOf: picture).write(to: pictures.appending(path: "top.png"))
                let trimmed = text.reversed().drop { $0.allSatisfy(\.isWhitespace) }.reversed()
                try (trimmed.joined(separator: "\n") + "\n").write(
                    to: pictures.appending(path: "top.txt"), atomically: true, encoding: .utf8)
            }
        }

        @Test("The committed picture and its text are there")
        func committed() throws {
            let pictures = Tools.repository.appending(path: "Tests/Pictures")
            let image = try Data(contentsOf: pictures.appending(path: "top.png"))
            #expect(image.prefix(4) == Data([0x89, 0x50, 0x4e, 0x47]))
            #expect(image.count < 400_000)
            let text = try String(contentsOf: pictures.appending(path: "top.txt"), encoding: .utf8)
            #expect(text.hasPrefix(" LoopLag  2 processes"))
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
