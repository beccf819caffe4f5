/// A segment as an agent would write it, built from the C structs of the layout, for the tests of the reader.
///
/// Lives in a mapping of its own file, so that a test is host and writer at once. Removes the file with itself.

import CLoopLagLayout
import Glibc
import Synchronization

@testable import LoopLagTelemetry

final class SegmentImage {
    struct Shape {
        var loops = 4
        var pools = 2
        var stalls = 8
        var modules = 4
        var stringBytes = 4096
        var ringBytes = 8192
        /// Added to every stride, as a later version would.
        var surplus = 0

        static let standard = Shape(
            loops: Int(LAG_MAX_LOOPS), pools: Int(LAG_MAX_POOLS), stalls: Int(LAG_MAX_STALLS),
            modules: Int(LAG_MAX_MODULES), stringBytes: Int(LAG_STRING_BYTES), ringBytes: 380 << 10)
    }

    let path: String
    let bytes: Int
    let base: UnsafeMutableRawPointer
    private let descriptor: Int32
    private let removes: Bool

    /// For what only the file's own process could do.
    var ownDescriptor: Int32 { descriptor }

    var header: UnsafeMutablePointer<lag_header> { base.assumingMemoryBound(to: lag_header.self) }

    init(path: String, _ shape: Shape = Shape(), descriptor: Int32? = nil) throws {
        var offset = Int(LAG_HEADER_BYTES)
        func table(_ count: Int, _ stride: Int) -> lag_table {
            defer { offset += count * stride }
            return lag_table(offset: UInt32(offset), count: UInt32(count), stride: UInt32(stride), reserved: 0)
        }
        let loops = table(shape.loops, MemoryLayout<lag_loop_slot>.size + shape.surplus)
        let pools = table(shape.pools, MemoryLayout<lag_pool_slot>.size + shape.surplus)
        let stalls = table(shape.stalls, MemoryLayout<lag_stall>.size + shape.surplus)
        let modules = table(shape.modules, MemoryLayout<lag_module>.size + shape.surplus)
        let strings = table(shape.stringBytes, 1)
        let samples = table(shape.ringBytes, 1)

        self.path = path
        bytes = offset
        removes = descriptor == nil
        self.descriptor = descriptor ?? open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard self.descriptor >= 0, ftruncate(self.descriptor, off_t(offset)) == 0,
            let base = mmap(nil, offset, PROT_READ | PROT_WRITE, MAP_SHARED, self.descriptor, 0), base != MAP_FAILED
        else { throw SystemError.last }
        self.base = base

        header.pointee.abi_version = UInt32(LAG_ABI_VERSION)
        header.pointee.header_bytes = UInt32(MemoryLayout<lag_header>.size)
        header.pointee.total_bytes = UInt64(offset)
        header.pointee.state = UInt32(LAG_STATE_RUNNING)
        header.pointee.mode = UInt32(LAG_MODE_PRELOAD)
        header.pointee.loops = loops
        header.pointee.pools = pools
        header.pointee.stalls = stalls
        header.pointee.modules = modules
        header.pointee.strings = strings
        header.pointee.samples = samples
        header.pointee.pid = UInt32(getpid())
        header.pointee.uid = geteuid()
        header.pointee.start_ticks = Own.startTicks
        header.pointee.start_threshold_ns = 100_000_000
        header.pointee.capture_threshold_ns = 100_000_000
        header.pointee.heartbeat_ns = monotonicNanoseconds()
        header.pointee.anchor_monotonic_ns = header.pointee.heartbeat_ns
        header.pointee.anchor_realtime_ns = 1_700_000_000_000_000_000
        header.pointee.magic = LAG_SEGMENT_MAGIC
    }

    deinit {
        munmap(base, bytes)
        if removes {
            close(descriptor)
            unlink(path)
        }
    }

    /// Of this test process, which is alive.
    var source: SegmentSource {
        SegmentSource(pid: getpid(), startTicks: Own.startTicks, path: path, isAlive: true)
    }

    /// As if the process that wrote it were gone.
    var deadSource: SegmentSource {
        SegmentSource(pid: getpid(), startTicks: Own.startTicks &+ 1, path: path, isAlive: false)
    }

    private func entry<Record>(_ table: lag_table, _ index: Int, _: Record.Type) -> UnsafeMutablePointer<Record> {
        (base + Int(table.offset) + index * Int(table.stride)).assumingMemoryBound(to: Record.self)
    }

