import Foundation
import LoopLagModel
import Testing

@testable import LoopLagReport

@Suite("HdrHistogram interchange")
struct HdrTests {
    @Test(
        "Indices are those of HdrHistogram at two significant digits",
        arguments: [
            (0, 0), (1, 1), (255, 255), (256, 256), (257, 256), (258, 257), (511, 383), (512, 384), (1_000_000, 1780),
        ] as [(UInt64, Int)])
    func indices(value: UInt64, index: Int) {
        #expect(HdrHistogram.index(of: value) == index)
    }

    @Test(
        "Numbers are ZigZag LEB128 of nine bytes at most",
        arguments: [
            (0, [0]), (1, [2]), (-1, [1]), (63, [126]), (64, [0x80, 1]), (-64, [127]),
            (.max, [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ] as [(Int64, [UInt8])])
    func numbers(value: Int64, bytes: [UInt8]) {
        var result: [UInt8] = []
        HdrHistogram.append(value, to: &result)
        #expect(result == bytes)
    }

    @Test("The zlib stream holds its data as it is, in blocks, with the right checksum")
    func zlib() {
        // RFC 1950's checksum of "Wikipedia" is 0x11E60398.
        let short = HdrHistogram.zlibStored(Array("Wikipedia".utf8))
        #expect(Array(short.prefix(7)) == [0x78, 0x01, 1, 9, 0, 0xf6, 0xff])
        #expect(Array(short.suffix(4)) == [0x11, 0xe6, 0x03, 0x98])
        #expect(HdrHistogram.zlibStored(Array(repeating: 7, count: 70_000)).count == 2 + 5 + 65_535 + 5 + 4_465 + 4)
    }

    @Test("An empty histogram has no text, a full one opens as others write it")
    func base64() throws {
        #expect(HdrHistogram(IterationHistogram()).base64 == nil)
        var histogram = IterationHistogram()
        histogram.record(1_000_000, count: 10)
        let text = try #require(HdrHistogram(histogram, exact: [.milliseconds(200), .nanoseconds(Int64.max)]).base64)
        #expect(text.hasPrefix("HISTF"))
        let bytes = Array(try #require(Data(base64Encoded: text)))
        #expect(Array(bytes[0..<4]) == [0x1c, 0x84, 0x93, 0x14])
        #expect(Array(bytes[15..<19]) == [0x1c, 0x84, 0x93, 0x13])
    }
}
