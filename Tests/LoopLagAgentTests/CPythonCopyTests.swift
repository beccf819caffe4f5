/// The copying of a thread's interpreter frames, in memory laid out as 3.11 and 3.12 have it: also at the one moment in
/// which the interpreter itself has not written down yet what runs.

import CLoopLag
import Testing

@testable import LoopLagAgent

@Suite("CPython's frames are copied", .serialized)
struct CPythonCopyTests {
    /// Words in which each structure has its own 64: a thread state, C frames, frames.
    private final class Image {
        private let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 64 * 16)

        init() { words.initialize(repeating: 0, count: 64 * 16) }
        deinit { words.deallocate() }

        func address(_ structure: Int) -> UInt64 { UInt64(UInt(bitPattern: words + structure * 64)) }
        func put(_ value: UInt64, _ structure: Int, _ offset: Int) { words[structure * 64 + offset / 8] = value }
    }

    private enum Place: Int { case thread, root, outer, inner, outerShim, caller, innerShim, callee, stale }

    /// 3.12: an evaluation in an evaluation, `callee` in it, each with its shim.
    private func image(current: Place) -> Image {
        let image = Image()
        func link(_ frame: Place, to previous: Place?, owner: UInt64 = 0) {
            image.put(previous.map { image.address($0.rawValue) } ?? 0, frame.rawValue, 8)
            image.put(owner << 48, frame.rawValue, 64)
        }
        func cframe(_ place: Place, _ frame: Place?, _ previous: Place?) {
            image.put(frame.map { image.address($0.rawValue) } ?? 0, place.rawValue, 0)
            image.put(previous.map { image.address($0.rawValue) } ?? 0, place.rawValue, 8)
        }
        image.put(image.address(Place.inner.rawValue), Place.thread.rawValue, 56)
        cframe(.root, nil, nil)
        cframe(.outer, .caller, .root)
        cframe(.inner, current, .outer)
        link(.outerShim, to: nil, owner: 3)
        link(.caller, to: .outerShim)
        link(.innerShim, to: .caller, owner: 3)
        link(.callee, to: .innerShim)
        link(.stale, to: .stale)
        return image
    }

    private func copied(_ image: Image) throws -> [UInt64] {
        var layout = try #require(CPythonLayout.of(version: 0x030c_0100, runtime: 4096)).forCopying
        lag_python_set_layout(&layout)
        defer {
            var none = lag_python_layout()
            lag_python_set_layout(&none)
        }
        let frames = UnsafeMutablePointer<lag_python_frames>.allocate(capacity: 1)
        defer { frames.deallocate() }
        lag_python_copy(image.address(Place.thread.rawValue), frames)
        return (0..<frames.pointee.count).map { lag_python_frame_address(frames, $0) }
    }

    @Test("A run of frames is followed through the evaluations before it")
    func whole() throws {
        let image = image(current: .callee)
        let wanted = [Place.callee, .innerShim, .caller, .outerShim].map { image.address($0.rawValue) }
        #expect(try copied(image) == wanted)
    }

    @Test("An evaluation that has not written down its frame yet is passed over, whatever lies in its place")
    func beginning() throws {
        // A cycle, a frame of the evaluation before, its shim: what the C stack may hold from before.
        for stale in [Place.stale, .caller, .outerShim] {
            let image = image(current: stale)
            let wanted = [Place.caller, .outerShim].map { image.address($0.rawValue) }
            #expect(try copied(image) == wanted, "\(stale)")
        }
        let misaligned = image(current: .callee)
        misaligned.put(12345, Place.inner.rawValue, 0)
        #expect(try copied(misaligned).count == 2)
    }

    @Test("Nothing is copied where nothing fits")
    func nothing() throws {
        let image = image(current: .stale)
        image.put(image.address(Place.stale.rawValue), Place.outer.rawValue, 0)
        #expect(try copied(image).isEmpty)
    }
}
