/// The segment's worst days: killed hosts, killed and stopped readers, no room, hostile contents.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Segments")
    struct SegmentTests {
        // MARK: - Death on either side

        @Test("After kill -9 of the host its last stall is still there")
        func killedHost() throws {
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            let answer = try Client.ask("sleep 200", of: host.address)
            _ = try eventually("the stall's record") {
                try LoopLagTool.run(["stalls", "\(host.pid)", "--json"]).output.contains("\"closed\"") ? true : nil
            }
            host.child.send(SIGKILL)
            #expect(try host.child.exitStatus() == .signalled(SIGKILL))

            let listed = try LoopLagTool.run(["stalls", "\(host.pid)", "--json"])
            #expect(listed.status == .exited(0), "\(listed.errors)")
            let events = try listed.output.split(separator: "\n").map {
                try JSONDecoder().decode(StallEvent.self, from: Data($0.utf8))
            }
            let closed = try #require(events.last { $0.event == .closed })
            let duration = Duration.nanoseconds(try #require(closed.durationNS))
            #expect(agree(duration, answer.duration))
            #expect(closed.stack?.contains { $0.function == "handle_sleep" } == true)
            let processes = try LoopLagTool.run(["ps"])
            #expect(
                processes.output.split(separator: "\n").contains { $0.contains("\(host.pid)") && $0.contains("dead") })
            figure(
                "kill -9 of the host: last stall \(duration.inMilliseconds), handler \(answer.duration.inMilliseconds)")
        }

        @Test("A clean exit leaves no segment")
        func cleanExit() throws {
            let host = try Host.demo(["--raw-only"])
            defer { host.end() }
            #expect(Segments.path(ofProcess: host.pid) != nil)
            host.child.send(SIGTERM)
            #expect(try host.child.exitStatus() == .exited(0))
            #expect(Segments.path(ofProcess: host.pid) == nil)
        }

        @Test("A killed reader, a stopped reader and ten readers at once leave the host's figures as they are")
        func readersDoNotDisturb() throws {
            let host = try Host.demo(["--raw-only"])
            defer { host.end() }
            let address = try #require(host.rawAddress)
            _ = try Client.ask("ok", of: address)
            var handlers: [Duration] = []
            func block(_ milliseconds: Int) throws {
                let answer = try Client.ask("sleep \(milliseconds)", of: address)
                #expect(!answer.wasInterrupted)
                handlers.append(answer.duration)
            }

            let killed = try Follower([host.pid], options: ["--threshold", "10ms"])
            try block(150)
            killed.child.send(SIGKILL)
            killed.end()
            try block(150)

            let stopped = try Follower([host.pid], options: ["--threshold", "10ms"])
            defer { stopped.end() }
            stopped.child.send(SIGSTOP)
            try block(150)

            // None lies within reach of a sleep below it that a busy machine makes longer.
            let thresholds = [20, 30, 40, 50, 110, 120, 170, 180, 240, 250]
            let followers = try thresholds.map { try Follower([host.pid], options: ["--threshold", "\($0)ms"]) }
            defer { followers.forEach { $0.end() } }
            let lengths = [60, 130, 190, 260]
            let report = try LoopLagTool.record(host.pid, for: .seconds(3)) {
                for length in lengths { try block(length) }
            }

            for (threshold, follower) in zip(thresholds, followers) {
                let expected = lengths.count { $0 >= threshold }
                let stalls = try follower.stalls(closed: expected)
                #expect(stalls.count == expected, "threshold \(threshold) ms")
            }
            let process = try #require(report.processes.first)
            // Connections go to the loops in turn.
            let stallCount = process.loops.reduce(0) { $0 + $1.stallCount }
            let stalled = Duration.nanoseconds(process.loops.reduce(0) { $0 + $1.stalledNS })
            let truth = handlers.suffix(3).reduce(.zero, +)
            #expect(stallCount == 3)
            #expect(agree(stalled, truth), "stalled \(stalled), handlers \(truth)")
            #expect(host.child.isRunning)
            figure(
                "one reader killed, one stopped, ten at once: stalled \(stalled.inMilliseconds), "
                    + "handlers \(truth.inMilliseconds)")
        }

        // MARK: - No room

        /// Runs the host in a mount namespace of its own, with its own /dev/shm.
        private func inPrivateSharedMemory(_ options: String, _ command: [String]) -> [String] {
            let script = "mount -t tmpfs -o \(options) none /dev/shm && exec \"$@\""
            let unshare = geteuid() == 0 ? ["unshare", "--mount"] : ["unshare", "--map-root-user", "--mount"]
            return unshare + ["/bin/sh", "-c", script, "sh"] + command
        }

        @Test(
            "A full or unwritable /dev/shm leaves the host unharmed, and it is measured all the same",
            arguments: [
                ("full", "size=16k"), ("unwritable", "size=16m,ro"),
            ])
        func noSharedMemory(kind: String, options: String) throws {
            let child = try Child(
                inPrivateSharedMemory(options, [Tools.compiledHost("epoll_server")]), environment: Agent.preload())
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            let address = Address.port(Int(port) ?? 0)
            var answer: HandlerAnswer?
            let report = try LoopLagTool.record(child.pid, for: .milliseconds(800)) {
                answer = try Client.ask("sleep 200", of: address)
            }
            let process = try #require(report.processes.first)
            let stall = try #require(process.stalls.first)
            #expect(agree(.nanoseconds(stall.durationNS), try #require(answer).duration))
            #expect(!process.agent.degraded.isEmpty)
            #expect(child.isRunning)
            figure("\(kind) /dev/shm: stall seen, degraded \(process.agent.degraded)")
        }

        @Test("A hundred workers share a /dev/shm of 64 MiB")
        func manyWorkers() throws {
            let workers = 100
            let child = try Child(
                inPrivateSharedMemory(
                    "size=64m", [Tools.compiledHost("epoll_server"), "--workers", "\(workers - 1)"]),
                environment: Agent.preload())
            defer { child.end() }
            let ports = try child.output.wait(for: "\(workers) ports", within: .seconds(30)) { lines in
                let ports = lines.compactMap { $0.text.split(separator: "=").last.flatMap { Int($0) } }
                return ports.count == workers ? ports : nil
            }
            for port in ports { _ = try Client.ask("ok", of: .port(port)) }
            #expect(ProcessTable.members(ofGroup: child.pid).count == workers)
            let folder = "/proc/\(child.pid)/root/dev/shm"
            let segments = try FileManager.default.contentsOfDirectory(atPath: folder).filter {
                $0.hasPrefix("looplag-")
            }
            var space = statvfs()
            statvfs(folder, &space)
            let listed = try LoopLagTool.run(["ps", "--json"])
            #expect(listed.status == .exited(0))
            let seen = ProcessTable.members(ofGroup: child.pid)
                .count { listed.output.contains("\"pid\":\($0),") }
            #expect(seen == workers)
            figure("\(workers) workers in 64 MiB: \(segments.count) segments in /dev/shm, \(seen) processes seen by ps")
        }

        @Test("LOOPLAG_DISABLE=1 leaves a host alone, and the tool says so in one line")
        func disabled() throws {
            let host = try Host.epollServer(environment: Agent.preload(["LOOPLAG_DISABLE": "1"]))
            defer { host.end() }
            #expect(try Client.ask("sleep 20", of: host.address).duration >= .milliseconds(20))
            #expect(Segments.path(ofProcess: host.pid) == nil)
            #expect(!ProcessTable.threadNames(of: host.pid).values.contains { $0.hasPrefix("looplag") })
            try expectOneClearLine(try LoopLagTool.run(["stalls", "\(host.pid)", "--no-attach"]), "disabled")
        }

        // MARK: - Hostile contents

        /// The fixed places of the header that a forgery needs; see looplag_layout.h.
        private enum Offset {
            static let version = 8
            static let pid = 128
            static let startTicks = 136
        }

        /// A true segment, its process and start time changed to those of a host without an agent.
        private func forgedSegment(for victim: Int32) throws -> [UInt8] {
            let host = try Host.epollServer(environment: Agent.preload())
            defer { host.end() }
            _ = try Client.ask("sleep 150", of: host.address)
            let path = try #require(Segments.path(ofProcess: host.pid))
            var bytes = Array(try Data(contentsOf: URL(filePath: path)))
            let ticks = try #require(ProcessTable.startTicks(of: victim))
            withUnsafeBytes(of: victim.littleEndian) { bytes.replaceSubrange(Offset.pid..<Offset.pid + 4, with: $0) }
            withUnsafeBytes(of: ticks.littleEndian) {
                bytes.replaceSubrange(Offset.startTicks..<Offset.startTicks + 8, with: $0)
            }
            return bytes
        }

        /// - Parameter earlier: by how much the name's process is older than the victim.
        private func plant(_ bytes: [UInt8], for victim: Int32, earlier: UInt64 = 0) throws -> String {
            let ticks = try #require(ProcessTable.startTicks(of: victim)) - earlier
            let path = "\(Segments.folder)/looplag-\(victim)-\(ticks)"
            let descriptor = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0o600)
            try #require(descriptor >= 0)
            defer { close(descriptor) }
            #expect(bytes.withUnsafeBytes { write(descriptor, $0.baseAddress, $0.count) } == bytes.count)
            return path
        }

        private func expectOneClearLine(_ result: LoopLagTool.Result, _ what: String) throws {
            #expect(result.status == .exited(1), "\(what): \(result.status) \(result.errors)")
            #expect(result.errors.hasPrefix("looplag: "), "\(what)")
            #expect(result.errors.filter { $0 == "\n" }.count == 1, "\(what): \(result.errors)")
            figure("\(what): \(result.errors.trimmingCharacters(in: .newlines))")
        }

        @Test("A segment of another version is refused in one line")
        func otherVersion() throws {
            let victim = try Host.epollServer(environment: [:])
            defer { victim.end() }
            var bytes = try forgedSegment(for: victim.pid)
            // What a dead process of the same number left is nothing to show in its place.
            var left = bytes
            let ticks = try #require(ProcessTable.startTicks(of: victim.pid)) - 100
            withUnsafeBytes(of: ticks.littleEndian) {
                left.replaceSubrange(Offset.startTicks..<Offset.startTicks + 8, with: $0)
            }
            _ = try plant(left, for: victim.pid, earlier: 100)
            bytes[Offset.version] = 99
            _ = try plant(bytes, for: victim.pid)
            try expectOneClearLine(try LoopLagTool.run(["stalls", "\(victim.pid)"]), "other version")
            #expect(try Client.ask("ok", of: victim.address).duration >= .zero)
        }

        @Test("A segment cut short under its reader ends the reading in one line")
        func truncated() throws {
            let victim = try Host.epollServer(environment: [:])
            defer { victim.end() }
            let path = try plant(forgedSegment(for: victim.pid), for: victim.pid)
            let reader = try LoopLagTool.start(["stalls", "\(victim.pid)", "--follow", "--json"])
            defer { reader.end() }
            _ = try reader.wait(forOutput: "(measuring)")
            #expect(truncate(path, 5000) == 0)
            #expect(try reader.exitStatus() == .exited(1))
            let last = try reader.errors.wholeText().split(separator: "\n").last ?? ""
            #expect(last.hasPrefix("looplag: "))
            figure("truncated under the reader: \(last)")
        }

        @Test("Random bytes, whole or behind a true header, never crash the reader")
        func randomBytes() throws {
            let victim = try Host.epollServer(environment: [:])
            defer { victim.end() }
            let whole = try forgedSegment(for: victim.pid)
            var random = SplitMix(state: 20_261_121)
            var statuses: [String: Int] = [:]
            for round in 0..<24 {
                var bytes = whole
                switch round % 4 {
                case 0:
                    bytes = (0..<[0, 10, 4096, 1 << 20][round / 4 % 4]).map { _ in
                        UInt8.random(in: 0...255, using: &random)
                    }
                case 1: for index in 4096..<bytes.count { bytes[index] = UInt8.random(in: 0...255, using: &random) }
                case 2: for index in 144..<4096 { bytes[index] = UInt8.random(in: 0...255, using: &random) }
                default:
                    for _ in 0..<2000 { bytes[Int.random(in: 32..<bytes.count, using: &random)] = 0xff }
                }
                _ = try plant(bytes, for: victim.pid)
                let result = try LoopLagTool.run(["stalls", "\(victim.pid)", "--json"])
                if case .signalled(let number) = result.status { Issue.record("round \(round): signal \(number)") }
                statuses["\(result.status)", default: 0] += 1
            }
            #expect(victim.child.isRunning)
            figure("24 hostile segments: \(statuses)")
        }

        private struct SplitMix: RandomNumberGenerator {
            var state: UInt64

            mutating func next() -> UInt64 {
                state &+= 0x9e37_79b9_7f4a_7c15
                var z = state
                z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
                z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
                return z ^ (z >> 31)
            }
        }
    }
}
