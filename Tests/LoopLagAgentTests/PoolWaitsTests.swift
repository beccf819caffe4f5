/// How waits come out of looks at a queue, and what a pool's row says of them. A made-up clock, no interpreter.

import CLoopLag
import Testing

@testable import LoopLagAgent

@Suite("Waits in a pool's queue")
struct PoolWaitsTests {
    private static let tick: UInt64 = 20_000_000

    /// Memory of zeroes, freed at the end.
    private func withMemory(_ body: (UnsafeMutableRawPointer) -> Void) {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: PoolWaits.bytes, alignment: 8)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: PoolWaits.bytes)
        body(memory)
        memory.deallocate()
    }

    private func look(
        _ waits: inout PoolWaits, _ queue: [UInt64], _ holding: [UInt64]?, at now: UInt64, arrival: UInt64 = 0,
        isWhole: Bool = true
    ) {
        queue.withUnsafeBufferPointer { queue in
            (holding ?? []).withUnsafeBufferPointer { held in
                let none = UnsafePointer<UInt64>(bitPattern: 8)
                guard let start = queue.baseAddress ?? none, let first = held.baseAddress ?? none else { return }
                waits.look(
                    start, count: queue.count, holding: holding == nil ? nil : first, held: held.count, now: now,
                    arrival: arrival, isWhole: isWhole)
            }
        }
    }

    @Test("Six jobs of 100 ms on two threads wait 0, 0, 100, 100, 200 and 200 ms")
    func sixJobs() throws {
        withMemory { memory in
            var waits = PoolWaits(memory)
            look(&waits, [], [], at: Self.tick)
            // All come at 22 ms, and are first seen at 40.
            let came: UInt64 = 22_000_000
            for tick in 2...20 {
                let now = UInt64(tick) * Self.tick
                let taken = min(6, Int(now - came) / 100_000_000 * 2 + 2)
                let done = min(6, Int(now - came) / 100_000_000 * 2)
                look(
                    &waits, (1...6).dropFirst(taken).map { UInt64($0) },
                    (1...6).dropFirst(done).prefix(taken - done).map { UInt64($0) }, at: now, arrival: came)
            }
            #expect(waits.count == 6)
            let found = waits.percentiles()
            #expect(found.median >= 90_000_000 && found.median <= 110_000_000)
            #expect(waits.longest >= 190_000_000 && waits.longest <= 210_000_000)
        }
    }

    @Test("What was there at the first look, and what came while not all could be followed, counts for nothing")
    func unknownArrivals() {
        withMemory { memory in
            var waits = PoolWaits(memory)
            look(&waits, [3, 4], [1, 2], at: Self.tick)
            look(&waits, [4], [2, 3], at: 2 * Self.tick)
            look(&waits, [], [3, 4], at: 3 * Self.tick)
            #expect(waits.count == 0)
            // Now everything is known again.
            look(&waits, [], [5], at: 4 * Self.tick)
            #expect(waits.count == 1)
            #expect(waits.longest == 0)
            // A queue that goes on behind what is read: its items may turn up as held without having been seen.
            look(&waits, [6], [5], at: 5 * Self.tick, isWhole: false)
            look(&waits, [], [7], at: 6 * Self.tick)
            #expect(waits.count == 2, "only the one that was seen waiting")
        }
    }

    @Test("One that is between the queue and its holder at a look counts once")
    func between() {
        withMemory { memory in
            var waits = PoolWaits(memory)
            look(&waits, [], [], at: Self.tick)
            look(&waits, [1], [], at: 2 * Self.tick)
            look(&waits, [], [], at: 3 * Self.tick)
            look(&waits, [], [1], at: 4 * Self.tick)
            #expect(waits.count == 1)
            #expect(waits.longest == Self.tick)
        }
    }

    @Test("An address that comes back behind others is another item")
    func reused() {
        withMemory { memory in
            var waits = PoolWaits(memory)
            look(&waits, [], [], at: Self.tick)
            look(&waits, [1, 2], [], at: 2 * Self.tick)
            look(&waits, [2, 1], [], at: 3 * Self.tick)
            look(&waits, [1], [], at: 4 * Self.tick)
            look(&waits, [], [], at: 5 * Self.tick)
            #expect(waits.count == 3)
            #expect(waits.longest == 2 * Self.tick)
        }
    }

    @Test("A pool's row has its gauges weighted by time, and says that its waits are estimated")
    func row() {
        let row = UnsafeMutablePointer<lag_pool_slot>.allocate(capacity: 1)
        defer { row.deallocate() }
        row.initialize(to: lag_pool_slot())
        withMemory { memory in
            var slot = PoolSlot(row, memory)
            let name: [UInt8] = Array("jobs".utf8)
            name.withUnsafeBufferPointer {
                guard let start = $0.baseAddress else { return }
                slot.begin(7, kind: Int(LAG_POOL_EXECUTOR), name: start, count: 4, now: 0, since: Self.tick)
            }
            slot.update(threads: 2, busy: 0, depth: 0, now: Self.tick)
            #expect(row.pointee.method == UInt32(LAG_METHOD_EXACT))
            look(&slot.waits, [], [1], at: 2 * Self.tick)
            slot.update(threads: 2, busy: 2, depth: 4, now: 101 * Self.tick)
            #expect(row.pointee.method == UInt32(LAG_METHOD_EXACT))
            #expect(row.pointee.wait_method == UInt32(LAG_METHOD_ESTIMATE))
            #expect(row.pointee.wait_count == 1)
            #expect(row.pointee.busy.max == 2)
            #expect(row.pointee.busy.sum * 10 / row.pointee.busy.count >= 19, "two for nearly all of the time")
            #expect(row.pointee.queue_depth.last == 4)
            #expect(row.pointee.in_flight.last == .min)
            #expect(row.pointee.seq % 2 == 0)
            #expect(slot.isInUse)
            slot.end()
            #expect(row.pointee.state == 0)
            #expect(!slot.isInUse)
        }
    }
}
