import CLoopLag
import Testing

@testable import LoopLagAgent

@Suite("Writing the managed section")
struct ManagedSectionTests {
    private func text(_ string: String, _ section: inout ManagedSection) -> lag_text {
        let bytes = Array(string.utf8)
        return bytes.withUnsafeBufferPointer { buffer in
            buffer.baseAddress.map { section.text($0, buffer.count) } ?? lag_text()
        }
    }

    private func frame(_ function: lag_text, _ file: lag_text = lag_text()) -> lag_managed_frame {
        var frame = lag_managed_frame()
        frame.function = function
        frame.file = file
        return frame
    }

    @Test("Nothing is written for nothing")
    func nothing() throws {
        var section = try #require(ManagedSection())
        defer { section.release() }
        let count = section.assemble().count
        #expect(count == 0)
    }

    @Test("A text that frames share is kept once, and one that is cut keeps whole characters")
    func texts() throws {
        var section = try #require(ManagedSection())
        defer { section.release() }
        let file = text("app.py", &section)
        let isAdded = section.add(frame(text("f", &section), file))
        #expect(isAdded)
        let again = text("app.py", &section)
        #expect(again.offset == file.offset)
        let long = text(String(repeating: "a", count: 511) + "é", &section)
        #expect(long.bytes == 511)
        let count = section.assemble().count
        #expect(count % 8 == 0)
        #expect(count >= MemoryLayout<lag_managed>.size + MemoryLayout<lag_managed_frame>.size + 6 + 1 + 511)
    }

    @Test("What does not fit is left out, and the section stays within its limit")
    func limits() throws {
        var section = try #require(ManagedSection())
        defer { section.release() }
        var added = 0
        for i in 0..<400 where section.add(frame(text("function\(i)" + String(repeating: "x", count: 300), &section))) {
            added += 1
        }
        #expect(added == Int(LAG_MAX_MANAGED_FRAMES))
        let hasRoom = section.addBlocker(frame(lag_text()))
        #expect(!hasRoom)
        let (bytes, count) = section.assemble()
        #expect(count <= Int(LAG_MANAGED_BYTES))
        let header = bytes.load(as: lag_managed.self)
        #expect(header.frames == UInt32(LAG_MAX_MANAGED_FRAMES) && header.blocker_frames == 0)
        section.clear()
        let left = section.assemble().count
        #expect(left == 0)
    }
}
