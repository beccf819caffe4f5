/// What a snapshot says of a segment whose every byte is known.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("A snapshot")
struct SnapshotTests {
    let folder: Folder
    let image: SegmentImage

    init() throws {
        folder = try Folder()
        image = try SegmentImage(path: folder.file())
    }

    @Test("says what the header says")
    func header() throws {
        let header = image.header
        header.pointee.runtime = UInt32(LAG_RUNTIME_CPYTHON)
        (header.pointee.executable_offset, header.pointee.executable_bytes) = image.addText(Array("/usr/bin/py".utf8))
        (header.pointee.command_offset, header.pointee.command_bytes) =
            image.addText(Array("python\0-c\0import os\nprint\u{1b}[31m\0\0".utf8))
        (header.pointee.runtime_version_offset, header.pointee.runtime_version_bytes) =
            image.addText(Array("3.11.2".utf8))
        header.pointee.watchdog_tid = 12
        header.pointee.watchdog_cpu_ns = 5_000
        header.pointee.signals_sent = 3
        header.pointee.samples_dropped.1 = 2
        header.pointee.samples_dropped.9 = 1
        header.pointee.degraded = UInt64(LAG_DEGRADED_NO_SAFE_READ | LAG_DEGRADED_STACKS_OFF) | 1 << 40

        let snapshot = try SegmentReader(image.source).snapshot()
        #expect(snapshot.identity == ProcessIdentity(pid: getpid(), startTicks: Own.startTicks))
        #expect(snapshot.isAlive)
        #expect(snapshot.state == .running)
        #expect(snapshot.runtime == .cpython)
        #expect(snapshot.runtimeVersion == "3.11.2")
        #expect(snapshot.executable == "/usr/bin/py")
        #expect(snapshot.command == ["python", "-c", "import os print[31m", ""])
        #expect(snapshot.startThreshold == .milliseconds(100))
        #expect(snapshot.anchor.realtimeNanoseconds == 1_700_000_000_000_000_000)
        #expect(snapshot.agent.mode == "preload")
        #expect(snapshot.agent.watchdogTID == 12)
        #expect(snapshot.agent.cpu == .microseconds(5))
        #expect(snapshot.agent.signalsSent == 3)
        #expect(snapshot.agent.samplesDropped == ["timeout": 2, "gone": 1])
        #expect(snapshot.agent.degraded == ["no-safe-read", "stacks-off", "bit-40"])
        #expect(snapshot.takenAt.nanoseconds <= monotonicNanoseconds())
    }

    @Test("leaves out what is not known")
    func unknown() throws {
        image.startLoop(0)
        let snapshot = try SegmentReader(image.source).snapshot()
        #expect(snapshot.runtime == nil)
        #expect(snapshot.executable == nil)
        #expect(snapshot.runtimeVersion == nil)
        #expect(snapshot.command.isEmpty)
        #expect(snapshot.agent.watchdogTID == nil)
        #expect(snapshot.agent.samplesDropped.isEmpty)
        let loop = try #require(snapshot.loops.first)
        #expect(loop.longest == nil)
        #expect(loop.shortest == nil)
        #expect(loop.runQueueWait == nil)
        #expect(loop.agentRole == nil)
        #expect(loop.busySince == nil)
        #expect(loop.retiredAt == nil)
    }

    @Test("has live and retired loops, and none of the free slots")
    func loops() throws {
        image.startLoop(1, generation: 3, tid: 42, name: "NIO-ELT-0-#1")
        let slot = image.loop(1)
        slot.pointee.iterations = 2
        slot.pointee.busy_ns = 3_000
        slot.pointee.idle_ns = 9_000
        slot.pointee.max_ns = 2_000
        slot.pointee.min_ns = 1_000
        slot.pointee.busy_since_ns = 77
        slot.pointee.sched_at_ns = 1
        slot.pointee.sched_wait_ns = 500
        slot.pointee.sched_first_wait_ns = 200
        slot.pointee.role = UInt32(LAG_ROLE_HELPER)
        slot.pointee.wait_kind = UInt32(LAG_WAIT_PPOLL)
        image.histogram(1)[31] = 1
        image.histogram(1)[64] = 1
        image.startLoop(2)
        image.loop(2).pointee.state = UInt32(LAG_LOOP_RETIRED)
        image.loop(2).pointee.retired_ns = 99
        image.loop(3).pointee.state = UInt32(LAG_LOOP_LIVE)  // claimed, not filled in yet

        let reader = try SegmentReader(image.source)
        let loops = try reader.snapshot().loops
        #expect(loops.map(\.id) == [LoopID(slot: 1, generation: 3), LoopID(slot: 2, generation: 1)])
        #expect(loops[0].threadName == "NIO-ELT-0-#1")
        #expect(loops[0].busy == .nanoseconds(3_000))
        #expect(loops[0].longest == .nanoseconds(2_000))
        #expect(loops[0].shortest == .nanoseconds(1_000))
        #expect(loops[0].busySince == MonotonicTime(nanoseconds: 77))
        #expect(loops[0].runQueueWait == .nanoseconds(300))
        #expect(loops[0].agentRole == .helper)
        #expect(loops[0].wait == .ppoll)
        #expect(loops[0].histogram.total == 2)
        #expect(!loops[1].isLive)
        #expect(loops[1].retiredAt == MonotonicTime(nanoseconds: 99))

        // The histogram is read again only when an iteration has ended.
        slot.pointee.idle_since_ns = 88
        slot.pointee.iterations = 3
        image.histogram(1)[64] = 2
        let later = try reader.snapshot().loops[0]
        #expect(later.histogram.total == 3)
        #expect(later.idleSince == MonotonicTime(nanoseconds: 88))
        #expect(later.busySince == nil)
    }

