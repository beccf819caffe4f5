/// `attach` and `detach` on running hosts: what they bring, what they leave, and whom they refuse.

import Foundation
import Glibc
import LoopLagModel
import Testing

enum Attach {
    static func run(_ pid: Int32, _ options: [String] = [], environment: [String: String] = [:]) throws
        -> LoopLagTool.Result
    {
        try LoopLagTool.run(["attach", "\(pid)"] + options, environment: environment)
    }

    static func detach(_ pid: Int32) throws -> LoopLagTool.Result { try LoopLagTool.run(["detach", "\(pid)"]) }

    /// What --verbose says of the stop.
    static func stopped(_ errors: String) throws -> Duration {
        let match = try #require(errors.firstMatch(of: /stopped for (\d+)\.(\d{3}) ms/))
        return .microseconds((Int(match.1) ?? 0) * 1000 + (Int(match.2) ?? 0))
    }

    /// How many descriptors and mappings the process has: what an attach must not leave behind again and again.
    static func holdings(_ pid: Int32) throws -> (descriptors: Int, mappings: Int) {
        let descriptors = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count
        let maps = try String(contentsOfFile: "/proc/\(pid)/maps", encoding: .utf8)
        return (descriptors, maps.split(separator: "\n").count)
    }

    static func watchdog(_ pid: Int32) -> Int32? {
        ProcessTable.threadNames(of: pid).first { $0.value == "looplag" }?.key
    }

    static func borrowed(_ options: [String]) throws -> Child {
        let child = try Child([Tools.compiledHost("borrowed")] + options)
        _ = try child.wait(forOutput: #"listening on raw=(\d+)"#)
        return child
    }
}

extension EndToEnd {
    @Suite("Attach and detach")
    struct AttachTests {
        @Test("redis, attached while it runs, is measured, and is itself again after detach; attach again works")
        func redis() throws {
            let redis = try Host.redis(environment: [:])
            defer { redis.end() }
            let connection = try Connection(redis.address)
            for round in 1...3 {
                let result = try Attach.run(redis.pid, ["--verbose"])
                #expect(result.status == .exited(0), "\(result.errors)")
                #expect(result.errors.contains("attached to \(redis.pid) (redis-server)"))
                let again = try Attach.run(redis.pid)
                #expect(again.status == .exited(0))
                #expect(again.errors.contains("is measured already"))
                // Its wait of this moment was begun without us.
                try connection.send("PING\r\n")
                #expect(try connection.readLine() == "+PONG")
                let follower = try Follower([redis.pid])
                defer { follower.end() }
                try connection.send("DEBUG SLEEP 0.2\r\n")
                #expect(try connection.readLine() == "+OK")
                let stall = try #require(try follower.stalls(closed: 1).first)
                let length = try #require(stall.duration)
                // A busy machine lengthens a sleep; nothing shortens it.
                #expect(length >= .milliseconds(199) && length < .seconds(2), "round \(round): \(length)")
                #expect(stall.functions.contains("debugCommand"))
                follower.end()
                let detached = try Attach.detach(redis.pid)
                #expect(detached.status == .exited(0), "\(detached.errors)")
                #expect(Segments.path(ofProcess: redis.pid) == nil)
                _ = try eventually("the watchdog to end") { Attach.watchdog(redis.pid) == nil ? true : nil }
                try connection.send("PING\r\n")
                #expect(try connection.readLine() == "+PONG")
            }
            #expect(try Attach.detach(redis.pid).errors.contains("is not measured"))
        }

        @Test(
            "A borrowed thread gets back every register, its errno and the length of its wait",
            arguments: [[], ["--timeout", "250"]])
        func registers(options: [String]) throws {
            let child = try Attach.borrowed(options)
            defer { child.end() }
            for _ in 1...6 {
                let result = try Attach.run(child.pid)
                #expect(result.status == .exited(0), "\(result.errors) \(child.errors.text)")
                #expect(try Attach.detach(child.pid).status == .exited(0))
                #expect(child.isRunning, "\(child.errors.text)")
            }
            child.send(SIGTERM)
            #expect(try child.exitStatus() == .exited(0), "\(child.errors.text)")
        }

