/// `looplag install`, the agent object that it places, and what the command line says of itself: version, help, manual
/// page, completions.

import Foundation
import Glibc
import LoopLagModel
import Testing

extension EndToEnd {
    @Suite("Installing")
    struct InstallTests {
        private static let places = [
            "bin/looplag", "lib/liblooplag-agent.so", "libexec/looplag/looplag-demo",
            "share/bash-completion/completions/looplag", "share/zsh/site-functions/_looplag",
            "share/fish/vendor_completions.d/looplag.fish", "share/man/man1/looplag.1",
        ]

        private func inodes(below folder: String) throws -> [String: UInt64] {
            var result: [String: UInt64] = [:]
            for place in Self.places {
                var status = stat()
                if stat("\(folder)/\(place)", &status) == 0 { result[place] = UInt64(status.st_ino) }
            }
            return result
        }

        private func run(_ arguments: [String], environment: [String: String] = [:]) throws -> LoopLagTool.Result {
            let child = try Child(arguments, environment: environment)
            defer { child.end() }
            child.closeInput()
            let status = try child.exitStatus(within: .seconds(40))
            return try .init(status: status, output: child.output.wholeText(), errors: child.errors.wholeText())
        }

        @Test("An installed looplag finds its agent and its demo, and a second install changes nothing")
        func installs() throws {
            let folder = try TemporaryFolder()
            let prefix = folder.path + "/new/prefix"
            let dry = try LoopLagTool.run(["install", "--prefix", prefix, "--dry-run"])
            #expect(dry.status == .exited(0))
            #expect(dry.output.components(separatedBy: "would install").count == Self.places.count + 1)
            #expect(!FileManager.default.fileExists(atPath: prefix))

            let first = try LoopLagTool.run(["install", "--prefix", prefix])
            #expect(first.status == .exited(0), "\(first.errors)")
            let before = try inodes(below: prefix)
            #expect(before.count == Self.places.count)
            let second = try LoopLagTool.run(["install", "--prefix", prefix])
            #expect(second.output.components(separatedBy: "unchanged").count == Self.places.count + 1)
            #expect(try inodes(below: prefix) == before)
            // An installed one can install in turn.
            let looplag = prefix + "/bin/looplag"
            let third = try run([looplag, "install", "--prefix", folder.path + "/copy"])
            #expect(third.status == .exited(0), "\(third.errors)")

            let doctor = try run([looplag, "doctor"])
            #expect(doctor.status == .exited(0))
            #expect(doctor.output.contains("\(prefix)/lib/liblooplag-agent.so"))
            #expect(doctor.output.contains("a process started with the agent is measured"))
            #expect(try run([looplag, "demo", "--list"]).status == .exited(0))
            for place in Self.places {
                let mode = try FileManager.default.attributesOfItem(atPath: "\(prefix)/\(place)")[.posixPermissions]
                let isProgram = place.hasPrefix("bin") || place.hasPrefix("libexec")
                #expect(mode as? Int == (isProgram ? 0o755 : 0o644), "\(place)")
            }
        }

        @Test("Replacing the agent object leaves a server that has it mapped alone")
        func replacesWholeFiles() throws {
            let folder = try TemporaryFolder()
            #expect(try LoopLagTool.run(["install", "--prefix", folder.path]).status == .exited(0))
            let agent = folder.path + "/lib/liblooplag-agent.so"
            let host = try Host.redis(environment: ["LD_PRELOAD": agent, "LOOPLAG_THRESHOLD": "100ms"])
            defer { host.end() }
            _ = try eventually("the agent") { Segments.path(ofProcess: host.pid) }
            // Something else lies there now, as an older release would.
            try FileManager.default.removeItem(atPath: agent)
            try Data("older".utf8).write(to: URL(filePath: agent))
            let result = try LoopLagTool.run(["install", "--prefix", folder.path])
            #expect(result.output.contains("installed      \(agent)"))
            let follower = try Follower([host.pid])
            defer { follower.end() }
            let connection = try Connection(host.address)
            try connection.send("DEBUG SLEEP 0.25\r\n")
            #expect(try connection.readLine() == "+OK")
            #expect(try follower.stalls(closed: 1).count == 1)
            #expect(host.child.isRunning)
        }

        @Test("Where it may not write it says so, with status 4")
        func notPermitted() throws {
            let folder = try TemporaryFolder()
            #expect(try LoopLagTool.run(["install", "--prefix", folder.path]).status == .exited(0))
            let asNobody = geteuid() == 0 ? ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : []
            let result = try run(asNobody + [folder.path + "/bin/looplag", "install", "--prefix", "/usr"])
            #expect(result.status == .exited(4))
            #expect(result.errors.hasPrefix("looplag: cannot install /usr/bin/looplag: "))
            #expect(result.errors.filter { $0 == "\n" }.count == 1)
            let spaced = try LoopLagTool.run(["install", "--prefix", "/tmp/a b"])
            #expect(spaced.status == .exited(64))
        }

