/// The Hummingbird server: the shop's routes, and `ok`, `sleep` and `spin` for tests that say how long.
///
/// Called by: Demo. Thread: Hummingbird runs handlers on the Swift concurrency pool and not on a NIO loop: `sleep` and
/// `spin` starve that pool while every loop stays free; the shop's routes go where they say.
/// Refuses: times over a minute.

import Hummingbird
import NIOCore

enum HTTPServer {
    /// Serves until SIGTERM or SIGINT. `whenListening` gets the port once it is open.
    static func run(host: String, port: Int, whenListening: @escaping @Sendable (Int) -> Void) async throws {
        let router = Router(context: ShopContext.self)
        for route in ShopRoute.all { route.register(in: router) }
        router.get("ok") { _, _ in Blocked(nanoseconds: 0).answer }
        router.get("sleep") { request, _ in
            blockBySleeping(milliseconds: try milliseconds(of: request)).answer
        }
        router.get("spin") { request, _ in
            blockBySpinning(milliseconds: try milliseconds(of: request)).answer
        }
        let application = Application(
            router: router,
            server: .http1(configuration: .init(additionalChannelHandlers: [ImageHandler()])),
            configuration: .init(address: .hostname(host, port: port), serverName: "looplag-demo"),
            onServerRunning: { channel in whenListening(channel.localAddress?.port ?? 0) })
        try await application.runService()
    }

    private static func milliseconds(of request: Request) throws -> UInt32 {
        guard let text = request.uri.queryParameters.get("ms"), let milliseconds = UInt32(text),
            milliseconds <= Command.longestMilliseconds
        else { throw HTTPError(.badRequest, message: "wants ?ms=0...\(Command.longestMilliseconds)") }
        return milliseconds
    }
}