        @Test("Attached and detached a hundred times, a server that dies of EINTR lives and holds no more than before")
        func hundredRounds() throws {
            let host = try Host.epollServer(["--strict"], environment: [:])
            defer { host.end() }
            let connection = try Connection(host.address)
            var first: (descriptors: Int, mappings: Int)?
            var stops: [Duration] = []
            for _ in 1...100 {
                let result = try Attach.run(host.pid, ["--verbose"])
                #expect(result.status == .exited(0), "\(result.errors)")
                stops.append(try Attach.stopped(result.errors))
                try connection.send("ok\n")
                #expect(try connection.readLine().hasPrefix("done"))
                #expect(try Attach.detach(host.pid).status == .exited(0))
                _ = try eventually("the watchdog to end") { Attach.watchdog(host.pid) == nil ? true : nil }
                let now = try Attach.holdings(host.pid)
                #expect(now.descriptors == first?.descriptors ?? now.descriptors)
                #expect(now.mappings <= (first?.mappings ?? now.mappings) + 6)
                first = first ?? now
            }
            #expect(host.child.isRunning, "\(host.child.errors.text)")
            stops.sort()
            figure("100 rounds of attach and detach: stopped \(stops[50]) in the median, \(stops[98]) at worst but one")
        }

        @Test("An injector that is killed at any step leaves the server serving, and attach works afterwards")
        func killedHalfway() throws {
            for step in 1...13 {
                let host = try Host.epollServer(environment: [:])
                defer { host.end() }
                let connection = try Connection(host.address)
                let killed = try Attach.run(host.pid, environment: ["LOOPLAG_INJECT_KILL": "\(step)"])
                #expect(killed.status == .signalled(SIGKILL), "step \(step): \(killed.errors)")
                try connection.send("ok\n")
                #expect(try connection.readLine().hasPrefix("done"), "step \(step)")
                #expect(host.child.isRunning, "step \(step)")
                let again = try Attach.run(host.pid)
                #expect(again.status == .exited(0), "step \(step): \(again.errors)")
                try connection.send("ok\n")
                #expect(try connection.readLine().hasPrefix("done"), "step \(step)")
                #expect(Segments.path(ofProcess: host.pid) != nil, "step \(step)")
                // All signals are let through again.
                host.child.send(SIGTERM)
                #expect(try host.child.exitStatus() == .signalled(SIGTERM), "step \(step)")
            }
        }

        @Test("What is seen of a sleeping server before the agent goes in: in top's lines, and in record's report")
        func provisionalViews() throws {
            let host = try Host.epollServer(["--strict"], environment: [:])
            defer { host.end() }
            let connection = try Connection(host.address)
            func sleep(_ milliseconds: Int) throws {
                try connection.send("sleep \(milliseconds)\n")
                _ = try eventually("the sleep") { ProcessTable.isInSystemCall(230, host.pid) ? true : nil }
            }
            try sleep(3000)
            let top = try LoopLagTool.start(["top", "\(host.pid)", "--interval", "200ms"])
            defer { top.end() }
            _ = try top.output.wait(for: "a line of the unmeasured") { lines in
                lines.contains { $0.text.contains("not measured yet") } ? true : nil
            }
            _ = try connection.readLine()
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            top.send(SIGINT)
            #expect(try top.exitStatus() == .exited(0))

            try sleep(1500)
            let folder = try TemporaryFolder()
            let file = folder.path + "/report.json"
            let record = try LoopLagTool.start(["record", "\(host.pid)", "--duration", "3s", "-o", file])
            defer { record.end() }
            _ = try connection.readLine()
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            // The wait of this moment was begun without the agent; with the next one the loop is known.
            try connection.send("ok\n")
            _ = try connection.readLine()
            #expect(try record.exitStatus(within: .seconds(20)) == .exited(0), "\(record.errors.text)")
            let report = try ReportFile.read(URL(filePath: file))
            let stall = try #require(report.processes.first?.stalls.first { $0.provisional == true })
            #expect(stall.cause == .syscall)
            #expect(stall.syscall == "clock_nanosleep")
            #expect(stall.culprit?.function == "handle_sleep")
            #expect(stall.durationNS <= 1_600_000_000)
            figure("seen from outside: \(stall.durationNS / 1_000_000) ms of a sleep of 1,500 ms")
        }

