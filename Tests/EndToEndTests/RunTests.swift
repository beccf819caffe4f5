/// `looplag run`: a transparent launcher.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("looplag run")
    struct RunTests {
        @Test(
            "run exits as its command did",
            arguments: [
                (["/bin/sh", "-c", "exit 3"], 3), (["/bin/true"], 0), (["looplag-no-such-program"], 127),
                (["/etc/hostname"], 126), (["/bin/sh", "-c", "kill -KILL $$"], 137),
                (["/bin/sh", "-c", "kill -TERM $$"], 143),
            ] as [([String], Int32)])
        func exitStatus(command: [String], status: Int32) throws {
            let result = try LoopLagTool.run(["run", "--"] + command)
            #expect(result.status == .exited(status), "\(result.errors)")
            #expect(result.output.isEmpty)
            if status == 126 || status == 127 {
                #expect(result.errors.hasPrefix("looplag: "))
                #expect(result.errors.contains(command[0]))
            }
            figure("run \(command.joined(separator: " ")): \(result.status)")
        }

        @Test("The command's standard output comes through byte for byte, and nothing is added to it")
        func standardOutputIsUntouched() throws {
            let script = "printf 'one\\n\\000two\\r\\n'; printf 'no end'; printf 'complaint\\n' >&2"
            let result = try LoopLagTool.run(["run", "--", "/bin/sh", "-c", script])
            #expect(result.status == .exited(0))
            #expect(Array(result.output.utf8) == Array("one\n\u{0}two\r\nno end".utf8))
            #expect(result.errors.contains("complaint\n"))
        }

        @Test("The command reads run's standard input")
        func standardInputIsTheCommands() throws {
            let child = try LoopLagTool.start(["run", "--", "/bin/cat"])
            defer { child.end() }
            child.writeLine("through")
            child.closeInput()
            #expect(try child.exitStatus() == .exited(0))
            #expect(try child.output.wholeText() == "through\n")
        }

        @Test("run passes signals on and still exits as its command does", arguments: [SIGTERM, SIGINT, SIGHUP])
        func signalsAreForwarded(signal: Int32) throws {
            let script =
                "trap 'exit 41' TERM; trap 'exit 42' INT; trap 'exit 43' HUP; echo ready; while :; do read x; done"
            let child = try LoopLagTool.start(["run", "--", "/bin/sh", "-c", script])
            defer { child.end() }
            _ = try child.wait(forOutput: "(ready)")
            child.send(signal)
            let expected: Int32 = [SIGTERM: 41, SIGINT: 42, SIGHUP: 43][signal] ?? -1
            #expect(try child.exitStatus() == .exited(expected), "\(child.errors.text)")
        }

        @Test("A command that does not handle SIGTERM dies of it, and run says 143")
        func unhandledSignal() throws {
            let child = try LoopLagTool.start(["run", "--", "/bin/sleep", "60"])
            defer { child.end() }
            let sleeper = try eventually("the command") { ProcessTable.children(of: child.pid).first }
            // Before its exec the child is still a copy of looplag.
            _ = try eventually("the command's own program") {
                ProcessTable.threadNames(of: sleeper)[sleeper] == "sleep" ? true : nil
            }
            child.send(SIGTERM)
            #expect(try child.exitStatus() == .exited(143), "\(child.errors.text)")
        }

        @Test("run -o writes a report of the whole run, and a linked agent under run measures once")
        func reportOfARun() throws {
            let folder = try TemporaryFolder()
            let file = folder.path + "/report.json"
            let child = try LoopLagTool.start(["run", "-o", file, "--", Tools.demo(), "--raw-only"])
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            let address = Address.port(Int(port) ?? 0)
            _ = try child.wait(forOutput: "(measuring)")
            let answer = try Client.ask("sleep 250", of: address)
            // At once: the server is gone before its watchdog has written the stall's end.
            child.send(SIGTERM)
            #expect(try child.exitStatus() == .exited(0), "\(child.errors.text)")
            let report = try ReportFile.read(URL(filePath: file))
            let process = try #require(report.processes.first)
            let loops = process.loops.filter { $0.role == .server }
            let stall = try #require(process.stalls.first)
            #expect(process.stalls.count == 1)
            #expect(!stall.open)
            #expect(Set(loops.map(\.tid)).count == loops.count)
            #expect(agree(.nanoseconds(stall.durationNS), answer.duration))
            figure(
                "run -o: \(loops.count) loops, stall \(Duration.nanoseconds(stall.durationNS).inMilliseconds), handler "
                    + "\(answer.duration.inMilliseconds)")
            let text = try LoopLagTool.run(["report", file])
            #expect(text.status == .exited(0))
            #expect(text.output.contains("blockBySleeping"))
            #expect(text.output.split(separator: "\n").allSatisfy { $0.count <= 100 })
            let json = try LoopLagTool.run(["report", file, "--format", "json"])
            #expect(try JSONDecoder().decode(Report.self, from: Data(json.output.utf8)) == report)
        }

        @Test("A usage error is one line and 64; a target that does not exist is 3; a missing report is 1")
        func errors() throws {
            let wrong = try LoopLagTool.run(["stalls", "--no-such-option"])
            #expect(wrong.status == .exited(64))
            let gone = try LoopLagTool.run(["record", "4194303", "--duration", "1s", "-o", "/dev/null"])
            #expect(gone.status == .exited(3))
            let missing = try LoopLagTool.run(["report", "/nowhere/report.json"])
            #expect(missing.status == .exited(1))
            for result in [wrong, gone, missing] {
                #expect(result.errors.hasPrefix("looplag: "))
                #expect(result.errors.filter { $0 == "\n" }.count == 1, "\(result.errors)")
                #expect(result.output.isEmpty)
            }
        }
    }
}
