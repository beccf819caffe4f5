/// Hosts in C that do one hard thing each, with the agent preloaded.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Hard cases in C, preloaded")
    struct NativeHostTests {
        @Test("A server that dies of EINTR in epoll_wait lives through hundreds of captured stalls")
        func strictServer() throws {
            let host = try Host.epollServer(["--strict"], environment: Agent.preload(threshold: "5ms"))
            defer { host.end() }
            let rounds = 400
            let report = try LoopLagTool.record(
                host.pid, for: .milliseconds(rounds * 12), options: ["--threshold", "5ms"]
            ) {
                _ = try Client.ask("storm \(rounds)", of: host.address)
            }
            #expect(host.child.isRunning, "\(host.child.errors.text)")
            let process = try #require(report.processes.first)
            let waits = try Client.ask("eintr", of: host.address).duration
            #expect(waits == .zero)
            #expect(process.agent.signalsSent > 20)
            figure(
                "EINTR-fatal server, preloaded: \(process.loops.first?.stallCount ?? 0) stalls, "
                    + "\(process.agent.signalsSent) signals, no EINTR")
        }

        @Test("A usleep of one second lasts one second while it is observed")
        func observedSleepIsNotCutShort() throws {
            let host = try Host.epollServer(environment: Agent.preload(threshold: "20ms"))
            defer { host.end() }
            let follower = try Follower([host.pid], options: ["--threshold", "20ms"])
            defer { follower.end() }
            let answer = try Client.ask("sleep 1000", of: host.address)
            let stall = try #require(try follower.stalls(closed: 1).first)
            #expect(answer.duration >= .milliseconds(990))
            #expect(!answer.wasInterrupted)
            #expect(stall.functions.contains("handle_sleep"), "\(stall.functions.sorted())")
            figure("preloaded usleep(1 s): \(answer.duration.inMilliseconds), \(stall.sampled.count) samples taken")
        }

        @Test("Waits on a second epoll descriptor inside an iteration are part of the stall")
        func nestedLoop() throws {
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            let follower = try Follower([host.pid])
            defer { follower.end() }
            let answer = try Client.ask("nest 300", of: host.address)
            let stalls = try follower.stalls(closed: 1)
            let duration = try #require(stalls.first?.duration)
            #expect(stalls.count == 1)
            #expect(agree(duration, answer.duration), "stall \(duration), handler \(answer.duration)")
            figure("nested epoll: stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds)")
        }

        @Test("A loop whose epoll descriptor is closed and made anew is followed under the new one")
        func reopenedLoop() throws {
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            let follower = try Follower([host.pid])
            defer { follower.end() }
            for _ in 0..<3 { _ = try Client.ask("reopen", of: host.address) }
            let answer = try Client.ask("sleep 200", of: host.address)
            let stalls = try follower.stalls(closed: 1)
            let duration = try #require(stalls.first?.duration)
            #expect(stalls.count == 1)
            #expect(agree(duration, answer.duration), "stall \(duration), handler \(answer.duration)")
            let report = try LoopLagTool.record(host.pid, for: .milliseconds(300))
            #expect(report.processes.first?.stalls.isEmpty == true)
            figure("reopened epoll: stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds)")
        }

        @Test("A non-dumpable host is measured without a signal into its sleeps")
        func nonDumpableHost() throws {
            let host = try Host.epollServer(["--nondumpable"], environment: Agent.preload())
            defer { host.end() }
            var answer: HandlerAnswer?
            let report = try LoopLagTool.record(host.pid, for: .seconds(1)) {
                answer = try Client.ask("sleep 400", of: host.address)
            }
            let handler = try #require(answer)
            let process = try #require(report.processes.first)
            let stall = try #require(process.stalls.first)
            #expect(agree(.nanoseconds(stall.durationNS), handler.duration))
            #expect(handler.duration >= .milliseconds(396))
            #expect(!handler.wasInterrupted)
            #expect(stall.samples.allSatisfy { $0.method != .signal })
            let stacks = stall.samples.count { !$0.stack.isEmpty }
            #expect(stacks > 0 || stall.noStackReason != nil)
            figure(
                "non-dumpable: stall \(Duration.nanoseconds(stall.durationNS).inMilliseconds), handler "
                    + "\(handler.duration.inMilliseconds), \(stacks) stacks, degraded \(process.agent.degraded)")
        }

        @Test("No child of two thousand forks hangs while the agent looks at the loaded objects")
        func forkStorm() throws {
            let child = try Child(
                [Tools.compiledHost("fork_storm"), "2000", "libutil.so.1"],
                environment: Agent.preload(threshold: "20ms"))
            defer { child.end() }
            let start = MonotonicTime.now()
            let status = try child.exitStatus(within: .seconds(120))
            let output = try child.output.wholeText()
            #expect(status == .exited(0), "\(output)\(child.errors.text)")
            figure("\(output.split(separator: "\n").first ?? "") in \(MonotonicTime.now().since(start).inMilliseconds)")
        }
    }
}