        @Test("A server that sleeps in its handler is attached at its next wait, and the sleep keeps its length")
        func whileItSleeps() throws {
            let host = try Host.epollServer(["--strict"], environment: [:])
            defer { host.end() }
            let connection = try Connection(host.address)
            try connection.send("sleep 1500\n")
            _ = try eventually("the sleep") { ProcessTable.isInSystemCall(230, host.pid) ? true : nil }
            let follower = try LoopLagTool.start(["stalls", "\(host.pid)", "--follow", "--json"])
            defer { follower.end() }
            let answer = try HandlerAnswer(connection.readLine())
            #expect(answer.duration >= .milliseconds(1490))
            #expect(!answer.wasInterrupted)
            let events = try follower.output.wait(for: "a closed provisional stall") { lines in
                let texts = lines.map(\.text)
                return texts.contains { $0.contains(#""event":"closed""#) } ? texts : nil
            }
            #expect(events.allSatisfy { $0.contains(#""provisional":true"#) }, "\(events)")
            #expect(events.contains { $0.contains("handle_sleep") }, "\(events)")
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            // The wait of this moment was begun without the agent, and the iteration behind it is not measured.
            try connection.send("ok\n")
            _ = try connection.readLine()
            try connection.send("sleep 300\n")
            _ = try connection.readLine()
            _ = try follower.output.wait(for: "a measured stall") { lines in
                lines.contains { $0.text.contains(#""event":"closed""#) && !$0.text.contains("provisional") }
                    ? true : nil
            }
            follower.send(SIGINT)
            #expect(try follower.exitStatus() == .exited(0))
            #expect(Segments.path(ofProcess: host.pid) == nil, "what it put in it takes out")
            #expect(host.child.isRunning, "\(host.child.errors.text)")
        }

        @Test("A server that burns its processor is attached at its next wait; when none comes, that is said")
        func whileItSpins() throws {
            let host = try Host.epollServer(["--strict"], environment: [:])
            defer { host.end() }
            let connection = try Connection(host.address)
            try connection.send("spin 2500\n")
            letPass(.milliseconds(100))
            let early = try Attach.run(host.pid, ["--wait", "500ms"])
            #expect(early.status == .exited(1))
            #expect(early.errors.contains("no thread of it waits for events"), "\(early.errors)")
            let late = try Attach.run(host.pid)
            #expect(late.status == .exited(0), "\(late.errors)")
            #expect(try connection.readLine().hasPrefix("done"))
            #expect(host.child.isRunning, "\(host.child.errors.text)")
        }

        @Test("A host whose other threads hold malloc's and the loader's locks takes the agent in, again and again")
        func crowd() throws {
            for _ in 1...5 {
                let child = try Child([Tools.compiledHost("crowd")])
                defer { child.end() }
                let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
                let connection = try Connection(.port(Int(port) ?? 0))
                for _ in 1...4 {
                    let result = try Attach.run(child.pid)
                    #expect(result.status == .exited(0), "\(result.errors)")
                    try connection.send("ok\n")
                    #expect(try connection.readLine().hasPrefix("done"))
                    #expect(try Attach.detach(child.pid).status == .exited(0))
                }
                #expect(child.isRunning)
            }
        }

        @Test("A process in mount and pid namespaces of its own is attached from outside")
        func namespaces() throws {
            let child = try Child(
                [
                    "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                    Tools.compiledHost("epoll_server"),
                ])
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            let inner = try #require(ProcessTable.children(of: child.pid).first)
            let result = try Attach.run(inner)
            #expect(result.status == .exited(0), "\(result.errors)")
            #expect(try Client.ask("ok", of: .port(Int(port) ?? 0)).duration < .seconds(1))
            #expect(try Attach.detach(inner).status == .exited(0))
        }

        @Test("A worker of another user is attached, and so is the worker of a master that waits for no events")
        func otherUser() throws {
            let nginx = try Host.nginx(environment: [:])
            defer { nginx.end() }
            let worker = try nginx.worker()
            let result = try Attach.run(nginx.pid, ["--verbose"])
            #expect(result.status == .exited(0), "\(result.errors)")
            #expect(result.errors.contains("attached to \(worker) (nginx)"), "\(result.errors)")
            #expect(try Client.getAnswer("/ok", of: nginx.address).duration == .zero)
            _ = try eventually("a loop") { try LoopLagTool.run(["ps"]).output.contains("\(worker)") ? true : nil }
            #expect(try Attach.detach(nginx.pid).errors.contains("detached from \(worker)"))
        }

        @Test("A seccomp filter that kills at memfd_create is seen first; one that does not is no obstacle")
        func seccomp() throws {
            for (options, isWell) in [([], false), (["--permissive"], true)] {
                let child = try Child([Tools.compiledHost("filtered")] + options)
                defer { child.end() }
                let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
                let result = try Attach.run(child.pid)
                #expect(result.status == .exited(isWell ? 0 : 1), "\(result.errors)")
                if !isWell { #expect(result.errors.contains("looplag run"), "\(result.errors)") }
                #expect(try Client.ask("ok", of: .port(Int(port) ?? 0)).duration == .zero)
                #expect(child.isRunning)
            }
        }
    }
}

extension ProcessTable {
    /// By the kernel's word.
    static func isInSystemCall(_ number: Int, _ pid: Int32) -> Bool {
        let text = try? String(contentsOfFile: "/proc/\(pid)/syscall", encoding: .utf8)
        return text?.split(separator: " ").first.flatMap { Int($0) } == number
    }
}
