/// The sixteen places for readers' thresholds, seen from the agent's side.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("A reader's threshold")
struct LeaseTests {
    let folder: Folder
    let image: SegmentImage

    init() throws {
        folder = try Folder()
        image = try SegmentImage(path: folder.file())
    }

    private func entry(_ i: Int) -> lag_lease {
        let offset = MemoryLayout<lag_header>.offset(of: \lag_header.leases) ?? 0
        return image.base.load(fromByteOffset: offset + i * MemoryLayout<lag_lease>.size, as: lag_lease.self)
    }

    @Test("is written with a beat that moves at every call, and taken back")
    func renewal() throws {
        let reader = try SegmentReader(image.source)
        #expect(reader.hold(threshold: .milliseconds(50)))
        #expect(entry(0).threshold_ns == 50_000_000)
        #expect(entry(0).reader_pid == UInt64(getpid()))
        let beat = entry(0).beat
        #expect(reader.hold(threshold: .milliseconds(20)))
        #expect(entry(0).threshold_ns == 20_000_000)
        #expect(entry(0).beat == beat + 1)
        #expect(entry(1).beat == 0)
        reader.releaseThreshold()
        #expect(entry(0).threshold_ns == 0)
        reader.releaseThreshold()
        #expect(reader.hold(threshold: .seconds(-5)))
        #expect(entry(0).threshold_ns == 1)
        #expect(entry(0).beat > beat + 1)
    }

    @Test("has a place of its own, sixteen at most, and gives it up with the reader")
    func places() throws {
        var readers: [SegmentReader] = []
        for i in 0..<Int(LAG_MAX_LEASES) {
            let reader = try SegmentReader(image.source)
            #expect(reader.hold(threshold: .milliseconds(i + 1)))
            readers.append(reader)
        }
        for i in readers.indices { #expect(entry(i).threshold_ns == UInt64(i + 1) * 1_000_000) }
        let late = try SegmentReader(image.source)
        #expect(!late.hold(threshold: .milliseconds(5)))
        #expect(try late.snapshot().isAlive)
        readers.remove(at: 6)
        #expect(entry(6).threshold_ns == 0)
        #expect(late.hold(threshold: .milliseconds(5)))
        #expect(entry(6).threshold_ns == 5_000_000)
        readers.removeAll()
        #expect(late.hold(threshold: .milliseconds(6)))
        #expect(entry(6).threshold_ns == 6_000_000)
    }

    @Test("takes over the place of a reader that was killed, and its beat goes on")
    func killedReader() throws {
        let offset = MemoryLayout<lag_header>.offset(of: \lag_header.leases) ?? 0
        (image.base + offset).storeBytes(
            of: lag_lease(threshold_ns: 3, beat: 41, reader_pid: 1, reserved: 0), as: lag_lease.self)
        let reader = try SegmentReader(image.source)
        #expect(reader.hold(threshold: .milliseconds(50)))
        #expect(entry(0).threshold_ns == 50_000_000)
        #expect(entry(0).beat == 42)
    }

    @Test("touches no byte but its own")
    func footprint() throws {
        let before = Array(UnsafeRawBufferPointer(start: image.base, count: image.bytes))
        let reader = try SegmentReader(image.source)
        #expect(reader.hold(threshold: .milliseconds(50)))
        let offset = MemoryLayout<lag_header>.offset(of: \lag_header.leases) ?? 0
        var after = Array(UnsafeRawBufferPointer(start: image.base, count: image.bytes))
        after.replaceSubrange(offset..<offset + 32, with: before[offset..<offset + 32])
        #expect(after == before)
    }
}
