/// Whose code a frame is: the user's own, or runtime, framework, interpreter, system.
///
/// Called by `diagnose` for the culprit and by the views that mark "your code". Pure. It refuses to look at files: it
/// goes by what a frame says of itself (kind, function, module's file name, source path).

import LoopLagModel

public struct UserCode: Sendable {
    private let executable: String?
    private let isInterpreter: Bool
    private let prefixes: [String]

    /// - Parameters:
    ///   - executable: the host's executable, path or name.
    ///   - prefixes: source path prefixes, or module paths or names, that are the user's whatever the rules say.
    public init(executable: String?, prefixes: [String] = []) {
        self.executable = executable.map(PlainText.fileName)
        self.isInterpreter = self.executable.map(Self.isInterpreter) ?? false
        self.prefixes = prefixes.filter { !$0.isEmpty }
    }

    /// The leaf-most frame of the user's own code. Samples vote by function, so that a stall of several callbacks is
    /// blamed on the one that was seen most, and within it by line; nil where no sample holds such a frame. A sample that
    /// was served late has no vote: the thread may have gone on to something else.
    public func culprit(of samples: [StackSample]) -> Frame? {
        var votes: [(key: String, frames: [Frame])] = []
        for sample in samples where !sample.isLate {
            guard let frame = leaf(of: sample) else { continue }
            let key = [frame.function, frame.module ?? "", frame.file ?? ""].joined(separator: "\u{0}")
            if let i = votes.firstIndex(where: { $0.key == key }) {
                votes[i].frames.append(frame)
            } else {
                votes.append((key, [frame]))
            }
        }
        var best: [Frame] = []
        for vote in votes where vote.frames.count > best.count { best = vote.frames }
        // The line that was seen most; the first of those, and a known one before an approximate one.
        let known = best.filter { $0.approximate != true }
        let candidates = known.isEmpty ? best : known
        var found: (frame: Frame, count: Int)?
        for frame in candidates {
            let count = candidates.count { $0.line == frame.line }
            if count > found?.count ?? 0 { found = (frame, count) }
        }
        return found?.frame
    }

    /// The leaf-most frame of the user's own code in one sample; where there is none, of code that lies in no file.
    public func leaf(of sample: StackSample) -> Frame? { leaf(of: sample.frames) }

    func leaf(of frames: [Frame]) -> Frame? {
        frames.first(where: isUserCode) ?? frames.first(where: isGivenAsText)
    }

    /// `python -c`, `exec`. Also what libraries generate (dataclasses, namedtuple), so a frame of a file goes first.
    private func isGivenAsText(_ frame: Frame) -> Bool { frame.kind == .python && frame.file == "<string>" }

    public func isUserCode(_ frame: Frame) -> Bool {
        if prefixes.contains(where: { matches($0, frame) }) { return true }
        switch frame.kind {
        case .kernel: return false
        case .python: return isUserPython(frame.file)
        case .javascript: return isUserJavaScript(frame.file)
        case .native, .swift: return isUserNative(frame)
        }
    }

    private func matches(_ prefix: String, _ frame: Frame) -> Bool {
        if let file = frame.file, file.hasPrefix(prefix) { return true }
        guard let module = frame.module else { return false }
        return module == prefix || module == PlainText.fileName(prefix)
    }

    private func isUserPython(_ file: String?) -> Bool {
        guard let file else { return false }
        // "<frozen importlib._bootstrap>", "<string>": no file of anybody's.
        if file.hasPrefix("<") { return false }
        // The script that pip makes for a command (".../bin/uvicorn").
        if file.contains("/bin/"), !file.hasSuffix(".py") { return false }
        return !["/site-packages/", "/dist-packages/", "/lib/python", "/lib64/python"].contains { file.contains($0) }
    }

    private func isUserJavaScript(_ file: String?) -> Bool {
        guard let file, !file.isEmpty else { return false }
        if file.hasPrefix("node:") || file.hasPrefix("internal/") || file.hasPrefix("evalmachine") { return false }
        // Debian installs modules for everybody in folders of their own.
        return !["/node_modules/", "/usr/share/nodejs/", "/usr/lib/nodejs/", "/usr/share/javascript/"].contains {
            file.contains($0)
        } && !file.hasPrefix("node_modules/")
    }

    private func isUserNative(_ frame: Frame) -> Bool {
        // In a language runtime the user's code is Python or JavaScript; extension modules and engines are not.
        if isInterpreter { return false }
        if let module = frame.module, !isUserModule(module) { return false }
        if frame.module == nil, frame.file == nil { return false }
        if let file = frame.file, Self.systemSources.contains(where: { file.contains($0) }) { return false }
        return !isRuntimeFunction(frame.function)
    }

