/// What faulthandler writes, read into frames.

import CLoopLag
import Testing

@testable import LoopLagAgent

@Suite("CPython's own account of its frames")
struct CPythonFallbackTests {
    private struct Line: Equatable {
        var file: String
        var line: UInt32
        var function: String
        var isEntry: Bool
    }

    private func read(_ text: String, isFlat: Bool = false) throws -> [Line] {
        var section = try #require(ManagedSection())
        defer { section.release() }
        let bytes = Array(text.utf8)
        bytes.withUnsafeBufferPointer {
            guard let start = $0.baseAddress else { return }
            CPythonFallback.read(start, count: bytes.count, isFlat: isFlat, into: &section)
        }
        let whole = section.assemble()
        guard whole.count > 0 else { return [] }
        let count = Int(whole.bytes.load(as: lag_managed.self).frames)
        let frames = whole.bytes + MemoryLayout<lag_managed>.stride
        let texts = frames + count * MemoryLayout<lag_managed_frame>.stride
        func string(_ text: lag_text) -> String {
            String(
                decoding: UnsafeRawBufferPointer(start: texts + Int(text.offset), count: Int(text.bytes)), as: UTF8.self
            )
        }
        return (0..<count).map {
            let frame = frames.load(
                fromByteOffset: $0 * MemoryLayout<lag_managed_frame>.stride, as: lag_managed_frame.self)
            return Line(
                file: string(frame.file), line: frame.line, function: string(frame.function),
                isEntry: frame.flags & UInt16(LAG_FRAME_ENTRY) != 0)
        }
    }

    private let text = """
        Stack (most recent call first):
          File "/srv/app.py", line 46 in slow_helper
          File "/srv/my "app", line 3.py", line 7 in <lambda>
          File "<string>", line ??? in run
          File ???, line 12 in nowhere
          <invalid frame>
          ...

        """

    @Test("Each line that names a file is a frame, whatever else is said is none")
    func lines() throws {
        #expect(
            try read(text) == [
                Line(file: "/srv/app.py", line: 46, function: "slow_helper", isEntry: true),
                Line(file: "/srv/my \"app", line: 3, function: "<lambda>", isEntry: true),
                Line(file: "<string>", line: 0, function: "run", isEntry: true),
            ])
        #expect(try read(text, isFlat: true).allSatisfy { !$0.isEntry })
    }

    @Test("A text that ends anywhere gives the frames before, and no trap")
    func cut() throws {
        for length in 0...text.utf8.count {
            let cut = String(decoding: Array(text.utf8)[..<length], as: UTF8.self)
            #expect(try read(cut).count <= 3)
        }
        #expect(try read("  File \"\", line 1 in f\n  File \"x\", line 2\n  File \"").isEmpty)
    }
}
