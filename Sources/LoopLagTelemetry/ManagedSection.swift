/// The interpreter's side of a sample: from `struct lag_managed` and what follows it to the model.
///
/// Called by RingWalk with bytes that were copied out of the file; pure, on any thread. Counts, offsets and lengths are
/// checked against the section before they are used; a section that does not fit itself is no section.

import CLoopLagLayout
import LoopLagModel

enum ManagedSection {
    private static let headerBytes = MemoryLayout<lag_managed>.size
    private static let frameBytes = MemoryLayout<lag_managed_frame>.size

    static func decode(_ bytes: UnsafeRawBufferPointer) -> ManagedStack? {
        guard bytes.count >= headerBytes else { return nil }
        let header = bytes.loadUnaligned(as: lag_managed.self)
        let limit = UInt32(LAG_MAX_MANAGED_FRAMES)
        guard header.frames <= limit, header.blocker_frames <= limit else { return nil }
        let sampled = Int(header.frames)
        let blocking = Int(header.blocker_frames)
        let textStart = headerBytes + (sampled + blocking) * frameBytes
        guard textStart <= bytes.count, Int(header.text_bytes) <= bytes.count - textStart else { return nil }
        let texts = UnsafeRawBufferPointer(rebasing: bytes[textStart..<textStart + Int(header.text_bytes)])

        func frame(_ index: Int) -> ManagedFrame? {
            let raw = bytes.loadUnaligned(fromByteOffset: headerBytes + index * frameBytes, as: lag_managed_frame.self)
            return decode(raw, texts)
        }
        let frames = (0..<sampled).compactMap(frame)
        var blocker: BlockingThread?
        if header.blocker_tid > 0 {
            blocker = BlockingThread(
                tid: header.blocker_tid, name: text(header.blocker_name, texts) ?? "",
                frames: (sampled..<sampled + blocking).compactMap { frame($0)?.frame })
        }
        var request: ReportStall.Request?
        if let method = text(header.method, texts), let path = text(header.path, texts) {
            request = ReportStall.Request(method: method, path: path)
        }
        return ManagedStack(
            frames: frames, blocker: blocker, task: text(header.task, texts), request: request,
            phase: text(header.phase, texts))
    }

    private static func decode(_ raw: lag_managed_frame, _ texts: UnsafeRawBufferPointer) -> ManagedFrame? {
        let kind: FrameKind
        switch Int(raw.kind) {
        case LAG_MANAGED_PYTHON: kind = .python
        case LAG_MANAGED_JAVASCRIPT: kind = .javascript
        default: return nil
        }
        let flags = Int(raw.flags)
        let line = Int(raw.line)
        return ManagedFrame(
            frame: Frame(
                function: text(raw.function, texts) ?? "?", kind: kind, file: text(raw.file, texts),
                line: line > 0 ? line : nil, column: raw.column > 0 ? Int(raw.column) : nil,
                coroutine: flags & Int(LAG_FRAME_COROUTINE) != 0 ? true : nil,
                approximate: flags & Int(LAG_FRAME_APPROXIMATE) != 0 ? true : nil),
            stackAddress: raw.stack_address == 0 ? nil : raw.stack_address,
            isEntry: flags & Int(LAG_FRAME_ENTRY) != 0)
    }

    private static func text(_ text: lag_text, _ bytes: UnsafeRawBufferPointer) -> String? {
        let offset = Int(text.offset)
        let count = Int(text.bytes)
        guard count > 0, offset <= bytes.count, count <= bytes.count - offset else { return nil }
        return Printable.text(UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]))
    }
}
