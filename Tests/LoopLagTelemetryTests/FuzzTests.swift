/// The reader and all that is built on it, under a fuzzer: some seconds in every run, as long as you like by hand.
///
///     LOOPLAG_FUZZ_SECONDS=600 LOOPLAG_FUZZ_SEED=7 swift test --filter FuzzTests
///
/// A trap ends the test process: LOOPLAG_FUZZ_LOG names a file that always holds the number of the round at work, and
/// LOOPLAG_FUZZ_START begins there again.

import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("Fuzzing the reader")
struct FuzzTests {
    private func setting(_ name: String, _ usual: UInt64) -> UInt64 {
        getenv("LOOPLAG_FUZZ_" + name).flatMap { UInt64(String(cString: $0)) } ?? usual
    }

    /// In KiB.
    private var residentMemory: Int {
        let bytes = (try? ProcFS.read("/proc/self/statm", limit: 256)) ?? []
        let fields = bytes.split(separator: UInt8(ascii: " "))
        return fields.count > 1 ? (Int(String(decoding: fields[1], as: UTF8.self)) ?? 0) * 4 : 0
    }

    @Test("Hostile segments never trap, hang or swell the reader, the symbols or the report")
    func fuzz() throws {
        let folder = try Folder()
        let fuzzer = try Fuzzer(folder: folder)
        let seconds = setting("SECONDS", 20)
        let seed = setting("SEED", 20_261_121)
        let first = setting("START", 0)
        let log = getenv("LOOPLAG_FUZZ_LOG").map { open($0, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600) } ?? -1
        defer { if log >= 0 { close(log) } }

        let began = monotonicNanoseconds()
        let end = began &+ seconds &* 1_000_000_000
        var number = first
        var slowest: (round: UInt64, nanoseconds: UInt64) = (0, 0)
        var memory: Int?
        var now = began
        while now < end {
            if log >= 0 {
                var text = Array("\(number)                    ".utf8.prefix(20))
                pwrite(log, &text, text.count, 0)
            }
            fuzzer.round(number, seed: seed)
            let after = monotonicNanoseconds()
            if after &- now > slowest.nanoseconds { slowest = (number, after &- now) }
            now = after
            number &+= 1
            // The caches of libraries and allocator fill first.
            if number &- first == 1000 { memory = residentMemory }
        }
        let grown = residentMemory - (memory ?? residentMemory)
        let rounds = number &- first
        #expect(rounds > 100)
        #expect(fuzzer.refused > 10 && fuzzer.reported > 10 && fuzzer.decoded > 10)
        // A machine that is busy with something else may hold one round up; a hang would not end at all.
        #expect(slowest.nanoseconds < 20_000_000_000, "round \(slowest.round)")
        #expect(grown < 256 << 10, "\(grown) KiB more after \(rounds) rounds")
        print(
            "figure: fuzz: \(rounds) rounds in \((now &- began) / 1_000_000_000) s, \(fuzzer.refused) refused, "
                + "\(fuzzer.reported) reported, \(fuzzer.decoded) stacks; slowest round \(slowest.round) with "
                + "\(slowest.nanoseconds / 1_000_000) ms; memory +\(grown) KiB")
    }
}
