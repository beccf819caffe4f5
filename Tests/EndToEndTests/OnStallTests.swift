/// `stalls --follow --on-stall`: a command for a stall, and what it may never do to the following.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("A command when a stall opens")
    struct OnStallTests {
        /// A raw NIO server, warmed up, and a follower of it with the command.
        private func following(
            _ command: String, options: [String] = [], _ body: (Host, Follower) throws -> Void
        ) throws {
            let host = try Host.demo(["--raw-only"] + SwiftHostTests.options)
            defer { host.end() }
            _ = try Client.ask("ok", of: #require(host.rawAddress))
            let follower = try Follower(
                [host.pid], options: ["--threshold", "40ms", "--on-stall", command] + options)
            defer { follower.end() }
            try body(host, follower)
        }

        private func events(in file: String) -> [StallEvent] {
            let text = (try? String(contentsOfFile: file, encoding: .utf8)) ?? ""
            return text.split(separator: "\n").compactMap {
                try? JSONDecoder().decode(StallEvent.self, from: Data($0.utf8))
            }
        }

        @Test("The command runs while the stall does, with the stall as JSON on its input")
        func commandRuns() throws {
            let folder = try TemporaryFolder()
            let file = folder.path + "/stalls"
            try following("cat >>\(file); echo seen") { host, follower in
                let connection = try Connection(#require(host.rawAddress))
                try connection.send("sleep 2000\n")
                let event = try eventually("the command", within: .seconds(1)) { events(in: file).first }
                #expect(event.event == .opened)
                #expect(event.pid == host.pid)
                let answer = try HandlerAnswer(connection.readLine())
                #expect(!answer.wasInterrupted)
                let stall = try #require(try follower.stalls(closed: 1).first)
                #expect(stall.opened?.event.stallID == event.stallID)
                // What it prints is not among the events.
                _ = try follower.child.wait(forOutput: "(seen)")
                #expect(!follower.child.output.text.contains("seen\n"))
            }
        }

        @Test("With --on-stall-state closed it learns the cause and the culprit")
        func closedStalls() throws {
            let folder = try TemporaryFolder()
            let file = folder.path + "/stalls"
            try following("cat >>\(file)", options: ["--on-stall-state", "closed"]) { host, _ in
                _ = try Client.ask("sleep 150", of: #require(host.rawAddress))
                let event = try eventually("the command") { events(in: file).first }
                #expect(event.event == .closed)
                #expect(event.cause == .syscall)
                #expect(event.culprit?.function.contains("blockBySleeping") == true)
            }
        }

        @Test("A storm of stalls starts one command at a time and one a second; the rest is counted and said")
        func storm() throws {
            let folder = try TemporaryFolder()
            let file = folder.path + "/runs"
            try following("echo start >>\(file); cat >/dev/null; sleep 1.5; echo end >>\(file)") { host, follower in
                let address = try #require(host.rawAddress)
                let start = MonotonicTime.now()
                for _ in 1...10 { _ = try Client.ask("sleep 60", of: address) }
                let took = MonotonicTime.now().since(start)
                _ = try follower.stalls(closed: 10)
                // One at once, and another after 1.5 s at the soonest.
                let most = 1 + Int(took.nanosecondCount / 1_500_000_000) + 1
                follower.child.send(SIGINT)
                #expect(try follower.child.exitStatus() == .exited(0))
                let lines = try String(contentsOfFile: file, encoding: .utf8).split(separator: "\n")
                let starts = lines.count { $0 == "start" }
                #expect(starts >= 1 && starts <= most, "\(starts) starts in \(took)")
                for (number, line) in lines.enumerated() { #expect(line == (number % 2 == 0 ? "start" : "end")) }
                let told = try follower.child.errors.wholeText().matches(of: /looplag: (\d+) stalls? without a command/)
                #expect(told.compactMap { Int($0.1) }.reduce(0, +) == 10 - starts)
            }
        }

        @Test("A command that hangs and reads nothing holds up no event, and is ended after its time")
        func hangingCommand() throws {
            // Ignores the polite request too; what it started ends with it.
            try following("trap '' TERM; echo pid=$$; sleep 600 & wait; sleep 600") { host, follower in
                let address = try #require(host.rawAddress)
                _ = try Client.ask("sleep 60", of: address)
                let shell = try #require(Int32(try follower.child.wait(forOutput: #"pid=(\d+)"#)))
                for _ in 1...3 { _ = try Client.ask("sleep 60", of: address) }
                let stalls = try follower.stalls(closed: 4)
                #expect(stalls.count == 4)
                _ = try follower.child.wait(forOutput: "(still ran after 10s and was ended)", within: .seconds(30))
                _ = try eventually("the command's group to end") {
                    ProcessTable.members(ofGroup: shell).isEmpty ? true : nil
                }
                #expect(follower.child.isRunning)
            }
        }

        @Test("A command that fails is said once, and one that closes its input early ends nothing")
        func failingCommand() throws {
            try following("exec <&-; exit 3") { host, follower in
                let address = try #require(host.rawAddress)
                for count in 1...2 {
                    _ = try Client.ask("sleep 60", of: address)
                    _ = try follower.stalls(closed: count)
                    // The rate's own second.
                    letPass(.milliseconds(1100))
                }
                _ = try follower.child.wait(forOutput: "(exited with status 3)")
                follower.child.send(SIGINT)
                #expect(try follower.child.exitStatus() == .exited(0))
                let said = try follower.child.errors.wholeText().components(separatedBy: "exited with status 3")
                #expect(said.count == 2)
            }
        }

        @Test("--on-stall without --follow is a usage error")
        func needsFollow() throws {
            let result = try LoopLagTool.run(["stalls", "--on-stall", "true"])
            #expect(result.status == .exited(64))
            #expect(result.errors.contains("--on-stall needs --follow"))
        }
    }
}
