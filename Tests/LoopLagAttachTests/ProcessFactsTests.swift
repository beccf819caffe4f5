import Glibc
import LoopLagModel
import Testing

@testable import LoopLagAttach

@Suite("What /proc says of a process")
struct ProcessFactsTests {
    static let line = "4242 (uvi) corn (x)) S 17 4242 4242 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 9 0 987654 1 2 3\n"

    @Test("A name with spaces and parentheses does not shift the fields behind it")
    func nameWithParentheses() throws {
        let stat = try #require(ProcessFacts.parseStat(Array(Self.line.utf8)))
        #expect(stat.name == "uvi) corn (x)")
        #expect(stat.state == "S")
        #expect(stat.parent == 17)
        #expect(stat.threads == 9)
        #expect(stat.startTicks == 987_654)
        #expect(!stat.isKernelThread)
    }

    @Test("A stat line cut at any byte is refused or understood, never a trap")
    func truncatedStat() {
        let bytes = Array(Self.line.utf8)
        for length in 0...bytes.count {
            let stat = ProcessFacts.parseStat(Array(bytes.prefix(length)))
            if let stat { #expect(stat.parent == 17) }
        }
    }

    @Test("Random bytes in stat and status are refused, never a trap")
    func randomBytes() {
        var generator = SystemRandomNumberGenerator()
        for _ in 0..<2_000 {
            let bytes = (0..<Int.random(in: 0...200, using: &generator)).map { _ in UInt8.random(in: 0...255) }
            _ = ProcessFacts.parseStat(bytes)
            _ = ProcessFacts.parseStatus(bytes)
            _ = ProcessFacts.parseCommand(bytes)
        }
    }

    @Test("The effective user and every namespace's pid are read from status")
    func statusFields() {
        let text = "Name:\tx\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t4242\t17\t1\n"
        let fields = ProcessFacts.parseStatus(Array(text.utf8))
        #expect(fields.uid == 1001)
        #expect(fields.namespacePIDs == [4242, 17, 1])
    }

    @Test("A rewritten title keeps its words, without the NULs behind it")
    func rewrittenTitle() {
        let bytes = Array("nginx: worker process".utf8) + [0, 0, 0, 0]
        #expect(ProcessFacts.parseCommand(bytes) == ["nginx: worker process"])
        #expect(ProcessFacts.parseCommand([]) == [])
        #expect(ProcessFacts.parseCommand(Array("a\0\0b\0".utf8)) == ["a", "", "b"])
    }

    @Test("Our own process is described as it is")
    func ownProcess() throws {
        let facts = try ProcessFacts.read(pid: getpid())
        #expect(facts.pid == getpid())
        #expect(facts.parentPID == getppid())
        #expect(facts.uid == geteuid())
        #expect(!facts.isZombie)
        #expect(!facts.isKernelThread)
        #expect(facts.command.count == Int(CommandLine.argc))
        #expect(ProcessFacts.isRunning(facts.identity))
        #expect(!ProcessFacts.isRunning(ProcessIdentity(pid: facts.pid, startTicks: facts.startTicks &+ 1)))
        #expect(ProcessFacts.all().contains { $0.pid == facts.pid })
        #expect(ExecutableFacts.inspect(pid: getpid()).kind == .dynamic)
    }

    @Test("A process that does not exist is a typed error", arguments: [0, -1, Int32.max])
    func missing(pid: Int32) {
        #expect(throws: AttachError.noSuchProcess(pid: pid)) { try ProcessFacts.read(pid: pid) }
    }

    @Test("A process cannot move the cursor through its name")
    func escapes() {
        #expect(ProcessFacts.printable("a\u{1b}[2Jb\u{202e}c\u{9b}d") == "a?[2Jb?c?d")
        #expect(ProcessFacts.printable("größe") == "größe")
    }
}
