/// Real programs for the tests: compiled fixtures and running processes, ended and removed with the instance.

import Foundation

/// A folder of compiled fixtures, removed with it.
final class Workshop {
    let folder: URL

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent(
            "looplag-fixtures-\(getpid())-\(UInt64.random(in: 0...UInt64.max))")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    struct Failure: Error { var output: String }

    static func fixture(_ name: String) -> String {
        URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Fixtures/\(name)").path
    }

    /// Compiles a fixture; the arguments are the compiler and its flags.
    func compile(_ fixture: String, _ arguments: [String], name: String? = nil) throws -> String {
        let output = folder.appendingPathComponent(name ?? fixture.split(separator: ".").map(String.init)[0]).path
        var arguments = arguments
        let tool = arguments.removeFirst()
        let log = try run(tool, arguments + [Self.fixture(fixture), "-o", output])
        guard FileManager.default.isExecutableFile(atPath: output) else { throw Failure(output: log) }
        return output
    }
}

/// A running program; killed with the instance.
final class Host {
    private let process = Process()
    private let output = Pipe()
    var pid: Int32 { process.processIdentifier }

    struct Failure: Error { var output: String }

    /// Starts `command` and waits until its output contains `ready`, if that is not empty.
    init(_ command: [String], until ready: String) throws {
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = command
        process.standardOutput = output
        process.standardError = output
        process.standardInput = FileHandle.nullDevice
        try withUnblockedSignals { try process.run() }
        var seen = ""
        while !ready.isEmpty, !seen.contains(ready) {
            let data = output.fileHandleForReading.availableData
            guard !data.isEmpty else { throw Failure(output: seen) }
            seen += String(decoding: data, as: UTF8.self)
        }
    }

    /// Where Tests/setup.sh found or put a program; its name where that has not run.
    static func installed(_ key: String, or name: String) -> String {
        let environment = ProcessInfo.processInfo.environment
        let cache = environment["XDG_CACHE_HOME"] ?? (environment["HOME"] ?? "") + "/.cache"
        let text = (try? String(contentsOfFile: cache + "/looplag-tests/env", encoding: .utf8)) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix(key + "=") }
        return line.map { String($0.dropFirst(key.count + 1)) } ?? name
    }

    /// Waits until the main thread is in a state of /proc/PID/stat.
    func waitUntil(state: Character) throws -> Bool {
        for _ in 0..<200_000 {
            let stat = try String(contentsOfFile: "/proc/\(pid)/task/\(pid)/stat", encoding: .utf8)
            if stat.split(separator: ")").last?.split(separator: " ").first?.first == state { return true }
            sched_yield()
        }
        return false
    }

    /// Waits until every thread of the process sleeps in the kernel.
    func waitUntilAllSleep() throws {
        for _ in 0..<20_000 {
            let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")
            let states = tasks.compactMap { task -> Character? in
                let stat = try? String(contentsOfFile: "/proc/\(pid)/task/\(task)/stat", encoding: .utf8)
                return stat?.split(separator: ")").last?.split(separator: " ").first?.first
            }
            if states.allSatisfy({ $0 == "S" }) { return }
            sched_yield()
        }
    }

    deinit {
        // Children that the fixture forked end with it: they share its process group only by name, so by parent.
        let children = (try? String(contentsOfFile: "/proc/\(pid)/task/\(pid)/children", encoding: .utf8)) ?? ""
        var all = children.split(separator: " ").compactMap { Int32($0) }
        for task in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/task")) ?? [] {
            let list = (try? String(contentsOfFile: "/proc/\(pid)/task/\(task)/children", encoding: .utf8)) ?? ""
            all += list.split(separator: " ").compactMap { Int32($0) }
        }
        process.terminate()
        kill(pid, SIGKILL)
        for child in Set(all) { kill(child, SIGKILL) }
        process.waitUntilExit()
    }
}
