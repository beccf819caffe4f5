/// A loop's iteration times in the interchange format of HdrHistogram, so that its own tools can plot and merge them.
///
/// Called by the report builder for `iteration.hdr`, and by the hdr format. Pure. Format: V2 payload (counts as ZigZag
/// LEB128, runs of zeros as negative numbers) in the V2 compressed wrapper, base64. The wrapper demands a zlib stream, and
/// a zlib stream may hold its data uncompressed: it does, for a few hundred bytes are not worth a compressor.

import Foundation
import LoopLagModel

struct HdrHistogram {
    /// Two significant digits keep every bucket of ours (32 an octave) apart.
    private static let digits: UInt32 = 2
    private static let subBucketHalfMagnitude = 7
    private static let subBucketHalfCount = 128
    /// Over six days; longer iterations count as that.
    private static let highestTrackable: UInt64 = (1 << 49) - 1

    private var counts: [Int: UInt64] = [:]

    /// - Parameters:
    ///   - histogram: iterations less those of `exact`; each counts at its bucket's middle.
    ///   - exact: iterations whose length is known.
    init(_ histogram: IterationHistogram, exact: [Duration] = []) {
        for (i, count) in histogram.counts.enumerated() where count > 0 { add(IterationHistogram.middle(i), count) }
        for duration in exact { add(UInt64(clamping: duration.nanosecondCount), 1) }
    }

    private mutating func add(_ value: UInt64, _ count: UInt64) {
        counts[Self.index(of: min(value, Self.highestTrackable)), default: 0] &+= count
    }

    /// The index of a value in HdrHistogram's array of counts, for a lowest discernible value of 1.
    static func index(of value: UInt64) -> Int {
        let bucket = 64 - (value | 255).leadingZeroBitCount - (subBucketHalfMagnitude + 1)
        let subBucket = Int(value >> UInt64(bucket))
        return ((bucket + 1) << subBucketHalfMagnitude) + (subBucket - subBucketHalfCount)
    }

    /// "HISTF..."; nil when nothing was recorded.
    var base64: String? {
        guard let last = counts.keys.max() else { return nil }
        var body: [UInt8] = []
        var zeros: Int64 = 0
        for i in 0...last {
            guard let count = counts[i], count > 0 else {
                zeros += 1
                continue
            }
            if zeros > 0 { Self.append(-zeros, to: &body) }
            zeros = 0
            Self.append(Int64(clamping: count), to: &body)
        }
        // Cookies carry the word size 8 in bits 4...7.
        var payload = Self.bigEndian(UInt32(0x1c84_9303 | 0x10)) + Self.bigEndian(UInt32(clamping: body.count))
        payload += Self.bigEndian(UInt32(0)) + Self.bigEndian(Self.digits)
        payload += Self.bigEndian(UInt64(1)) + Self.bigEndian(Self.highestTrackable)
        payload += Self.bigEndian((1.0 as Double).bitPattern) + body
        let stream = Self.zlibStored(payload)
        let wrapped =
            Self.bigEndian(UInt32(0x1c84_9304 | 0x10)) + Self.bigEndian(UInt32(clamping: stream.count)) + stream
        return Data(wrapped).base64EncodedString()
    }

    /// ZigZag LEB128 as HdrHistogram writes it: at most nine bytes, the ninth with all eight bits.
    static func append(_ value: Int64, to bytes: inout [UInt8]) {
        var rest = UInt64(bitPattern: (value << 1) ^ (value >> 63))
        for _ in 0..<8 {
            if rest < 0x80 {
                bytes.append(UInt8(rest))
                return
            }
            bytes.append(UInt8(rest & 0x7f) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: rest))
    }

    private static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian, Array.init)
    }

    /// RFC 1950 round RFC 1951's stored blocks.
    static func zlibStored(_ data: [UInt8]) -> [UInt8] {
        var result: [UInt8] = [0x78, 0x01]
        var position = 0
        repeat {
            let length = min(0xffff, data.count - position)
            let isLast = position + length == data.count
            result.append(isLast ? 1 : 0)
            result += [UInt8(length & 0xff), UInt8(length >> 8), ~UInt8(length & 0xff), ~UInt8(length >> 8)]
            result += data[position..<position + length]
            position += length
        } while position < data.count
        var a: UInt32 = 1
        var b: UInt32 = 0
        for byte in data {
            a = (a + UInt32(byte)) % 65521
            b = (b + a) % 65521
        }
        return result + bigEndian(b << 16 | a)
    }
}
