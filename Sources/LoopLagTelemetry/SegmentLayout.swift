/// The head of a segment and where its tables lie, proved to fit the file before anything else is read.
///
/// Made once by SegmentReader (and by discovery for a look at the head), on their thread. All arithmetic is on values
/// that the checks have bounded; what does not fit is `.corrupt` or `.otherVersion`, never a trap.

import CLoopLagLayout

/// Memory for records, aligned for the C structs, freed with its owner.
final class RecordBuffer {
    let start: UnsafeMutableRawPointer

    /// - Parameter isZeroed: false when every byte is read from the file before anybody looks.
    init(count: Int, isZeroed: Bool = true) {
        start = .allocate(byteCount: max(count, 64), alignment: 64)
        if isZeroed { start.initializeMemory(as: UInt8.self, repeating: 0, count: max(count, 64)) }
    }

    deinit { start.deallocate() }
}

/// One table of the segment; `end` is inside the file that it was checked against.
struct SegmentTable: Hashable {
    var offset: Int
    /// What the agent wrote: the modulus of its rings.
    var count: Int
    var stride: Int

    func position(of index: Int) -> Int { offset + index * stride }
}

struct SegmentLayout: Hashable {
    var loops: SegmentTable
    var pools: SegmentTable
    var stalls: SegmentTable
    var samples: SegmentTable
    var modules: SegmentTable
    var strings: SegmentTable
    /// Everything above lies below this byte.
    var totalBytes: Int

    static let headerBytes = MemoryLayout<lag_header>.size

    /// - Parameter fileBytes: the size of the file at this moment.
    init(_ header: UnsafePointer<lag_header>, fileBytes: Int, path: String) throws(TelemetryError) {
        func corrupt(_ reason: String) -> TelemetryError { .corrupt(path: path, reason: reason) }
        guard header.pointee.magic == LAG_SEGMENT_MAGIC else { throw corrupt("it does not begin as a segment does") }
        guard header.pointee.abi_version == UInt32(LAG_ABI_VERSION) else {
            throw .otherVersion(path: path, found: header.pointee.abi_version, known: UInt32(LAG_ABI_VERSION))
        }
        guard header.pointee.header_bytes >= UInt32(Self.headerBytes),
            header.pointee.header_bytes <= UInt32(LAG_HEADER_BYTES)
        else { throw corrupt("a header of \(header.pointee.header_bytes) bytes") }
        let total = header.pointee.total_bytes
        guard total >= UInt64(LAG_HEADER_BYTES), total <= UInt64(SegmentFile.maximumBytes), Int(total) <= fileBytes
        else { throw corrupt("\(fileBytes) bytes where its head says \(total)") }

        func table(
            _ raw: lag_table, _ name: String, least: Int, exact: Bool = false
        ) throws(TelemetryError) -> SegmentTable {
            guard raw.count > 0 else { return SegmentTable(offset: 0, count: 0, stride: least) }
            let stride = UInt64(raw.stride)
            guard exact ? stride == UInt64(least) : stride >= UInt64(least) && stride % 8 == 0 else {
                throw corrupt("\(name) of \(raw.stride) bytes each")
            }
            // Two 32-bit factors and a 32-bit term cannot overflow 64 bits by more than the checks below see.
            let (size, overflow) = UInt64(raw.count).multipliedReportingOverflow(by: stride)
            let (end, overflowed) = UInt64(raw.offset).addingReportingOverflow(size)
            guard !overflow, !overflowed, raw.offset >= header.pointee.header_bytes, raw.offset % 8 == 0, end <= total
            else { throw corrupt("\(name) reach beyond its end") }
            return SegmentTable(offset: Int(raw.offset), count: Int(raw.count), stride: Int(stride))
        }
        loops = try table(header.pointee.loops, "loops", least: MemoryLayout<lag_loop_slot>.size)
        pools = try table(header.pointee.pools, "pools", least: MemoryLayout<lag_pool_slot>.size)
        stalls = try table(header.pointee.stalls, "stalls", least: MemoryLayout<lag_stall>.size)
        samples = try table(header.pointee.samples, "samples", least: 1, exact: true)
        modules = try table(header.pointee.modules, "modules", least: MemoryLayout<lag_module>.size)
        strings = try table(header.pointee.strings, "strings", least: 1, exact: true)
        guard samples.count % 8 == 0 else { throw corrupt("a sample ring of \(samples.count) bytes") }
        totalBytes = Int(total)
    }
}

/// The most entries a reader looks at, whatever a header says: four times what today's agents write.
enum SegmentLimit {
    static let loops = 4 * Int(LAG_MAX_LOOPS)
    static let pools = 4 * Int(LAG_MAX_POOLS)
    static let stalls = 4 * Int(LAG_MAX_STALLS)
    static let modules = 4 * Int(LAG_MAX_MODULES)
    static let stringBytes = 4 * Int(LAG_STRING_BYTES)
    static let textBytes = 4096
    static let arguments = 1024
}

/// The segment's first bytes, read again for every look.
final class SegmentHead {
    private let buffer = RecordBuffer(count: SegmentLayout.headerBytes)

    var header: UnsafePointer<lag_header> {
        UnsafePointer(buffer.start.assumingMemoryBound(to: lag_header.self))
    }

    func refresh(from file: SegmentFile) throws(TelemetryError) {
        try file.read(buffer.start, count: SegmentLayout.headerBytes, at: 0)
    }
}
