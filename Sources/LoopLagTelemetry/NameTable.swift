/// Modules, and the texts that the header and the modules point to.
///
/// Used by SegmentReader on its thread. Both change rarely, so they are read only when their counters have moved, and
/// once more at the look after that: the counters and the entries are not read at the same moment.

import CLoopLagLayout
import LoopLagModel

final class NameTable {
    private(set) var modules: [ModuleRecord] = []
    private(set) var executable: String?
    private(set) var runtimeVersion: String?
    private(set) var command: [String] = []

    private let moduleTable: SegmentTable
    private let stringTable: SegmentTable
    private let moduleCount: Int
    private let stringCount: Int
    private var seen: Version?
    private var isSettled = false

    /// Everything that moves when an entry or a text does.
    private struct Version: Equatable {
        var modulesUsed: UInt32
        var generation: UInt32
        var stringsUsed: UInt32
        var executable: TextRange
        var command: TextRange
        var runtimeVersion: TextRange
    }

    private struct TextRange: Equatable {
        var offset: UInt32
        var count: UInt32
    }

    init(modules: SegmentTable, strings: SegmentTable) {
        moduleTable = modules
        stringTable = strings
        moduleCount = min(modules.count, SegmentLimit.modules)
        stringCount = min(strings.count, SegmentLimit.stringBytes)
    }

    func refresh(from file: SegmentFile, header: UnsafePointer<lag_header>) throws(TelemetryError) {
        let raw = header.pointee
        let version = Version(
            modulesUsed: raw.modules_used, generation: raw.modules_generation, stringsUsed: raw.strings_used,
            executable: TextRange(offset: raw.executable_offset, count: raw.executable_bytes),
            command: TextRange(offset: raw.command_offset, count: raw.command_bytes),
            runtimeVersion: TextRange(offset: raw.runtime_version_offset, count: raw.runtime_version_bytes))
        if version == seen, isSettled { return }
        isSettled = version == seen
        seen = version

        let used = min(moduleCount, Int(raw.modules_used))
        let records = RecordBuffer(count: used * moduleTable.stride)
        if used > 0 { try file.read(records.start, count: used * moduleTable.stride, at: moduleTable.offset) }
        let strings = RecordBuffer(count: stringCount)
        if stringCount > 0 { try file.read(strings.start, count: stringCount, at: stringTable.offset) }

        modules = (0..<used).compactMap { i in
            let record = records.start.advanced(by: i * moduleTable.stride).assumingMemoryBound(to: lag_module.self)
            return module(UnsafePointer(record), strings)
        }
        executable = text(version.executable, strings)
        runtimeVersion = text(version.runtimeVersion, strings)
        command = arguments(version.command, strings)
    }

    /// The bytes of a range if it lies within the string table, at most what a path can have.
    private func bytes(_ range: TextRange, _ strings: RecordBuffer, limit: Int) -> UnsafeRawBufferPointer? {
        let (offset, count) = (Int(range.offset), Int(range.count))
        guard count > 0, offset <= stringCount, count <= stringCount - offset else { return nil }
        return UnsafeRawBufferPointer(start: strings.start + offset, count: min(count, limit))
    }

    private func text(_ range: TextRange, _ strings: RecordBuffer) -> String? {
        guard let bytes = bytes(range, strings, limit: SegmentLimit.textBytes) else { return nil }
        let text = Printable.field(bytes)
        return text.isEmpty ? nil : text
    }

    /// NUL between the arguments, and perhaps one at the end. An empty argument in the middle is one.
    private func arguments(_ range: TextRange, _ strings: RecordBuffer) -> [String] {
        guard var bytes = bytes(range, strings, limit: stringCount) else { return [] }
        if bytes.last == 0 { bytes = UnsafeRawBufferPointer(rebasing: bytes.dropLast()) }
        return bytes.split(separator: 0, maxSplits: SegmentLimit.arguments, omittingEmptySubsequences: false)
            .prefix(SegmentLimit.arguments)
            .map { Printable.text(UnsafeRawBufferPointer(rebasing: $0)) }
    }

    private func module(_ record: UnsafePointer<lag_module>, _ strings: RecordBuffer) -> ModuleRecord? {
        let raw = record.pointee
        guard raw.end > raw.start else { return nil }
        let path = text(TextRange(offset: raw.path_offset, count: raw.path_bytes), strings) ?? ""
        let buildID = withUnsafeBytes(of: raw.build_id) { Array($0.prefix(Int(min(raw.build_id_bytes, 24)))) }
        return ModuleRecord(
            path: path, buildID: buildID, loadBias: raw.load_bias, start: raw.start, end: raw.end,
            isDeleted: raw.flags & UInt32(LAG_MODULE_DELETED) != 0, isVDSO: raw.flags & UInt32(LAG_MODULE_VDSO) != 0,
            isMapped: raw.unmapped_ns == 0, device: raw.device, inode: raw.inode)
    }
}
