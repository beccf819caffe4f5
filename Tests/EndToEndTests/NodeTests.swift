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

        @Test("Utilization agrees with node's own within one percentage point", arguments: [("low", 2), ("high", 40)])
        func utilization(load: String, milliseconds: Int) throws {
            let node = try Host.node(environment: Agent.preload())
            defer { node.end() }
            let connection = try Connection(node.address)
            func ask(_ path: String) throws -> String {
                try connection.send("GET \(path) HTTP/1.1\r\nHost: localhost\r\n\r\n")
                var length = 0
                while true {
                    let line = try connection.readLine()
                    if line.isEmpty { break }
                    let parts = line.split(separator: ":", maxSplits: 1)
                    if parts.count == 2, parts[0].lowercased() == "content-length" {
                        length = Int(parts[1].trimmingCharacters(in: .whitespaces)) ?? 0
                    }
                }
                return try connection.readBytes(length)
            }
            func account() throws -> Utilization {
                try JSONDecoder().decode(Utilization.self, from: Data(ask("/elu").utf8))
            }

            _ = try ask("/cpu?ms=1")
            var (first, last) = (try account(), try account())
            let window = Duration.seconds(4)
            let report = try LoopLagTool.record(node.pid, for: window) {
                let end = MonotonicTime.now().advanced(by: window)
                first = try account()
                while MonotonicTime.now() < end {
                    _ = try ask("/cpu?ms=\(milliseconds)")
                    letPass(.milliseconds(load == "low" ? 30 : 5))
                }
                last = try account()
            }
            let loop = try #require(report.processes.first?.loops.first { $0.role == .server })
            let ours = try #require(loop.utilization)
            let active = last.active - first.active
            let theirs = active / (active + last.idle - first.idle)
            #expect(abs(ours - theirs) <= 0.01, "ours \(ours), node's \(theirs)")
            figure("node \(load) load: utilization \(percent(ours)), eventLoopUtilization \(percent(theirs))")
        }

        private func percent(_ share: Double) -> String { "\((share * 10_000).rounded() / 100) %" }
    }
}
