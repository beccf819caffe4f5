/// The way into node by its inspector, on every node that is supported: where the kernel forbids to trace it, SIGUSR1 lets
/// the agent in and the port is closed again. Whatever stands against it is one clear line, and the process lives.
///
/// `untraced` runs looplag as a container's seccomp filter would: ptrace and the reading of other processes' memory
/// answer EPERM.

import Foundation
import Glibc
import LoopLagModel
import Testing

private enum Untraced {
    static func run(
        _ arguments: [String], environment: [String: String] = [:], within limit: Duration = .seconds(60)
    ) throws -> LoopLagTool.Result {
        let child = try Child(
            [try Tools.compiledHost("untraced"), try Tools.looplag()] + arguments, environment: environment)
        defer { child.end() }
        child.closeInput()
        let status = try child.exitStatus(within: limit)
        return try LoopLagTool.Result(
            status: status, output: child.output.wholeText(), errors: child.errors.wholeText())
    }

    static func attach(_ host: Host, _ options: [String] = []) throws -> LoopLagTool.Result {
        try run(["attach", "\(host.pid)"] + options)
    }

    /// signals.js in one of its ways, under one of the nodes.
    static func host(
        _ node: String, _ mode: String = "plain", options: [String] = [], wrapper: [String] = []
    ) throws -> Host {
        let child = try Child(
            wrapper + [try Tools.installed(node)] + options + [Tools.host("signals.js"), mode],
            environment: ["NODE_PATH": "/usr/share/nodejs"])
        do {
            let port = try child.wait(forOutput: #"listening on http=(\d+)"#)
            return Host(child: child, address: .port(Int(port) ?? 0))
        } catch {
            child.end()
            throw error
        }
    }

    /// The ports on which a process listens, by its own account in procfs.
    static func isListening(_ pid: Int32, on port: Int) throws -> Bool {
        let wanted = ":" + String(UInt32(port), radix: 16, uppercase: true)
        var inodes: Set<String> = []
        for line in try String(contentsOfFile: "/proc/\(pid)/net/tcp", encoding: .utf8).split(separator: "\n") {
            let fields = line.split(separator: " ")
            if fields.count > 9, fields[1].hasSuffix(wanted), fields[3] == "0A" {
                inodes.insert("socket:[\(fields[9])]")
            }
        }
        let folder = "/proc/\(pid)/fd"
        for name in try FileManager.default.contentsOfDirectory(atPath: folder) {
            guard let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(name)") else {
                continue
            }
            if inodes.contains(target) { return true }
        }
        return false
    }

    static func expectRefusal(
        _ host: Host, options: [String] = [], _ status: Int32, _ words: String,
        _ place: SourceLocation = #_sourceLocation
    ) throws {
        let result = try attach(host, options)
        #expect(result.status == .exited(status), "\(result.errors)", sourceLocation: place)
        #expect(result.errors.split(separator: "\n").count == 1, "\(result.errors)", sourceLocation: place)
        #expect(result.errors.contains(words), "\(result.errors)", sourceLocation: place)
        #expect(try Client.get("/ok", of: host.address).hasPrefix("done"), sourceLocation: place)
        #expect(Segments.path(ofProcess: host.pid) == nil, sourceLocation: place)
    }
}

extension EndToEnd {
    @Suite("By node's inspector")
    struct InspectorTests {
        @Test(
            "A node that may not be traced is entered by its inspector, which is closed again; detach and attach go on",
            arguments: ["NODE18", "NODE", "NODE22", "NODE24"])
        func entered(node: String) throws {
            let host = try Untraced.host(node)
            defer { host.end() }
            for _ in 1...2 {
                let attached = try Untraced.attach(host)
                #expect(attached.status == .exited(0), "\(attached.errors)")
                #expect(attached.errors.split(separator: "\n").count == 1, "\(attached.errors)")
                #expect(attached.errors.contains("came in by node's inspector (port 9229, open for"))
                #expect(attached.errors.contains("closed again"), "\(attached.errors)")
                #expect(try !Untraced.isListening(host.pid, on: 9229))
                _ = try Client.get("/ok", of: host.address)
                // Reading and symbols need no tracing either.
                let follower = try Follower([host.pid], options: ["--no-attach"])
                defer { follower.end() }
                var functions: Set<String> = []
                for turn in 1...3 where !functions.contains("handle") {
                    let answer = try Client.getAnswer("/awaited?ms=300", of: host.address)
                    let stall = try #require(try follower.stalls(closed: turn).last)
                    let duration = try #require(stall.duration)
                    #expect(duration < answer.duration + .milliseconds(50))
                    functions = stall.functions
                }
                #expect(functions.contains("handle"), "\(functions)")
                follower.end()
                #expect(try Attach.detach(host.pid).status == .exited(0))
            }
            #expect(try Client.get("/ok", of: host.address).hasPrefix("done"))
            host.child.send(SIGTERM)
            #expect(try host.child.exitStatus() == .exited(0), "\(host.child.errors.text)")
        }