    @Test("tells a slot's next tenant from the last one")
    func tenants() throws {
        image.startLoop(0, generation: 1)
        image.loop(0).pointee.iterations = 1
        image.histogram(0)[5] = 1
        let reader = try SegmentReader(image.source)
        #expect(try reader.snapshot().loops[0].histogram.counts[5] == 1)
        image.histogram(0)[5] = 0
        image.histogram(0)[6] = 1
        image.startLoop(0, generation: 2)
        let loop = try reader.snapshot().loops[0]
        #expect(loop.id.generation == 2)
        #expect(loop.histogram.counts[5] == 0)
        #expect(loop.histogram.counts[6] == 1)
    }

    @Test("has the stalls in the order in which they came, open ones with the time elapsed")
    func stalls() throws {
        let now = monotonicNanoseconds()
        for id in UInt64(5)...12 { image.openStall(id, start: now - 50_000_000) }
        for id in UInt64(5)...10 { image.endStall(id, duration: id * 1_000_000) }
        image.endStall(11, duration: 0, state: Int(LAG_STALL_DROPPED))
        let record = image.stall(10)
        record.pointee.look_ns.1 = 7_000
        record.pointee.look_ns.5 = 9_000
        record.pointee.looks = 4
        record.pointee.syscall_nr = 230
        SegmentImage.write("hrtimer_nanosleep", to: &record.pointee.wait_channel)

        let snapshot = try SegmentReader(image.source).snapshot()
        #expect(snapshot.stalls.map(\.id) == Array(5...12))
        #expect(snapshot.stalls[0].duration == .milliseconds(5))
        #expect(snapshot.stalls[6].state == .dropped)
        #expect(snapshot.stalls[7].state == .open)
        #expect(snapshot.stalls[7].duration >= .milliseconds(50))
        #expect(snapshot.stalls[7].evidence.syscallNumber == nil)
        #expect(snapshot.stalls[7].evidence.waitChannel == nil)
        let evidence = snapshot.stalls[5].evidence
        #expect(evidence.inSyscall == .microseconds(7))
        #expect(evidence.runQueueLooks == .microseconds(9))
        #expect(evidence.looks == 4)
        #expect(evidence.syscallNumber == 230)
        #expect(evidence.waitChannel == "hrtimer_nanosleep")
    }

    @Test("of a dead process ends with the watchdog's last heartbeat, not now")
    func deadProcess() throws {
        let start: UInt64 = 10_000_000_000
        image.header.pointee.heartbeat_ns = start + 340_000_000
        image.startLoop(0)
        image.openStall(1, start: start)
        let snapshot = try SegmentReader(image.deadSource).snapshot()
        #expect(!snapshot.isAlive)
        #expect(snapshot.takenAt == MonotonicTime(nanoseconds: start + 340_000_000))
        #expect(snapshot.stalls[0].state == .open)
        #expect(snapshot.stalls[0].duration == .milliseconds(340))
    }

    @Test("notices that the process has died, and stays readable")
    func deathWhileReading() throws {
        let sleeper = try Sleeper()
        image.header.pointee.pid = UInt32(sleeper.pid)
        image.header.pointee.start_ticks = sleeper.startTicks
        image.openStall(1, start: image.header.pointee.heartbeat_ns - 5_000_000)
        let reader = try SegmentReader(
            SegmentSource(pid: sleeper.pid, startTicks: sleeper.startTicks, path: image.path, isAlive: true))
        #expect(try reader.snapshot().isAlive)
        sleeper.end()
        let snapshot = try reader.snapshot()
        #expect(!snapshot.isAlive)
        #expect(snapshot.stalls[0].duration == .milliseconds(5))
    }

    @Test("stops the clock of open stalls when the agent is gone from a living process, as after an exec")
    func agentIsGone() throws {
        let start: UInt64 = 10_000_000_000
        image.header.pointee.heartbeat_ns = start + 20_000_000
        image.openStall(1, start: start)
        let sleeper = try Sleeper()
        image.header.pointee.pid = UInt32(sleeper.pid)
        image.header.pointee.start_ticks = sleeper.startTicks
        let snapshot = try SegmentReader(
            SegmentSource(pid: sleeper.pid, startTicks: sleeper.startTicks, path: image.path, isAlive: true)
        ).snapshot()
        #expect(snapshot.isAlive)
        #expect(snapshot.stalls[0].duration == .milliseconds(20))
    }

