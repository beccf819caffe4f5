/// Events out of snapshots: each stall once opened and once ended.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Following a process")
struct ProcessTelemetryTests {
    let folder: Folder
    let image: SegmentImage

    init() throws {
        folder = try Folder()
        image = try SegmentImage(path: folder.file())
    }

    @Test("announces each stall once as opened and once as ended")
    func events() throws {
        image.openStall(1, start: 10)
        image.endStall(1, duration: 5)
        image.openStall(2, start: 20)
        image.append(stall: 1, stack: [1])
        image.append(stall: 2, stack: [2])
        let telemetry = try ProcessTelemetry(image.source)
        #expect(telemetry.baseline.stalls.map(\.id) == [1, 2])

        // The one that was already open counts as opened, with the samples it has; the ended one is history.
        var update = try telemetry.poll()
        #expect(update.opened.map(\.id) == [2])
        #expect(update.closed.isEmpty)
        #expect(update.newSamples.map(\.stallID) == [2])
        update = try telemetry.poll()
        #expect(update.opened.isEmpty && update.closed.isEmpty && update.newSamples.isEmpty)

        image.endStall(2, duration: 300)
        image.openStall(3, start: 400)
        image.endStall(3, duration: 9)
        image.openStall(4, start: 500)
        image.append(stall: 3, stack: [3])
        update = try telemetry.poll()
        #expect(update.opened.map(\.id) == [3, 4])
        #expect(update.closed.map(\.id) == [2, 3])
        #expect(update.closed.first?.duration == .nanoseconds(300))
        #expect(update.newSamples.map(\.stallID) == [3])

        image.endStall(4, duration: 0, state: Int(LAG_STALL_DROPPED))
        update = try telemetry.poll()
        #expect(update.opened.isEmpty && update.closed.isEmpty)
        #expect(update.dropped.map(\.id) == [4])
        #expect(update.overlooked == 0)
        #expect(try telemetry.poll().dropped.isEmpty)
        #expect(telemetry.latest.stalls.count == 4)
        #expect(telemetry.baseline.stalls.count == 2)
    }

    @Test("counts the stalls that came and went unseen")
    func overlooked() throws {
        let telemetry = try ProcessTelemetry(image.source)
        for id in UInt64(1)...30 {
            image.openStall(id, start: id)
            image.endStall(id, duration: 1)
        }
        let update = try telemetry.poll()
        #expect(update.opened.map(\.id) == Array(23...30))
        #expect(update.closed.count == 8)
        #expect(update.overlooked == 22)
        image.openStall(31, start: 1)
        #expect(try telemetry.poll().overlooked == 0)
    }

    @Test("remembers no more than a segment can hold, whatever ids it is shown")
    func memory() throws {
        let telemetry = try ProcessTelemetry(image.source)
        var random = Seeded(state: 9)
        for _ in 0..<1_000 {
            for _ in 0..<8 { image.openStall(random.next() | 1, start: 1) }
            _ = try telemetry.poll()
            #expect(telemetry.remembered <= 4 * SegmentLimit.stalls + SegmentLimit.stalls)
        }
    }

    /// The last thing a server does before it exits is often its longest: the watchdog had no tick left to write its end.
    @Test("closes a stall that ended after the watchdog's last look, with the length that the loop measured")
    func lastIteration() throws {
        image.startLoop(0)
        image.openStall(1, start: 1_000)
        let telemetry = try ProcessTelemetry(image.source)
        #expect(try telemetry.poll().opened.map(\.id) == [1])

        image.endIteration(0, start: 500, duration: 60)
        image.endIteration(0, start: 1_000, duration: 250_000_000)
        // While the watchdog is at work the end is its own to write, with the evidence that belongs to it.
        #expect(try telemetry.poll().closed.isEmpty)
        image.header.pointee.state = UInt32(LAG_STATE_FINISHED)
        let update = try telemetry.poll()
        #expect(update.closed.map(\.duration) == [.milliseconds(250)])
        #expect(update.snapshot.stalls.map(\.state) == [.closed])
        #expect(try telemetry.poll().closed.isEmpty)
    }

    @Test("takes no other loop's and no other iteration's length for the end of a stall")
    func otherIterations() throws {
        image.startLoop(0, generation: 2)
        image.startLoop(1)
        image.openStall(1, start: 1_000)
        image.openStall(2, start: 1_000, loop: 1)
        image.openStall(3, start: 1_000, loop: 400)
        image.endIteration(0, start: 1_000, duration: 7)
        image.endIteration(1, start: 2_000, duration: 7)
        image.header.pointee.state = UInt32(LAG_STATE_FINISHED)
        #expect(try SegmentReader(image.source).snapshot().stalls.map(\.state) == [.open, .open, .open])
    }

    @Test("passes on the threshold that its caller asks for")
    func threshold() throws {
        let telemetry = try ProcessTelemetry(image.source)
        #expect(telemetry.hold(threshold: .milliseconds(30)))
        #expect(image.header.pointee.leases.0.threshold_ns == 30_000_000)
        telemetry.releaseThreshold()
        #expect(image.header.pointee.leases.0.threshold_ns == 0)
    }
}
