/// A process that the bench starts, listens to, and always ends.
///
/// Used from the bench's one thread. Standard error and, unless it announces itself, standard output go nowhere. It
/// refuses to leave anything behind: `end` (also from deinit) asks, then kills, and removes a segment that a kill left
/// over.

import Glibc

final class Host {
    let pid: pid_t
    private let output: Int32
    private var pending: [UInt8] = []
    private var hasEnded = false

    /// - Parameters:
    ///   - command: looked up in PATH unless it has a slash.
    ///   - environment: added to the bench's own, from which LD_PRELOAD and LOOPLAG_* are taken out.
    init(_ command: [String], environment: [String: String] = [:]) throws(BenchError) {
        guard Cleaner.signalNumber == nil else { throw BenchError("the bench was told to end") }
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw .system("a pipe", errno) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0)
        var arguments: [UnsafeMutablePointer<CChar>?] = command.map { strdup($0) } + [nil]
        var variables: [UnsafeMutablePointer<CChar>?] = Host.variables(environment).map { strdup($0) } + [nil]
        defer {
            for pointer in arguments + variables { free(pointer) }
        }
        var pid: pid_t = 0
        let code = posix_spawnp(&pid, command.first ?? "", &actions, nil, &arguments, &variables)
        close(ends[1])
        guard code == 0 else {
            close(ends[0])
            let name = command.first ?? ""
            throw code == ENOENT ? BenchError("\(name) is not installed") : .system(name, code)
        }
        self.pid = pid
        output = ends[0]
        Cleaner.add(pid)
    }

    deinit { end() }

    var isRunning: Bool { !hasEnded && waitpidStatus() == nil }

    /// The next line that it writes to its standard output.
    func line(within seconds: Double) throws(BenchError) -> String {
        let deadline = Deadline(seconds: seconds)
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            if let end = pending.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: pending[..<end], as: UTF8.self)
                pending.removeSubrange(...end)
                return line
            }
            var entry = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, deadline.milliseconds) > 0 || !deadline.hasPassed else {
                throw BenchError("the host said nothing within \(rounded(seconds, digits: 0)) s")
            }
            let count = entry.revents == 0 ? 0 : read(output, &buffer, buffer.count)
            guard entry.revents == 0 || count > 0 else { throw BenchError("the host ended at its start") }
            pending.append(contentsOf: buffer[..<max(0, count)])
        }
    }

    /// SIGTERM, and SIGKILL for what has not ended two seconds later.
    func end() {
        guard !hasEnded else { return }
        kill(pid, SIGTERM)
        let deadline = Deadline(seconds: 2)
        while waitpidStatus() == nil, !deadline.hasPassed { pause(milliseconds: 5) }
        if !hasEnded {
            kill(pid, SIGKILL)
            let last = Deadline(seconds: 5)
            while waitpidStatus() == nil, !last.hasPassed { pause(milliseconds: 5) }
            hasEnded = true
        }
        Cleaner.remove(pid)
        close(output)
        removeSegment()
    }

    /// Its exit status once it has ended.
    private func waitpidStatus() -> Int32? {
        var status: Int32 = 0
        guard !hasEnded, waitpid(pid, &status, WNOHANG) != 0 else { return nil }
        hasEnded = true
        return status
    }

    /// All that it writes until it ends by itself.
    func everything(within seconds: Double) throws(BenchError) -> [String] {
        var lines: [String] = []
        let deadline = Deadline(seconds: seconds)
        while !deadline.hasPassed {
            do throws(BenchError) {
                lines.append(try line(within: Double(deadline.milliseconds) / 1000))
            } catch {
                break
            }
        }
        guard !lines.isEmpty else { throw BenchError("the helper process said nothing") }
        return lines
    }

    private func removeSegment() {
        guard let stream = opendir("/dev/shm") else { return }
        defer { closedir(stream) }
        while let entry = readdir(stream) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasPrefix("looplag-\(pid)-") { unlink("/dev/shm/" + name) }
        }
    }

    private static func variables(_ added: [String: String]) -> [String] {
        var result: [String] = []
        var entry = environ
        while let pointer = entry.pointee {
            let text = String(cString: pointer)
            let name = text.prefix { $0 != "=" }
            if name != "LD_PRELOAD", !name.hasPrefix("LOOPLAG_"), added[String(name)] == nil { result.append(text) }
            entry += 1
        }
        return result + added.map { "\($0.key)=\($0.value)" }
    }
}

/// Ends the bench in order when it is told to end, or takes far too long.
///
/// A signal ends the hosts and lets every deadline pass, so that all waits fail and everything is cleared away on the
/// ordinary path; should that hang, the same handler ends the process five seconds later.
enum Cleaner {
    private static let count = 16

    // Safety: allocated before the handler is installed and never freed; entries are plain words, written by the
    // bench's one thread and read by its signal handler, where a torn or missed value can only leave a process to its
    // parent. The last entry is the signal that has come, 0 = none.
    nonisolated(unsafe) private static let words: UnsafeMutablePointer<Int32> = {
        let pointer = UnsafeMutablePointer<Int32>.allocate(capacity: count + 1)
        pointer.initialize(repeating: 0, count: count + 1)
        return pointer
    }()

    static func install(seconds: UInt32) {
        _ = words
        for number in [SIGINT, SIGTERM, SIGHUP, SIGALRM] { signal(number) { Cleaner.end($0) } }
        alarm(seconds)
    }

    /// The signal that ends the bench.
    static var signalNumber: Int32? { words[count] == 0 ? nil : words[count] }

    static func add(_ pid: pid_t) {
        for i in 0..<count where words[i] == 0 {
            words[i] = pid
            return
        }
    }

    static func remove(_ pid: pid_t) {
        for i in 0..<count where words[i] == pid { words[i] = 0 }
    }

    /// In a signal handler: kill, alarm and _exit only.
    private static func end(_ number: Int32) {
        for i in 0..<count where words[i] > 0 { kill(words[i], SIGKILL) }
        if words[count] != 0 { _exit(128 + number) }
        words[count] = number
        alarm(5)
    }
}
