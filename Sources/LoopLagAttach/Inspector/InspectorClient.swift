/// Asks a node inspector one thing: which page it has, and what an expression evaluates to there.
///
/// Made by InspectorRoute, on the main thread; blocks until the answer or the time limit. A thread of its own works for it
/// meanwhile and is gone afterwards. What comes back is another process's word: sizes are bounded, and an answer that
/// is none is an error.

import Foundation
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOWebSocket

enum InspectorError: Error, Hashable {
    /// No inspector there, or it hung up.
    case unreachable(String)
    /// It did not answer in time.
    case silent
    /// The expression threw.
    case threw(String)
}

struct InspectorClient {
    private static let longestAnswer = 1 << 20

    let host: String
    let port: Int

    /// The value of a JavaScript expression that gives a string.
    func evaluate(_ expression: String, within limit: Duration) throws(InspectorError) -> String {
        let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
        defer { try? group.syncShutdownGracefully() }
        let end = ContinuousClock.now + limit
        do {
            let pages = try page(group, within: end - ContinuousClock.now)
            guard let page = try? JSONDecoder().decode([Page].self, from: Data(pages.utf8)).first,
                let identifier = page.webSocketDebuggerUrl.split(separator: "/").last
            else { throw InspectorError.unreachable("what listens there is no inspector, or serves another client") }
            let request = try JSONEncoder().encode(Request(expression: expression))
            let text = try ask(
                group, path: "/\(identifier)", String(decoding: request, as: UTF8.self),
                within: end - ContinuousClock.now)
            return try Self.value(text)
        } catch let error as InspectorError {
            throw error
        } catch {
            throw .unreachable("\(error)")
        }
    }

    // MARK: What is said

    private struct Page: Decodable { var webSocketDebuggerUrl: String }

    private struct Request: Encodable {
        struct Parameters: Encodable {
            var expression: String
            /// `require` is part of it, in modules of either kind.
            var includeCommandLineAPI = true
            var returnByValue = true
            /// An exception is ours, and stops nobody's debugger.
            var silent = true
        }
        var id = 1
        var method = "Runtime.evaluate"
        var params: Parameters

        init(expression: String) { params = Parameters(expression: expression) }
    }

    private struct Answer: Decodable {
        struct Remote: Decodable {
            var value: String?
            var description: String?
        }
        struct Details: Decodable {
            var text: String?
            var exception: Remote?
        }
        struct Result: Decodable {
            var result: Remote?
            var exceptionDetails: Details?
        }
        struct Refusal: Decodable { var message: String }
        var result: Result?
        var error: Refusal?
    }

    static func value(_ text: String) throws(InspectorError) -> String {
        guard let answer = try? JSONDecoder().decode(Answer.self, from: Data(text.utf8)) else {
            throw .unreachable("its answer is none that I know")
        }
        if let refusal = answer.error { throw .threw(refusal.message) }
        if let details = answer.result?.exceptionDetails {
            let words = details.exception?.description ?? details.text ?? "no reason given"
            throw .threw(String(words.prefix { $0 != "\n" }))
        }
        guard let value = answer.result?.result?.value else { throw .unreachable("its answer holds no text") }
        return value
    }

    // MARK: The two conversations

