/// Every command that the README shows is run, as it stands there, against real servers.
///
/// Only what stands for something else is replaced: 4242 by the pid of a running server, CMD by a server, and a length
/// of time by a shorter one. A command without a way to run it here fails the test.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("README commands")
    struct DemoReadmeTests {
        /// How a command is run and known to have worked.
        private enum Form {
            /// Runs to its end with status 0 and says this.
            case says(String)
            /// Runs until it has said this, then gets the signal and ends with status 0.
            case until(String, Int32)
            /// The same with a server that was killed.
            case ofTheDead(String)
            /// The same with a server that was started without an agent.
            case ofAPlainServer(String)
            /// Checked by somebody else, who is named.
            case elsewhere(String)
        }

        private static let server = "looplag-demo --http-only --load 2"

        private static let forms: [String: Form] = [
            "looplag demo": .says("STALLS by culprit"), "looplag demo --serve-only": .until("(listens on)", SIGINT),
            "looplag demo --host python": .until("(closed|busy)", SIGINT),
            "looplag demo --host node": .until("(closed|busy)", SIGINT),
            "looplag demo --list": .says("/thumbnail"), "looplag run -- CMD ...": .says("measuring"),
            "looplag run -o lag.json -- CMD ...": .says("report in lag.json"),
            "looplag top": .until("(busy)", SIGINT), "looplag top 4242 --bell": .until("(busy)", SIGINT),
            "looplag top --iterations 5": .says("busy"), "looplag ps": .says("PID"),
            "looplag stalls 4242": .says("closed"),
            "looplag stalls 4242 --follow --json": .until(#"("culprit":)"#, SIGINT),
            "looplag stalls --follow --on-stall 'cat >>stalls.log'": .until("(closed)", SIGINT),
            "looplag record 4242 --duration 30s -o lag.json": .says("report in lag.json"),
            "looplag postmortem 4242": .ofTheDead("looplag-demo"),
            "looplag attach 4242": .ofAPlainServer("attached to"),
            "looplag detach 4242": .ofAPlainServer("detached from"),
            "looplag ps --clean": .elsewhere("LeftoverTests: here it would take away what other tests left"),
            "looplag report lag.json": .says("STALLS"), "looplag dump 4242": .says("NIO-SGLTN"),
            "looplag doctor": .says("All that is needed works"),
            "looplag doctor 4242": .says("All that is needed works"),
            "looplag help stalls": .says("EXAMPLES:"), "looplag --version": .says("layout"),
            "looplag --generate-completion-script zsh": .says("#compdef looplag"),
            "looplag run -- .build/release/Server": .says("measuring"),
            "looplag run -- node server.js": .until("(looplag: measuring)", SIGTERM),
            "looplag run --requests -- node server.js": .until("(looplag: measuring)", SIGTERM),
            "looplag run -- uvicorn app:app": .until("(looplag: measuring)", SIGTERM),
            "looplag run -- redis-server": .until("(looplag: measuring)", SIGTERM),
            "LOOPLAG_WAITS=epoll,poll looplag run -- CMD ...": .says("measuring"),
            "looplag install --prefix ~/.local": .says("share/man/man1/looplag.1"),
            "swift build": .elsewhere(".ci/run"), "swift build -c release": .elsewhere("a release build"),
            "swift test": .elsewhere(".ci/run"), "Tests/setup.sh": .elsewhere(".ci/run"),
            "Tests/setup.sh --profilers": .elsewhere("the bench"),
            ".build/release/looplag-bench": .elsewhere("its own runs"),
        ]

        /// What a shell would run: fenced lines and whole backticks, without the ways to get there.
        private func commands() throws -> [String] {
            let readme = try String(contentsOf: Tools.repository.appending(path: "README.md"), encoding: .utf8)
            var fence: Substring?
            var found: [String] = []
            for line in readme.split(separator: "\n", omittingEmptySubsequences: false) {
                if line.hasPrefix("```") {
                    fence = fence == nil ? line.dropFirst(3) : nil
                } else if fence == "" {
                    found.append(String(line))
                } else if fence == nil {
                    found += line.matches(of: /`([^`]+)`/).map { String($0.1) }
                }
            }
            let parts = found.flatMap { $0.components(separatedBy: " && ") }.map {
                $0.trimmingCharacters(in: .whitespaces)
                    .replacing(#/^\.build/(?:debug|release)/looplag /#) { _ in "looplag " }
            }
            return parts.filter { part in
                let words = part.split(separator: " ").drop { $0.contains("=") }
                guard let first = words.first else { return false }
                if first == "looplag" {
                    // `looplag run` in a sentence is a name and no command, unless it is listed as one.
                    return words.count > 2 || Self.forms[part] != nil
                }
                return ["swift", "Tests/setup.sh", ".build/release/looplag-bench"].contains(String(first))
                    && !part.hasPrefix("swift run")
            }
        }

        @Test("Every command in the README runs", .timeLimit(.minutes(4)))
        func everyCommand() throws {
            let commands = try commands()
            for known in Self.forms.keys { #expect(commands.contains(known), "the README has no '\(known)' any more") }
            let folder = try TemporaryFolder()
            try FileManager.default.createDirectory(atPath: folder.path + "/home", withIntermediateDirectories: false)
            for (name, target) in [("app.py", "asgi.py"), ("asgi.py", "asgi.py"), ("server.js", "server.js")] {
                try FileManager.default.createSymbolicLink(
                    atPath: "\(folder.path)/\(name)", withDestinationPath: Tools.host(target))
            }
            let host = try Host.demo(["--http-only", "--load", "200"])
            defer { host.end() }
            let follower = try Follower([host.pid])
            _ = try follower.stalls(closed: 1)
            follower.end()
            let plain = try Host.demo(["--http-only", "--no-agent"])
            defer { plain.end() }
            var done: Set<String> = []
            for command in commands where done.insert(command).inserted {
                guard let form = Self.forms[command] else {
                    Issue.record("nobody knows how to run '\(command)'")
                    continue
                }
                if case .ofTheDead(let text) = form {
                    let killed = try Host.demo(["--http-only"])
                    defer { killed.end() }
                    killed.child.send(SIGKILL)
                    _ = try killed.child.exitStatus()
                    try run(command, .says(text), pid: killed.pid, in: folder)
                    continue
                }
                if case .ofAPlainServer(let text) = form {
                    try run(command, .says(text), pid: plain.pid, in: folder)
                    continue
                }
                try run(command, form, pid: host.pid, in: folder)
            }
        }

        private func run(_ command: String, _ form: Form, pid: Int32, in folder: TemporaryFolder) throws {
            var line = command.replacing("4242", with: "\(pid)").replacing("CMD ...", with: Self.server)
                .replacing(".build/release/Server", with: Self.server).replacing("30s", with: "2s")
            if command.hasSuffix("redis-server") { line += " --port 0 --unixsocket redis.sock --save ''" }
            if command.hasSuffix("app:app") { line += " --port 0" }
            let programs = try [
                Tools.products.path, URL(filePath: Tools.installed("NODE")).deletingLastPathComponent().path,
                URL(filePath: Tools.installed("PYTHON")).deletingLastPathComponent().path,
                URL(filePath: Tools.installed("REDIS_SERVER")).deletingLastPathComponent().path,
                ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin",
            ]
            guard !{ if case .elsewhere = form { true } else { false } }() else { return }
            let child = try Child(
                ["/bin/sh", "-c", "cd \(folder.path)\n\(line)"],
                environment: [
                    "PATH": programs.joined(separator: ":"), "HOME": folder.path + "/home", "TERM": "dumb",
                    "LOOPLAG_PYTHON": Tools.installed("PYTHON"),
                ])
            defer { child.end() }
            switch form {
            case .says(let text):
                child.closeInput()
                #expect(try child.exitStatus(within: .seconds(60)) == .exited(0), "\(line): \(child.errors.text)")
                let said = try child.output.wholeText() + child.errors.wholeText()
                #expect(said.contains(text), "\(line): \(said.suffix(2000))")
            case .until(let pattern, let signal):
                _ = try child.wait(forOutput: pattern)
                // To looplag and what it runs, as a terminal would; the shell waits for them. A server that ends by it
                // leaves its segment.
                let members = ProcessTable.members(ofGroup: child.pid).filter { $0 != child.pid }
                defer { members.forEach(Segments.remove) }
                members.forEach { kill($0, signal) }
                let status = try child.exitStatus(within: .seconds(20))
                #expect(status == .exited(0) || status == .exited(143), "\(line): \(status) \(child.errors.text)")
            case .elsewhere, .ofTheDead, .ofAPlainServer: break
            }
        }
    }
}
