/// The hosts on their own, without LoopLag: what the other tests stand on.

import Testing

extension EndToEnd {
    @Suite("Hosts, without the agent")
    struct HostTests {
        @Test("Every Python, node, redis, nginx and C host starts, serves and says how long it took")
        func foreignHostsServe() throws {
            let servers: [(String, () throws -> Host, String)] = [
                ("uvicorn asyncio", { try .uvicorn(loop: "asyncio", environment: [:]) }, "/sleep?ms=20"),
                ("uvicorn uvloop", { try .uvicorn(loop: "uvloop", environment: [:]) }, "/cpu?ms=20"),
                (
                    "fastapi",
                    { try .uvicorn(loop: "uvloop", application: "fastapi_app:app", environment: [:]) }, "/sleep?ms=20"
                ),
                ("node", { try .node(environment: [:]) }, "/execsync?ms=20"),
                ("nginx", { try .nginx(environment: [:]) }, "/ok"),
            ]
            for (name, start, path) in servers {
                let host = try start()
                defer { host.end() }
                let answer = try Client.getAnswer(path, of: host.address)
                #expect(answer.duration >= .zero, "\(name)")
                #expect(!answer.wasInterrupted, "\(name)")
            }
            let redis = try Host.redis(environment: [:])
            defer { redis.end() }
            let connection = try Connection(redis.address)
            try connection.send("PING\r\n")
            #expect(try connection.readLine() == "+PONG")
        }
    }
}
