/// A deterministic mutation fuzzer for everything that stands between a hostile segment and a person's terminal.
///
/// Used by FuzzTests. It knows the layout: blows go to the head, tables, strings, sequence numbers, sample records and
/// interpreter sections, with the values that break arithmetic. Round N of a seed is always the same, whatever the
/// rounds before it did, so that a crash is found again by its number alone.

import CLoopLagLayout
import Glibc
import LoopLagModel
import LoopLagReport
import LoopLagSymbols

@testable import LoopLagTelemetry

/// One good segment and the places worth hitting.
final class FuzzSubject {
    let image: SegmentImage
    private let good: [UInt8]
    /// Ranges of structure; one is chosen first and a place in it second, so that big ones do not swallow the blows.
    private let ranges: [Range<Int>]

    init(path: String, _ shape: SegmentImage.Shape) throws {
        image = try SegmentImage(path: path, shape)
        let header = image.header
        var ranges = [0..<128, 128..<MemoryLayout<lag_header>.size, 32..<128]
        Self.fill(image)
        func table(_ table: lag_table, head: Int) {
            for i in 0..<min(Int(table.count), 8) {
                let start = Int(table.offset) + i * Int(table.stride)
                ranges.append(start..<start + head)
            }
        }
        table(header.pointee.loops, head: 448)
        table(header.pointee.pools, head: 256)
        table(header.pointee.stalls, head: 256)
        table(header.pointee.modules, head: 96)
        let loop = Int(header.pointee.loops.offset)
        ranges.append(loop + 448..<loop + MemoryLayout<lag_loop_slot>.size)
        ranges.append(Int(header.pointee.strings.offset)..<Int(header.pointee.strings.offset) + 512)
        let ring = Int(header.pointee.samples.offset)
        for position in Self.samples(image) {
            let start = ring + position
            ranges.append(start..<start + 64)
            ranges.append(start..<start + MemoryLayout<lag_sample>.size)
            // The interpreter's section lies behind the stack copy.
            let record = image.base.load(fromByteOffset: start, as: lag_sample.self)
            let managed = start + MemoryLayout<lag_sample>.size + Int(record.stack_bytes)
            if record.managed_bytes > 0 {
                ranges.append(managed..<managed + MemoryLayout<lag_managed>.size)
                ranges.append(managed..<managed + Int(record.managed_bytes))
            }
        }
        self.ranges = ranges
        good = Array(UnsafeRawBufferPointer(start: image.base, count: image.bytes))
    }

    func restore() {
        good.withUnsafeBytes { bytes in
            guard let start = bytes.baseAddress else { return }
            image.base.copyMemory(from: start, byteCount: bytes.count)
        }
    }

    func strike(_ random: inout Seeded) {
        let range = ranges[Int(random.next() % UInt64(ranges.count))]
        let place = range.lowerBound + Int(random.next() % UInt64(range.count))
        let word = min(place & ~3, image.bytes - 8)
        let long = min(place & ~7, image.bytes - 8)
        let old32 = image.base.load(fromByteOffset: word, as: UInt32.self)
        let old64 = image.base.load(fromByteOffset: long, as: UInt64.self)
        func put(_ value: UInt32) { image.base.storeBytes(of: value, toByteOffset: word, as: UInt32.self) }
        func put(_ value: UInt64) { image.base.storeBytes(of: value, toByteOffset: long, as: UInt64.self) }
        switch random.next() % 10 {
        case 0, 1:
            let byte = image.base.load(fromByteOffset: place, as: UInt8.self)
            image.base.storeBytes(of: byte ^ 1 << UInt8(random.next() % 8), toByteOffset: place, as: UInt8.self)
        case 2: put(Self.telling[Int(random.next() % UInt64(Self.telling.count))])
        case 3: put(UInt32(truncatingIfNeeded: Self.telling[Int(random.next() % UInt64(Self.telling.count))]))
        case 4: put(old32 &+ UInt32(truncatingIfNeeded: Self.near[Int(random.next() % UInt64(Self.near.count))]))
        case 5: put(old64 &+ UInt64(bitPattern: Self.near[Int(random.next() % UInt64(Self.near.count))]))
        case 6: put(random.next())
        case 7: put(UInt32(truncatingIfNeeded: random.next()))
        case 8:
            // A number from elsewhere makes sense in the wrong place.
            let from = ranges[Int(random.next() % UInt64(ranges.count))]
            put(image.base.load(fromByteOffset: min(from.lowerBound & ~7, image.bytes - 8), as: UInt64.self))
        default:
            let count = min(Int(random.next() % 64) + 1, image.bytes - place)
            let byte = UInt8(truncatingIfNeeded: random.next())
            for i in 0..<count { image.base.storeBytes(of: byte, toByteOffset: place + i, as: UInt8.self) }
        }
    }