    @Test("is still had from an unlinked file, whose last state it is")
    func unlinked() throws {
        image.startLoop(0)
        let reader = try SegmentReader(image.source)
        #expect(!reader.isUnlinked)
        image.header.pointee.state = UInt32(LAG_STATE_FINISHED)
        unlink(image.path)
        #expect(reader.isUnlinked)
        let snapshot = try reader.snapshot()
        #expect(snapshot.state == .finished)
        #expect(snapshot.loops.count == 1)
        #expect(throws: TelemetryError.self) { try SegmentReader(image.source) }
    }

    @Test("has the pools, without what they cannot say")
    func pools() throws {
        let pool = image.pool(1)
        pool.pointee.state = 1
        pool.pointee.kind = UInt32(LAG_POOL_ANYIO)
        pool.pointee.method = UInt32(LAG_METHOD_PROBE)
        pool.pointee.threads = -1
        SegmentImage.write("limiter", to: &pool.pointee.name)
        pool.pointee.busy = lag_gauge(last: 3, max: 40, sum: 60, count: 4)
        pool.pointee.queue_depth.last = .min
        pool.pointee.in_flight.last = .min
        let pools = try SegmentReader(image.source).snapshot().pools
        #expect(
            pools == [
                PoolSnapshot(
                    slot: 1, kind: "anyio", name: "limiter", threads: nil, busy: Gauge(last: 3, mean: 15, max: 40),
                    queueDepth: nil, inFlight: nil, queueWaitP50: nil, queueWaitP99: nil, queueWaitMax: nil,
                    method: .probe)
            ])
    }

    @Test("has the modules, and follows them as they change")
    func modules() throws {
        let path = image.addText(Array("/lib/libc.so.6".utf8))
        let module = image.module(0)
        module.pointee.path_offset = path.offset
        module.pointee.path_bytes = path.count
        module.pointee.start = 0x1000
        module.pointee.end = 0x9000
        module.pointee.build_id_bytes = 3
        module.pointee.build_id.0 = 0xab
        module.pointee.flags = UInt32(LAG_MODULE_DELETED)
        image.header.pointee.modules_used = 1
        let reader = try SegmentReader(image.source)
        let first = try #require(try reader.snapshot().modules.first)
        #expect(first.path == "/lib/libc.so.6")
        #expect(first.buildID == [0xab, 0, 0])
        #expect(first.isDeleted && first.isMapped && !first.isVDSO)
        module.pointee.unmapped_ns = 1
        image.header.pointee.modules_generation += 1
        #expect(try reader.snapshot().modules.first?.isMapped == false)
        image.header.pointee.modules_used = 60_000
        #expect(try reader.snapshot().modules.count == 1)
    }

    @Test("reads the tables of a later version, whose records are longer")
    func longerRecords() throws {
        let image = try SegmentImage(path: folder.file("longer"), .init(surplus: 64))
        image.startLoop(3)
        image.loop(3).pointee.iterations = 1
        image.histogram(3)[927] = 1
        image.openStall(9, start: 5)
        image.pool(1).pointee.state = 1
        let snapshot = try SegmentReader(image.source).snapshot()
        #expect(snapshot.loops.first?.histogram.counts.last == 1)
        #expect(snapshot.stalls.first?.id == 9)
        #expect(snapshot.pools.first?.slot == 1)
    }

    @Test("shows nothing that a terminal would obey")
    func printable() throws {
        image.startLoop(0, name: "\u{1b}]0;x\u{7}\u{9b}1m")
        image.startLoop(1, name: "a\u{202e}b\u{200b}c\r\nd")
        image.startLoop(2, name: "größe-日本")
        withUnsafeMutableBytes(of: &image.loop(3).pointee.thread_name) { $0[0] = 0xff }
        image.startLoop(3, name: "")
        withUnsafeMutableBytes(of: &image.loop(3).pointee.thread_name) { bytes in
            for i in 0..<16 { bytes[i] = 0xff }
        }
        let names = try SegmentReader(image.source).snapshot().loops.map(\.threadName)
        #expect(names == ["]0;x1m", "abc  d", "größe-日本", String(repeating: "\u{fffd}", count: 16)])
    }

    @Test("counts iterations in the buckets of the layout")
    func buckets() {
        #expect(IterationHistogram.bucketCount == Int(LAG_HISTOGRAM_BUCKETS))
        for i in 0...UInt32(LAG_HISTOGRAM_BUCKETS) {
            let low = lag_histogram_lower(i)
            #expect(IterationHistogram.lowerBound(Int(i)) == low)
            guard i < UInt32(LAG_HISTOGRAM_BUCKETS) else { continue }
            let high = lag_histogram_lower(i + 1) - 1
            for value in [low, high, (low + high) / 2] {
                #expect(IterationHistogram.index(of: value) == Int(i))
                #expect(lag_histogram_index(value) == i)
            }
        }
        var random = Seeded(state: 1)
        for _ in 0..<20_000 {
            let value = random.next() >> (random.next() % 64)
            #expect(IterationHistogram.index(of: value) == Int(lag_histogram_index(value)))
        }
        #expect(IterationHistogram.index(of: .max) == Int(lag_histogram_index(.max)))
    }
}