    func loop(_ index: Int) -> UnsafeMutablePointer<lag_loop_slot> {
        entry(header.pointee.loops, index, lag_loop_slot.self)
    }

    func pool(_ index: Int) -> UnsafeMutablePointer<lag_pool_slot> {
        entry(header.pointee.pools, index, lag_pool_slot.self)
    }

    func stall(_ id: UInt64) -> UnsafeMutablePointer<lag_stall> {
        entry(header.pointee.stalls, Int(id % UInt64(header.pointee.stalls.count)), lag_stall.self)
    }

    func module(_ index: Int) -> UnsafeMutablePointer<lag_module> {
        entry(header.pointee.modules, index, lag_module.self)
    }

    func histogram(_ index: Int) -> UnsafeMutableBufferPointer<UInt64> {
        let start =
            UnsafeMutableRawPointer(loop(index)) + MemoryLayout<lag_loop_slot>.size
            - 8 * Int(LAG_HISTOGRAM_BUCKETS)
        return UnsafeMutableBufferPointer(
            start: start.assumingMemoryBound(to: UInt64.self), count: Int(LAG_HISTOGRAM_BUCKETS))
    }

    func startLoop(_ index: Int, generation: UInt32 = 1, tid: Int32 = 77, name: String = "main") {
        let slot = loop(index)
        slot.pointee.generation = generation
        slot.pointee.tid = tid
        slot.pointee.epfd = 5
        slot.pointee.wait_kind = UInt32(LAG_WAIT_EPOLL_WAIT)
        slot.pointee.registered_ns = header.pointee.anchor_monotonic_ns
        slot.pointee.min_ns = .max
        Self.write(name, to: &slot.pointee.thread_name)
        slot.pointee.state = UInt32(LAG_LOOP_LIVE)
    }

    /// As the loop's thread notes an iteration at or above the threshold.
    func endIteration(_ index: Int, start: UInt64, duration: UInt64) {
        let slot = loop(index)
        let place = Int(slot.pointee.long_head % UInt32(LAG_RECENT_LONG))
        withUnsafeMutablePointer(to: &slot.pointee.recent_long) { list in
            list.withMemoryRebound(to: lag_long_iteration.self, capacity: Int(LAG_RECENT_LONG)) {
                $0[place] = lag_long_iteration(start_ns: start, duration_ns: duration)
            }
        }
        slot.pointee.long_head &+= 1
        slot.pointee.iterations &+= 1
    }

    func openStall(_ id: UInt64, start: UInt64, loop: UInt32 = 0) {
        let record = stall(id)
        record.pointee.seq |= 1
        let seq = record.pointee.seq
        record.pointee = lag_stall()
        record.pointee.id = id
        record.pointee.loop_index = loop
        record.pointee.loop_generation = 1
        record.pointee.tid = 77
        record.pointee.start_ns = start
        record.pointee.detected_ns = start &+ 100_000_000
        record.pointee.syscall_nr = -1
        record.pointee.state = UInt32(LAG_STALL_OPEN)
        record.pointee.seq = seq &+ 1
        header.pointee.stalls_opened = max(header.pointee.stalls_opened, id)
    }

    func endStall(_ id: UInt64, duration: UInt64, state: Int = Int(LAG_STALL_CLOSED)) {
        let record = stall(id)
        record.pointee.seq |= 1
        record.pointee.duration_ns = duration
        record.pointee.state = UInt32(state)
        record.pointee.seq &+= 1
    }

    /// Adds a text to the string table and gives its place.
    func addText(_ text: [UInt8]) -> (offset: UInt32, count: UInt32) {
        let used = header.pointee.strings_used
        let target = base + Int(header.pointee.strings.offset + used)
        target.copyMemory(from: text, byteCount: text.count)
        header.pointee.strings_used = used + UInt32(text.count) + 1
        return (used, UInt32(text.count))
    }