    private func isUserModule(_ module: String) -> Bool {
        if module == executable { return true }
        if module.hasPrefix("[") || module.hasPrefix("linux-vdso") || module.hasPrefix("ld-linux") { return false }
        // A library with a version in its name (libssl.so.3) came with the system; a bare .so may well be the user's.
        if module.contains(".so.") { return false }
        return !Self.systemLibraries.contains { module.hasPrefix($0) }
    }

    /// Functions of runtimes and frameworks that a statically linked executable carries in itself.
    private func isRuntimeFunction(_ function: String) -> Bool {
        if Self.runtimeFunctions.contains(function) { return true }
        if Self.runtimePrefixes.contains(where: { function.hasPrefix($0) }) { return true }
        guard let module = swiftModule(ofFunction: function) else { return false }
        return Self.frameworkModules.contains(module)
            || Self.frameworkFamilies.contains { module.hasPrefix($0) }
    }

    private static func isInterpreter(_ name: String) -> Bool {
        ["python", "pypy", "node", "nodejs", "ruby", "perl", "php", "java", "deno", "bun", "uwsgi"].contains {
            guard name.hasPrefix($0) else { return false }
            // python3.11, node20, ruby-3.2; not nodeserver.
            return name.dropFirst($0.count).allSatisfy { $0.isNumber || $0 == "." || $0 == "-" || $0 == "t" }
                || name.hasPrefix("php-")
        }
    }

    private static let systemSources = [
        "/usr/include/", "/usr/lib/", "/.build/checkouts/", "/swift/stdlib/", "/sysdeps/",
    ]

    /// Beginnings of file names. The versioned ones (libssl.so.3) need no entry.
    private static let systemLibraries = [
        "libc-", "libc.", "libpthread", "libdl-", "librt-", "libm-", "libstdc++", "libgcc_s", "libswift",
        "libFoundation", "lib_Foundation", "libdispatch.", "libBlocksRuntime", "libXCTest", "libTesting", "libjemalloc",
        "libtcmalloc", "libmimalloc", "liblooplag-", "libuv.", "libev.", "libevent", "libssl", "libcrypto",
        "memfd:looplag",
    ]

    private static let runtimeFunctions: Set<String> = [
        "_start", "start_thread", "clone", "clone3", "__clone", "__clone3", "__restore_rt", "dispatch_main",
        "dispatch_sync", "dispatch_async", "dispatch_group_wait", "dispatch_semaphore_wait", "dispatch_once_f",
    ]

    private static let runtimePrefixes = [
        "__libc_", "__GI_", "_dl_", "swift_", "_swift_", "swift::", "__swift_", "_dispatch_", "std::", "__cxa_",
        "__gnu_cxx", "operator new", "operator delete", "je_", "_je_", "tc_malloc", "mi_malloc", "CNIO", "c_nio_",
        "uv__", "lag_hook_", "thunk for ", "reabstraction thunk", "outlined ", "value witness", "_pthread", "pthread_",
        "boringssl_", "llhttp_",
    ]

    private static let frameworkModules: Set<String> = [
        "Swift", "_Concurrency", "_StringProcessing", "_RegexParser", "_Differentiation", "Synchronization",
        "Distributed", "Observation", "Glibc", "SwiftGlibc", "Musl", "__C", "__C_Synthesized", "Dispatch", "CDispatch",
        "System", "SystemPackage", "Builtin", "Logging", "Metrics", "CoreMetrics", "Tracing", "Instrumentation",
        "InstrumentationBaggage", "ServiceContextModule", "ServiceLifecycle", "UnixSignals", "ConcurrencyHelpers",
        "Atomics", "_AtomicsShims", "DequeModule", "OrderedCollections", "HeapModule", "BitCollections",
        "HashTreeCollections", "InternalCollectionsUtilities", "AsyncAlgorithms", "HTTPTypes", "X509", "SwiftASN1",
        "Crypto", "_CryptoExtras", "AsyncHTTPClient", "MultipartKit", "WebSocketKit", "RoutingKit", "ConsoleKit",
        "AsyncKit", "FluentKit", "SQLKit", "PostgresNIO", "PostgresKit", "RediStack", "Valkey", "ArgumentParser",
        "Prometheus", "Configuration", "SwiftProtobuf", "Runtime", "LoopLag", "LoopLagAgent", "LoopLagNIO", "CLoopLag",
    ]

    private static let frameworkFamilies = [
        "NIO", "_NIO", "CNIO", "Foundation", "_Foundation", "Hummingbird", "Vapor", "GRPC", "HTTP2",
    ]
}
