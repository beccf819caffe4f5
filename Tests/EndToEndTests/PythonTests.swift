/// CPython: uvicorn with asyncio and with uvloop, gunicorn's prefork workers, and asyncio.run on its own; preloaded.

import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Python, preloaded")
    struct PythonTests {
        @Test(
            "uvicorn is seen with its one loop, and a sleeping handler is one stall", arguments: ["asyncio", "uvloop"])
        func uvicorn(loop: String) throws {
            let host = try Host.uvicorn(loop: loop, environment: Agent.preload())
            defer { host.end() }
            let follower = try Follower([host.pid])
            defer { follower.end() }
            var answer: HandlerAnswer?
            let report = try LoopLagTool.record(host.pid, for: .seconds(1)) {
                answer = try Client.getAnswer("/sleep?ms=300", of: host.address)
            }
            let handler = try #require(answer).duration
            let process = try #require(report.processes.first)
            let loops = process.loops.filter { $0.role == .server }
            #expect(process.runtime?.name == .cpython)
            #expect(loops.map(\.kind) == [loop])
            #expect(loops.first?.tid == host.pid)
            let stall = try #require(try follower.stalls(closed: 1).first)
            let duration = try #require(stall.duration)
            #expect(agree(duration, handler), "stall \(duration), handler \(handler)")
            #expect(handler >= .milliseconds(297), "the sleep was cut short")
            #expect(stall.opened != nil)
            #expect(stall.closed?.event.cause == .syscall)
            #expect(process.stalls.count == 1)
            figure(
                "uvicorn \(loop): \(loops.count) loop, sleep 300: stall \(duration.inMilliseconds), handler "
                    + "\(handler.inMilliseconds)")
        }

        @Test("A busy handler in FastAPI is on_cpu; the same sleep in a plain def is no stall")
        func fastAPI() throws {
            let host = try Host.uvicorn(
                loop: "uvloop", application: "fastapi_app:app", environment: Agent.preload())
            defer { host.end() }
            // The first request of each kind imports and makes threads.
            _ = try Client.getAnswer("/threaded-sleep?ms=1", of: host.address)
            _ = try Client.getAnswer("/cpu?ms=1", of: host.address)
            let follower = try Follower([host.pid])
            defer { follower.end() }
            _ = try Client.getAnswer("/threaded-sleep?ms=300", of: host.address)
            #expect(try follower.events().isEmpty)
            let answer = try Client.getAnswer("/cpu?ms=300", of: host.address)
            let stall = try #require(try follower.stalls(closed: 1).first)
            let duration = try #require(stall.duration)
            #expect(agree(duration, answer.duration), "stall \(duration), handler \(answer.duration)")
            #expect(stall.closed?.event.cause == .onCPU)
            figure(
                "fastapi cpu 300: stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds), "
                    + "cause \(stall.closed?.event.cause?.rawValue ?? "none")")
        }

        @Test("A thread that ran a loop once and then waits in join is no endless stall")
        func onceThenJoin() throws {
            let child = try Child(
                [Tools.installed("PYTHON"), Tools.host("asyncio_once.py")], environment: Agent.preload())
            defer { child.end() }
            _ = try child.wait(forOutput: "(joining)")
            let report = try LoopLagTool.record(child.pid, for: .seconds(1))
            let process = try #require(report.processes.first)
            #expect(process.stalls.isEmpty)
            #expect(process.loops.allSatisfy { $0.stallCount == 0 })
            let listed = try LoopLagTool.run(["stalls", "\(child.pid)", "--json"])
            #expect(!listed.output.contains("\"opened\""), "\(listed.output)")
            figure("asyncio.run once, then join: \(process.stalls.count) stalls in 1 s")
            child.closeInput()
            #expect(try child.exitStatus() == .exited(0))
        }

        @Test("Two asyncio.run in a row are both followed")
        func twiceInARow() throws {
            let child = try Child(
                [Tools.installed("PYTHON"), Tools.host("asyncio_twice.py")], environment: Agent.preload())
            defer { child.end() }
            let first = try HandlerAnswer(child.wait(forOutput: "first (done .*)"))
            let follower = try Follower([child.pid])
            defer { follower.end() }
            child.writeLine("x")
            let second = try HandlerAnswer(child.wait(forOutput: "second (done .*)"))
            let seen = try #require(try follower.stalls(closed: 1).last?.duration)
            #expect(agree(seen, second.duration), "stall \(seen), handler \(second.duration)")
            let report = try LoopLagTool.record(child.pid, for: .milliseconds(300))
            #expect(report.processes.first?.loops.count { $0.role == .server } == 1)
            figure(
                "two asyncio.run: first blocked \(first.duration.inMilliseconds); second stall \(seen.inMilliseconds), "
                    + "handler \(second.duration.inMilliseconds)")
            child.writeLine("x")
            #expect(try child.exitStatus() == .exited(0))
        }

        @Test("Each gunicorn worker has its own segment and its own loop, though uvloop comes after the fork")
        func preforkWorkers() throws {
            let host = try Host.gunicorn(workers: 2, environment: Agent.preload())
            defer { host.end() }
            let workers = try eventually("two workers") {
                let children = ProcessTable.children(of: host.pid)
                return children.count == 2 ? children : nil
            }
            for worker in workers {
                _ = try eventually("worker \(worker)'s segment") { Segments.path(ofProcess: worker) }
                let report = try LoopLagTool.record(worker, for: .milliseconds(300))
                let process = try #require(report.processes.first)
                let loops = process.loops.filter { $0.role == .server }
                #expect(loops.count == 1, "\(process.loops.map(\.kind))")
                #expect(loops.first?.tid == worker)
                #expect(loops.first?.kind == "uvloop")
            }
            // Whichever worker takes it, it is that one's stall.
            let follower = try Follower(workers)
            defer { follower.end() }
            let answer = try Client.getAnswer("/sleep?ms=250", of: host.address)
            let stalls = try follower.stalls(closed: 1)
            let duration = try #require(stalls.first?.duration)
            #expect(stalls.count == 1)
            #expect(agree(duration, answer.duration))
            figure(
                "gunicorn: \(workers.count) workers with a loop each; stall \(duration.inMilliseconds), handler "
                    + "\(answer.duration.inMilliseconds)")
        }
    }
}
