/// Frames as a person reads them.
///
/// Called by the stall lines and the text report, on any thread. Pure.

import LoopLagDiagnosis
import LoopLagModel

enum FrameText {
    /// Names come from files of foreign processes.
    static func printable(_ frame: Frame) -> Frame {
        var frame = frame
        frame.function = PlainText.printable(frame.function)
        frame.file = frame.file.map(PlainText.printable)
        frame.module = frame.module.map(PlainText.printable)
        return frame
    }

    /// "charge billing.py:41", or with the module where no source is known: "debugCommand redis-server".
    static func short(_ frame: Frame) -> String {
        let place = place(frame)
        return PlainText.printable(frame.function) + (place.isEmpty ? "" : " " + place)
    }

    /// "billing.py:41", else the module, else nothing.
    static func place(_ frame: Frame) -> String {
        if let file = frame.file {
            return PlainText.printable(PlainText.fileName(file)) + (frame.line.map { ":\($0)" } ?? "")
        }
        return PlainText.printable(frame.module ?? "")
    }

    /// Two letters for the language.
    static func tag(_ kind: FrameKind) -> String {
        switch kind {
        case .native: "c"
        case .swift: "sw"
        case .python: "py"
        case .javascript: "js"
        case .kernel: "k"
        }
    }
}
