/// `--requests`: the request of a stall behind awaits, timers, streams and the pool's callbacks, on every node that is
/// supported. The truth is told by the stack itself: the function that blocks for request N of a kind is called
/// `block_KIND_N`, and its request's path ends in `/KIND/N`.

import Foundation
import Glibc
import LoopLagModel
import Testing

/// interleaved.js to its end under `looplag run --requests`, and how its samples agree with their requests.
///
/// It stalls all the time, so the agent goes over its budget and looks less often, and a busy machine lets it look less
/// often still: it is run again until enough has been seen.
private struct InterleavedRuns {
    private static let mostRuns = 8

    private(set) var runs = 0
    /// Samples with a function that blocks, by the kind of way that led there; and those that name a request.
    private var seen: [String: Int] = [:]
    private var named: [String: Int] = [:]
    private var wrong: [String] = []
    /// The most loops that had a named sample in one run.
    private var loops = 0

    init(node: String, options: [String], loops wanted: Int) throws {
        repeat {
            try run(node, options)
            runs += 1
        } while runs < Self.mostRuns && (loops < wanted || named.count < 9 || named.values.reduce(0, +) < 40)
    }

    private mutating func run(_ node: String, _ options: [String]) throws {
        let file = FileManager.default.temporaryDirectory.appending(path: "looplag-test-\(UUID().uuidString).json")
        defer { try? FileManager.default.removeItem(at: file) }
        let result = try LoopLagTool.run(
            ["run", "--requests", "--threshold", "15ms", "-o", file.path, "--", Tools.installed(node)]
                + [Tools.host("interleaved.js")] + options,
            environment: ["NODE_PATH": "/usr/share/nodejs"], within: .seconds(90))
        guard result.status == .exited(0) else {
            throw SpawnFailed(description: "\(node) ended with \(result.status): \(result.errors.suffix(2000))")
        }
        let report = try ReportFile.read(file)
        var found: Set<String> = []
        for process in report.processes {
            for stall in process.stalls { take(stall, of: process.pid, report.frames, &found) }
        }
        loops = max(loops, found.count)
    }

    private mutating func take(_ stall: ReportStall, of pid: Int32, _ frames: [Frame], _ found: inout Set<String>) {
        for sample in stall.samples {
            let functions = sample.stack.map { frames[$0].function }
            guard let block = functions.first(where: { $0.hasPrefix("block_") }) else { continue }
            let words = block.split(separator: "_")
            guard words.count == 3 else { continue }
            let kind = String(words[1])
            seen[kind, default: 0] += 1
            guard let request = sample.request else { continue }
            named[kind, default: 0] += 1
            found.insert("\(pid)/\(stall.loopID)")
            let path = request.path.split(separator: "/").dropFirst()
            if !path.elementsEqual(words.dropFirst())
                || request.method != (kind == "body" || kind == "end" ? "POST" : "GET")
            {
                wrong.append("\(request.method) \(request.path) at \(block), \(sample.method)")
            }
        }
        // What is told of a whole stall is told of one of its samples.
        if let request = stall.request, !stall.samples.contains(where: { $0.request == request }) {
            wrong.append("\(request.path) of a stall whose samples are of others")
        }
    }

    /// The connection that all share was opened for whoever came first: of its answers none is known to be anybody's.
    static let unknown = "pooled"

    /// Nearly all are named, and never for another one.
    func expectNames(_ node: String, loops wanted: Int, _ place: SourceLocation = #_sourceLocation) {
        #expect(wrong.isEmpty, "\(node): \(wrong)", sourceLocation: place)
        let all = seen.filter { $0.key != Self.unknown }.values.reduce(0, +)
        let known = named.values.reduce(0, +)
        figure(
            "\(node): \(known) of \(all) samples behind \(seen.count) ways are named, \(wrong.count) wrong (\(runs) runs)"
        )
        #expect(known * 10 >= all * 9, "\(node): \(known) of \(all): \(named) of \(seen)", sourceLocation: place)
        #expect(named.count >= 9, "\(node): \(named)", sourceLocation: place)
        #expect(named[Self.unknown] == nil, "\(node)", sourceLocation: place)
        #expect(loops == wanted, "\(node)", sourceLocation: place)
    }
}