    private static let telling: [UInt64] = [
        0, 1, 2, 7, 8, 24, 127, 255, 4095, 4096, 1 << 16, 1 << 20, 1 << 31 - 1, 1 << 31, 1 << 32 - 1, 1 << 32, 1 << 50,
        1 << 62, 1 << 63 - 1, 1 << 63, .max - 7, .max - 1, .max,
    ]
    private static let near: [Int64] = [-4096, -64, -8, -4, -1, 1, 4, 8, 64, 272, 4096]

    // -- a good segment ------------------------------------------------------------------------------------------

    private static func fill(_ image: SegmentImage) {
        let header = image.header
        let now = header.pointee.heartbeat_ns
        header.pointee.runtime = UInt32(LAG_RUNTIME_CPYTHON)
        let shape = (
            loops: Int(header.pointee.loops.count), stalls: UInt64(header.pointee.stalls.count),
            modules: Int(header.pointee.modules.count)
        )
        for i in 0..<min(3, shape.loops) {
            image.startLoop(i, tid: 70 + Int32(i), name: i == 0 ? "python" : "worker \(i)")
            let slot = image.loop(i)
            slot.pointee.iterations = 900
            slot.pointee.busy_ns = 5_000_000_000
            slot.pointee.idle_ns = 2_000_000_000
            slot.pointee.stall_count = 3
            slot.pointee.stalled_ns = 900_000_000
            slot.pointee.max_ns = 400_000_000
            slot.pointee.min_ns = 1000
            slot.pointee.known = 7
            slot.pointee.busy_since_ns = i == 1 ? now &- 300_000_000 : 0
            slot.pointee.idle_since_ns = i == 1 ? 0 : now
            slot.pointee.caller_pc = 0x40_1000 + UInt64(i)
            slot.pointee.sched_at_ns = now
            slot.pointee.sched_wait_ns = 5_000
            for bucket in [3, 40, 300, 527, 900] { image.histogram(i)[bucket] = 180 }
            image.endIteration(i, start: now &- 900_000_000, duration: 250_000_000)
        }
        for id in 1...min(UInt64(9), shape.stalls + 2) {
            image.openStall(id, start: now &- 900_000_000 &+ id &* 10_000_000, loop: UInt32(id % 3))
            let record = image.stall(id)
            record.pointee.looks = 9
            record.pointee.observed_ns = 200_000_000
            record.pointee.look_ns.0 = 150_000_000
            record.pointee.look_ns.1 = 50_000_000
            record.pointee.cpu_ns = 150_000_000
            record.pointee.syscall_nr = 230
            record.pointee.known = 7
            record.pointee.events = 40
            record.pointee.samples = 3
            if id % 3 != 0 { image.endStall(id, duration: 220_000_000) }
        }
        for i in 0..<min(2, Int(header.pointee.pools.count)) {
            let pool = image.pool(i)
            pool.pointee.state = 1
            pool.pointee.kind = UInt32(i + 1)
            pool.pointee.threads = 4
            pool.pointee.busy = lag_gauge(last: 4, max: 4, sum: 400, count: 100)
            pool.pointee.queue_depth = lag_gauge(last: 9, max: 20, sum: 900, count: 100)
            pool.pointee.in_flight = lag_gauge(last: .min, max: 0, sum: 0, count: 0)
            pool.pointee.wait_count = 5
            pool.pointee.wait_max_ns = 5_000_000
            SegmentImage.write("pool \(i)", to: &pool.pointee.name)
        }
        let command = image.addText(Array("/usr/bin/python3\u{0}-m\u{0}uvicorn\u{0}app:app".utf8))
        (header.pointee.command_offset, header.pointee.command_bytes) = command
        let executable = image.addText(Array("/usr/bin/python3".utf8))
        (header.pointee.executable_offset, header.pointee.executable_bytes) = executable
        let version = image.addText(Array("3.11.2".utf8))
        (header.pointee.runtime_version_offset, header.pointee.runtime_version_bytes) = version
        fillModules(image, limit: shape.modules)
        fillSamples(image)
    }

