/// The servers that the bench measures: each started with or without an agent, each answering the same few requests.
///
/// Used by the measurements; one thread. A server that is not installed is an error that says so, never a skipped wait.

import Glibc

/// How a client talks to a server: lines to the demo's raw NIO server, HTTP/1.1 to node and python.
enum Speech {
    case lines, http

    /// `ok`, `spin MS` or `block MS` in this server's words.
    func request(_ wish: Wish) -> [UInt8] {
        let text =
            switch (self, wish) {
            case (.lines, .ok): "ok\n"
            case (.lines, .spin(let milliseconds)): "spin \(milliseconds)\n"
            case (.lines, .block(let milliseconds)): "sleep \(milliseconds)\n"
            case (.http, .ok): Speech.get("/ok")
            case (.http, .spin(let milliseconds)): Speech.get("/spin/\(milliseconds)")
            case (.http, .block(let milliseconds)): Speech.get("/block/\(milliseconds)")
            }
        return Array(text.utf8)
    }

    private static func get(_ path: String) -> String { "GET \(path) HTTP/1.1\r\nHost: localhost\r\n\r\n" }
}

enum Wish {
    case ok
    case spin(milliseconds: Int)
    /// In a call that a signal would cut short.
    case block(milliseconds: Int)
}

struct Server {
    let host: Host
    let port: UInt16
    let speech: Speech
}

/// What lies beside the bench in its build folder.
enum Products {
    static func path(_ name: String) throws(BenchError) -> String {
        guard let own = ProcFigures.executable(of: getpid()), let slash = own.lastIndex(of: "/") else {
            throw BenchError("/proc/self/exe cannot be read")
        }
        let path = own[..<slash] + "/" + name
        guard access(String(path), R_OK) == 0 else {
            throw BenchError("\(name) is not beside the bench: `swift build -c release` first")
        }
        return String(path)
    }

    /// LOOPLAG_AGENT as `looplag run` takes it, else the object beside the bench.
    static func agent() throws(BenchError) -> String {
        if let named = getenv("LOOPLAG_AGENT").map({ String(cString: $0) }), !named.isEmpty { return named }
        return try path("liblooplag-agent.so")
    }
}

enum ServerKind: String, CaseIterable {
    case node
    case nio = "NIO"
    case python
    case fastapi = "FastAPI, asyncio"
    case fastapiUvloop = "FastAPI, uvloop"

    /// Starts one and waits until it listens.
    /// - Parameter threshold: of the agent, in milliseconds; nil = the default.
    func start(withAgent: Bool, threshold: Int? = nil, plan: Plan) throws(BenchError) -> Server {
        var environment: [String: String] = [:]
        if let threshold { environment["LOOPLAG_THRESHOLD"] = "\(threshold)ms" }
        let command: [String]
        switch self {
        case .nio:
            // Linked: the demo's own agent, which it can be told to leave out.
            command = [try Products.path("looplag-demo"), "--raw-only"] + (withAgent ? [] : ["--no-agent"])
        case .node:
            command = ["node", try plan.write(Scripts.node, to: "server.js")]
        case .python:
            command = ["python3", try plan.write(Scripts.python, to: "server.py")]
        case .fastapi, .fastapiUvloop:
            let script = try plan.write(Scripts.fastapi, to: "fastapi_server.py")
            command = [PythonTools.interpreter, script, self == .fastapi ? "asyncio" : "uvloop"]
        }
        if withAgent, self != .nio { environment["LD_PRELOAD"] = try Products.agent() }
        let host = try Host(command, environment: environment)
        let line = try host.line(within: 20)
        guard let text = line.split(separator: "=").last, let port = UInt16(text) else {
            throw BenchError("\(rawValue) did not say where it listens")
        }
        return Server(host: host, port: port, speech: self == .nio ? .lines : .http)
    }
}

/// Servers as small as they can be: what they spend on a request is the loop's own work.
enum Scripts {
    static let node = """
        const http = require('http');
        const cell = new Int32Array(new SharedArrayBuffer(4));
        const server = http.createServer((request, response) => {
          const start = process.hrtime.bigint();
          const [, what, amount] = request.url.split('/');
          if (what === 'spin') { while (process.hrtime.bigint() - start < BigInt(amount) * 1000000n); }
          if (what === 'block') Atomics.wait(cell, 0, 0, Number(amount));
          const body = 'done ' + (what === 'ok' ? 0n : process.hrtime.bigint() - start) + '\\n';
          response.setHeader('Content-Length', body.length);
          response.end(body);
        });
        server.keepAliveTimeout = 60000;
        server.listen(0, '127.0.0.1', () => console.log('listening on http=' + server.address().port));
        process.on('SIGTERM', () => process.exit(0));
        """

    /// Its argument is the loop that uvicorn takes.
    static let fastapi = """
        import socket, sys, time, fastapi, uvicorn
        from fastapi.responses import PlainTextResponse
        app = fastapi.FastAPI(default_response_class=PlainTextResponse)

        @app.get("/ok")
        async def ok():
            return "done 0\\n"

        @app.get("/spin/{milliseconds}")
        async def spin(milliseconds: int):
            start = time.monotonic_ns()
            while time.monotonic_ns() - start < milliseconds * 1000000:
                pass
            return "done %d\\n" % (time.monotonic_ns() - start)

        @app.get("/block/{milliseconds}")
        async def block(milliseconds: int):
            start = time.monotonic_ns()
            time.sleep(milliseconds / 1000)
            return "done %d\\n" % (time.monotonic_ns() - start)

        # Named by its protocol: asyncio turns Nagle's delay off for such sockets only.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print("listening on http=%d" % listener.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(
            app, loop=sys.argv[1], log_level="error", access_log=False, timeout_keep_alive=3600
        )).run(sockets=[listener])
        """

    static let python =
        "import asyncio, signal, sys, time\n" + """
            async def serve(reader, writer):
                while True:
                    try:
                        head = await reader.readuntil(b"\\r\\n\\r\\n")
                    except (asyncio.IncompleteReadError, ConnectionError):
                        break
                    start = time.monotonic_ns()
                    parts = head.split(b" ", 2)[1].decode().split("/")
                    if parts[1] == "spin":
                        while time.monotonic_ns() - start < int(parts[2]) * 1000000:
                            pass
                    if parts[1] == "block":
                        time.sleep(int(parts[2]) / 1000)
                    body = b"done %d\\n" % (0 if parts[1] == "ok" else time.monotonic_ns() - start)
                    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
                writer.close()

            async def main():
                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: sys.exit(0))
                print("listening on http=%d" % server.sockets[0].getsockname()[1], flush=True)
                await asyncio.Event().wait()

            asyncio.run(main())
            """
}
