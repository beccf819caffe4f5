/// Python frames from the text that the interpreter's own faulthandler writes, where its structures are not known: its name
/// in `degraded` is python-fallback.
///
/// Watchdog only. Of a running main thread alone: a blocked one is never signalled, and of others see python_fallback.c.
/// No request, no task, no blocker: what the text does not say stays absent.

import CLoopLag

struct CPythonFallback {
    private let header: UnsafeMutablePointer<lag_header>
    private let minor: UInt32

    init?(_ header: UnsafeMutablePointer<lag_header>) {
        guard header.pointee.runtime == UInt32(LAG_RUNTIME_CPYTHON) else { return nil }
        self.header = header
        minor = lag_python_found().pointee.version &>> 16 & 0xff
    }

    /// Whether the thread of this loop is the one that can be asked.
    func covers(_ slot: Int) -> Bool {
        lag_fallback_ready() && lag_loop_pthread(UInt32(truncatingIfNeeded: slot)) == lag_fallback_thread()
    }

    /// Says in `degraded` what there is instead.
    func announce() {
        guard lag_fallback_ready() else { return }
        let known = header.pointee.degraded & ~UInt64(LAG_DEGRADED_NO_PYTHON)
        header.pointee.degraded = known | UInt64(LAG_DEGRADED_PYTHON_FALLBACK)
    }

    func describe(_ capture: UnsafePointer<lag_capture>, into section: inout ManagedSection) {
        guard let text = lag_fallback_text() else { return }
        Self.read(text, count: Int(capture.pointee.fallback_bytes), isFlat: minor > 10, into: &section)
    }

    /// Lines of `  File "NAME", line NUMBER in FUNCTION`, leaf first; others say nothing.
    /// - Parameter isFlat: which of them the interpreter was entered with is not known. Up to 3.10 it is each.
    static func read(
        _ text: UnsafePointer<UInt8>, count: Int, isFlat: Bool, into section: inout ManagedSection
    ) {
        var lines = ByteParser(text, count: count)
        while !lines.isAtEnd {
            var line = lines
            guard lines.passOver(UInt8(ascii: "\n")) else { return }
            let end = lines.position &- 1
            guard line.take("  File \"") else { continue }
            let file = line.position
            while !line.isAtEnd, line.position < end, !line.take("\", line ") { _ = line.next() }
            let fileBytes = line.position &- 8 &- file
            // "???" where it is not known.
            let number = line.decimal() ?? 0
            while line.position < end, !line.take(" in ") { _ = line.next() }
            guard line.position < end, fileBytes > 0 else { continue }
            var frame = lag_managed_frame()
            frame.kind = UInt16(LAG_MANAGED_PYTHON)
            frame.function = section.text(text + line.position, end &- line.position)
            frame.file = section.text(text + file, fileBytes)
            frame.line = UInt32(truncatingIfNeeded: number)
            if !isFlat { frame.flags |= UInt16(LAG_FRAME_ENTRY) }
            guard section.add(frame) else { return }
        }
    }
}
