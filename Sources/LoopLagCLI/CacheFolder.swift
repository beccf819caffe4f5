/// Where symbol tables are kept between two runs: the user's cache folder, by build ID, bounded by LoopLagSymbols.
///
/// Called when a process is first decoded. Made with mode 0700; refuses anything but an absolute path, and then, as
/// where it cannot be made, there is no cache and nothing else changes.

import Glibc

enum CacheFolder {
    static let path: String? = {
        let base: String
        if let folder = getenv("XDG_CACHE_HOME"), folder[0] == CChar(bitPattern: UInt8(ascii: "/")) {
            base = String(cString: folder)
        } else if let home = getenv("HOME"), home[0] == CChar(bitPattern: UInt8(ascii: "/")) {
            base = String(cString: home) + "/.cache"
        } else {
            return nil
        }
        mkdir(base, 0o700)
        let path = base + "/looplag"
        return mkdir(path, 0o700) == 0 || errno == EEXIST ? path : nil
    }()
}
