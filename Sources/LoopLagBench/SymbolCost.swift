/// What it costs the command line to name the code of a large binary: index, memory, each new address.
///
/// The subject is the demo, tens of MiB with its debug information. Measured in a process of its own (this executable started
/// again with a hidden first argument), so that nothing was read or allocated before. Used by Bench.

import Glibc
import LoopLagModel
import LoopLagSymbols
import LoopLagTelemetry

enum SymbolCost {
    static func measure(into table: inout Table, _ plan: Plan) {
        let what = "symbols: index of a large binary"
        table.attempt(what, bar: "<= 300 ms, <= 35 MB kept") { (table) throws(BenchError) in
            let server = try ServerKind.nio.start(withAgent: true, plan: plan)
            defer { server.host.end() }
            _ = try Segments.of(server.host, within: 5)
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
                "\(milliseconds(cold.index)), \(mebibytes(cold.kept)) kept, \(mebibytes(cold.peak)) at its peak, "
                    + "\(mebibytes(cold.fileBytes)) file",
                bar: "<= 300 ms, <= 35 MB kept", holds: cold.index <= 300e6 && cold.kept <= 35e6)
            table.add(
                "symbols: the same in the next process", "\(milliseconds(again.index)), \(mebibytes(again.kept)) kept",
                bar: "cached by build ID: <= half the time", holds: again.index <= cold.index / 2)
            table.add(
                "symbols: each new PC",
                "p50 \(microseconds(cold.median)), p99 \(microseconds(cold.high)), most \(microseconds(cold.most)); "
                    + "\(cold.named) of \(cold.count) named",
                bar: "p99 <= 2 ms", holds: cold.high <= 2e6)
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
        guard let code = ProcFigures.code(of: request.pid, file: path).max(by: { $0.count < $1.count }) else {
            throw BenchError("the host's code is not in its map")
        }
        // Evenly over all of it; not at the very ends, which hold start-up code and stubs.
        let step = UInt64(code.count) / UInt64(request.count + 2)
        let addresses = (1...request.count).map { code.lowerBound + UInt64($0) * step }
        guard let opening = addresses.first else { return }

        let before = memory("VmRSS:")
        var start = now()
        let decoder = StackDecoder(
            identity: snapshot.identity, modules: snapshot.modules, cacheDirectory: request.cache)
        _ = decoder.frames(at: opening, isReturnAddress: false)
        print("index \(Double(now() - start))")
        print("kept \(memory("VmRSS:") - before)")
        print("peak \(memory("VmHWM:") - before)")
        print("file \(Double(ProcFigures.size(of: path) ?? 0))")
        var times: [Double] = []
        var named = 0
        for address in addresses.dropFirst() {
            start = now()
            let frames = decoder.frames(at: address, isReturnAddress: false)
            times.append(Double(now() - start))
            if frames.contains(where: { !$0.function.contains("+0x") }) { named += 1 }
        }
        let figures = Figures(times)
        start = now()
        for address in addresses { _ = decoder.frames(at: address, isReturnAddress: false) }
        print("known \(Double(now() - start) / Double(addresses.count))")
        print("median \(figures.median)")
        print("high \(figures.at(0.99))")
        print("most \(figures.most)")
        print("named \(named)")
        print("count \(figures.count)")
    }

    private static func memory(_ name: String) -> Double {
        Double(ProcFigures.kibibytes(name, in: "/proc/self/status") ?? 0)
    }
}
