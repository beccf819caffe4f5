/// `looplag doctor`: true on this machine and of real processes, with the status that says so.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Check-up")
    struct DoctorTests {
        private struct Check: Decodable {
            var id: String
            var verdict: String
            var what: String
            var remedy: String?
        }

        private func doctor(
            _ arguments: [String] = [], environment: [String: String] = [:]
        ) throws -> (status: ExitStatus, checks: [String: Check]) {
            let result = try LoopLagTool.run(["doctor", "--json"] + arguments, environment: environment)
            let checks = try result.output.split(separator: "\n").map {
                try JSONDecoder().decode(Check.self, from: Data($0.utf8))
            }
            // Whatever is not fine says what to do.
            for check in checks where check.verdict == "failed" || check.verdict == "warning" {
                #expect(check.remedy?.isEmpty == false, "\(check.id)")
            }
            return (result.status, Dictionary(checks.map { ($0.id, $0) }, uniquingKeysWith: { $1 }))
        }

        @Test("A machine on which these tests run is fine, and leaves nothing behind")
        func machine() throws {
            let (status, checks) = try doctor()
            #expect(status == .exited(0))
            for id in ["platform", "agent", "measuring", "shared-memory", "proc-syscall", "safe-read", "ptrace"] {
                #expect(checks[id]?.verdict == "ok", "\(id): \(checks[id]?.what ?? "missing")")
            }
        }

        @Test("A missing agent object fails the check-up, with the remedy")
        func missingAgent() throws {
            let (status, checks) = try doctor(environment: ["LOOPLAG_AGENT": "/nowhere/agent.so"])
            #expect(status == .exited(1))
            #expect(checks["agent"]?.verdict == "failed")
            #expect(checks["agent"]?.remedy?.contains("LOOPLAG_AGENT") == true)
        }

        @Test("A folder for segments that cannot be written fails the check-up")
        func badFolder() throws {
            let (status, checks) = try doctor(environment: ["LOOPLAG_DIR": "/proc/self"])
            #expect(status == .exited(1))
            #expect(checks["shared-memory"]?.verdict == "failed")
        }

        @Test("A measured server is fine; what its stacks will show is said")
        func measuredServer() throws {
            let host = try Host.redis(environment: Agent.preload())
            defer { host.end() }
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            let (status, checks) = try doctor(["\(host.pid)"])
            #expect(status == .exited(0))
            #expect(checks["permission"]?.verdict == "ok")
            #expect(checks["agent"]?.what.contains("preload") == true)
            #expect(checks["loops"]?.what.contains("1 loop") == true)
            #expect(checks["program"]?.what.contains("glibc") == true)
            #expect(checks["symbols-main"] != nil)
        }

        @Test("LOOPLAG_STACKS=0 is explained in words")
        func degraded() throws {
            let host = try Host.redis(environment: Agent.preload(["LOOPLAG_STACKS": "0"]))
            defer { host.end() }
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            let (_, checks) = try doctor(["\(host.pid)"])
            #expect(checks["agent-stacks-off"]?.remedy == "unset LOOPLAG_STACKS")
        }

        @Test("A server that waits in poll gets the remedy")
        func pollServer() throws {
            let program = "import os, select; os.write(1, b'ready\\n'); select.poll().poll()"
            let child = try Child([Tools.installed("PYTHON"), "-c", program])
            defer { child.end() }
            _ = try child.wait(forOutput: "(ready)")
            let checks = try eventually("the poll") {
                let (_, checks) = try doctor(["\(child.pid)"])
                return checks["poll-waits"] == nil ? nil : checks
            }
            #expect(checks["poll-waits"]?.remedy?.contains("LOOPLAG_WAITS=epoll,poll") == true)
        }

        @Test("A static program, a zombie and a kernel thread fail; no process is status 3")
        func notMeasurable() throws {
            let folder = try TemporaryFolder()
            let source = folder.path + "/a.c"
            let program = folder.path + "/a"
            try "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
                .write(toFile: source, atomically: true, encoding: .utf8)
            let compiler = try Child([Tools.installed("CC"), "-static", "-o", program, source])
            defer { compiler.end() }
            #expect(try compiler.exitStatus(within: .seconds(30)) == .exited(0))
            let child = try Child([program])
            defer { child.end() }
            let (status, checks) = try doctor(["\(child.pid)"])
            #expect(status == .exited(1))
            #expect(checks["program"]?.what.contains("static") == true)
            #expect(try LoopLagTool.run(["doctor", "4194000"]).status == .exited(3))
        }
    }
}
