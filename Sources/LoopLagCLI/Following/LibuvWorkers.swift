/// Tells libuv's busy pool threads by their native stacks: they have no interpreter's frames, and no names before libuv
/// 1.50.
///
/// Called by `dump`, on the main thread. A thread belongs to the pool when its outermost function is libuv's `worker`; it is
/// busy when that waits for nothing. A library without symbols of its own has no such function, and then none is found.

import LoopLagModel
import LoopLagSymbols

enum LibuvWorkers {
    static let kind = "libuv"
    /// The outermost frames of a thread lie at its stack's end, below what the C library keeps of the thread there.
    private static let endBytes = 16 << 10

    static func isBusy(_ sample: RawSample, _ decoder: StackDecoder) -> Bool {
        let frames = decoder.decode(sample).frames.filter { $0.inlined != true }
        if let place = frames.firstIndex(where: isWorker) {
            return place > 0 && frames[place - 1].function != "uv_cond_wait"
        }
        // In code that cannot be followed, hand-written cipher loops above all: it does not wait there.
        return sample.threadState == "R" && hasWorkerAtEnd(sample, decoder)
    }

    private static func isWorker(_ frame: Frame) -> Bool {
        frame.function == "worker" && frame.file.map { $0.hasSuffix("threadpool.c") } ?? true
    }

    private static func hasWorkerAtEnd(_ sample: RawSample, _ decoder: StackDecoder) -> Bool {
        guard !sample.isTruncated else { return false }
        let end = sample.stack.suffix(endBytes)
        return end.withUnsafeBytes { bytes in
            stride(from: 0, to: bytes.count - 7, by: 8).contains { offset in
                let word = bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
                return decoder.frames(at: word, isReturnAddress: true).contains(where: isWorker)
            }
        }
    }
}
