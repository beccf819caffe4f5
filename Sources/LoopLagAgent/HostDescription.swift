/// What a report says about the host itself: executable, command line, runtime, pid in each namespace. Written into the
/// segment once, at the start, so that it is there after the process has died.

import CLoopLag

enum HostDescription {
    static func write(into segment: Segment) {
        // /proc/self/status has a line of groups, which can be long, ahead of the pids.
        let capacity = 16 << 10
        guard let memory = lag_memory_zeroed(capacity) else { return }
        defer { lag_memory_free(memory, capacity) }
        let buffer = memory.assumingMemoryBound(to: UInt8.self)
        let header = segment.header

        var count = lag_link_read("/proc/self/exe", buffer, capacity)
        if count > 0, let offset = segment.intern(buffer, count: count) {
            header.pointee.executable_offset = offset
            header.pointee.executable_bytes = UInt32(truncatingIfNeeded: count)
        }
        // The small segment keeps room for the executable and a little more.
        let commandLimit = segment.stringBytes > 8192 ? 2048 : 1024
        count = lag_file_read("/proc/self/cmdline", buffer, commandLimit)
        if count > 0, let offset = segment.intern(buffer, count: count) {
            header.pointee.command_offset = offset
            header.pointee.command_bytes = UInt32(truncatingIfNeeded: count)
        }
        var version: UnsafePointer<CChar>?
        header.pointee.runtime = lag_runtime_detect(&version)
        if let version {
            // "3.11.7 (main, ...": the number alone.
            var text = ByteBuilder(buffer, capacity: 32)
            var i = 0
            while i < 31, version[i] > 0x20 {
                text.append(UInt8(bitPattern: version[i]))
                i &+= 1
            }
            if let offset = segment.intern(buffer, count: text.count) {
                header.pointee.runtime_version_offset = offset
                header.pointee.runtime_version_bytes = UInt32(truncatingIfNeeded: text.count)
            }
        }
        writeNamespacePids(header, buffer, capacity)
    }

    private static func writeNamespacePids(
        _ header: UnsafeMutablePointer<lag_header>, _ buffer: UnsafeMutablePointer<UInt8>, _ capacity: Int
    ) {
        var parser = ByteParser(buffer, count: lag_file_read("/proc/self/status", buffer, capacity))
        var found = 0
        withUnsafeMutablePointer(to: &header.pointee.nspids) { tuple in
            tuple.withMemoryRebound(to: UInt32.self, capacity: Int(LAG_MAX_NSPIDS)) { pids in
                while !parser.isAtEnd {
                    if parser.take("NSpid:") {
                        while found < Int(LAG_MAX_NSPIDS) {
                            parser.skip(UInt8(ascii: "\t"))
                            guard let pid = parser.decimal() else { return }
                            pids[found] = UInt32(truncatingIfNeeded: pid)
                            found &+= 1
                        }
                        return
                    }
                    _ = parser.passOver(UInt8(ascii: "\n"))
                }
            }
        }
        header.pointee.nspid_count = UInt32(truncatingIfNeeded: found)
    }
}
