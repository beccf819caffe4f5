/// What it costs the command line to name the code of a large binary: index, memory, each new address.
///
/// The subject is the demo, tens of MiB with its debug information. Measured in a process of its own (this executable
/// started again with a hidden first argument), so that nothing was read or allocated before. Used by Bench.

import Glibc
import LoopLagModel
import LoopLagSymbols
import LoopLagTelemetry

enum SymbolCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        let what = "symbols: index of a large binary"
        table.attempt(what, bar: "<= 300 ms, <= 35 MB kept") { (table) throws(BenchError) in
            let server = try ServerKind.nio.start(
                withAgent: true, threshold: StallRun.thresholdMilliseconds, plan: plan)
            defer { server.host.end() }
            _ = try Segments.of(server.host, within: 5)
            // The agent lists a process's modules when it first takes a stack.
            _ = try Connection(server).ask(.spin(milliseconds: 100), within: 5)
            let own = try Products.path("looplag-bench")
            let cache = plan.folder + "/cache"
            guard mkdir(cache, 0o700) == 0 || errno == EEXIST else { throw .system(cache, errno) }
            var results: [SymbolWorker.Result] = []
            for _ in 0..<2 {
                let worker = try Host([
                    own, SymbolWorker.argument, String(server.host.pid), cache, plan.isQuick ? "60" : "300",
                ])
                results.append(try SymbolWorker.Result(try worker.everything(within: 60)))
                worker.end()
            }
            guard let cold = results.first, let again = results.last else { return }
            table.add(
                what,
                "\(milliseconds(cold.index)) CPU, \(mebibytes(cold.kept)) kept, \(mebibytes(cold.peak)) at its peak, "
                    + "\(mebibytes(cold.fileBytes)) file",
                bar: "<= 300 ms, <= 35 MB kept", holds: cold.index <= 300e6 && cold.kept <= 35e6)
            table.add(
                "symbols: the same PC in the next process",
                "\(milliseconds(again.index)) CPU, \(mebibytes(again.kept)) kept",
                bar: "cached by build ID: <= half the time", holds: again.index <= cold.index / 2)
            table.add(
                "symbols: each new PC, anywhere",
                "p50 \(microseconds(cold.median)), p99 \(microseconds(cold.high)), "
                    + "most \(microseconds(cold.most)) CPU; \(cold.named) of \(cold.count) named",
                bar: "p99 <= 2 ms", holds: cold.high <= 2e6)
            table.add(
                "symbols: each new PC, beside a known one",
                "p50 \(microseconds(cold.beside)), p99 \(microseconds(cold.besideHigh)) CPU", bar: "p99 <= 2 ms",
                holds: cold.besideHigh <= 2e6)
            table.note("symbols: a known PC", microseconds(cold.known))
        }
    }
}

/// The process that does the work: prints `name value` lines.
enum SymbolWorker {
    static let argument = "--symbol-worker"

    struct Request {
        var pid: pid_t
        var cache: String
        var count: Int

        init?(arguments: [String]) {
            guard arguments.count == 5, arguments[1] == SymbolWorker.argument, let pid = pid_t(arguments[2]),
                let count = Int(arguments[4]), (1...10_000).contains(count)
            else { return nil }
            self.pid = pid
            cache = arguments[3]
            self.count = count
        }
    }

    struct Result {
        var index = 0.0
        var kept = 0.0
        var peak = 0.0
        var fileBytes = 0.0
        var median = 0.0
        var high = 0.0
        var most = 0.0
        var beside = 0.0
        var besideHigh = 0.0
        var known = 0.0
        var named = 0
        var count = 0

        init(_ lines: [String]) throws(BenchError) {
            var values: [String: Double] = [:]
            for line in lines {
                let words = line.split(separator: " ", maxSplits: 1)
                if words.count == 2, words[0] == "error" { throw BenchError(String(words[1])) }
                if words.count == 2, let value = Double(words[1]) { values[String(words[0])] = value }
            }
            func value(_ name: String) throws(BenchError) -> Double {
                guard let value = values[name] else { throw BenchError("the helper process did not say \(name)") }
                return value
            }
            index = try value("index")
            kept = try value("kept")
            peak = try value("peak")
            fileBytes = try value("file")
            median = try value("median")
            high = try value("high")
            most = try value("most")
            beside = try value("beside")
            besideHigh = try value("beside_high")
            known = try value("known")
            named = Int(try value("named"))
            count = Int(try value("count"))
        }
    }

