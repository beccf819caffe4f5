/// An agent that comes late knows the interpreter that it finds: the stalls of a running node or Python server name the
/// function and the request, as they do under `looplag run`.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Attached to an interpreter")
    struct AttachManagedTests {
        private func expectFunction(_ function: String, _ file: String, _ path: String, in host: Host) throws {
            defer { host.end() }
            let attached = try Attach.run(host.pid)
            #expect(attached.status == .exited(0), "\(attached.errors)")
            // The wait of this moment was begun without the agent.
            _ = try Client.get("/ok", of: host.address)
            let follower = try Follower([host.pid])
            defer { follower.end() }
            // A machine that hardly lets the watchdog run may cost one stall its sample.
            var seen: [String] = []
            for turn in 1...3 {
                _ = try Client.get("\(path)?ms=300", of: host.address)
                let stall = try #require(try follower.stalls(closed: turn).last)
                seen.append("\(stall.functions)")
                if stall.functions.contains(function) { break }
            }
            #expect(seen.last?.contains(function) == true, "\(seen)")
            follower.end()
            let report = try LoopLagTool.run(["record", "\(host.pid)", "--duration", "200ms", "-o", "-"])
            #expect(!report.output.contains("no-python") && !report.output.contains("no-javascript"))
            let detached = try Attach.detach(host.pid)
            #expect(detached.status == .exited(0), "\(detached.errors)")
            #expect(try Client.get("/ok", of: host.address).hasPrefix("done"))
        }

        @Test("A running node server's stall shows the JavaScript function")
        func node() throws {
            try expectFunction("spin", "server.js", "/cpu", in: try Host.node(environment: [:]))
        }

        @Test("A running Python server's stalls show the Python functions", arguments: ["asyncio", "uvloop"])
        func python(loop: String) throws {
            try expectFunction("cpu", "asgi.py", "/cpu", in: try Host.uvicorn(loop: loop, environment: [:]))
            try expectFunction("sleep", "asgi.py", "/sleep", in: try Host.uvicorn(loop: loop, environment: [:]))
        }

        @Test("Followed at a prefork master, the stalled worker is flagged and no other")
        func workers() throws {
            let host = try Host.gunicorn(workers: 2, environment: [:])
            defer { host.end() }
            let follower = try Follower([host.pid])
            defer { follower.end() }
            let workers = try eventually("an agent in both workers", within: .seconds(30)) {
                let children = ProcessTable.children(of: host.pid)
                let measured = children.filter { Segments.path(ofProcess: $0) != nil }
                return measured.count == 2 ? measured : nil
            }
            // Which worker answers is the kernel's choice, and the wait that it was in is not measured.
            for _ in 1...20 { _ = try Client.get("/ok", of: host.address) }
            _ = try Client.get("/sleep?ms=400", of: host.address)
            let stall = try #require(try follower.stalls(closed: 1).first)
            let pid = try #require(stall.closed).event.pid
            #expect(workers.contains(pid), "\(pid) of \(workers)")
            #expect(stall.functions.contains("sleep"), "\(stall.functions)")
            #expect(try #require(stall.duration) >= .milliseconds(399))
            follower.end()
        }
    }
}
