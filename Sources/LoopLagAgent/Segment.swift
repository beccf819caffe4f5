/// Creates the telemetry segment and hands out its tables. Offsets and counts are kept privately: the file can be
/// written by a reader of the same user, so the agent never takes an address from it.
///
/// Runs on the thread that starts the agent, once. The file lies in LOOPLAG_DIR, else /dev/shm, else nowhere (memfd).

import CLoopLag

struct Segment {
    let base: UnsafeMutableRawPointer
    let bytes: Int
    let header: UnsafeMutablePointer<lag_header>
    let loops: UnsafeMutablePointer<lag_loop_slot>
    let loopCount: Int
    let stalls: UnsafeMutablePointer<lag_stall>
    let stallCount: Int
    let samples: UnsafeMutableRawPointer
    let sampleBytes: Int
    let modules: UnsafeMutablePointer<lag_module>
    let moduleCount: Int
    let strings: UnsafeMutablePointer<UInt8>
    let stringBytes: Int
    /// The memfd that holds it, -1 for a file.
    let descriptor: Int32

    /// Reserves and fills the segment; nil where neither a file nor a memfd can be had.
    static func create(threshold: UInt64) -> Segment? {
        let scratchBytes = 8192
        guard let scratch = lag_memory_zeroed(scratchBytes) else { return nil }
        defer { lag_memory_free(scratch, scratchBytes) }
        let text = scratch.assumingMemoryBound(to: UInt8.self)
        let ticks = ownStartTicks(text, capacity: scratchBytes)
        var path = ByteBuilder(text, capacity: 256)

        if let directory = lag_env("LOOPLAG_DIR"), directory[0] == UInt8(ascii: "/") {
            path.append(cString: directory, limit: 256)
            path.append(UInt8(ascii: "/"))
            if let segment = createFile(&path, ticks: ticks, threshold: threshold) { return segment }
        }
        path = ByteBuilder(text, capacity: 256)
        path.append("/dev/shm/")
        if let segment = createFile(&path, ticks: ticks, threshold: threshold) { return segment }
        return createMemfd(ticks: ticks, threshold: threshold)
    }

    private static func createFile(_ path: inout ByteBuilder, ticks: UInt64, threshold: UInt64) -> Segment? {
        path.append("looplag-")
        path.append(decimal: UInt64(truncatingIfNeeded: lag_getpid()))
        path.append(UInt8(ascii: "-"))
        path.append(decimal: ticks)
        guard path.isComplete else { return nil }
        var error: Int32 = 0
        var bytes = Int(LAG_SEGMENT_BYTES)
        var memory = lag_segment_create(path.path, bytes, &error)
        if memory == nil {
            bytes = Int(LAG_SEGMENT_BYTES_SMALL)
            memory = lag_segment_create(path.path, bytes, &error)
        }
        guard let memory else { return nil }
        lag_life_set_segment_path(path.start, path.count)
        return fill(memory, bytes: bytes, descriptor: -1, ticks: ticks, threshold: threshold)
    }

    private static func createMemfd(ticks: UInt64, threshold: UInt64) -> Segment? {
        var error: Int32 = 0
        var descriptor: Int32 = -1
        var bytes = Int(LAG_SEGMENT_BYTES)
        var memory = lag_segment_create_memfd(bytes, &descriptor, &error)
        if memory == nil {
            bytes = Int(LAG_SEGMENT_BYTES_SMALL)
            memory = lag_segment_create_memfd(bytes, &descriptor, &error)
        }
        guard let memory else { return nil }
        lag_life_set_segment_path(emptyText.utf8Start, 0)
        let segment = fill(memory, bytes: bytes, descriptor: descriptor, ticks: ticks, threshold: threshold)
        segment.header.pointee.degraded |= UInt64(LAG_DEGRADED_MEMFD)
        return segment
    }

