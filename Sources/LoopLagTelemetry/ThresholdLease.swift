/// One reader's wish for a threshold, in one of the sixteen places that the segment's header has for it.
///
/// Held by SegmentReader, on its thread. A place belongs to whoever holds an open-file-description lock on its bytes:
/// the kernel lets go of it when the reader dies, however it dies, so no place is ever lost. It writes nothing outside
/// its own 32 bytes, and never waits for anybody.

import CLoopLagLayout
import Glibc

final class ThresholdLease {
    private let descriptor: Int32
    private let position: Int
    private var beat: UInt64

    /// F_OFD_SETLK of linux/fcntl.h, which the Glibc module leaves out.
    private static let lockDescription: Int32 = 37
    private static let entryBytes = MemoryLayout<lag_lease>.size
    private static let firstEntry = MemoryLayout<lag_header>.offset(of: \lag_header.leases)

    /// nil when the file may not be written or every place is taken.
    init?(_ file: SegmentFile, threshold: UInt64) {
        guard let first = Self.firstEntry else { return nil }
        let descriptor = file.openForWriting()
        guard descriptor >= 0 else { return nil }
        guard
            let entry = (0..<Int(LAG_MAX_LEASES)).first(where: {
                Self.lock(descriptor, at: first + $0 * Self.entryBytes, type: F_WRLCK)
            })
        else {
            close(descriptor)
            return nil
        }
        self.descriptor = descriptor
        position = first + entry * Self.entryBytes
        // The agent looks for a beat that moves: go on from whatever the last holder left.
        var old = lag_lease()
        let got = pread(descriptor, &old, Self.entryBytes, off_t(position))
        beat = got == Self.entryBytes ? old.beat : 0
        guard renew(threshold) else { return nil }
    }

    /// Closing the description lets go of its lock.
    deinit { close(descriptor) }

    /// Says that the reader is still there; false when the segment cannot be written any more.
    func renew(_ threshold: UInt64) -> Bool {
        beat &+= 1
        return write(threshold)
    }

    func release() {
        _ = write(0)
        _ = Self.lock(descriptor, at: position, type: F_UNLCK)
    }

    private func write(_ threshold: UInt64) -> Bool {
        var entry = lag_lease()
        entry.threshold_ns = threshold
        entry.beat = beat
        entry.reader_pid = UInt64(UInt32(bitPattern: getpid()))
        return pwrite(descriptor, &entry, Self.entryBytes, off_t(position)) == Self.entryBytes
    }

    private static func lock(_ descriptor: Int32, at position: Int, type: Int32) -> Bool {
        var request = flock()
        request.l_type = Int16(type)
        request.l_whence = Int16(SEEK_SET)
        request.l_start = off_t(position)
        request.l_len = off_t(entryBytes)
        return fcntl(descriptor, lockDescription, &request) == 0
    }
}
