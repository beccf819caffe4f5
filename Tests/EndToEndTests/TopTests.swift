/// `looplag top` in a real terminal over real servers: what it shows while a stall lasts, its keys, and how it leaves.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("top, on a terminal")
    struct TopTests {
        /// Stalls redis for some seconds, behind everybody's back.
        private static func stall(_ host: Host, seconds: Double) throws -> Connection {
            let connection = try Connection(host.address, timeout: .seconds(30))
            try connection.send("DEBUG SLEEP \(seconds)\r\n")
            return connection
        }

        /// The LASTED column of the first open stall, in seconds.
        private static func openLength(_ lines: [String]) -> Double? {
            for line in lines {
                guard let match = line.firstMatch(of: #/●open +([\d.]+) (ms|s) /#), let value = Double(match.1)
                else { continue }
                return match.2 == "s" ? value : value / 1000
            }
            return nil
        }

        @Test("A stall is seen while it lasts and grows; its stack and cause are there; quit restores the terminal")
        func openStall() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let terminal = try TopTerminal(["top", "\(host.pid)"])
            defer { terminal.end() }
            try terminal.wait(for: "\(host.pid)  redis-server +main · epoll")
            try terminal.wait(for: "none of 100 ms or more")
            let connection = try Self.stall(host, seconds: 4)
            let first = try eventually("an open stall") { Self.openLength(try terminal.lines()) }
            let later = try eventually("it to grow by a second") {
                try Self.openLength(terminal.lines()).flatMap { $0 >= first + 1 ? $0 : nil }
            }
            #expect(first < 2.5)
            let picture = try terminal.wait(for: "debugCommand .*your code")
            #expect(picture[0].contains("● 1 stall open"))
            #expect(picture.contains { $0.contains("1 open") && $0.contains("\(host.pid)") })
            #expect(picture.contains { $0.contains("syscall clock_nanosleep") })
            #expect(picture.contains { $0.hasPrefix("─ STACK") })
            _ = try connection.readLine()
            let closed = try terminal.wait(for: #"^▸ +\d\d:\d\d:\d\d\.\d{3} +4\.0 s"#)
            #expect(!closed[0].contains("open"))
            figure("top over redis: open at \(first) s, grew to \(later) s, closed at 4.0 s")

            try terminal.press("Enter")
            try terminal.wait(for: #"^ STALL \d+\.s\d+ +closed +4\.0 s"#)
            try terminal.press("Escape")
            try terminal.press("?")
            try terminal.wait(for: "LoopLag: keys")
            try terminal.press("x")
            try terminal.wait(for: "STARTED|STALLS")
            try terminal.press("q")
            let (status, faults) = try terminal.expectRestored()
            #expect(status == 0)
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test("Threshold, filter, pause and saving a stall work on the real thing")
        func keys() throws {
            let host = try Host.uvicorn(loop: "asyncio", environment: Agent.preload())
            defer { host.end() }
            let terminal = try TopTerminal(["top", "\(host.pid)"], columns: 130)
            defer { terminal.end() }
            try terminal.wait(for: "uvicorn +main · asyncio")
            _ = try Client.getAnswer("/cpu?ms=300", of: host.address)
            try terminal.wait(for: #"^▸ .* on_cpu"#)
            try terminal.wait(for: "^─ STACK .*samples?")
            try terminal.press("+", "+")
            try terminal.wait(for: "threshold 500 ms")
            try terminal.wait(for: "none of 500 ms or more")
            try terminal.press("-", "-")
            try terminal.wait(for: #"^▸ .* on_cpu"#)
            try terminal.press("/", "n", "o", "p", "e", "Enter")
            try terminal.wait(for: "none that match")
            try terminal.press("Escape")
            try terminal.press("p")
            try terminal.wait(for: "PAUSED")
            try terminal.press("w")
            try terminal.wait(for: #"written to looplag-stall-\d+\.s\d+\.json"#)
            let names = try FileManager.default.contentsOfDirectory(atPath: terminal.folder.path)
            let name = try #require(names.first { $0.hasPrefix("looplag-stall-") })
            let report = try ReportFile.read(URL(filePath: terminal.folder.path + "/" + name))
            let stall = try #require(report.processes.first?.stalls.first)
            #expect(report.processes.first?.stalls.count == 1)
            #expect(stall.cause == .onCPU)
            #expect(!stall.samples.isEmpty)
            try terminal.press("c")
            try terminal.wait(for: #"copied, if the terminal allows it \(OSC 52\)"#)
            try terminal.press("C-c")
            let (status, faults) = try terminal.expectRestored()
            #expect(status == 0)
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test("Resizing redraws for the new size, down to 40 by 10 and up to 300 by 100")
        func resizing() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let terminal = try TopTerminal(["top", "\(host.pid)"])
            defer { terminal.end() }
            try terminal.wait(for: "redis-server +main · epoll")
            for (columns, rows, mark) in [(40, 10, "> 100 ms  . help"), (300, 100, "LAG, 60 s .*NOW"), (80, 24, "p50")]
            {
                try terminal.resize(columns: columns, rows: rows)
                let picture = try terminal.wait(for: mark)
                #expect(picture[0].hasPrefix(" LoopLag"))
                #expect(picture.contains { $0.contains("\(host.pid)") && $0.contains("main") })
            }
            try terminal.press("q")
            // The text from before is on lines that the smaller window had pushed out of sight.
            let faults = try terminal.expectRestored(expectsText: false).faults
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test(
            "SIGTERM, SIGHUP and a crash give the terminal back",
            arguments: [SIGTERM, SIGHUP, SIGSEGV, SIGABRT, SIGILL])
        func signals(number: Int32) throws {
            let terminal = try TopTerminal(["top"], environment: ["SWIFT_BACKTRACE": "enable=no"])
            defer { terminal.end() }
            try terminal.wait(for: "LoopLag  0 processes|LoopLag  . process")
            kill(try terminal.process(), number)
            let (status, faults) = try terminal.expectRestored()
            #expect(status == ([SIGTERM, SIGHUP].contains(number) ? 0 : 128 + Int(number)))
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test("When the target goes the last picture stays, says so, and quitting gives status 3")
        func targetGone() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let terminal = try TopTerminal(["top", "\(host.pid)"])
            defer { terminal.end() }
            try terminal.wait(for: "redis-server +main · epoll")
            host.child.send(SIGTERM)
            let picture = try terminal.wait(for: #"\(redis-server\) went away; q quits"#)
            #expect(picture.contains { $0.contains("redis-server") && $0.contains("\(host.pid)") })
            try terminal.press("q")
            let (status, faults) = try terminal.expectRestored()
            #expect(status == 3)
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test("Ctrl-Z stops it and gives the terminal back; going on draws the view again")
        func stopAndGoOn() throws {
            // Under a shell with job control, as a person's is: a program that nobody could continue does not stop.
            let terminal = try TopTerminal(["top"], hasJobControl: true)
            defer { terminal.end() }
            try terminal.wait(for: "LoopLag  . process")
            let pid = try terminal.process()
            try terminal.press("C-z")
            _ = try eventually("it to stop") { ProcessTable.statFields(of: pid)?.first == "T" ? true : nil }
            try terminal.wait(for: "before the view")
            try terminal.press("Enter")
            try terminal.wait(for: "LoopLag  . process")
            try terminal.press("q")
            let (status, faults) = try terminal.expectRestored()
            #expect(status == 0)
            #expect(faults.isEmpty, "\(faults)")
        }

        @Test("A terminal that cannot place text gets plain lines and one line that says so")
        func dumb() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            for name in ["dumb", "no-such-terminal"] {
                let terminal = try TopTerminal(
                    ["top", "\(host.pid)", "--iterations", "2"], environment: ["TERM": name])
                defer { terminal.end() }
                let lines = try terminal.wait(for: "back in the shell")
                #expect(lines.contains { $0.contains("TERM=\(name) cannot place text") })
                #expect(lines.count { $0.contains("redis-server") && $0.contains("busy") } == 2)
                #expect(try terminal.expectRestored().status == 0)
            }
        }

        @Test("Colour is left out with NO_COLOR, block characters without UTF-8; 8 and 256 colours both work")
        func capabilities() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            _ = try Client.ask(host, "DEBUG SLEEP 0.3")
            func picture(_ environment: [String: String]) throws -> String {
                let terminal = try TopTerminal(["top", "\(host.pid)"], environment: environment)
                defer { terminal.end() }
                try terminal.wait(for: "redis-server +main")
                let asked = try Connection(host.address)
                try asked.send("DEBUG SLEEP 0.3\r\n")
                _ = try asked.readLine()
                try terminal.wait(for: "syscall clock_nanosleep")
                return try terminal.lines(styled: true).joined(separator: "\n")
            }
            let colour = /\u{1b}\[[0-9;]*(?:3[1-7]|38;5)/
            #expect(try picture(["NO_COLOR": "1"]).firstMatch(of: colour) == nil)
            #expect(try picture(["TERM": "screen"]).firstMatch(of: colour) != nil)
            #expect(try picture(["TERM": "tmux-256color"]).contains("38;5;244"))
            let ascii = try picture(["LC_ALL": "C", "LANG": "C"])
            #expect(ascii.utf8.allSatisfy { $0 < 0x80 })
            #expect(ascii.contains(">*open") || ascii.contains("> "))
        }
    }

    @Suite("top, on a pipe")
    struct TopPipeTests {
        @Test("Plain lines every interval, without escapes, and an end by itself")
        func plain() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let result = try LoopLagTool.run(
                ["top", "\(host.pid)", "--iterations", "3", "--interval", "200ms"],
                environment: ["TERM": "xterm-256color"])
            #expect(result.status == .exited(0))
            let lines = result.output.split(separator: "\n")
            #expect(lines.count == 3)
            for line in lines {
                #expect(
                    line.firstMatch(of: /^\d\d:\d\d:\d\d +\d+ redis-server +main·epoll +busy .*p99 .*stalls 0$/) != nil,
                    "\(line)")
            }
            #expect(!result.output.contains("\u{1b}"))
            #expect(result.errors.contains("measuring \(host.pid) (redis-server), 1 loop"))
        }

        @Test("Each JSON line is a report of the last minute, and its numbers are those of a recording")
        func json() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let child = try LoopLagTool.start(
                ["top", "\(host.pid)", "--json", "--iterations", "2", "--interval", "700ms"])
            defer { child.end() }
            _ = try child.wait(forOutput: "(measuring)")
            let connection = try Connection(host.address)
            try connection.send("DEBUG SLEEP 0.3\r\n")
            _ = try connection.readLine()
            #expect(try child.exitStatus() == .exited(0))
            let lines = try child.output.wholeText().split(separator: "\n")
            #expect(lines.count == 2)
            let folder = try TemporaryFolder()
            for line in lines {
                let file = URL(filePath: folder.path + "/snapshot.json")
                try String(line).write(to: file, atomically: true, encoding: .utf8)
                let report = try ReportFile.read(file)
                #expect(report.processes.map(\.pid) == [host.pid])
            }
            let last = try JSONDecoder().decode(Report.self, from: Data(#require(lines.last).utf8))
            let stall = try #require(last.processes.first?.stalls.first)
            #expect(agree(.nanoseconds(stall.durationNS), .milliseconds(300)), "\(stall.durationNS)")
            #expect(last.processes.first?.loops.first?.delay.maxNS == stall.durationNS)
            #expect(last.processes.first?.loops.first?.stallCount == 1)
        }

        @Test("A target that goes away ends it with status 3, one that is not there too")
        func gone() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let child = try LoopLagTool.start(["top", "\(host.pid)", "--interval", "100ms"])
            defer { child.end() }
            _ = try child.wait(forOutput: "(busy)")
            host.child.send(SIGTERM)
            #expect(try child.exitStatus() == .exited(3))
            #expect(try child.errors.wholeText().contains("\(host.pid) (redis-server) went away"))
            #expect(try LoopLagTool.run(["top", "999999999"]).status == .exited(3))
            #expect(try LoopLagTool.run(["top", "--iterations", "0"]).status == .exited(64))
        }

        @Test("A reader that closes the pipe ends it quietly")
        func closedPipe() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            let child = try Child([
                "sh", "-c", "'\(Tools.looplag())' top \(host.pid) --interval 100ms 2>/dev/null | head -1; echo ended",
            ])
            defer { child.end() }
            #expect(try child.exitStatus() == .exited(0))
            let text = try child.output.wholeText()
            #expect(text.contains("redis-server"))
            #expect(text.hasSuffix("ended\n"))
        }
    }
}

extension Client {
    /// One redis command; its answer's first line.
    fileprivate static func ask(_ host: Host, _ command: String) throws -> String {
        let connection = try Connection(host.address, timeout: .seconds(20))
        try connection.send(command + "\r\n")
        return try connection.readLine()
    }
}
