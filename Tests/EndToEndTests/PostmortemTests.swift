/// `looplag postmortem` and the leftovers that it reads: servers that were killed, and files that are not what they seem.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Post-mortem")
    struct PostmortemTests {
        private func oneLine(_ result: LoopLagTool.Result, _ status: Int32, _ words: [String]) {
            #expect(result.status == .exited(status), "\(result.errors)")
            #expect(result.errors.hasPrefix("looplag: "))
            #expect(result.errors.filter { $0 == "\n" }.count == 1, "\(result.errors)")
            for word in words { #expect(result.errors.contains(word), "\(word) in \(result.errors)") }
            #expect(result.output.isEmpty)
        }

        private func closedStalls(of pid: Int32, _ count: Int) throws {
            _ = try eventually("\(count) closed stalls of \(pid)") {
                let listed = try LoopLagTool.run(["stalls", "\(pid)", "--json"]).output
                return listed.components(separatedBy: "\"event\":\"closed\"").count > count ? true : nil
            }
        }

        private func report(_ target: String) throws -> Report {
            let result = try LoopLagTool.run(["postmortem", target, "--json"])
            try #require(result.status == .exited(0), "\(result.errors)")
            let file = FileManager.default.temporaryDirectory.appending(path: "looplag-\(UUID().uuidString).json")
            defer { try? FileManager.default.removeItem(at: file) }
            try Data(result.output.utf8).write(to: file)
            return try ReportFile.read(file)
        }

        @Test("A server killed in the middle of a stall leaves that stall open, the ones before it, and their stacks")
        func killedInAStall() throws {
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            let answer = try Client.ask("sleep 200", of: host.address)
            try closedStalls(of: host.pid, 1)
            let connection = try Connection(host.address)
            try connection.send("sleep 60000\n")
            _ = try eventually("the open stall") {
                let listed = try LoopLagTool.run(["stalls", "\(host.pid)", "--json"]).output
                return listed.contains("\"opened\"") ? true : nil
            }
            host.child.send(SIGKILL)
            #expect(try host.child.exitStatus() == .signalled(SIGKILL))
            let segment = try #require(Segments.path(ofProcess: host.pid))

            for target in ["\(host.pid)", segment] {
                let process = try #require(try report(target).processes.first)
                #expect(process.pid == host.pid)
                #expect(process.stalls.map(\.open) == [false, true])
                let first = try #require(process.stalls.first)
                #expect(agree(.nanoseconds(first.durationNS), answer.duration))
                #expect(process.stalls.allSatisfy { $0.culprit?.function == "handle_sleep" })
                #expect(process.stalls.last?.cause == .syscall)
                let loop = try #require(process.loops.first)
                #expect(loop.iterations >= 2)
                #expect(loop.stallCount == 2)
            }
            let text = try LoopLagTool.run(["postmortem", "\(host.pid)"])
            #expect(text.status == .exited(0))
            #expect(text.output.contains("ended without a clean exit"))
            #expect(text.output.contains("It died in a stall"))
            #expect(text.output.contains("LAST STALLS"))
            #expect(text.output.split(separator: "\n").allSatisfy { $0.count <= 100 })
            figure("postmortem: \(text.output.split(separator: "\n").prefix(3).joined(separator: " / "))")
        }

        @Test("A program that was replaced since gives addresses, and never another program's names")
        func replacedModule() throws {
            let folder = try TemporaryFolder()
            let program = folder.path + "/server"
            try FileManager.default.copyItem(atPath: Tools.compiledHost("epoll_server"), toPath: program)
            let child = try Child([program], environment: Agent.preload())
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            _ = try Client.ask("sleep 150", of: .port(Int(port) ?? 0))
            try closedStalls(of: child.pid, 1)
            child.send(SIGKILL)
            _ = try child.exitStatus()
            func culprits() throws -> [String] {
                let report = try report("\(child.pid)")
                let stacks = report.processes.flatMap(\.stalls).flatMap(\.samples).flatMap(\.stack)
                return stacks.map { report.frames[$0] }.filter { $0.module == "server" }.map(\.function)
            }
            #expect(try culprits().contains("handle_sleep"))
            try FileManager.default.removeItem(atPath: program)
            try FileManager.default.copyItem(atPath: Tools.compiledHost("fork_storm"), toPath: program)
            let honest = try culprits()
            #expect(!honest.isEmpty)
            #expect(honest.allSatisfy { $0.hasPrefix("server+0x") }, "\(honest)")
            figure("postmortem of a replaced program: \(honest.first ?? "-")")
        }

        @Test("What is not there, alive, damaged or another user's is each one clear line and its own status")
        func refusals() throws {
            oneLine(try LoopLagTool.run(["postmortem", "4194303"]), 3, ["4194303", "looplag ps"])
            oneLine(try LoopLagTool.run(["postmortem", "/nowhere/segment"]), 3, ["/nowhere/segment"])
            oneLine(try LoopLagTool.run(["postmortem", "0"]), 64, ["process id"])
            oneLine(try LoopLagTool.run(["postmortem", "/dev/null"]), 1, ["/dev/null", "regular"])
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            _ = try Client.ask("ok", of: host.address)
            let segment = try eventually("the segment") { Segments.path(ofProcess: host.pid) }
            for target in ["\(host.pid)", segment] {
                oneLine(try LoopLagTool.run(["postmortem", target]), 1, ["still alive", "looplag stalls \(host.pid)"])
            }
            host.child.send(SIGKILL)
            _ = try host.child.exitStatus()
            if geteuid() == 0 {
                // As somebody else.
                let command = [
                    "setpriv", "--reuid", "65534", "--clear-groups", try Tools.looplag(), "postmortem", "\(host.pid)",
                ]
                let stranger = try Child(command)
                defer { stranger.end() }
                // The products may lie where that user cannot go: then it was setpriv that failed.
                let status = try stranger.exitStatus()
                if status != .exited(126), status != .exited(127) {
                    #expect(status == .exited(4), "\(stranger.errors.text)")
                    #expect(try stranger.errors.wholeText().contains("uid 0"))
                }
            }
            truncate(segment, 5000)
            oneLine(try LoopLagTool.run(["postmortem", "\(host.pid)"]), 1, ["damaged"])
            truncate(segment, 0)
            oneLine(try LoopLagTool.run(["postmortem", segment]), 1, ["damaged"])
        }
    }
}
