/// Whom `attach` refuses: each with one clear line, the right exit status, and the process unharmed.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Attach refuses by name")
    struct AttachRefusalTests {
        private func expectRefusal(
            _ result: LoopLagTool.Result, _ status: Int32, _ words: String, _ place: SourceLocation = #_sourceLocation
        ) {
            #expect(result.status == .exited(status), "\(result.errors)", sourceLocation: place)
            let lines = result.errors.split(separator: "\n")
            #expect(lines.count == 1, "\(result.errors)", sourceLocation: place)
            #expect(result.errors.contains(words), "\(result.errors)", sourceLocation: place)
        }

        @Test("No such process, a zombie, a stopped and a traced one")
        func states() throws {
            expectRefusal(try Attach.run(4_194_301), 3, "no process 4194301")

            let parent = try Child(["sh", "-c", "sleep 1 & echo zombie=$!; exec sleep 60"])
            defer { parent.end() }
            let zombie = Int32(try parent.wait(forOutput: #"zombie=(\d+)"#)) ?? 0
            _ = try eventually("a zombie") { ProcessTable.statFields(of: zombie)?.first == "Z" ? true : nil }
            #expect(try Attach.run(zombie).status == .exited(3))

            let host = try Host.epollServer(environment: [:])
            defer { host.end() }
            host.child.send(SIGSTOP)
            _ = try eventually("a stop") { ProcessTable.statFields(of: host.pid)?.first == "T" ? true : nil }
            expectRefusal(try Attach.run(host.pid), 1, "kill -CONT")
            host.child.send(SIGCONT)
            #expect(try Client.ask("ok", of: host.address).duration < .seconds(1))

            let debugger = try Child(
                [Tools.installed("GDB"), "-nx", "-q", "-iex", "set debuginfod enabled off", "-p", "\(host.pid)"])
            defer { debugger.end() }
            _ = try eventually("gdb", within: .seconds(30)) {
                ProcessTable.statFields(of: host.pid)?.first == "t" ? true : nil
            }
            expectRefusal(try Attach.run(host.pid), 1, "traced by \(debugger.pid)")
            debugger.writeLine("detach")
            debugger.writeLine("quit")
            #expect(try Client.ask("ok", of: host.address, timeout: .seconds(30)).duration < .seconds(1))
        }

        @Test("A static program, one without any loop, and one that forbids it")
        func kinds() throws {
            let path = FileManager.default.temporaryDirectory.appending(path: "looplag-static-\(getpid())").path
            defer { unlink(path) }
            let compiler = try Child(
                [Tools.installed("CC"), "-static", "-D_GNU_SOURCE", "-o", path, Tools.host("epoll_server.c")])
            defer { compiler.end() }
            #expect(try compiler.exitStatus(within: .seconds(60)) == .exited(0), "\(compiler.errors.text)")
            let fixed = try Child([path])
            defer { fixed.end() }
            let port = try fixed.wait(forOutput: #"listening on raw=(\d+)"#)
            expectRefusal(try Attach.run(fixed.pid), 1, "statically")
            #expect(try Client.ask("ok", of: .port(Int(port) ?? 0)).duration < .seconds(1))

            let sleeper = try Child(["sleep", "60"])
            defer { sleeper.end() }
            _ = try eventually("sleep") { ProcessTable.isInSystemCall(230, sleeper.pid) ? true : nil }
            expectRefusal(try Attach.run(sleeper.pid, ["--wait", "200ms"]), 1, "no thread of it waits for events")
            #expect(sleeper.isRunning)

            let host = try Host.epollServer(environment: ["LOOPLAG_DISABLE": "1"])
            defer { host.end() }
            expectRefusal(try Attach.run(host.pid), 1, "LOOPLAG_DISABLE")
            for verb in [["record", "-o", "/dev/null"], ["stalls", "--follow"]] {
                expectRefusal(
                    try LoopLagTool.run([verb[0], "\(host.pid)"] + verb.dropFirst() + ["--no-attach"]), 1, "--no-attach"
                )
            }
        }

        @Test("Another user's process is not permitted to a user without rights")
        func otherUser() throws {
            try #require(geteuid() == 0, "needs root to become somebody else")
            let host = try Host.epollServer(environment: [:])
            defer { host.end() }
            let tool = try Child(
                [
                    "setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all",
                    Tools.looplag(), "attach", "\(host.pid)",
                ])
            defer { tool.end() }
            #expect(try tool.exitStatus() == .exited(4), "\(tool.errors.text)")
            #expect(tool.errors.text.contains("not permitted to trace it"), "\(tool.errors.text)")
        }
    }
}
