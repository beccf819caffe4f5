/// Held during every public call of this module: files are shared between decoders, and libdw is single-threaded.

import Glibc

enum SymbolLock {
    private final class Storage: @unchecked Sendable {
        // Safety: the pointer is set once and only ever given to pthread calls, which are what makes it shareable.
        let mutex: UnsafeMutablePointer<pthread_mutex_t>

        init() {
            mutex = .allocate(capacity: 1)
            mutex.initialize(to: pthread_mutex_t())
            pthread_mutex_init(mutex, nil)
        }
    }

    private static let storage = Storage()

    static func withLock<Result>(_ body: () -> Result) -> Result {
        pthread_mutex_lock(storage.mutex)
        defer { pthread_mutex_unlock(storage.mutex) }
        return body()
    }
}