        @Test("An agent object that would not do is one line, before anything is started")
        func unusableAgents() throws {
            let folder = try TemporaryFolder()
            func compiled(_ name: String, _ source: String) throws -> String {
                let (file, object) = ("\(folder.path)/\(name).c", "\(folder.path)/\(name).so")
                try source.write(toFile: file, atomically: true, encoding: .utf8)
                let compiler = try Child([Tools.installed("CC"), "-shared", "-fPIC", "-o", object, file])
                defer { compiler.end() }
                #expect(try compiler.exitStatus(within: .seconds(30)) == .exited(0), "\(compiler.errors.text)")
                return object
            }
            func written(_ name: String, _ bytes: [UInt8]) throws -> String {
                let path = "\(folder.path)/\(name)"
                try Data(bytes).write(to: URL(filePath: path))
                return path
            }
            let head: [UInt8] = [0x7f, 0x45, 0x4c, 0x46]
            let cases = try [
                (folder.path + "/missing.so", "cannot find liblooplag-agent.so"),
                (folder.path, "it is not a regular file"),
                (written("text.so", Array("no object".utf8)), "it is no ELF object"),
                (written("narrow.so", head + [1] + [UInt8](repeating: 0, count: 60)), "32-bit"),
                (written("other.so", head + [2] + [UInt8](repeating: 7, count: 60)), "no shared object for x86_64"),
                (compiled("foreign", "int x;\n"), "does not say which telemetry layout it writes"),
                (compiled("later", "const unsigned lag_agent_layout = 99;\n"), "telemetry layout 99"),
            ]
            for (path, reason) in cases {
                let mark = folder.path + "/started"
                let result = try LoopLagTool.run(
                    ["run", "--", "/usr/bin/touch", mark], environment: ["LOOPLAG_AGENT": path])
                #expect(result.status == .exited(1), "\(path)")
                #expect(result.errors.contains(reason), "\(path): \(result.errors)")
                #expect(result.errors.filter { $0 == "\n" }.count == 1)
                #expect(!FileManager.default.fileExists(atPath: mark))
            }
        }

        // MARK: What it says of itself

        @Test("--version names the release, the commit of this checkout and the layout")
        func version() throws {
            let result = try LoopLagTool.run(["--version"])
            let match = try #require(
                result.output.wholeMatch(
                    of: /looplag \d+\.\d+\.\d+ \(commit ([0-9a-f]{7}(?:-dirty)?|unknown), layout (\d+)\)\n/))
            let header = try String(
                contentsOf: Tools.repository.appending(path: "Sources/CLoopLagLayout/include/looplag_layout.h"),
                encoding: .utf8)
            #expect(header.contains("#define LAG_ABI_VERSION \(match.2)\n"))
            let git = try run(["/usr/bin/env", "git", "-C", Tools.repository.path, "rev-parse", "--short=7", "HEAD"])
            let commit = git.output.trimmingCharacters(in: .whitespacesAndNewlines)
            // Without git, or where it distrusts the folder, nobody knows.
            #expect(
                git.status == .exited(0) ? match.1.hasPrefix(commit) : match.1 == "unknown", "\(match.1), \(commit)")
        }

        private func verbs() throws -> [String] {
            let help = try LoopLagTool.run(["--help"]).output
            let list = try #require(help.components(separatedBy: "SUBCOMMANDS:\n").dropFirst().first)
            return list.split(separator: "\n").compactMap { $0.firstMatch(of: /^  ([a-z]+) +\S/).map { String($0.1) } }
        }

        @Test("The help of every verb ends in examples with options that it has; so does the manual page")
        func examples() throws {
            let manual = try LoopLagTool.run(["--generate-manual"])
            #expect(manual.status == .exited(0))
            let verbs = try verbs()
            #expect(verbs.count >= 9)
            for verb in verbs {
                let help = try LoopLagTool.run(["help", verb]).output
                #expect(try LoopLagTool.run([verb, "--help"]).output == help, "\(verb)")
                let parts = help.components(separatedBy: "\nEXAMPLES:\n")
                try #require(parts.count == 2, "looplag help \(verb) has no examples")
                let calls = parts[1].split(separator: "\n").filter { $0.contains("looplag") && $0.hasPrefix("  ") }
                #expect(calls.contains { $0.contains("looplag \(verb)") || $0.contains("looplag install") }, "\(verb)")
                for call in calls {
                    let own =
                        call.components(separatedBy: " -- ")[0].components(separatedBy: "looplag \(verb)").last ?? ""
                    for option in own.components(separatedBy: "'")[0].matches(of: /(?:^| )(--[a-z-]+|-[a-z])(?= |$)/) {
                        #expect(parts[0].contains(option.1), "\(verb): \(option.1)")
                    }
                }
                #expect(manual.output.contains(".SS \"\(verb)\"\n"), "\(verb)")
            }
            // A backslash or a dot that troff would take for its own shows as a warning.
            if FileManager.default.isExecutableFile(atPath: "/usr/bin/groff") {
                let folder = try TemporaryFolder()
                let page = folder.path + "/looplag.1"
                try manual.output.write(toFile: page, atomically: true, encoding: .utf8)
                let groff = try run(["/usr/bin/groff", "-man", "-ww", "-z", page])
                #expect(groff.status == .exited(0) && groff.errors.isEmpty, "\(groff.errors)")
            }
        }

        @Test("Completions are to be had for three shells and know every verb", arguments: ["bash", "zsh", "fish"])
        func completions(shell: String) throws {
            let script = try LoopLagTool.run(["--generate-completion-script", shell])
            #expect(script.status == .exited(0))
            for verb in try verbs() { #expect(script.output.contains(verb), "\(verb)") }
            if shell == "bash" {
                let folder = try TemporaryFolder()
                let file = folder.path + "/looplag"
                try script.output.write(toFile: file, atomically: true, encoding: .utf8)
                #expect(try run(["bash", "-n", file]).status == .exited(0))
            }
        }
    }
}