        @Test("A process that would not take the signal as node does never gets it", arguments: ["NODE22", "NODE24"])
        func neverSent(node: String) throws {
            let cases: [(mode: String, node: [String], options: [String], words: String)] = [
                ("plain", ["--disable-sigusr1"], [], "--disable-sigusr1"),
                ("plain", ["--permission", "--allow-fs-read=*", "--allow-addons"], [], "--permission"),
                ("plain", ["--no-addons"], [], "--no-addons"),
                // It would die of it.
                ("removed", [], ["--inspector", "always"], "no handler for SIGUSR1"),
                ("plain", [], ["--inspector", "never"], "not permitted to read its memory"),
            ]
            for one in cases {
                let host = try Untraced.host(node, one.mode, options: one.node)
                defer { host.end() }
                try Untraced.expectRefusal(host, options: one.options, 4, one.words)
                #expect(!host.child.errors.text.contains("Debugger"), "\(one)")
                #expect(!host.child.output.text.contains("signalled"), "\(one)")
            }
        }

        @Test("A program with a handler of its own is recognised by its source, or by its silence")
        func ownHandler() throws {
            let program = """
                process.on('SIGUSR1', () => console.log('signalled'));
                require('http').createServer((q, r) => r.end('done 0'))
                  .listen(0, function () { console.log('listening on http=' + this.address().port); });
                """
            let folder = try TemporaryFolder()
            try program.write(toFile: folder.path + "/handler.js", atomically: true, encoding: .utf8)
            try "require('./handler');".write(toFile: folder.path + "/app.js", atomically: true, encoding: .utf8)
            let child = try Child([try Tools.installed("NODE"), folder.path + "/app.js"])
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on http=(\d+)"#)
            let known = Host(child: child, address: .port(Int(port) ?? 0))
            try Untraced.expectRefusal(known, 4, "/handler.js names SIGUSR1")
            #expect(!child.output.text.contains("signalled"))

            let unknown = try Untraced.host("NODE", "handler")
            defer { unknown.end() }
            try Untraced.expectRefusal(unknown, 1, "a handler of its own")
        }

        @Test("A port that is taken, and an object that the process cannot see or read")
        func unreachable() throws {
            let other = try Host.epollServer(environment: [:])
            defer { other.end() }
            guard case .port(let taken) = other.address else { throw MissingTool(description: "no port") }
            let host = try Untraced.host("NODE", options: ["--inspect-port=\(taken)"])
            defer { host.end() }
            try Untraced.expectRefusal(
                host, 1, "port \(taken), which its inspector would use, is taken by \(other.pid)")
            #expect(!host.child.errors.text.contains("inspector"))

            try #require(geteuid() == 0, "needs root for a mount namespace and another user")
            let folder = try Tools.agent().split(separator: "/").dropLast().joined(separator: "/")
            let apart = try Untraced.host(
                "NODE", wrapper: ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /\(folder) && exec \"$@\"", "sh"])
            defer { apart.end() }
            try Untraced.expectRefusal(apart, 4, "does not see the agent's object")