    /// Writes a sample as the watchdog does: tail first, a filler where it would wrap, head last.
    @discardableResult
    func append(stall: UInt64, stack: [UInt8], change: (inout lag_sample) -> Void = { _ in }) -> UInt64 {
        let size = UInt64(header.pointee.samples.count)
        let ring = base + Int(header.pointee.samples.offset)
        let total = UInt64((MemoryLayout<lag_sample>.size + stack.count + 7) & ~7)
        var head = header.pointee.samples_head
        if head % size + total > size {
            let rest = size - head % size
            makeRoom(head + rest)
            atomicMemoryFence(ordering: .sequentiallyConsistent)
            if rest >= 16 {
                let filler = (ring + Int(head % size)).assumingMemoryBound(to: UInt32.self)
                filler[0] = UInt32(LAG_SAMPLE_FILLER)
                filler[1] = UInt32(rest)
            }
            head += rest
        }
        makeRoom(head + total)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        var record = lag_sample()
        record.magic = UInt32(LAG_SAMPLE_MAGIC)
        record.total_bytes = UInt32(total)
        record.position = head
        record.stall_id = stall
        record.tid = 77
        record.method = UInt8(LAG_SAMPLE_SIGNAL)
        record.thread_state = UInt8(ascii: "R")
        record.syscall_nr = -1
        record.stack_bytes = UInt32(stack.count)
        change(&record)
        let place = ring + Int(head % size)
        place.storeBytes(of: record, as: lag_sample.self)
        (place + MemoryLayout<lag_sample>.size).copyMemory(from: stack, byteCount: stack.count)
        starts.append(head)
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        header.pointee.samples_head = head + total
        return head
    }

    private var starts: [UInt64] = []

    private func makeRoom(_ end: UInt64) {
        let size = UInt64(header.pointee.samples.count)
        while let first = starts.first, end > size, first < end - size { starts.removeFirst() }
        header.pointee.samples_tail = starts.first ?? header.pointee.samples_head
    }

    static func write<Field>(_ text: String, to field: inout Field) {
        withUnsafeMutableBytes(of: &field) { bytes in
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
            bytes.copyBytes(from: text.utf8.prefix(bytes.count))
        }
    }
}

/// Facts about the test process.
enum Own {
    static let startTicks = ProcFS.process(getpid())?.startTicks ?? 0
}

/// A folder of its own for one test, removed with what is in it.
final class Folder {
    let path: String

    init() throws {
        var template = Array(("/tmp/looplag-test-" + String(repeating: "X", count: 6)).utf8CString)
        guard let made = mkdtemp(&template) else { throw SystemError.last }
        path = String(cString: made)
    }

    deinit {
        for name in ProcFS.names(in: path) where name != Array(".".utf8) && name != Array("..".utf8) {
            let file = "\(path)/\(String(decoding: name, as: UTF8.self))"
            if unlink(file) != 0 { rmdir(file) }
        }
        rmdir(path)
    }

    func file(_ name: String = "segment") -> String { "\(path)/\(name)" }
}

/// A stranger: a process that sleeps until the test ends it.
final class Sleeper {
    let pid: Int32

    init(_ arguments: [String] = ["/bin/sleep", "600"]) throws {
        var pid: pid_t = 0
        var pointers: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) }
        pointers.append(nil)
        defer { pointers.forEach { free($0) } }
        let code = posix_spawn(&pid, arguments[0], nil, nil, pointers, environ)
        guard code == 0 else { throw SystemError(code: code) }
        self.pid = pid
    }

    var startTicks: UInt64 { ProcFS.process(pid)?.startTicks ?? 0 }

    private var isOver = false

    func end() {
        guard !isOver else { return }
        isOver = true
        kill(pid, SIGKILL)
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
    }

    deinit { end() }
}

/// Numbers that are the same in every run.
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// Writes a segment from a thread of its own, as fast as it can, until it is ended.
final class BackgroundWriter {
    private let state: State
    private var thread = pthread_t()

    private final class State: Sendable {
        let isOver = Atomic<Bool>(false)
        // Safety: both outlive the thread, which end() joins; the test itself only reads through the file.
        nonisolated(unsafe) let image: SegmentImage
        let step: @Sendable (SegmentImage, UInt64) -> Void

        init(_ image: SegmentImage, _ step: @escaping @Sendable (SegmentImage, UInt64) -> Void) {
            self.image = image
            self.step = step
        }

        func run() {
            var round: UInt64 = 0
            while !isOver.load(ordering: .relaxed) {
                round += 1
                step(image, round)
            }
        }
    }

    /// - Parameter step: called again and again with the number of the call, from 1.
    init(_ image: SegmentImage, _ step: @escaping @Sendable (SegmentImage, UInt64) -> Void) {
        state = State(image, step)
        let raw = Unmanaged.passRetained(state).toOpaque()
        pthread_create(
            &thread, nil,
            { raw in
                guard let raw else { return nil }
                Unmanaged<State>.fromOpaque(raw).takeRetainedValue().run()
                return nil
            }, raw)
    }

    func end() {
        state.isOver.store(true, ordering: .relaxed)
        pthread_join(thread, nil)
    }
}
