/// The demo: each route misbehaves as `--list` says, and `looplag demo` shows it, ends by itself and leaves nothing.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("The demo")
    struct DemoTests {
        @Test(
            "A route that blocks its loop is one stall, with the cause and the function that the list names",
            arguments: [
                ("thumbnail", Cause.onCPU, "resizeThumbnail", 250), ("pay", .syscall, "chargeCard", 180),
                ("stock", .lock, "reserveStock", 150), ("invoice", .syscall, "readInvoice", 220),
                ("notify", .onCPU, "sendNotice", 300),
            ])
        func blockingRoute(path: String, cause: Cause, function: String, milliseconds: Int) throws {
            let host = try Host.demo(["--http-only"])
            defer { host.end() }
            _ = try Client.get("/hello", of: host.address)
            let follower = try Follower([host.pid])
            defer { follower.end() }
            // On a busy machine a loop may wait for a CPU for longer than it runs; one of a few tries must come right.
            let tries = 6
            for attempt in 1...tries {
                let start = MonotonicTime.now()
                _ = try Client.get("/\(path)", of: host.address)
                let took = MonotonicTime.now().since(start)
                let stall = try #require(try follower.stalls(closed: attempt).last)
                let duration = try #require(stall.duration)
                let right = stall.closed?.event.cause == cause
                guard right || attempt == tries else { continue }
                #expect(right, "\(String(describing: stall.closed?.event.cause))")
                // The client's clock is the truth: no less than the route takes, no more than the answer took.
                #expect(duration >= .milliseconds(milliseconds - 5) && duration <= took, "\(duration) of \(took)")
                #expect(stall.closed?.event.culprit?.function.contains(function) == true)
                figure("demo /\(path): stall \(duration.inMilliseconds), answer after \(took.inMilliseconds)")
                break
            }
        }

        @Test("Healthy routes, a blocked concurrency pool and a flooded thread pool stall no loop")
        func otherRoutes() throws {
            let host = try Host.demo(["--http-only"])
            defer { host.end() }
            _ = try Client.get("/hello", of: host.address)
            let report = try LoopLagTool.record(host.pid, for: .seconds(4)) {
                for path in ["hello", "catalog", "report", "zip"] { _ = try Client.get("/\(path)", of: host.address) }
            }
            #expect(try #require(report.processes.first).stalls.isEmpty)
        }

        @Test("The list names every route, and every route answers")
        func list() throws {
            let list = try LoopLagTool.run(["demo", "--list"])
            #expect(list.status == .exited(0))
            let paths = list.output.split(separator: "\n").compactMap { $0.firstMatch(of: /^(\/[a-z]+) +\S/)?.1 }
            #expect(paths.count == 9)
            let host = try Host.demo(["--http-only", "--no-agent"])
            defer { host.end() }
            for path in paths { #expect(try Client.get(String(path), of: host.address).hasSuffix("\n"), "\(path)") }
        }

        @Test("demo --serve-only says what to type, and that works")
        func serveOnly() throws {
            let child = try LoopLagTool.start(["demo", "--serve-only"])
            defer { child.end() }
            let port = try child.wait(forOutput: #"listens on http://127\.0\.0\.1:(\d+)/"#)
            let pid = try child.wait(forOutput: #" stalls (\d+) --follow"#)
            // The server's own program took looplag's place.
            #expect(Int32(pid) == child.pid)
            let follower = try Follower([child.pid])
            defer { follower.end() }
            let path = try child.wait(forOutput: #"curl http://127\.0\.0\.1:\d+(/\w+)"#)
            _ = try Client.get(path, of: .port(Int(port) ?? 0))
            #expect(try follower.stalls(closed: 1).count == 1)
            child.send(SIGINT)
            #expect(try child.exitStatus() == .exited(0), "\(child.errors.text)")
            #expect(Segments.path(ofProcess: child.pid) == nil)
        }

        @Test("On a pipe the demo prints plain lines with its culprits, and ends by itself with status 0")
        func plainDemo() throws {
            let child = try LoopLagTool.start(["demo", "--duration", "6s"])
            defer { child.end() }
            let server = try eventually("the server") { ProcessTable.children(of: child.pid).first }
            let start = MonotonicTime.now()
            #expect(try child.exitStatus(within: .seconds(20)) == .exited(0), "\(child.errors.text)")
            #expect(MonotonicTime.now().since(start) >= .seconds(5))
            let text = try child.output.wholeText()
            #expect(!text.contains("\u{1b}"))
            #expect(text.contains("looplag-demo"))
            #expect(["resizeThumbnail", "chargeCard", "reserveStock"].contains { text.contains($0) }, "\(text)")
            #expect(kill(server, 0) != 0)
            #expect(Segments.path(ofProcess: server) == nil)
        }

        @Test(
            "However the demo ends, its server ends with it and leaves nothing", arguments: [SIGKILL, SIGTERM, SIGINT])
        func serverEndsToo(signal: Int32) throws {
            let child = try LoopLagTool.start(["demo", "--duration", "60s"])
            defer { child.end() }
            let server = try eventually("the server") { ProcessTable.children(of: child.pid).first }
            _ = try eventually("its agent") { Segments.path(ofProcess: server) }
            child.send(signal)
            let status = try child.exitStatus()
            if signal == SIGKILL { #expect(status == .signalled(SIGKILL)) }
            _ = try eventually("the server's end") { kill(server, 0) != 0 ? true : nil }
            #expect(Segments.path(ofProcess: server) == nil)
        }

        @Test("A missing server is one line that says where it was looked for")
        func missingServer() throws {
            let result = try LoopLagTool.run(["demo"], environment: ["LOOPLAG_DEMO": "/nowhere/looplag-demo"])
            #expect(result.status == .exited(1))
            #expect(result.errors.hasPrefix("looplag: cannot find looplag-demo: looked for /nowhere/looplag-demo; "))
            #expect(result.errors.filter { $0 == "\n" }.count == 1)
        }
    }
}
