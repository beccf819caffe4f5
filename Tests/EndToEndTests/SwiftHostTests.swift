/// SwiftNIO and Hummingbird, with the agent linked in through `import LoopLag`.

import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Swift hosts, linked")
    struct SwiftHostTests {
        /// Blocks of 100 ms must be seen well before they end, so these hosts ask for less than the default.
        static let options = ["--threshold-ms", "40"]

        @Test("A raw NIO server on the singleton group shows exactly its loops, under their names")
        func rawServerLoops() throws {
            let host = try Host.demo(["--raw-only"])
            defer { host.end() }
            try expectSingletonLoops(of: host, "raw NIO")
        }

        @Test("A Hummingbird server shows exactly its NIO loops, under their names")
        func hummingbirdLoops() throws {
            let host = try Host.demo(["--http-only"])
            defer { host.end() }
            #expect(try Client.getAnswer("/sleep?ms=5", of: host.address).duration >= .milliseconds(5))
            try expectSingletonLoops(of: host, "Hummingbird")
        }

        private func expectSingletonLoops(of host: Host, _ name: String) throws {
            let expected = ProcessTable.threadNames(of: host.pid).values.filter { $0.hasPrefix("NIO-SGLTN-1-") }
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(500))
            let process = try #require(report.processes.first)
            let loops = process.loops.filter { $0.role == .server }
            #expect(process.runtime?.name == .swift)
            #expect(loops.map(\.threadName).sorted() == expected.sorted())
            #expect(loops.allSatisfy { $0.kind == "nio" })
            #expect(!expected.isEmpty)
            figure(
                "\(name): \(loops.count) server loops \(loops.map(\.threadName).sorted()), "
                    + "\(process.loops.count - loops.count) helpers")
        }

        @Test(
            "A NIO loop blocked for 100 ms is one stall of the handler's own length, opened while it runs",
            arguments: [
                ("sleep", Cause.syscall, "blockBySleeping"), ("execute-sleep", .syscall, "blockBySleeping"),
                ("spin", .onCPU, "blockBySpinning"), ("execute-spin", .onCPU, "blockBySpinning"),
                ("lock", .lock, "blockOnLock"),
            ])
        func blockedLoop(command: String, cause: Cause, function: String) throws {
            let host = try Host.demo(["--raw-only"] + Self.options)
            defer { host.end() }
            let address = try #require(host.rawAddress)
            // The first answer of a connection is slower: lazy metadata, first-time allocations.
            _ = try Client.ask("ok", of: address)
            let follower = try Follower([host.pid], options: ["--threshold", "40ms"])
            defer { follower.end() }

            // What the loop's thread waits for a CPU behind the handler's last look at its clock is the stall's and not the
            // handler's: on a busy machine it takes another try.
            for attempt in 1...3 {
                let answer = try Client.ask("\(command) 100", of: address)
                let answered = MonotonicTime.now()
                let stalls = try follower.stalls(closed: attempt)
                // Whatever else would be wrongly called a stall has to show before the next answer.
                _ = try Client.ask("ok", of: address)

                let stall = try #require(stalls.last)
                let duration = try #require(stall.duration)
                let opened = try #require(stall.opened)
                #expect(try FollowedStall.group(follower.events()).count == attempt)
                guard agree(duration, answer.duration) || attempt == 3 else { continue }
                #expect(agree(duration, answer.duration), "stall \(duration), handler \(answer.duration)")
                #expect(opened.arrived < answered, "opened \(opened.arrived.since(answered)) after the answer")
                #expect(stall.closed?.event.cause == cause)
                #expect(
                    stall.functions.contains { $0.contains(function) },
                    "\(function) is not among \(stall.functions.sorted())")
                #expect(!answer.wasInterrupted)
                figure(
                    "nio \(command) 100: stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds), "
                        + "opened \(answered.since(opened.arrived).inMilliseconds) before its end, "
                        + "cause \(stall.closed?.event.cause?.rawValue ?? "none"), \(stall.sampled.count) samples")
                break
            }
        }

        @Test("A handler's usleep of one second lasts one second while it is observed")
        func observedSleepIsNotCutShort() throws {
            let host = try Host.demo(["--raw-only"] + Self.options)
            defer { host.end() }
            let follower = try Follower([host.pid], options: ["--threshold", "20ms"])
            defer { follower.end() }
            let answer = try Client.ask("sleep 1000", of: #require(host.rawAddress))
            let stall = try #require(try follower.stalls(closed: 1).first)
            #expect(answer.duration >= .milliseconds(990))
            #expect(!answer.wasInterrupted)
            #expect(stall.functions.contains { $0.contains("blockBySleeping") })
            figure("linked usleep(1 s): \(answer.duration.inMilliseconds), \(stall.sampled.count) samples taken")
        }

        @Test("A stall of 200 ms every 2.5 s gives a delay p99 of 175 ms and a p50 of nothing")
        func delayFollowsFromTheIterations() throws {
            let host = try Host.demo(["--raw-only"])
            defer { host.end() }
            let connection = try Connection(#require(host.rawAddress))
            var handlers: [Duration] = []
            let rounds = 5
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(2500 * rounds)) {
                // Each stall in the middle of its 2.5 s, whatever the requests themselves took.
                let start = MonotonicTime.now()
                for round in 0..<rounds {
                    let due = start.advanced(by: .milliseconds(2500 * round + 1000))
                    letPass(due.since(.now()))
                    try connection.send("sleep 200\n")
                    handlers.append(try HandlerAnswer(connection.readLine()).duration)
                }
            }
            let loops = try #require(report.processes.first).loops.filter { $0.role == .server }
            let stalled = try #require(loops.first { $0.stallCount > 0 })
            let p99 = Duration.nanoseconds(try #require(stalled.delay.p99NS))
            let p50 = Duration.nanoseconds(try #require(stalled.delay.p50NS))
            #expect(stalled.stallCount == rounds)
            #expect(p99 >= .milliseconds(165) && p99 <= .milliseconds(185), "p99 \(p99)")
            #expect(p50 <= .milliseconds(1), "p50 \(p50)")
            #expect(loops.count { $0.stallCount > 0 } == 1, "the other loops were healthy")
            let longest = handlers.max() ?? .zero
            let most = Duration.nanoseconds(try #require(stalled.iteration.maxNS))
            #expect(agree(most, longest))
            figure(
                "200 ms every 2.5 s: delay p50 \(p50.inMilliseconds), p99 \(p99.inMilliseconds); longest iteration "
                    + "\(most.inMilliseconds), longest handler \(longest.inMilliseconds)")
        }
    }
}
