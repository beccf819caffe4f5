/// The functions of the target's C library that an attach borrows.
///
/// Made before anything is stopped. It refuses by name what it does not know: another C library, one without a loader
/// to call, one whose signal return looks different.

import LoopLagModel

struct TargetLibrary {
    var dlopen: UInt64
    var dlerror: UInt64
    var errnoLocation: UInt64
    var munmap: UInt64
    /// The instructions that return from a signal handler.
    var restorer: UInt64
    /// What to give dlopen: RTLD_NOW, and for glibc's inner one the mark that it wants.
    var mode: UInt32

    /// mov $15, %rax; syscall: what every glibc gives to sigaction as the restorer.
    private static let signalReturn: [UInt8] = [0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]
    private static let now: UInt32 = 2
    /// __RTLD_DLOPEN
    private static let inner: UInt32 = 0x8000_0000

    init(modules: [ModuleRecord], map: MemoryMap, memory: ProcessMemory) throws(InjectError) {
        func object(_ isIt: (Substring) -> Bool) -> RemoteObject? {
            for module in modules {
                let path = module.path.hasSuffix(" (deleted)") ? String(module.path.dropLast(10)) : module.path
                guard let name = path.split(separator: "/").last, isIt(name) else { continue }
                if let object = RemoteObject(module, memory: memory) { return object }
            }
            return nil
        }
        guard let library = object({ $0.hasPrefix("libc.so.6") || ($0.hasPrefix("libc-2.") && $0.hasSuffix(".so")) })
        else {
            throw .unfit("it has no C library that I know (glibc) in its memory")
        }
        guard let errnoLocation = library.address(of: "__errno_location"), let munmap = library.address(of: "munmap")
        else { throw .unfit("its C library does not export munmap") }
        guard let restorer = library.find(Self.signalReturn, in: map) else {
            throw .unfit("its C library's signal return is none that I know")
        }
        self.errnoLocation = errnoLocation
        self.munmap = munmap
        self.restorer = restorer
        // glibc 2.34 took the loader's calls into libc; before, they are in libdl, or under libc's own name.
        let loader = object { $0.hasPrefix("libdl.so.2") || ($0.hasPrefix("libdl-2.") && $0.hasSuffix(".so")) }
        if let dlopen = library.address(of: "dlopen"), let dlerror = library.address(of: "dlerror") {
            (self.dlopen, self.dlerror, mode) = (dlopen, dlerror, Self.now)
        } else if let dlopen = loader?.address(of: "dlopen"), let dlerror = loader?.address(of: "dlerror") {
            (self.dlopen, self.dlerror, mode) = (dlopen, dlerror, Self.now)
        } else if let dlopen = library.address(of: "__libc_dlopen_mode") {
            // It tells no reason; the address of errno stands in, and is not read as text: its first byte is cleared.
            (self.dlopen, self.dlerror, mode) = (dlopen, 0, Self.now | Self.inner)
        } else {
            throw .unfit("its C library offers no dlopen; start it with 'looplag run -- ...'")
        }
    }
}
