/// A line protocol on NIO's singleton group: one command a line, one answer a line.
///
/// Called by: Demo. Thread: everything here runs on the connection's loop, so `sleep`, `spin` and `lock` stall it.
/// Refuses: lines longer than 256 bytes and times over a minute; such a connection is answered with an error or closed.
///
///     ok                  done 0
///     sleep 100           usleep in channelRead
///     spin 100            burns CPU in channelRead
///     lock 100            waits in channelRead for a mutex that another thread holds for 100 ms
///     execute-sleep 100   usleep in a block handed to eventLoop.execute
///     execute-spin 100    burns CPU in such a block
///
/// The answer `done NANOSECONDS` is what the handler measured by its own clock.

import NIOCore
import NIOPosix

enum RawServer {
    static func start(host: String, port: Int) async throws -> any Channel {
        try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandlers(
                        ByteToMessageHandler(LineDecoder(), maximumBufferSize: LineDecoder.longestLine),
                        CommandHandler())
                }
            }
            .bind(host: host, port: port).get()
    }
}

/// What one line asks for.
enum Command: Equatable {
    case ok
    case sleep(milliseconds: UInt32)
    case spin(milliseconds: UInt32)
    case lock(milliseconds: UInt32)
    case executeSleep(milliseconds: UInt32)
    case executeSpin(milliseconds: UInt32)

    static let longestMilliseconds: UInt32 = 60_000

    init?(line: String) {
        let words = line.split(separator: " ")
        if words == ["ok"] {
            self = .ok
            return
        }
        guard words.count == 2, let milliseconds = UInt32(words[1]), milliseconds <= Command.longestMilliseconds
        else { return nil }
        switch words[0] {
        case "sleep": self = .sleep(milliseconds: milliseconds)
        case "spin": self = .spin(milliseconds: milliseconds)
        case "lock": self = .lock(milliseconds: milliseconds)
        case "execute-sleep": self = .executeSleep(milliseconds: milliseconds)
        case "execute-spin": self = .executeSpin(milliseconds: milliseconds)
        default: return nil
        }
    }
}

private struct LineDecoder: ByteToMessageDecoder {
    typealias InboundOut = String

    static let longestLine = 256

    mutating func decode(context: ChannelHandlerContext, buffer: inout ByteBuffer) throws -> DecodingState {
        guard let end = buffer.readableBytesView.firstIndex(of: UInt8(ascii: "\n")) else { return .needMoreData }
        var line = buffer.readString(length: end - buffer.readerIndex) ?? ""
        buffer.moveReaderIndex(forwardBy: 1)
        if line.hasSuffix("\r") { line.removeLast() }
        context.fireChannelRead(Self.wrapInboundOut(line))
        return .continue
    }

    mutating func decodeLast(
        context: ChannelHandlerContext, buffer: inout ByteBuffer, seenEOF: Bool
    ) throws -> DecodingState {
        // A last line without its end is not a command.
        try decode(context: context, buffer: &buffer)
    }
}

private final class CommandHandler: ChannelInboundHandler {
    typealias InboundIn = String
    typealias OutboundOut = ByteBuffer

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let command = Command(line: Self.unwrapInboundIn(data)) else {
            answer("error: not a command", context: context)
            return
        }
        switch command {
        case .ok: answer(Blocked(nanoseconds: 0).answer, context: context)
        case .sleep(let milliseconds):
            answer(blockBySleeping(milliseconds: milliseconds).answer, context: context)
        case .spin(let milliseconds):
            answer(blockBySpinning(milliseconds: milliseconds).answer, context: context)
        case .lock(let milliseconds):
            answer(blockOnLock(milliseconds: milliseconds).answer, context: context)
        case .executeSleep(let milliseconds):
            execute(context: context) { blockBySleeping(milliseconds: milliseconds) }
        case .executeSpin(let milliseconds):
            execute(context: context) { blockBySpinning(milliseconds: milliseconds) }
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // A line too long, or the peer is gone.
        context.close(promise: nil)
    }

    private func execute(context: ChannelHandlerContext, _ work: @escaping @Sendable () -> Blocked) {
        let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
        context.eventLoop.execute {
            let result = work()
            let (handler, context) = bound.value
            handler.answer(result.answer, context: context)
        }
    }

    private func answer(_ text: String, context: ChannelHandlerContext) {
        context.writeAndFlush(Self.wrapOutboundOut(ByteBuffer(string: text + "\n")), promise: nil)
    }
}
