/// Turns a linker symbol into the name a person would write.
///
/// Who calls it: the symbol table and the debug information, once per distinct symbol; on the decoder's thread. Swift
/// names go through the runtime's own demangler and are then shortened by SwiftName; C++ and old Rust names through
/// the C++ runtime, which every Swift program carries. A name that cannot be demangled is returned as it is.

import Glibc

@_silgen_name("swift_demangle")
private func runtimeDemangle(
    _ mangled: UnsafePointer<CChar>?, _ length: Int, _ buffer: UnsafeMutablePointer<CChar>?,
    _ bufferSize: UnsafeMutablePointer<Int>?, _ flags: UInt32
) -> UnsafeMutablePointer<CChar>?

enum Demangler {
    /// Longer names are left alone: demanglers recurse, and the name may come from a hostile file.
    private static let maximumLength = 4096

    struct Result: Equatable {
        var name: String
        var isSwift: Bool
    }

    static func isSwift(_ symbol: String) -> Bool {
        symbol.hasPrefix("$s") || symbol.hasPrefix("$S") || symbol.hasPrefix("$e") || symbol.hasPrefix("_T0")
            || symbol.hasPrefix("@__swiftmacro_")
    }

    static func demangle(_ symbol: String) -> Result {
        guard symbol.utf8.count <= maximumLength else { return Result(name: symbol, isSwift: isSwift(symbol)) }
        if isSwift(symbol) {
            // "Tm" (merged function) copies carry suffixes such as ".resume.0" and ".llvm.123" that are no part of it.
            let base = symbol.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)[0]
            guard let full = swift(String(base)) else { return Result(name: symbol, isSwift: true) }
            return Result(name: SwiftName.simplify(full), isSwift: true)
        }
        if symbol.hasPrefix("_Z") || symbol.hasPrefix("__Z") || symbol.hasPrefix("_GLOBAL__") {
            let base = symbol.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)[0]
            if let full = cxx(String(base)) { return Result(name: CxxName.simplify(full), isSwift: false) }
        }
        return Result(name: plain(symbol), isSwift: false)
    }

    /// Compilers mark the copies that they make of a function: `parse.constprop.0`, `lshift.part.1.cold`.
    private static func plain(_ symbol: String) -> String {
        guard let dot = symbol.firstIndex(of: "."), dot != symbol.startIndex else { return symbol }
        let suffix = symbol[symbol.index(after: dot)...].prefix { $0 != "." }
        let marks = ["constprop", "isra", "part", "cold", "lto_priv", "llvm", "localalias", "clone"]
        return marks.contains(String(suffix)) ? String(symbol[..<dot]) : symbol
    }

    private static func swift(_ symbol: String) -> String? {
        symbol.withCString { pointer in
            guard let result = runtimeDemangle(pointer, strlen(pointer), nil, nil, 0) else { return nil }
            defer { free(result) }
            return String(cString: result)
        }
    }

    private typealias CxxDemangle =
        @convention(c) (
            UnsafePointer<CChar>?, UnsafeMutablePointer<CChar>?, UnsafeMutablePointer<Int>?,
            UnsafeMutablePointer<CInt>?
        ) -> UnsafeMutablePointer<CChar>?

    private static let cxxDemangle: CxxDemangle? = {
        var symbol = dlsym(nil, "__cxa_demangle")
        if symbol == nil, let library = dlopen("libstdc++.so.6", RTLD_NOW | RTLD_LOCAL) {
            symbol = dlsym(library, "__cxa_demangle")
        }
        return symbol.map { unsafeBitCast($0, to: CxxDemangle.self) }
    }()

    private static func cxx(_ symbol: String) -> String? {
        guard let cxxDemangle else { return nil }
        var status: CInt = 0
        return symbol.withCString { pointer in
            guard let result = cxxDemangle(pointer, nil, nil, &status) else { return nil }
            defer { free(result) }
            return status == 0 ? String(cString: result) : nil
        }
    }
}
