import Glibc
import LoopLagAttach
import LoopLagModel
import LoopLagTelemetry
import Testing

@testable import LoopLagCLI

@Suite("The command line's own parts")
struct CommandLineTests {
    @Test(
        "A duration is a whole number and a unit",
        arguments: [
            ("250us", 250_000), ("100ms", 100_000_000), ("2s", 2_000_000_000), ("1m", 60_000_000_000),
            ("007ms", 7_000_000),
        ])
    func durations(text: String, nanoseconds: Int64) throws {
        #expect(try DurationArgument.parse(text) == .nanoseconds(nanoseconds))
    }

    @Test(
        "What is no duration is refused with a reason",
        arguments: [
            "", "100", "ms", "-5ms", "+5ms", "0s", "1.5s", "5 ms", "5MS", "5h", "5msx", "٣ms",
            "9223372036854775808us", "9223372036854775807s", "153722867281m",
        ])
    func refusedDurations(text: String) {
        #expect(throws: (any Error).self) { try DurationArgument.parse(text) }
    }

    @Test("A duration is written as it is read, in the largest unit that stays whole")
    func writtenDurations() throws {
        for text in ["250us", "100ms", "2s", "1m", "1500ms", "90s"] {
            #expect(DurationArgument.format(try DurationArgument.parse(text)) == text)
        }
    }

    @Test("%p in a file name is the process id, %% a percent sign, and anything else stays")
    func filePatterns() {
        #expect(OutputFile(pattern: "lag-%p.json", pid: 42).path == "lag-42.json")
        #expect(OutputFile(pattern: "%p%p%%p%", pid: 7).path == "77%p%")
        #expect(OutputFile(pattern: "%d", pid: 7).path == "%d")
        #expect(OutputFile(pattern: "", pid: 7).path == "")
    }

    @Test("A report replaces the old one whole, and leaves no temporary file")
    func atomicWrite() throws {
        let folder = try TemporaryFolder()
        let path = try folder.file("report.json", Array("old".utf8))
        try OutputFile(path: path).write(Array("new and longer".utf8))
        #expect(try contents(of: path) == "new and longer")
        #expect(names(in: folder.path) == ["report.json"])
    }

    @Test("A symbolic link stays one: the file behind it is replaced")
    func writeThroughLink() throws {
        let folder = try TemporaryFolder()
        let target = try folder.file("target", Array("old".utf8))
        let link = "\(folder.path)/link"
        #expect(symlink("target", link) == 0)
        defer { unlink(link) }
        try OutputFile(path: link).write(Array("new".utf8))
        #expect(try contents(of: target) == "new")
        var status = stat()
        #expect(lstat(link, &status) == 0 && status.st_mode & S_IFMT == S_IFLNK)
    }

    @Test("A full device and a missing folder are errors that name the file")
    func failedWrites() throws {
        for path in ["/dev/full", "/no/such/folder/x.json"] {
            #expect {
                try OutputFile(path: path).write(Array("x".utf8))
            } throws: { error in
                guard let failure = error as? Failure else { return false }
                return failure.status == 1 && failure.message.contains(path)
            }
        }
        #expect(throws: Failure.self) { try OutputFile(path: "/no/such/folder/x.json").check() }
        #expect(throws: Failure.self) { try OutputFile(path: "/tmp").check() }
        #expect(throws: Failure.self) { try OutputFile(path: "").check() }
    }

    @Test("Every error has the exit status of the contract")
    func statuses() {
        #expect(Failure.status(of: .noSuchProcess(pid: 1)) == 3)
        #expect(Failure.status(of: .notPermitted(pid: 1, action: "look at", reason: "x")) == 4)
        #expect(Failure.status(of: .commandNotFound("x")) == 127)
        #expect(Failure.status(of: .commandNotExecutable("x", reason: "y")) == 126)
        #expect(Failure.status(of: .agentMissing(searched: [])) == 1)
        #expect(Targets.failure(.noSuchProcess(pid: 1), pid: 1).status == 3)
        #expect(Targets.failure(.notPermitted(pid: 1, path: "x", detail: "y"), pid: 1).status == 4)
        #expect(Targets.failure(.corrupt(path: "x", reason: "y"), pid: 1).status == 1)
        let noAgent = Targets.failure(.noAgent(pid: getpid()), pid: getpid())
        #expect(noAgent.status == 1)
        #expect(noAgent.message.hasPrefix("no agent in \(getpid()) ("))
        #expect(!noAgent.message.contains("\n"))
    }

    @Test("A closed pipe is told from an open one")
    func closedPipe() throws {
        // Before anything is written to it: a test must not die of SIGPIPE.
        _ = InheritedDispositions.prepare()
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        let stream = Console.Stream(descriptor: ends[1])
        #expect(!stream.isClosed)
        #expect(stream.write("a line\n") == .written)
        close(ends[0])
        #expect(stream.isClosed)
        #expect(stream.write("another\n") == .closed)
        close(ends[1])
    }

    @Test("The table of processes is plain text in columns, whatever a process calls itself")
    func table() {
        let rows = [
            PsVerb.Row(
                pid: 4242, user: "www", server: "evil\u{1b}[2Jname", runtime: .init(name: "cpython", version: "3.11"),
                alive: true,
                agent: .init(state: "running", mode: "preload", loops: 1, stalls: 12, degraded: [])),
            PsVerb.Row(
                pid: 7, server: "redis-server", alive: false,
                agent: .init(state: "running", mode: "preload", loops: 1, stalls: 3, degraded: []), segment: "/x"),
        ]
        let text = PsVerb.table(rows)
        let lines = text.split(separator: "\n")
        #expect(lines.count == 3)
        #expect(!text.contains("\u{1b}"))
        #expect(lines[0].hasPrefix(" PID  USER"))
        #expect(lines[1].contains("running, preload"))
        #expect(lines[2].contains("dead, segment left"))
    }

    private func contents(of path: String) throws -> String {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
        defer { close(descriptor) }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = read(descriptor, &buffer, buffer.count)
        return String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
    }

    private func names(in folder: String) -> [String] {
        guard let stream = opendir(folder) else { return [] }
        defer { closedir(stream) }
        let offset = MemoryLayout<dirent>.offset(of: \.d_name) ?? 19
        var result: [String] = []
        while let entry = readdir(stream) {
            let name = String(cString: UnsafeRawPointer(entry).advanced(by: offset).assumingMemoryBound(to: CChar.self))
            if name != "." && name != ".." { result.append(name) }
        }
        return result.sorted()
    }
}
