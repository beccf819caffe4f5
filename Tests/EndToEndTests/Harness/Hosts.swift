/// Starts each kind of real server and waits until it serves.
///
/// Every host is a `Child`: the test ends it. Preloaded ones get the agent by LD_PRELOAD, as `looplag run` gives it.

import Foundation
import LoopLagModel

struct Host {
    var child: Child
    var address: Address
    /// The second listener of looplag-demo.
    var rawAddress: Address?
    var folder: TemporaryFolder?

    var pid: Int32 { child.pid }
    func end() { child.end() }
}

/// A folder that goes away with its owner; traversable, since nginx's worker is another user.
final class TemporaryFolder: Sendable {
    let path: String

    init() throws {
        // A short name: a socket's path has 107 bytes.
        path = "/tmp/looplag-\(UInt32.random(in: 0 ... .max))"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o755])
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }
}

enum Agent {
    /// The variables that load the agent into a host.
    static func preload(threshold: String = "100ms", _ more: [String: String] = [:]) throws -> [String: String] {
        ["LD_PRELOAD": try Tools.agent(), "LOOPLAG_THRESHOLD": threshold].merging(more) { $1 }
    }
}

extension Host {
    /// Swift: NIO and Hummingbird, the agent linked in.
    static func demo(_ options: [String] = [], environment: [String: String] = [:]) throws -> Host {
        let child = try Child([Tools.demo()] + options, environment: environment)
        return try starting(child) {
            // Hummingbird's own log says "listening on" too.
            let ports = try child.wait(forOutput: #"listening on ((?:http|raw)=.*)\n"#)
            func port(_ name: String) -> Address? {
                ports.split(separator: " ").first { $0.hasPrefix(name + "=") }
                    .flatMap { Int($0.dropFirst(name.count + 1)) }.map { .port($0) }
            }
            guard let first = port("http") ?? port("raw") else { throw SpawnFailed(description: "no port: \(ports)") }
            return Host(child: child, address: first, rawAddress: port("raw"))
        }
    }

    static func redis(environment: [String: String]) throws -> Host {
        let folder = try TemporaryFolder()
        let socket = folder.path + "/redis.sock"
        let child = try Child(
            [
                Tools.installed("REDIS_SERVER"), "--port", "0", "--unixsocket", socket, "--dir", folder.path,
                "--save", "", "--appendonly", "no", "--enable-debug-command", "yes", "--daemonize", "no",
                "--slowlog-log-slower-than", "1000",
            ], environment: environment)
        return try starting(child) {
            _ = try child.wait(forOutput: "(ready to accept connections)")
            return Host(child: child, address: .socket(socket), folder: folder)
        }
    }

    /// nginx with one worker, which is the process with the loop: `worker()`.
    static func nginx(environment: [String: String]) throws -> Host {
        let folder = try TemporaryFolder()
        let socket = folder.path + "/nginx.sock"
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map { "\($0)_temp_path \(folder.path)/\($0);" }.joined(separator: "\n    ")
        let configuration = """
            daemon off;
            worker_processes 1;
            pid \(folder.path)/nginx.pid;
            error_log stderr notice;
            events {}
            http {
                access_log off;
                \(paths)
                server {
                    listen unix:\(socket);
                    location /ok { return 200 "done 0\\n"; }
                }
            }
            """
        let file = folder.path + "/nginx.conf"
        try configuration.write(toFile: file, atomically: true, encoding: .utf8)
        let child = try Child([Tools.installed("NGINX"), "-e", "stderr", "-c", file], environment: environment)
        return try starting(child) {
            _ = try child.wait(forOutput: "(start worker process)")
            let host = Host(child: child, address: .socket(socket), folder: folder)
            try host.waitUntilItServes("/ok")
            return host
        }
    }

    /// The one child of a prefork master.
    func worker() throws -> Int32 {
        try eventually("a worker") { ProcessTable.children(of: pid).first }
    }

    static func node(environment: [String: String]) throws -> Host {
        let child = try Child([Tools.installed("NODE"), Tools.host("server.js")], environment: environment)
        return try starting(child) {
            let port = try child.wait(forOutput: #"listening on http=(\d+)"#)
            return Host(child: child, address: .port(Int(port) ?? 0))
        }
    }

    static func uvicorn(
        loop: String, application: String = "asgi:app", environment: [String: String]
    ) throws -> Host {
        let child = try Child(
            [
                Tools.installed("PYTHON"), "-m", "uvicorn", application, "--app-dir", Tools.hosts.path,
                "--host", "127.0.0.1", "--port", "0", "--loop", loop, "--no-access-log",
            ], environment: environment)
        return try starting(child) {
            let port = try child.wait(forOutput: #"Uvicorn running on http://127.0.0.1:(\d+)"#)
            let host = Host(child: child, address: .port(Int(port) ?? 0))
            try host.waitUntilItServes("/ok")
            return host
        }
    }

    /// asyncio's own server, in any CPython.
    static func plainPython(_ python: String, environment: [String: String]) throws -> Host {
        let child = try Child([python, Tools.host("plain.py")], environment: environment)
        return try starting(child) {
            let port = try child.wait(forOutput: #"listening on http=(\d+)"#)
            let host = Host(child: child, address: .port(Int(port) ?? 0))
            try host.waitUntilItServes("/ok")
            return host
        }
    }

    /// Prefork; uvloop is loaded by each worker after the fork.
    static func gunicorn(
        workers: Int, application: String = "asgi:app", workerClass: String = "UvicornWorker",
        environment: [String: String]
    ) throws -> Host {
        let child = try Child(
            [
                Tools.installed("PYTHON"), "-m", "gunicorn", application, "--chdir", Tools.hosts.path,
                "--bind", "127.0.0.1:0", "--workers", "\(workers)", "--worker-class", "uvicorn_worker.\(workerClass)",
            ], environment: environment)
        return try starting(child) {
            let port = try child.wait(forOutput: #"Listening at: http://127.0.0.1:(\d+)"#)
            let host = Host(child: child, address: .port(Int(port) ?? 0))
            _ = try eventually("\(workers) workers to start", within: .seconds(30)) {
                child.errors.text.components(separatedBy: "Application startup complete").count > workers ? true : nil
            }
            return host
        }
    }

    static func hypercorn(application: String = "asgi", environment: [String: String]) throws -> Host {
        let folder = try TemporaryFolder()
        let socket = folder.path + "/h.sock"
        let child = try Child(
            [
                Tools.installed("PYTHON"), "-c",
                "import sys; sys.path.insert(0, sys.argv[1]); sys.argv = ['hypercorn'] + sys.argv[2:]; "
                    + "import asyncio, importlib; from hypercorn.asyncio import serve; "
                    + "from hypercorn.config import Config; c = Config(); c.bind = [sys.argv[1]]; "
                    + "asyncio.run(serve(importlib.import_module(sys.argv[2]).app, c))",
                Tools.hosts.path, "unix:" + socket, application,
            ], environment: environment)
        return try starting(child) {
            let host = Host(child: child, address: .socket(socket), folder: folder)
            try host.waitUntilItServes("/ok")
            return host
        }
    }

    /// A C host of Tests/Hosts with the line protocol.
    static func epollServer(_ options: [String] = [], environment: [String: String]) throws -> Host {
        let child = try Child([Tools.compiledHost("epoll_server")] + options, environment: environment)
        return try starting(child) {
            let port = try child.wait(forOutput: #"listening on raw=(\d+)"#)
            return Host(child: child, address: .port(Int(port) ?? 0))
        }
    }

    private func waitUntilItServes(_ path: String) throws {
        _ = try eventually("\(child.arguments[0]) to serve \(path)") { try? Client.get(path, of: address) }
    }

    /// A host that does not come up is ended here, since the test never gets it.
    private static func starting(_ child: Child, _ body: () throws -> Host) throws -> Host {
        do {
            return try body()
        } catch {
            child.end()
            throw error
        }
    }
}
