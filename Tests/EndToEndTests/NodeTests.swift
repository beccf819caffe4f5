/// Node 20, preloaded.

import Foundation
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("node, preloaded")
    struct NodeTests {
        @Test("node is seen with its one main loop")
        func mainLoop() throws {
            let node = try Host.node(environment: Agent.preload())
            defer { node.end() }
            let report = try LoopLagTool.record(node.pid, for: .milliseconds(500)) {
                _ = try Client.getAnswer("/ok", of: node.address)
            }
            let process = try #require(report.processes.first)
            let loops = process.loops.filter { $0.role == .server }
            #expect(process.runtime?.name == .node)
            #expect(loops.map(\.kind) == ["libuv"])
            #expect(loops.first?.tid == node.pid)
            figure("node: \(loops.count) server loop, \(process.loops.count - loops.count) helpers")
        }

        @Test("execSync for 400 ms is one stall of 400 ms, its nested loop notwithstanding")
        func execSync() throws {
            let node = try Host.node(environment: Agent.preload())
            defer { node.end() }
            _ = try Client.getAnswer("/execsync?ms=1", of: node.address)
            let follower = try Follower([node.pid])
            defer { follower.end() }
            let answer = try Client.getAnswer("/execsync?ms=400", of: node.address)
            let stalls = try follower.stalls(closed: 1)
            _ = try Client.getAnswer("/ok", of: node.address)
            let own = try FollowedStall.group(follower.events().filter { $0.event.pid == node.pid })
            let duration = try #require(stalls.first?.duration)
            #expect(own.count == 1)
            #expect(agree(duration, answer.duration), "stall \(duration), handler \(answer.duration)")
            #expect(stalls.first?.opened != nil)
            figure(
                "node execSync 400: stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds), "
                    + "cause \(stalls.first?.closed?.event.cause?.rawValue ?? "none")")
        }

        private struct Utilization: Decodable {
            var idle: Double
            var active: Double
        }

        @Test(
            "Utilization agrees with node's own within one percentage point",
            arguments: [("low", 2, 30), ("high", 40, 5)])
        func utilization(load: String, busy: Int, pause: Int) throws {
            let node = try Host.node(environment: Agent.preload())
            defer { node.end() }
            // The load goes on steadily before, during and after: the two windows need not begin at the same instant.
            let loading = try SteadyLoad(node.address, path: "/cpu?ms=\(busy)", pause: .milliseconds(pause))
            defer { loading.end() }
            let account = try Connection(node.address)
            func elu() throws -> Utilization {
                try JSONDecoder().decode(Utilization.self, from: Data(account.getKeptAlive("/elu").utf8))
            }
            let window = Duration.seconds(4)
            // On a machine that is busy with something else the load falters, and the two windows differ in it.
            var (ours, theirs) = (0.0, 1.0)
            for _ in 0..<3 where abs(ours - theirs) > 0.01 {
                var (first, last) = (try elu(), try elu())
                let report = try LoopLagTool.record(node.pid, for: window) {
                    let end = MonotonicTime.now().advanced(by: window)
                    first = try elu()
                    letPass(end.since(.now()))
                    last = try elu()
                }
                let loop = try #require(report.processes.first?.loops.first { $0.role == .server })
                ours = try #require(loop.utilization)
                let active = last.active - first.active
                theirs = active / (active + last.idle - first.idle)
            }
            #expect(abs(ours - theirs) <= 0.01, "ours \(ours), node's \(theirs)")
            figure("node \(load) load: utilization \(percent(ours)), eventLoopUtilization \(percent(theirs))")
        }

        private func percent(_ share: Double) -> String { "\((share * 10_000).rounded() / 100) %" }
    }
}
