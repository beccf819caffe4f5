/// A Swift server that misbehaves on request, to try LoopLag on and to test it with: a raw NIO line protocol and a
/// Hummingbird server, both on 127.0.0.1 and a free port.
///
///     looplag-demo [--no-agent] [--threshold-ms N] [--raw-only | --http-only] [--load SECONDS | --load-endless]
///                  [--end-with-input] [--serve-only | --list]
///
/// Its first line is `listening on http=PORT raw=PORT` (only one of them with --raw-only or --http-only). It ends
/// cleanly at SIGTERM or SIGINT. `--load` brings its own requests and ends after that many seconds; `--load-endless`
/// does not. `--serve-only` is for a person: it says what to type in another terminal. `looplag demo` starts it.
/// Thread: the main task only waits.
/// Refuses: to listen on anything but loopback.

import Dispatch
import Glibc
import LoopLag
import NIOCore

@main
struct Demo {
    static let usage =
        "usage: looplag-demo [--no-agent] [--threshold-ms N] [--raw-only | --http-only]"
        + " [--load SECONDS | --load-endless] [--end-with-input] [--serve-only | --list]"

    static func main() async {
        guard let options = Options(arguments: CommandLine.arguments.dropFirst()) else {
            report(usage)
            exit(64)
        }
        if options.lists {
            write(ShopRoute.listing, to: STDOUT_FILENO)
            return
        }
        do {
            try await run(options)
        } catch {
            report("looplag-demo: \(error)")
            exit(1)
        }
    }

    private static func run(_ options: Options) async throws {
        if options.usesAgent {
            var configuration = LoopLag.Configuration()
            if let threshold = options.threshold { configuration.threshold = threshold }
            try LoopLag.start(configuration)
        }
        defer { if options.usesAgent { LoopLag.stop() } }
        if options.endsWithInput { LifeLine.hold() }

        let raw = options.servesRaw ? try await RawServer.start(host: "127.0.0.1", port: 0) : nil
        let rawPort = raw?.localAddress?.port
        if options.servesHTTP {
            try await HTTPServer.run(host: "127.0.0.1", port: 0) { port in
                if options.isForPerson { explain(port: port) } else { announce(http: port, raw: rawPort) }
                if options.hasLoad { SelfLoad.start(port: port, seconds: options.loadSeconds) }
            }
        } else {
            announce(http: nil, raw: rawPort)
            await EndSignal.wait()
        }
        try await raw?.close().get()
    }

    private static func announce(http: Int?, raw: Int?) {
        let ports = [http.map { "http=\($0)" }, raw.map { "raw=\($0)" }].compactMap { $0 }
        write("listening on \(ports.joined(separator: " "))\n", to: STDOUT_FILENO)
    }

    /// What `--serve-only` says: everything that the next step needs.
    private static func explain(port: Int) {
        let pid = getpid()
        let looplag = getenv("LOOPLAG_COMMAND").map { String(cString: $0) } ?? "looplag"
        let first = ShopRoute.all.first { $0.misdeed != nil }?.path ?? ""
        write(
            """
            looplag-demo, process \(pid), listens on http://127.0.0.1:\(port)/ until Ctrl-C.
            In another terminal:
              \(looplag) stalls \(pid) --follow
              curl http://127.0.0.1:\(port)/\(first)
            Its routes:
            \(ShopRoute.listing)
            """, to: STDOUT_FILENO)
    }

    private static func report(_ message: String) { write(message + "\n", to: STDERR_FILENO) }

    /// Past stdio's buffer: the line must be seen at once on a pipe too.
    private static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return }
            bytes = bytes.dropFirst(count)
        }
    }
}

struct Options {
    var usesAgent = true
    var threshold: Duration?
    var servesHTTP = true
    var servesRaw = true
    var hasLoad = false
    /// nil with a load means until the end.
    var loadSeconds: UInt32?
    var endsWithInput = false
    var isForPerson = false
    var lists = false

    /// nil for arguments that make no sense.
    init?(arguments: some Sequence<String>) {
        var rest = Array(arguments)[...]
        while let argument = rest.popFirst() {
            switch argument {
            case "--no-agent": usesAgent = false
            case "--raw-only": servesHTTP = false
            case "--http-only": servesRaw = false
            case "--threshold-ms":
                guard let text = rest.popFirst(), let milliseconds = UInt32(text), milliseconds > 0 else { return nil }
                threshold = .milliseconds(milliseconds)
            case "--load":
                guard let text = rest.popFirst(), let seconds = UInt32(text), (1...3600).contains(seconds) else {
                    return nil
                }
                (hasLoad, loadSeconds) = (true, seconds)
            case "--load-endless": hasLoad = true
            case "--end-with-input": endsWithInput = true
            case "--serve-only": isForPerson = true
            case "--list": lists = true
            default: return nil
            }
        }
        guard servesHTTP || servesRaw, servesHTTP || !(hasLoad || isForPerson) else { return nil }
        if isForPerson { servesRaw = false }
    }
}

/// SIGTERM or SIGINT for the raw server alone; Hummingbird brings its own way, which is the same one. Not sigwait: the
/// main thread of a Swift program sits in sigsuspend with every signal open and would take it first.
private enum EndSignal {
    static func wait() async {
        var sources: [any DispatchSourceSignal] = []
        let signals = AsyncStream<Void> { stream in
            for number in [SIGTERM, SIGINT] {
                signal(number, SIG_IGN)
                let source = DispatchSource.makeSignalSource(signal: number)
                source.setEventHandler { stream.yield() }
                source.resume()
                sources.append(source)
            }
        }
        for await _ in signals { break }
        for source in sources { source.cancel() }
    }
}
