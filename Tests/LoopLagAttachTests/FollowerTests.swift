import CLoopLagLayout
import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry
import Testing

@testable import LoopLagCLI

/// A segment of this test process, as an agent would write it: one loop, eight places for stalls.
private final class FakeSegment {
    let folder: TemporaryFolder
    let path: String
    let base: UnsafeMutableRawPointer
    let bytes: Int
    let start: UInt64
    private let stallTable: lag_table

    init() throws {
        var offset = Int(LAG_HEADER_BYTES)
        func table(_ count: Int, _ stride: Int) -> lag_table {
            defer { offset += count * stride }
            return lag_table(offset: UInt32(offset), count: UInt32(count), stride: UInt32(stride), reserved: 0)
        }
        let loops = table(2, MemoryLayout<lag_loop_slot>.size)
        let pools = table(1, MemoryLayout<lag_pool_slot>.size)
        stallTable = table(8, MemoryLayout<lag_stall>.size)
        let modules = table(1, MemoryLayout<lag_module>.size)
        let strings = table(64, 1)
        let samples = table(4096, 1)
        bytes = offset
        folder = try TemporaryFolder()
        path = try folder.file("segment", Array(repeating: 0, count: offset), mode: 0o600)
        let descriptor = open(path, O_RDWR | O_CLOEXEC)
        guard descriptor >= 0,
            let base = mmap(nil, offset, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0), base != MAP_FAILED
        else { throw POSIXFailure(code: errno) }
        close(descriptor)
        self.base = base
        start = Clock.monotonic().nanoseconds

        let header = base.assumingMemoryBound(to: lag_header.self)
        header.pointee.abi_version = UInt32(LAG_ABI_VERSION)
        header.pointee.header_bytes = UInt32(MemoryLayout<lag_header>.size)
        header.pointee.total_bytes = UInt64(offset)
        header.pointee.state = UInt32(LAG_STATE_RUNNING)
        header.pointee.mode = UInt32(LAG_MODE_PRELOAD)
        header.pointee.loops = loops
        header.pointee.pools = pools
        header.pointee.stalls = stallTable
        header.pointee.modules = modules
        header.pointee.strings = strings
        header.pointee.samples = samples
        header.pointee.pid = UInt32(getpid())
        header.pointee.uid = geteuid()
        header.pointee.start_ticks = try ProcessFacts.read(pid: getpid()).startTicks
        header.pointee.start_threshold_ns = 100_000_000
        header.pointee.capture_threshold_ns = 20_000_000
        header.pointee.heartbeat_ns = start
        header.pointee.anchor_monotonic_ns = start
        header.pointee.anchor_realtime_ns = Clock.wall()
        let loop = (base + Int(loops.offset)).assumingMemoryBound(to: lag_loop_slot.self)
        loop.pointee.generation = 1
        loop.pointee.tid = getpid()
        loop.pointee.epfd = 5
        loop.pointee.wait_kind = UInt32(LAG_WAIT_EPOLL_WAIT)
        loop.pointee.registered_ns = start
        loop.pointee.idle_since_ns = start
        loop.pointee.min_ns = .max
        loop.pointee.state = UInt32(LAG_LOOP_LIVE)
        header.pointee.magic = LAG_SEGMENT_MAGIC
    }

    deinit { munmap(base, bytes) }

    var source: SegmentSource {
        get throws {
            let facts = try ProcessFacts.read(pid: getpid())
            return SegmentSource(pid: facts.pid, startTicks: facts.startTicks, path: path, isAlive: true)
        }
    }

    /// Writes a stall that began `ago` before now; a closed one with its length.
    func stall(_ id: UInt64, ago: Duration, closed length: Duration? = nil) {
        let place = Int(stallTable.offset) + Int(id % UInt64(stallTable.count)) * Int(stallTable.stride)
        let record = (base + place).assumingMemoryBound(to: lag_stall.self)
        record.pointee.seq |= 1
        let seq = record.pointee.seq
        if record.pointee.id != id {
            record.pointee = lag_stall()
            record.pointee.seq = seq
            record.pointee.id = id
            record.pointee.loop_generation = 1
            record.pointee.tid = getpid()
            record.pointee.syscall_nr = -1
            record.pointee.start_ns = Clock.monotonic().nanoseconds - UInt64(ago.nanosecondCount)
        }
        record.pointee.state = UInt32(length == nil ? LAG_STALL_OPEN : LAG_STALL_CLOSED)
        record.pointee.duration_ns = UInt64((length ?? .zero).nanosecondCount)
        record.pointee.seq = seq &+ 1
    }
}

@Suite("Following processes")
struct FollowerTests {
    private func follower(
        _ segment: FakeSegment, threshold: Duration = .milliseconds(100), history: Bool = false
    ) throws -> Follower {
        let follower = Follower(scope: .only, threshold: threshold, includesHistory: history)
        try follower.add(try segment.source)
        return follower
    }

    /// What a poll told of stalls, as words.
    private func told(_ events: [Follower.Event]) -> [String] {
        events.compactMap { event in
            switch event {
            case .change(_, .opened(let stall)): "opened \(stall.id)"
            case .change(_, .closed(let stall)): "\(stall.state.rawValue) \(stall.id)"
            case .change(_, .missed(let count)): "missed \(count)"
            case .change(_, .sampled), .found, .thresholdRefused: nil
            case .gone: "gone"
            case .unreadable(_, let error): "unreadable: \(error.message)"
            }
        }
    }