    static func run(_ request: Request) -> Int32 {
        alarm(60)
        do throws(BenchError) {
            try measure(request)
            return 0
        } catch {
            print("error \(error.reason)")
            return 1
        }
    }

    private static func measure(_ request: Request) throws(BenchError) {
        guard let source = try? SegmentDiscovery.live(pid: request.pid),
            let snapshot = try? SegmentReader(source).snapshot(), let path = ProcFigures.executable(of: request.pid)
        else { throw BenchError("the host's segment cannot be read") }
        guard let module = snapshot.modules.first(where: { $0.path == path }) else {
            throw BenchError("the host's segment does not list its executable")
        }
        let code = try largestCode(of: path)
        // Evenly over all of it, not at the very ends.
        let step = UInt64(code.count) / UInt64(request.count + 2)
        let addresses = (1...request.count).map { module.loadBias &+ code.lowerBound &+ UInt64($0) * step }
        guard let opening = addresses.first else { return }

        let before = memory("VmRSS:")
        // CPU time throughout: this process has one thread, and what is measured is short beside a lost turn on the
        // core.
        var start = processTime()
        let decoder = StackDecoder(
            identity: snapshot.identity, modules: snapshot.modules, cacheDirectory: request.cache)
        _ = decoder.frames(at: opening, isReturnAddress: false)
        print("index \(Double(processTime() - start))")
        print("kept \(memory("VmRSS:") - before)")
        print("peak \(memory("VmHWM:") - before)")
        print("file \(Double(ProcFigures.size(of: path) ?? 0))")
        var times: [Double] = []
        var besides: [Double] = []
        var named = 0
        for address in addresses.dropFirst() {
            let first = processTime()
            let frames = decoder.frames(at: address, isReturnAddress: false)
            let second = processTime()
            _ = decoder.frames(at: address &+ 16, isReturnAddress: false)
            besides.append(Double(processTime() - second))
            times.append(Double(second - first))
            if frames.contains(where: { !$0.function.hasPrefix("0x") && !$0.function.contains("+0x") }) { named += 1 }
        }
        let figures = Figures(times)
        let beside = Figures(besides)
        start = processTime()
        for address in addresses { _ = decoder.frames(at: address, isReturnAddress: false) }
        print("known \(Double(processTime() - start) / Double(addresses.count))")
        print("median \(figures.median)")
        print("high \(figures.at(0.99))")
        print("most \(figures.most)")
        print("beside \(beside.median)")
        print("beside_high \(beside.at(0.99))")
        print("named \(named)")
        print("count \(figures.count)")
    }

    /// The ELF addresses of the largest section of code. A mapping would not do: linkers put constants beside the code.
    private static func largestCode(of path: String) throws(BenchError) -> Range<UInt64> {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw .system(path, errno) }
        defer { close(descriptor) }
        var header = Elf64_Ehdr()
        guard pread(descriptor, &header, MemoryLayout<Elf64_Ehdr>.size, 0) == MemoryLayout<Elf64_Ehdr>.size,
            Int(header.e_shentsize) == MemoryLayout<Elf64_Shdr>.size
        else { throw BenchError("\(path) has no section table") }
        var largest: Range<UInt64>?
        for i in 0..<Int(header.e_shnum) {
            var section = Elf64_Shdr()
            let offset = Int(truncatingIfNeeded: header.e_shoff) &+ i * MemoryLayout<Elf64_Shdr>.size
            guard pread(descriptor, &section, MemoryLayout<Elf64_Shdr>.size, offset) > 0 else { break }
            let (end, overflow) = section.sh_addr.addingReportingOverflow(section.sh_size)
            // SHF_EXECINSTR
            guard section.sh_flags & 4 != 0, !overflow, section.sh_size > UInt64(largest?.count ?? 0) else { continue }
            largest = section.sh_addr..<end
        }
        guard let largest else { throw BenchError("\(path) has no code") }
        return largest
    }

    private static func processTime() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }

    private static func memory(_ name: String) -> Double {
        Double(ProcFigures.kibibytes(name, in: "/proc/self/status") ?? 0)
    }
}
