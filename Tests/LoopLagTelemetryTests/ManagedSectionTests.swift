import CLoopLagLayout
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("The managed section of a sample")
struct ManagedSectionTests {
    /// A section as the agent lays it out.
    private func section(
        frames: [lag_managed_frame], blockers: [lag_managed_frame] = [], texts: String = "",
        header: (inout lag_managed) -> Void = { _ in }
    ) -> [UInt8] {
        var head = lag_managed()
        head.frames = UInt32(frames.count)
        head.blocker_frames = UInt32(blockers.count)
        head.text_bytes = UInt32(texts.utf8.count)
        header(&head)
        var bytes: [UInt8] = []
        withUnsafeBytes(of: head) { bytes += $0 }
        for frame in frames + blockers { withUnsafeBytes(of: frame) { bytes += $0 } }
        return bytes + Array(texts.utf8)
    }

    private func frame(_ function: lag_text, _ file: lag_text, line: UInt32 = 9, flags: Int = 0) -> lag_managed_frame {
        var frame = lag_managed_frame()
        frame.function = function
        frame.file = file
        frame.line = line
        frame.kind = UInt16(LAG_MANAGED_PYTHON)
        frame.flags = UInt16(flags)
        return frame
    }

    private func decode(_ bytes: [UInt8]) -> ManagedStack? { bytes.withUnsafeBytes { ManagedSection.decode($0) } }

    @Test("Frames, blocker, task and request come back as they were written")
    func whole() throws {
        let texts = "cpuapp.pyGET/cpuTask-3worker"
        let bytes = section(
            frames: [frame(lag_text(offset: 0, bytes: 3), lag_text(offset: 3, bytes: 6), flags: 3)],
            blockers: [frame(lag_text(offset: 0, bytes: 3), lag_text(), line: 0)], texts: texts
        ) {
            $0.blocker_tid = 77
            $0.blocker_name = lag_text(offset: 22, bytes: 6)
            $0.method = lag_text(offset: 9, bytes: 3)
            $0.path = lag_text(offset: 12, bytes: 4)
            $0.task = lag_text(offset: 16, bytes: 6)
        }
        let stack = try #require(decode(bytes))
        #expect(
            stack.frames == [
                ManagedFrame(
                    frame: Frame(function: "cpu", kind: .python, file: "app.py", line: 9, coroutine: true),
                    stackAddress: nil, isEntry: true)
            ])
        #expect(
            stack.blocker == BlockingThread(tid: 77, name: "worker", frames: [Frame(function: "cpu", kind: .python)]))
        #expect(stack.request == ReportStall.Request(method: "GET", path: "/cpu"))
        #expect(stack.task == "Task-3")
        #expect(stack.phase == nil)
    }

    @Test("A section whose counts do not fit its bytes is none")
    func lyingCounts() {
        let good = section(frames: [frame(lag_text(offset: 0, bytes: 1), lag_text())], texts: "f")
        #expect(decode(good) != nil)
        #expect(decode(Array(good.dropLast())) == nil)
        #expect(decode([]) == nil)
        for count in [2, 256, 257, UInt32.max] {
            #expect(decode(section(frames: [], texts: "f") { $0.frames = count }) == nil)
            #expect(decode(section(frames: [], texts: "f") { $0.blocker_frames = count }) == nil)
            #expect(decode(section(frames: [], texts: "f") { $0.text_bytes = count }) == nil)
        }
    }

    @Test("A text that lies outside of the section is unknown, and no text can hold an escape sequence")
    func lyingTexts() throws {
        let far = lag_text(offset: .max, bytes: .max)
        let stack = try #require(decode(section(frames: [frame(far, far)], texts: "f") { $0.task = far }))
        #expect(stack.frames.map(\.frame) == [Frame(function: "?", kind: .python, line: 9)])
        #expect(stack.task == nil)
        let evil = try #require(
            decode(section(frames: [frame(lag_text(offset: 0, bytes: 5), lag_text())], texts: "a\u{1b}[2J")))
        #expect(evil.frames.first?.frame.function == "a[2J")
    }
}
