/// Who holds the mutex for which a thread waits in the kernel: the C library writes the owner's number into it.
///
/// Watchdog only. A wait on anything else that uses a futex (condition variable, semaphore, another library's lock) has no
/// owner here: what does not look like a held mutex of this process is none.

import CLoopLag

enum MutexOwner {
    private static let futex: Int32 = 202
    // linux/futex.h, without the private and clock bits.
    private static let wait: UInt64 = 0
    private static let lockPI: UInt64 = 6
    private static let lockPI2: UInt64 = 13

    /// The kernel's number of the thread, nil when there is none or it is not sure.
    /// - Parameter tid: the one that waits.
    static func of(_ look: ThreadLook, tid: Int32) -> Int32? {
        guard look.place == .inCall(futex) else { return nil }
        // pthread_mutex_t of glibc since 2.4: lock, count, owner, users, kind.
        var mutex: (UInt32, UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0, 0)
        guard lag_safe_read(look.arguments.0, &mutex, 20) == 20 else { return nil }
        var owner: UInt32
        switch look.arguments.1 & 127 {
        // 2: held, and somebody waits. Nobody else waits for that value on such a place.
        case wait where look.arguments.2 == 2 && mutex.0 == 2 && mutex.3 > 0 && mutex.4 < 1024: owner = mutex.2
        // The kernel's own protocol: the word is the owner's number and two bits.
        case lockPI, lockPI2: owner = mutex.0 & 0x3fff_ffff
        default: return nil
        }
        let number = Int32(bitPattern: owner)
        guard number > 0, number != tid, lag_thread_exists(number) else { return nil }
        return number
    }

    /// What the kernel calls the thread.
    static func name(_ tid: Int32, _ scratch: Scratch, into section: inout ManagedSection) {
        let count = scratch.read(task: tid, "comm")
        if count > 1 { section.header.blocker_name = section.text(scratch.text, count &- 1) }
    }
}