    /// Files that are there, files that are not, and files that nobody should open.
    private static func fillModules(_ image: SegmentImage, limit: Int) {
        let paths = [
            "/bin/sh", "/lib/x86_64-linux-gnu/libc.so.6", "/nonexistent/server", "/dev/zero", "/proc/self/mem", "",
            "/etc/passwd", "/usr/bin/env (deleted)",
        ]
        for (i, path) in paths.prefix(limit).enumerated() {
            let text = image.addText(Array(path.utf8))
            let module = image.module(i)
            (module.pointee.path_offset, module.pointee.path_bytes) = text
            module.pointee.start = 0x40_0000 + UInt64(i) << 32
            module.pointee.end = module.pointee.start + 0x20_0000
            module.pointee.load_bias = module.pointee.start
            if i == 7 { module.pointee.flags = UInt32(LAG_MODULE_VDSO) }
        }
        image.header.pointee.modules_used = UInt32(min(paths.count, limit))
        image.header.pointee.modules_generation = 1
    }

    private static func fillSamples(_ image: SegmentImage) {
        for i in 0..<6 {
            let base = UInt64(0x7ffd_0000_0000)
            // A stack of plausible words: frame pointers, return addresses into the modules, noise.
            var words: [UInt64] = (0..<64).map { word in
                switch word % 4 {
                case 0: base + UInt64(word + 4) * 8
                case 1: 0x40_1000 + UInt64(word % 3) << 32 + UInt64(word)
                default: UInt64(word) &* 0x9e37_79b9
                }
            }
            words[63] = 0
            var stack = words.flatMap { word in withUnsafeBytes(of: word) { Array($0) } }
            let section = i % 2 == 0 ? managedSection(frames: 3, blockers: i == 2 ? 2 : 0) : []
            let stackBytes = stack.count
            stack += section
            image.append(stall: UInt64(i % 4 + 1), stack: stack) { record in
                record.stack_bytes = UInt32(stackBytes)
                record.managed_bytes = UInt32(section.count)
                record.method = UInt8(i % 3 + 1)
                record.regs_valid = i % 3 == 1 ? 1 << 7 | 1 << 16 : (1 << 17) - 1
                record.stack_base = base
                record.offset_ns = 100_000_000 + UInt64(i) * 50_000_000
                withUnsafeMutableBytes(of: &record.regs) { bytes in
                    bytes.storeBytes(of: base + 16, toByteOffset: 7 * 8, as: UInt64.self)
                    bytes.storeBytes(of: base + 32, toByteOffset: 6 * 8, as: UInt64.self)
                    bytes.storeBytes(of: 0x40_1234 + UInt64(i % 3) << 32, toByteOffset: 16 * 8, as: UInt64.self)
                }
            }
        }
    }

    private static func managedSection(frames: Int, blockers: Int) -> [UInt8] {
        let texts = Array("handlerapp.pyGET/pathtaskpolltimerblocker".utf8)
        var header = lag_managed()
        header.frames = UInt32(frames)
        header.blocker_frames = UInt32(blockers)
        header.text_bytes = UInt32(texts.count)
        header.blocker_tid = blockers > 0 ? 99 : 0
        header.blocker_name = lag_text(offset: 34, bytes: 7)
        header.task = lag_text(offset: 21, bytes: 4)
        header.method = lag_text(offset: 13, bytes: 3)
        header.path = lag_text(offset: 16, bytes: 5)
        header.phase = lag_text(offset: 25, bytes: 4)
        var bytes = withUnsafeBytes(of: header) { Array($0) }
        for i in 0..<frames + blockers {
            var frame = lag_managed_frame()
            frame.stack_address = 0x7ffd_0000_0040 + UInt64(i) * 64
            frame.function = lag_text(offset: 0, bytes: 7)
            frame.file = lag_text(offset: 7, bytes: 6)
            frame.line = UInt32(i + 1)
            frame.kind = UInt16(i % 2 + 1)
            frame.flags = UInt16(i % 4)
            bytes += withUnsafeBytes(of: frame) { Array($0) }
        }
        bytes += texts
        while bytes.count % 8 != 0 { bytes.append(0) }
        return bytes
    }

