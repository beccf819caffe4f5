/// Where the end-to-end tests find what they start: the package's own products beside the test bundle, the hosts of
/// Tests/Hosts, and the foreign servers that Tests/setup.sh put into its env file.
///
/// Refuses: to skip in silence. What is missing is an error that says what to run.

import Foundation
import Glibc
import Synchronization

struct MissingTool: Error, CustomStringConvertible {
    var description: String
}

enum Tools {
    /// The folder of the built products: the test bundle's own, or LOOPLAG_TEST_PRODUCTS.
    static let products: URL = {
        if let folder = ProcessInfo.processInfo.environment["LOOPLAG_TEST_PRODUCTS"] {
            return URL(filePath: folder, directoryHint: .isDirectory)
        }
        let own = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent()
        return own
    }()

    /// Tests/Hosts of this checkout.
    static let hosts = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent().appending(path: "Hosts", directoryHint: .isDirectory)

    static var repository: URL { hosts.deletingLastPathComponent().deletingLastPathComponent() }

    static func looplag() throws -> String { try product("looplag") }
    /// LOOPLAG_TEST_AGENT names another object, such as one that samples every millisecond.
    static func agent() throws -> String {
        try ProcessInfo.processInfo.environment["LOOPLAG_TEST_AGENT"] ?? product("liblooplag-agent.so")
    }
    static func demo() throws -> String { try product("looplag-demo") }

    private static func product(_ name: String) throws -> String {
        let path = products.appending(path: name).path
        guard FileManager.default.fileExists(atPath: path) else {
            throw MissingTool(description: "\(path) is missing: swift build makes it")
        }
        return path
    }

    static func host(_ name: String) -> String { hosts.appending(path: name).path }

    /// A program named in the env file of Tests/setup.sh: PYTHON, NODE, REDIS_SERVER, NGINX, CC ...
    static func installed(_ name: String) throws -> String {
        guard let path = installed[name], FileManager.default.isExecutableFile(atPath: path) else {
            throw MissingTool(description: "no \(name): run Tests/setup.sh")
        }
        return path
    }

    /// One that a machine may do without; the test says so then.
    static func optional(_ name: String) -> String? { try? installed(name) }

    private static let installed: [String: String] = {
        let environment = ProcessInfo.processInfo.environment
        let cache = environment["XDG_CACHE_HOME"].flatMap { $0.isEmpty ? nil : $0 } ?? NSHomeDirectory() + "/.cache"
        let text = (try? String(contentsOfFile: cache + "/looplag-tests/env", encoding: .utf8)) ?? ""
        let pairs = text.split(separator: "\n").compactMap { line -> (String, String)? in
            let parts = line.split(separator: "=", maxSplits: 1)
            return parts.count == 2 ? (String(parts[0]), String(parts[1])) : nil
        }
        return Dictionary(pairs, uniquingKeysWith: { $1 })
    }()

    // MARK: - C hosts

    private static let compiled = Mutex<[String: String]>([:])

    /// Compiles NAME.c of Tests/Hosts, once a test run, into the products' folder.
    static func compiledHost(_ name: String) throws -> String {
        try compiled.withLock { compiled in
            if let path = compiled[name] { return path }
            let folder = products.appending(path: "looplag-test-hosts", directoryHint: .isDirectory)
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            let path = folder.appending(path: name).path
            let compiler = try Child(
                [
                    installed("CC"), "-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-O1", "-g",
                    "-fno-omit-frame-pointer", "-pthread", "-o", path, host(name + ".c"), "-ldl",
                ])
            defer { compiler.end() }
            guard try compiler.exitStatus(within: .seconds(60)) == .exited(0) else {
                throw MissingTool(description: "\(name).c does not compile: \(compiler.errors.text)")
            }
            compiled[name] = path
            return path
        }
    }
}