            let closed = try TemporaryFolder()
            let object = closed.path + "/liblooplag-agent.so"
            try FileManager.default.copyItem(atPath: Tools.agent(), toPath: object)
            let stranger = try Untraced.host("NODE", wrapper: ["setpriv", "--reuid", "65534", "--clear-groups"])
            defer { stranger.end() }
            chmod(closed.path, 0o700)
            let result = try Untraced.run(["attach", "\(stranger.pid)"], environment: ["LOOPLAG_AGENT": object])
            #expect(result.status == .exited(1), "\(result.errors)")
            #expect(result.errors.contains("cannot read the agent's object"), "\(result.errors)")
            #expect(try !Untraced.isListening(stranger.pid, on: 9229))
            // Where it can be read, the other user's process is entered.
            chmod(closed.path, 0o755)
            chmod(object, 0o644)
            let second = try Untraced.run(["attach", "\(stranger.pid)"], environment: ["LOOPLAG_AGENT": object])
            #expect(second.status == .exited(0), "\(second.errors)")
            #expect(try Client.get("/ok", of: stranger.address).hasPrefix("done"))
        }

        @Test("Busy in native code, it is named so and left alone, and the next attach closes what opened meanwhile")
        func busy() throws {
            let host = try Untraced.host("NODE24")
            defer { host.end() }
            let connection = try Connection(host.address)
            try connection.send("GET /native?ms=4000 HTTP/1.1\r\nHost: a\r\n\r\n")
            _ = try eventually("the block") { ProcessTable.statFields(of: host.pid)?.first == "R" ? true : nil }
            letPass(.milliseconds(100))
            let early = try Untraced.attach(host, ["--wait", "1s"])
            #expect(early.status == .exited(1), "\(early.errors)")
            #expect(early.errors.contains("busy in native code"), "\(early.errors)")
            #expect(early.errors.split(separator: "\n").count == 1, "\(early.errors)")
            while try connection.readLine().hasPrefix("done") == false {}
            _ = try eventually("its inspector") { try Untraced.isListening(host.pid, on: 9229) ? true : nil }
            let late = try Untraced.attach(host)
            #expect(late.status == .exited(0), "\(late.errors)")
            #expect(late.errors.contains("closed again"), "\(late.errors)")
            #expect(try !Untraced.isListening(host.pid, on: 9229))
        }

        @Test("An inspector that was open before is used, and stays open")
        func openBefore() throws {
            let host = try Untraced.host("NODE22", options: ["--inspect=127.0.0.1:0"])
            defer { host.end() }
            let port = Int(try host.child.wait(forOutput: #"ws://127.0.0.1:(\d+)/"#)) ?? 0
            // Its number is nobody's option: then there is no way to tell it from a server's.
            try Untraced.expectRefusal(host, 1, "listens already on a port that I do not know")
            #expect(try Untraced.isListening(host.pid, on: port))

            let named = try Untraced.host("NODE22", options: ["--inspect=127.0.0.1:\(port + 1)"])
            defer { named.end() }
            let attached = try Untraced.attach(named)
            #expect(attached.status == .exited(0), "\(attached.errors)")
            #expect(attached.errors.contains("which was open before and stays so"), "\(attached.errors)")
            #expect(try Untraced.isListening(named.pid, on: port + 1))
        }

        @Test("Two at once take their turns at the one port, and cluster workers are entered one after the other")
        func severalAtOnce() throws {
            let hosts = try ["NODE", "NODE22"].map { try Untraced.host($0) }
            defer { for host in hosts { host.end() } }
            let tools = try hosts.map {
                try Child([try Tools.compiledHost("untraced"), try Tools.looplag(), "attach", "\($0.pid)"])
            }
            defer { for tool in tools { tool.end() } }
            for tool in tools {
                #expect(try tool.exitStatus(within: .seconds(60)) == .exited(0), "\(tool.errors.text)")
            }

            let child = try Child([try Tools.installed("NODE"), Tools.host("interleaved.js"), "--cluster", "--serve"])
            defer { child.end() }
            _ = try child.wait(forOutput: "serving (2)")
            let attached = try Untraced.run(["attach", "\(child.pid)"])
            #expect(attached.status == .exited(0), "\(attached.errors)")
            #expect(attached.errors.contains("is left out: it is the primary of a cluster"), "\(attached.errors)")
            #expect(!child.errors.text.contains("already in use"), "\(child.errors.text)")
            let workers = ProcessTable.children(of: child.pid).filter { Segments.path(ofProcess: $0) != nil }
            #expect(workers.count == 2, "\(attached.errors)")
            #expect(child.isRunning)
        }
    }
}
