/// What the shop's routes do wrong, each under the name that a person should find on the stack of the stall.
///
/// Called by: Shop's routes. Thread: the event loop for chargeCard, reserveStock, readInvoice, sendNotice and
/// resizeThumbnail, the Swift concurrency pool for renderReport, NIOThreadPool for compressFile; that is the point.
/// Each holds its own loop or lock, so that no helper of the same program stands nearer to the leaf.
/// Refuses: to be inlined, for the names' sake, and to run for longer than it says.

import Glibc
import NIOCore
import NIOPosix

/// A channel handler of every connection: it scales images where it should only move bytes.
final class ImageHandler: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = Any
    typealias InboundOut = Any

    struct ThumbnailWanted: Sendable {
        let done: EventLoopPromise<String>
    }

    static func thumbnail(on channel: any Channel) async throws -> String {
        let done = channel.eventLoop.makePromise(of: String.self)
        // The promise first: a connection that is gone has no handler to fulfil it.
        channel.closeFuture.whenComplete { _ in done.fail(ChannelError.ioOnClosedChannel) }
        channel.pipeline.fireUserInboundEventTriggered(ThumbnailWanted(done: done))
        return try await done.futureResult.get()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        guard let wanted = event as? ThumbnailWanted else { return context.fireUserInboundEventTriggered(event) }
        wanted.done.succeed(resizeThumbnail())
    }
}

@inline(never)
func resizeThumbnail() -> String {
    var checksum: UInt64 = 1
    let end = NIODeadline.now() + .milliseconds(250)
    while NIODeadline.now() < end {
        for _ in 0..<256 { checksum = checksum &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407 }
    }
    return "thumbnail \(checksum)\n"
}

@inline(never)
func chargeCard() -> String {
    usleep(180_000)
    return "charged\n"
}

@inline(never)
func reserveStock() -> String {
    guard let holder = LockHolder.start(holding: 150) else { return "no thread\n" }
    pthread_mutex_lock(holder.mutex)
    pthread_mutex_unlock(holder.mutex)
    return "reserved\n"
}

/// The other end writes after 220 ms, as a slow converter would.
@inline(never)
func readInvoice() -> String {
    var ends: [Int32] = [-1, -1]
    guard pipe(&ends) == 0 else { return "no pipe\n" }
    let writing = ends[1]
    let writer = PlainThread.start {
        usleep(220_000)
        var byte: UInt8 = 42
        _ = write(writing, &byte, 1)
        close(writing)
    }
    guard writer else {
        ends.forEach { close($0) }
        return "no thread\n"
    }
    defer { close(ends[0]) }
    var byte: UInt8 = 0
    let count = read(ends[0], &byte, 1)
    return "invoice, \(count) bytes\n"
}

/// All of them are queued at once, and a loop empties its queue before it looks at its connections again.
@inline(never)
func sendNotices(_ count: Int, on loop: any EventLoop) async throws -> String {
    let checksum = try await loop.flatSubmit {
        loop.makeSucceededVoidFuture().flatMap { _ in
            let sent = (0..<count).map { number in loop.submit { sendNotice(number) } }
            return EventLoopFuture.reduce(0, sent, on: loop, ^)
        }
    }.get()
    return "\(count) notices, \(checksum)\n"
}

@inline(never)
func sendNotice(_ number: Int) -> UInt64 {
    var checksum = UInt64(number)
    let end = NIODeadline.now() + .milliseconds(1)
    while NIODeadline.now() < end {
        for _ in 0..<256 { checksum = checksum &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407 }
    }
    return checksum
}

@inline(never)
func renderReport() -> String {
    usleep(300_000)
    return "report\n"
}

@inline(never)
func compressArchive(files: Int) async throws -> String {
    try await withThrowingTaskGroup(of: UInt64.self) { group in
        for file in 0..<files {
            group.addTask { try await NIOThreadPool.singleton.runIfActive { compressFile(file) } }
        }
        let checksum = try await group.reduce(0, ^)
        return "\(files) files, \(checksum)\n"
    }
}

@inline(never)
func compressFile(_ number: Int) -> UInt64 {
    var checksum = UInt64(number)
    let end = NIODeadline.now() + .milliseconds(5)
    while NIODeadline.now() < end {
        for _ in 0..<256 { checksum = checksum &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407 }
    }
    usleep(35_000)
    return checksum
}

/// A thread of the demo's own, detached.
enum PlainThread {
    private final class Body: Sendable {
        let run: @Sendable () -> Void
        init(_ run: @escaping @Sendable () -> Void) { self.run = run }
    }

    /// False when there is no room for another thread.
    static func start(_ run: @escaping @Sendable () -> Void) -> Bool {
        let reference = Unmanaged.passRetained(Body(run))
        var thread = pthread_t()
        let status = pthread_create(
            &thread, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, reference.toOpaque())
        guard status == 0 else {
            reference.release()
            return false
        }
        pthread_detach(thread)
        return true
    }
}
