/// The routes of the demo's HTTP server: a small web shop with one bad habit behind each route, and some good ones.
///
/// Called by: HTTPServer, on the Swift concurrency pool; SelfLoad reads the paths; `--list` prints the table. What a
/// route does wrong is in Misdeeds.swift, under names that a person understands in a stack.
/// Refuses: parameters. Each route takes a fixed time, so that a bounded number of requests is a bounded amount of work.

import Hummingbird
import NIOCore
import NIOPosix

/// What Hummingbird makes for each request, with the connection's channel: most of the misdeeds happen on its loop.
struct ShopContext: RequestContext {
    var coreContext: CoreRequestContextStorage
    let channel: any Channel

    init(source: ApplicationRequestContextSource) {
        coreContext = CoreRequestContextStorage(source: source)
        channel = source.channel
    }
}

struct ShopRoute: Sendable {
    let path: String
    /// What it does wrong; nil for a route that behaves.
    let misdeed: String?
    /// What LoopLag shows for it.
    let shown: String
    let respond: @Sendable (ShopContext) async throws -> String

    static let all: [ShopRoute] = [
        ShopRoute(path: "hello", misdeed: nil, shown: "nothing: answers at once") { _ in "hello\n" },
        ShopRoute(path: "catalog", misdeed: nil, shown: "nothing: waits 20 ms without holding any thread") { _ in
            try await Task.sleep(for: .milliseconds(20))
            return "three items\n"
        },
        ShopRoute(
            path: "thumbnail", misdeed: "scales an image in a channel handler (CPU, 250 ms)",
            shown: "a stall of that loop, cause on_cpu, culprit resizeThumbnail"
        ) { context in
            try await ImageHandler.thumbnail(on: context.channel)
        },
        ShopRoute(
            path: "pay", misdeed: "sleeps 180 ms on the event loop while it waits for the bank",
            shown: "a stall, cause syscall clock_nanosleep, culprit chargeCard"
        ) { context in
            try await context.channel.eventLoop.submit { chargeCard() }.get()
        },
        ShopRoute(
            path: "stock", misdeed: "waits on the event loop for a lock that another thread holds for 150 ms",
            shown: "a stall, cause lock, culprit reserveStock"
        ) { context in
            try await context.channel.eventLoop.submit { reserveStock() }.get()
        },
        ShopRoute(
            path: "invoice", misdeed: "reads a slow pipe on the event loop (220 ms until the data comes)",
            shown: "a stall, cause syscall read, culprit readInvoice"
        ) { context in
            try await context.channel.eventLoop.submit { readInvoice() }.get()
        },
        ShopRoute(
            path: "notify", misdeed: "sends 300 notices of 1 ms each in one turn of the event loop",
            shown: "a stall of about 300 ms, cause on_cpu, many short callbacks and all of them sendNotice"
        ) { context in
            try await sendNotices(300, on: context.channel.eventLoop)
        },
        ShopRoute(
            path: "report", misdeed: "blocks a thread of the Swift concurrency pool for 300 ms",
            shown: "no stall: the loops stay free while every async handler waits; 'looplag dump --all-threads' "
                + "shows renderReport on the pool's threads"
        ) { _ in
            renderReport()
        },
        ShopRoute(
            path: "zip", misdeed: "floods NIOThreadPool with 32 jobs of 40 ms each",
            shown: "no stall: the loops stay free while the jobs queue; 'looplag dump --all-threads' shows "
                + "compressFile on the pool's threads"
        ) { _ in
            try await compressArchive(files: 32)
        },
    ]

    /// What `--list` prints.
    static var listing: String {
        all.map { route in
            let wrong = route.misdeed ?? "behaves"
            return "/\(route.path)\(String(repeating: " ", count: max(1, 11 - route.path.count)))\(wrong)\n"
                + "            LoopLag shows \(route.shown)\n"
        }.joined()
    }

    func register(in router: Router<ShopContext>) {
        router.get(RouterPath(path)) { _, context in try await respond(context) }
    }
}