    /// Where in the ring each sample begins.
    private static func samples(_ image: SegmentImage) -> [Int] {
        let ring = image.base + Int(image.header.pointee.samples.offset)
        return stride(from: 0, to: Int(image.header.pointee.samples.count) - 272, by: 8).filter {
            ring.load(fromByteOffset: $0, as: UInt32.self) == UInt32(LAG_SAMPLE_MAGIC)
        }
    }
}

/// Rounds of one seed over several subjects.
final class Fuzzer {
    private let subjects: [FuzzSubject]
    private let machine: Report.Machine
    private(set) var refused = 0
    private(set) var reported = 0
    private(set) var decoded = 0

    init(folder: Folder) throws {
        var surplus = SegmentImage.Shape()
        surplus.surplus = 24
        let shapes: [SegmentImage.Shape] = [
            .init(loops: 3, pools: 2, stalls: 6, modules: 8, stringBytes: 1024, ringBytes: 8192), surplus,
            .init(loops: 1, pools: 0, stalls: 4, modules: 2, stringBytes: 1024, ringBytes: 4096),
        ]
        subjects = try shapes.enumerated().map { try FuzzSubject(path: folder.file("subject-\($0)"), $1) }
        machine = Report.Machine(hostname: "host", kernel: "6", cpus: 2, cgroupLimits: nil)
    }

    /// One round. Throws nothing: what a reader refuses is counted.
    func round(_ number: UInt64, seed: UInt64) {
        var random = Seeded(state: seed &+ number &* 0x2545_f491_4f6c_dd1d)
        let subject = subjects[Int(number % UInt64(subjects.count))]
        let image = subject.image
        defer { subject.restore() }
        // Half of the rounds begin with a good look, and the blows fall under an open reader.
        let isLate = random.next() % 2 == 0
        let source = random.next() % 4 == 0 ? image.source : image.deadSource
        var telemetry: ProcessTelemetry?
        if isLate { telemetry = try? ProcessTelemetry(source) }
        for _ in 0...Int(random.next() % 6) { subject.strike(&random) }
        let isCut = random.next() % 64 == 0
        if isCut { truncate(image.path, off_t(random.next() % UInt64(image.bytes))) }
        do {
            let followed = try telemetry ?? ProcessTelemetry(source)
            var samples: [RawSample] = []
            for _ in 0..<2 {
                let update = try followed.poll()
                samples += update.newSamples
                if !isCut { subject.strike(&random) }
            }
            _ = try followed.reader.samples(after: random.next() % 16_384)
            use(followed, samples, &random)
        } catch {
            refused += 1
            _ = (error as? TelemetryError)?.message
        }
        if isCut { truncate(image.path, off_t(image.bytes)) }
        _ = try? SegmentDiscovery.source(ofFile: image.path)
    }

    /// Everything that the command line makes of it.
    private func use(_ followed: ProcessTelemetry, _ samples: [RawSample], _ random: inout Seeded) {
        let snapshot = followed.latest
        var stacks: [StackSample] = []
        // Opening files for a hostile module table costs more than all the rest.
        if random.next() % 4 == 0 {
            let decoder = StackDecoder(identity: nil, modules: snapshot.modules)
            for sample in samples.prefix(4) {
                stacks.append(decoder.decode(sample))
                decoded += 1
            }
            for loop in snapshot.loops.prefix(2) { _ = decoder.frames(at: loop.callerPC, isReturnAddress: true) }
        }
        let threshold = Duration.milliseconds([1, 100, 5000][Int(random.next() % 3)])
        let isWindow = random.next() % 2 == 0
        let end = max(snapshot.takenAt, snapshot.anchor.monotonic)
        let report = ReportBuilder.build(
            ReportInput(
                processes: [
                    ReportInput.Process(
                        from: isWindow ? followed.baseline : nil, to: snapshot, stalls: snapshot.stalls,
                        samples: stacks,
                        goneLoops: followed.baseline.loops)
                ], start: snapshot.anchor.monotonic, end: end,
                startWallNanoseconds: snapshot.anchor.realtimeNanoseconds,
                endWallNanoseconds: snapshot.anchor.realtime(of: end), threshold: threshold, machine: machine,
                version: "0"))
        _ = TextReport.render(report)
        _ = PostmortemText.render(report)
        _ = try? ReportCoding.encode(report)
        reported += 1
    }
}