    @Test("A stall is told once when it opens and once when it closes")
    func openedThenClosed() throws {
        let segment = try FakeSegment()
        let follower = try follower(segment)
        let now = Clock.monotonic()
        #expect(told(follower.poll(now: now)).isEmpty)
        segment.stall(1, ago: .milliseconds(150))
        #expect(told(follower.poll(now: now)) == ["opened 1"])
        #expect(told(follower.poll(now: now)).isEmpty)
        segment.stall(1, ago: .zero, closed: .milliseconds(180))
        #expect(told(follower.poll(now: now)) == ["closed 1"])
        #expect(told(follower.poll(now: now)).isEmpty)
        #expect(follower.live.first?.stallHistory.map(\.duration) == [.milliseconds(180)])
    }

    @Test("A reader with a higher threshold than others hears only of its own stalls")
    func ownThreshold() throws {
        let segment = try FakeSegment()
        let follower = try follower(segment, threshold: .seconds(60))
        let now = Clock.monotonic()
        _ = follower.poll(now: now)
        segment.stall(1, ago: .milliseconds(30))
        #expect(told(follower.poll(now: now)).isEmpty)
        segment.stall(1, ago: .zero, closed: .milliseconds(40))
        #expect(told(follower.poll(now: now)).isEmpty)
        segment.stall(2, ago: .milliseconds(30))
        #expect(told(follower.poll(now: now)).isEmpty)
        // It was open all the while and is long enough only at its end.
        segment.stall(2, ago: .zero, closed: .seconds(61))
        #expect(told(follower.poll(now: now)) == ["closed 2"])
    }

    @Test("Stalls from before we came are told only where history was asked for")
    func history() throws {
        let segment = try FakeSegment()
        segment.stall(1, ago: .milliseconds(500), closed: .milliseconds(200))
        segment.stall(2, ago: .milliseconds(200), closed: .milliseconds(20))
        segment.stall(3, ago: .milliseconds(150))
        let now = Clock.monotonic()
        #expect(told(try follower(segment).poll(now: now)) == ["opened 3"])
        let other = try follower(segment, history: true)
        #expect(told(other.poll(now: now)) == ["closed 1", "opened 3"])
        #expect(told(other.poll(now: now)).isEmpty)
    }

    @Test(
        "A stall that is open when its segment goes away is told to have ended, with no length, and stays open for the report"
    )
    func goneInTheMiddle() throws {
        let segment = try FakeSegment()
        let follower = try follower(segment)
        let now = Clock.monotonic()
        segment.stall(1, ago: .milliseconds(150))
        #expect(told(follower.poll(now: now)) == ["opened 1"])
        unlink(segment.path)
        #expect(told(follower.poll(now: now)) == ["dropped 1", "gone"])
        #expect(told(follower.poll(now: now)).isEmpty)
        #expect(follower.live.isEmpty)
        #expect(follower.lost == nil)
        #expect(follower.processes.first?.stallHistory.map(\.state) == [.open])
    }

    @Test("A segment that is cut short under us is one line, and the process counts as lost")
    func truncated() throws {
        let segment = try FakeSegment()
        let follower = try follower(segment)
        let now = Clock.monotonic()
        _ = follower.poll(now: now)
        #expect(truncate(segment.path, 4096) == 0)
        let words = told(follower.poll(now: now))
        #expect(words.count == 2)
        #expect(words.first?.hasPrefix("unreadable: ") == true)
        #expect(words.last == "gone")
        #expect(told(follower.poll(now: now)).isEmpty)
        #expect(follower.lost?.pid == getpid())
    }

    @Test("A process is announced once, after its loops have settled")
    func readiness() throws {
        let segment = try FakeSegment()
        let follower = try follower(segment)
        var readiness = Readiness()
        let now = Clock.monotonic()
        _ = follower.poll(now: now)
        #expect(readiness.lines(follower, now: now).isEmpty)
        #expect(readiness.lines(follower, now: now.advanced(by: .milliseconds(199))).isEmpty)
        let lines = readiness.lines(follower, now: now.advanced(by: .milliseconds(200)))
        #expect(lines.count == 1)
        #expect(lines.first?.hasPrefix("measuring \(getpid()) (") == true)
        #expect(lines.first?.hasSuffix("), 1 loop") == true)
        #expect(readiness.lines(follower, now: now.advanced(by: .seconds(9))).isEmpty)
        #expect(readiness.silence(of: follower, root: nil, since: now, now: now.advanced(by: .seconds(9))) == nil)
    }

    @Test("Silence is explained once, after a while")
    func silence() throws {
        let follower = Follower(scope: .only, threshold: .milliseconds(100), includesHistory: true)
        var readiness = Readiness()
        let now = Clock.monotonic()
        let own = try ProcessFacts.read(pid: getpid())
        #expect(readiness.silence(of: follower, root: own, since: now, now: now.advanced(by: .seconds(2))) == nil)
        let line = readiness.silence(of: follower, root: own, since: now, now: now.advanced(by: .seconds(3)))
        #expect(line?.hasPrefix("no event loop seen yet in \(getpid()) (") == true)
        #expect(readiness.silence(of: follower, root: own, since: now, now: now.advanced(by: .seconds(4))) == nil)
    }

    @Test("The report of what was followed holds its loop and its stalls")
    func report() throws {
        let segment = try FakeSegment()
        let window = ReportWindow()
        let follower = try follower(segment, history: true)
        segment.stall(1, ago: .milliseconds(150), closed: .milliseconds(150))
        _ = follower.poll(now: Clock.monotonic())
        _ = follower.finish(now: Clock.monotonic())
        let report = window.report(of: follower)
        #expect(report.processes.map(\.pid) == [getpid()])
        #expect(report.processes.first?.loops.count == 1)
        #expect(report.processes.first?.stalls.map(\.durationNS) == [150_000_000])
        let line = Summary.line(of: report, output: "lag.json")
        #expect(line.contains("1 stall of 100 ms or more"))
        #expect(line.hasSuffix("report in lag.json"))
    }
}