/// A key and a certificate for the loopback.
private func makeCertificate(in folder: TemporaryFolder) throws -> [String] {
    let files = ["\(folder.path)/key.pem", "\(folder.path)/certificate.pem"]
    let maker = try Child([
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-keyout", files[0], "-out", files[1],
    ])
    defer { maker.end() }
    guard try maker.exitStatus() == .exited(0) else { throw SpawnFailed(description: maker.errors.text) }
    return files
}

extension EndToEnd {
    @Suite("Requests of node")
    struct NodeRequestsTests {
        @Test(
            "Interleaved requests are named behind every way to go on later: plain, Express, TLS and a worker thread",
            arguments: ["NODE18", "NODE", "NODE22", "NODE24"])
        func interleaved(node: String) throws {
            let folder = try TemporaryFolder()
            try InterleavedRuns(node: node, options: makeCertificate(in: folder), loops: 2).expectNames(node, loops: 2)
        }

        @Test("So are those of cluster workers", arguments: ["NODE18", "NODE", "NODE22", "NODE24"])
        func cluster(node: String) throws {
            try InterleavedRuns(node: node, options: ["--cluster"], loops: 2).expectNames(node, loops: 2)
        }

        @Test("A node that runs already follows its requests once it is attached so, and no longer once it is detached")
        func attached() throws {
            let child = try Child([try Tools.installed("NODE22"), Tools.host("signals.js")])
            defer { child.end() }
            let port = try child.wait(forOutput: #"listening on http=(\d+)"#)
            let address = Address.port(Int(port) ?? 0)
            func request(_ options: [String]) throws -> [String] {
                let result = try Attach.run(child.pid, options)
                #expect(result.status == .exited(0), "\(result.errors)")
                _ = try Client.get("/ok", of: address)
                let report = try LoopLagTool.record(child.pid, for: .seconds(3)) {
                    for _ in 1...3 { _ = try Client.get("/awaited?ms=250", of: address) }
                }
                #expect(try Attach.detach(child.pid).status == .exited(0))
                return report.processes.flatMap(\.stalls).compactMap(\.request).map { "\($0.method) \($0.path)" }
            }
            #expect(Set(try request(["--requests"])) == ["GET /awaited"])
            // Told so by the inspector once more, and named again.
            #expect(Set(try request(["--requests"])) == ["GET /awaited"])
            #expect(child.errors.text.components(separatedBy: "Debugger ending").count == 3, "\(child.errors.text)")
            let other = try Host.epollServer(environment: [:])
            defer { other.end() }
            let refused = try Attach.run(other.pid, ["--requests"])
            #expect(refused.status == .exited(1), "\(refused.errors)")
            #expect(refused.errors.contains("is not node"), "\(refused.errors)")
        }

        @Test("NODE_OPTIONS is kept, what is not node is told, and the module goes when nobody can need it any more")
        func module() throws {
            let program = "console.log(process.env.NODE_OPTIONS); fetch === undefined"
            let kept = try LoopLagTool.run(
                ["run", "--requests", "-q", "--", Tools.installed("NODE"), "-e", program],
                environment: ["NODE_OPTIONS": "--no-warnings"])
            #expect(kept.status == .exited(0), "\(kept.errors)")
            let match = try #require(
                kept.output.firstMatch(of: /--require=(\/\S+)\/looplag-requests.cjs --no-warnings\n/))
            #expect(!FileManager.default.fileExists(atPath: String(match.1)))

            let other = try LoopLagTool.run(["run", "--requests", "-q", "--", "true"])
            #expect(other.status == .exited(0) && other.errors.contains("nothing of it was node"), "\(other.errors)")

            let left = try LoopLagTool.start(
                ["run", "--requests", "-q", "--", "sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $NODE_OPTIONS left=$!"])
            defer { left.end() }
            #expect(try left.exitStatus() == .exited(0))
            let sleeper = Int32(try left.wait(forOutput: #"left=(\d+)"#)) ?? 0
            defer { kill(sleeper, SIGKILL) }
            let folder = try #require(left.errors.text.firstMatch(of: /(\/\S+) stays: (\d+) \(sleep\)/))
            #expect(folder.2 == "\(sleeper)")
            #expect(FileManager.default.fileExists(atPath: String(folder.1) + "/looplag-requests.cjs"))
            try FileManager.default.removeItem(atPath: String(folder.1))
        }
    }
}