    private func page(_ group: MultiThreadedEventLoopGroup, within limit: Duration) throws -> String {
        let promise = group.next().makePromise(of: String.self)
        let name = host
        let channel = ClientBootstrap(group: group).connectTimeout(.nanoseconds(limit.clampedNanoseconds))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHTTPClientHandlers()
                    try channel.pipeline.syncOperations.addHandler(
                        PageHandler(promise: promise, host: name, longest: Self.longestAnswer))
                }
            }.connect(host: host, port: port)
        channel.whenFailure { promise.fail($0) }
        return try wait(for: promise, limit)
    }

    private func ask(
        _ group: MultiThreadedEventLoopGroup, path: String, _ request: String, within limit: Duration
    ) throws -> String {
        let promise = group.next().makePromise(of: String.self)
        var headers = HTTPHeaders()
        headers.add(name: "Host", value: "\(host):\(port)")
        let head = HTTPRequestHead(version: .http1_1, method: .GET, uri: path, headers: headers)
        let channel = ClientBootstrap(group: group).connectTimeout(.nanoseconds(limit.clampedNanoseconds))
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let upgrader = NIOTypedWebSocketClientUpgrader<Void>(maxFrameSize: Self.longestAnswer) {
                        channel, _ in
                        channel.eventLoop.makeCompletedFuture {
                            try channel.pipeline.syncOperations.addHandler(
                                NIOWebSocketFrameAggregator(
                                    minNonFinalFragmentSize: 0, maxAccumulatedFrameCount: 64,
                                    maxAccumulatedFrameSize: Self.longestAnswer))
                            try channel.pipeline.syncOperations.addHandler(AnswerHandler(promise: promise))
                        }
                    }
                    let upgrade = NIOTypedHTTPClientUpgradeConfiguration<Void>(
                        upgradeRequestHead: head, upgraders: [upgrader],
                        notUpgradingCompletionHandler: { channel in
                            promise.fail(InspectorError.unreachable("it refused the connection"))
                            return channel.eventLoop.makeSucceededVoidFuture()
                        })
                    let upgraded = try channel.pipeline.syncOperations.configureUpgradableHTTPClientPipeline(
                        configuration: .init(upgradeConfiguration: upgrade))
                    // While it is being upgraded the channel takes no writes.
                    upgraded.flatMap {
                        channel.writeAndFlush(
                            WebSocketFrame(
                                fin: true, opcode: .text, maskKey: .random(),
                                data: channel.allocator.buffer(string: request)))
                    }.whenFailure { promise.fail($0) }
                }
            }.connect(host: host, port: port)
        channel.whenFailure { promise.fail($0) }
        return try wait(for: promise, limit)
    }

    private func wait(for promise: EventLoopPromise<String>, _ limit: Duration) throws -> String {
        let end = promise.futureResult.eventLoop.scheduleTask(in: .nanoseconds(limit.clampedNanoseconds)) {
            promise.fail(InspectorError.silent)
        }
        defer { end.cancel() }
        return try promise.futureResult.wait()
    }
}

extension Duration {
    fileprivate var clampedNanoseconds: Int64 {
        max(1, components.seconds.multipliedReportingOverflow(by: 1_000_000_000).partialValue)
            + components.attoseconds / 1_000_000_000
    }
}

/// GET /json/list.
private final class PageHandler: ChannelInboundHandler {
    typealias InboundIn = HTTPClientResponsePart
    typealias OutboundOut = HTTPClientRequestPart

    private let promise: EventLoopPromise<String>
    private let host: String
    private let longest: Int
    private var body = ""

    init(promise: EventLoopPromise<String>, host: String, longest: Int) {
        self.promise = promise
        self.host = host
        self.longest = longest
    }

    func channelActive(context: ChannelHandlerContext) {
        // By its number: an inspector refuses other names of the host.
        let head = HTTPRequestHead(
            version: .http1_1, method: .GET, uri: "/json/list", headers: ["Host": host, "Connection": "close"])
        context.write(wrapOutboundOut(.head(head)), promise: nil)
        context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head: break
        case .body(let bytes):
            body += String(buffer: bytes)
            if body.utf8.count > longest { context.close(promise: nil) }
        case .end:
            promise.succeed(body)
            context.close(promise: nil)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        promise.fail(InspectorError.unreachable("it hung up"))
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        promise.fail(InspectorError.unreachable("\(error)"))
        context.close(promise: nil)
    }
}

/// The answer to the one request that a WebSocket carries.
private final class AnswerHandler: ChannelInboundHandler {
    typealias InboundIn = WebSocketFrame

    private let promise: EventLoopPromise<String>

    init(promise: EventLoopPromise<String>) { self.promise = promise }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let frame = unwrapInboundIn(data)
        switch frame.opcode {
        case .text:
            promise.succeed(String(buffer: frame.unmaskedData))
            context.close(promise: nil)
        case .connectionClose:
            promise.fail(InspectorError.unreachable("it hung up"))
            context.close(promise: nil)
        default: break
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        promise.fail(InspectorError.unreachable("it hung up"))
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        promise.fail(InspectorError.unreachable("\(error)"))
        context.close(promise: nil)
    }
}