    /// Lays the tables out and writes the header; `magic` last, so that a reader never sees half of it.
    private static func fill(
        _ memory: UnsafeMutableRawPointer, bytes: Int, descriptor: Int32, ticks: UInt64, threshold: UInt64
    ) -> Segment {
        let isSmall = bytes < Int(LAG_SEGMENT_BYTES)
        let header = memory.bindMemory(to: lag_header.self, capacity: 1)
        var offset = Int(LAG_HEADER_BYTES)

        func table(_ count: Int, _ stride: Int) -> lag_table {
            let entry = lag_table(
                offset: UInt32(truncatingIfNeeded: offset), count: UInt32(truncatingIfNeeded: count),
                stride: UInt32(truncatingIfNeeded: stride), reserved: 0)
            offset &+= count &* stride
            return entry
        }

        let loopCount = Int(isSmall ? LAG_MAX_LOOPS_SMALL : LAG_MAX_LOOPS)
        let poolCount = isSmall ? 0 : Int(LAG_MAX_POOLS)
        let stallCount = Int(isSmall ? LAG_MAX_STALLS_SMALL : LAG_MAX_STALLS)
        let moduleCount = isSmall ? 0 : Int(LAG_MAX_MODULES)
        let stringBytes = isSmall ? 4096 : Int(LAG_STRING_BYTES)
        header.pointee.loops = table(loopCount, MemoryLayout<lag_loop_slot>.stride)
        header.pointee.pools = table(poolCount, MemoryLayout<lag_pool_slot>.stride)
        header.pointee.stalls = table(stallCount, MemoryLayout<lag_stall>.stride)
        header.pointee.modules = table(moduleCount, MemoryLayout<lag_module>.stride)
        header.pointee.strings = table(stringBytes, 1)
        let sampleBytes = isSmall ? 0 : (bytes &- offset) & ~7
        header.pointee.samples = table(sampleBytes, 1)

        let segment = Segment(
            base: memory, bytes: bytes, header: header,
            loops: (memory + Int(header.pointee.loops.offset)).bindMemory(to: lag_loop_slot.self, capacity: loopCount),
            loopCount: loopCount,
            stalls: (memory + Int(header.pointee.stalls.offset)).bindMemory(to: lag_stall.self, capacity: stallCount),
            stallCount: stallCount, samples: memory + Int(header.pointee.samples.offset), sampleBytes: sampleBytes,
            modules: (memory + Int(header.pointee.modules.offset)).bindMemory(
                to: lag_module.self, capacity: moduleCount),
            moduleCount: moduleCount,
            strings: (memory + Int(header.pointee.strings.offset)).assumingMemoryBound(to: UInt8.self),
            stringBytes: stringBytes, descriptor: descriptor)

        header.pointee.abi_version = UInt32(LAG_ABI_VERSION)
        header.pointee.header_bytes = UInt32(truncatingIfNeeded: MemoryLayout<lag_header>.size)
        header.pointee.total_bytes = UInt64(truncatingIfNeeded: bytes)
        header.pointee.mode = lag_life_mode()
        header.pointee.pid = UInt32(bitPattern: lag_getpid())
        header.pointee.uid = lag_geteuid()
        header.pointee.start_ticks = ticks
        header.pointee.start_threshold_ns = threshold
        header.pointee.capture_threshold_ns = threshold
        header.pointee.anchor_monotonic_ns = lag_clock_now()
        header.pointee.anchor_realtime_ns = lag_clock_realtime()
        header.pointee.heartbeat_ns = header.pointee.anchor_monotonic_ns
        header.pointee.pid_namespace = lag_file_inode("/proc/self/ns/pid")
        header.pointee.mount_namespace = lag_file_inode("/proc/self/ns/mnt")
        if isSmall { header.pointee.degraded |= UInt64(LAG_DEGRADED_SMALL_SEGMENT) }
        HostDescription.write(into: segment)
        lag_store_u32(&header.pointee.state, UInt32(LAG_STATE_RUNNING))
        lag_store_u64(&header.pointee.magic, LAG_SEGMENT_MAGIC)
        return segment
    }

    /// Appends bytes to the string table; nil when it is full. Start-up and watchdog only.
    func intern(_ bytes: UnsafePointer<UInt8>, count: Int) -> UInt32? {
        let used = Int(header.pointee.strings_used)
        guard count > 0, used >= 0, used < stringBytes, count < stringBytes &- used else { return nil }
        (strings + used).update(from: bytes, count: count)
        strings[used &+ count] = 0
        lag_store_u32(&header.pointee.strings_used, UInt32(truncatingIfNeeded: used &+ count &+ 1))
        return UInt32(truncatingIfNeeded: used)
    }

    /// Field 22 of /proc/self/stat: with the pid it names this process for ever.
    private static func ownStartTicks(_ buffer: UnsafeMutablePointer<UInt8>, capacity: Int) -> UInt64 {
        let count = lag_file_read("/proc/self/stat", buffer, capacity)
        guard var fields = ThreadLook.fieldsAfterName(UnsafePointer(buffer), count: count) else { return 0 }
        fields.skipFields(19)
        return fields.decimal() ?? 0
    }
}

private let emptyText: StaticString = ""
