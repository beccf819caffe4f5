/// Ten thousand samples at 1 kHz of a Python program that does everything awkward: is any line wrong, and how long does
/// each sample stop the thread?
///
/// The worker is this bench started anew: it loads libpython into itself, runs the program on its main thread and samples
/// that thread from another one with the agent's own handler and decoder. The program writes down beforehand which lines
/// each of its functions has. One row for each interpreter named in LOOPLAG_BENCH_PYTHONS (a colon between them), else
/// for `python3`.

import CLoopLag
import Glibc
import LoopLagAgent

enum PythonTorture {
    static func measure(into table: inout Table, _ plan: Plan) {
        let named = getenv("LOOPLAG_BENCH_PYTHONS").map { String(cString: $0) } ?? "python3"
        for (number, python) in named.split(separator: ":").map(String.init).enumerated() {
            let what = "python sample, \(python.split(separator: "/").suffix(3).joined(separator: "/"))"
            let bar = "pause p50 <= 150 us, bad lines <= 0.25 %, no crash"
            table.attempt(what, bar: bar) { (table) throws(BenchError) in
                let library = try libraryPath(python)
                let script = try plan.write(
                    String(decoding: PackageResources.torture_py, as: UTF8.self), to: "torture.py")
                let truth = plan.folder + "/truth-\(number)"
                guard let own = ProcFigures.executable(of: getpid()) else { throw BenchError("no /proc/self/exe") }
                var environment = ["PYTHONHOME": try home(python), "PYTHONDONTWRITEBYTECODE": "1"]
                environment["LOOPLAG_BENCH_KEEP"] = getenv("LOOPLAG_BENCH_KEEP").map { String(cString: $0) }
                let host = try Host(
                    [own, "--python-torture", library, script, truth, plan.isQuick ? "2000" : "10000"],
                    environment: environment)
                defer { host.end() }
                let line = try host.line(within: plan.isQuick ? 120 : 400)
                let fields = line.split(separator: " ").compactMap { Double($0) }
                guard fields.count == 10 else { throw BenchError("the worker said: \(line)") }
                let share = fields[3] > 0 ? fields[4] / fields[3] * 100 : 0
                let version = "3.\(Int(fields[8]))"
                table.add(
                    what,
                    "\(version): \(Int(fields[0])) samples at \(Int(fields[1])) Hz, \(Int(fields[2])) dropped, \(Int(fields[9])) empty, "
                        + "\(Int(fields[3])) frames, bad \(rounded(share, digits: 3)) %, pause p50 "
                        + "\(rounded(fields[5] / 1000, digits: 1)) us, p99 \(rounded(fields[6] / 1000, digits: 1)) us, "
                        + "max \(rounded(fields[7] / 1000, digits: 0)) us", bar: bar,
                    holds: share <= 0.25 && fields[5] <= 150_000 && fields[0] > 0)
            }
        }
    }

    private static func ask(_ python: String, _ expression: String) throws(BenchError) -> String {
        let host = try Host([python, "-c", "import sysconfig as s, sys; print(\(expression), flush=True)"])
        defer { host.end() }
        return try host.line(within: 20)
    }

    private static func libraryPath(_ python: String) throws(BenchError) -> String {
        let path = try ask(python, "s.get_config_var('LIBDIR') + '/' + s.get_config_var('INSTSONAME')")
        guard access(path, R_OK) == 0, path.contains(".so") else { throw BenchError("it has no libpython: \(path)") }
        return path
    }

    private static func home(_ python: String) throws(BenchError) -> String { try ask(python, "sys.base_prefix") }

    // MARK: - the worker

    struct Request: Sendable {
        var library: String, script: String, truth: String
        var samples: Int

        init?(arguments: [String]) {
            guard arguments.count == 6, arguments[1] == "--python-torture", let samples = Int(arguments[5]) else {
                return nil
            }
            library = arguments[2]
            script = arguments[3]
            truth = arguments[4]
            self.samples = samples
        }
    }

    /// Runs the program to its end on this thread, sampled from another.
    static func run(_ request: Request) -> Int32 {
        guard let handle = dlopen(request.library, RTLD_NOW | RTLD_GLOBAL), let entry = dlsym(handle, "Py_BytesMain"),
            let version = dlsym(handle, "Py_GetVersion")
        else { return 1 }
        typealias Main = @convention(c) (Int32, UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?) -> Int32
        typealias Version = @convention(c) () -> UnsafePointer<CChar>?
        guard let text = unsafeBitCast(version, to: Version.self)() else { return 1 }
        lag_python_detect(text)
        let sampler = Sampler(request, tid: lag_gettid(), pthread: UInt64(pthread_self()))
        let raw = Unmanaged.passRetained(sampler).toOpaque()
        var thread = pthread_t()
        let started = pthread_create(
            &thread, nil,
            { raw in
                guard let raw else { return nil }
                Unmanaged<Sampler>.fromOpaque(raw).takeRetainedValue().work()
                return nil
            }, raw)
        guard started == 0 else { return 1 }
        let words: [String] = ["python", request.script, request.truth]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        let status = unsafeBitCast(entry, to: Main.self)(3, &arguments)
        pthread_join(thread, nil)
        return status
    }
}

// Safety: handed to its one thread before that starts, and touched by nobody else.
private final class Sampler: @unchecked Sendable {
    private let request: PythonTorture.Request
    private let tid: Int32
    private let pthread: UInt64
    private var pauses: [UInt64] = []
    private var seen: [String: Int] = [:]
    private var dropped = 0
    /// Frames that could not be read.
    private var unread: UInt64 = 0
    /// Samples without one frame.
    private var empty = 0

    init(_ request: PythonTorture.Request, tid: Int32, pthread: UInt64) {
        self.request = request
        self.tid = tid
        self.pthread = pthread
    }

    func work() {
        let deadline = Deadline(seconds: 60)
        while readFile(request.truth)?.hasSuffix("end\n") != true, !deadline.hasPassed { usleep(10_000) }
        guard var probe = CPythonProbe() else {
            say("0 0 0 0 0 0 0 0 0 0")
            return finish()
        }
        let began = lag_clock_now()
        var next = began
        let limit = Deadline(seconds: 300)
        while pauses.count < request.samples, !limit.hasPassed {
            next += 1_000_000
            lag_sleep_until(next)
            let now = lag_clock_now()
            if now > next + 20_000_000 { next = now }
            let outcome = probe.sample(tid: tid, pthread: pthread) { bytes, count in note(bytes, count) }
            unread += outcome.bad
            if outcome.drop == 0 { pauses.append(outcome.pause) } else { dropped += 1 }
        }
        let elapsed = Double(lag_clock_now() - began) / 1e9
        report(elapsed)
        finish()
    }

    /// Counts the frames of one sample by function, file and line.
    private func note(_ bytes: UnsafeRawPointer, _ count: Int) {
        guard count >= MemoryLayout<lag_managed>.stride else {
            empty += 1
            return
        }
        let header = bytes.load(as: lag_managed.self)
        let frames = bytes + MemoryLayout<lag_managed>.stride
        let texts = frames + Int(header.frames + header.blocker_frames) * MemoryLayout<lag_managed_frame>.stride
        for i in 0..<Int(header.frames) {
            let frame = frames.load(
                fromByteOffset: i * MemoryLayout<lag_managed_frame>.stride, as: lag_managed_frame.self)
            func text(_ text: lag_text) -> String {
                String(
                    decoding: UnsafeRawBufferPointer(start: texts + Int(text.offset), count: Int(text.bytes)),
                    as: UTF8.self)
            }
            seen["\(text(frame.file))\t\(text(frame.function))\t\(frame.line)", default: 0] += 1
        }
    }

    /// Frames of the program's own functions whose line is none of that function's count as bad, like those that could
    /// not be read.
    private func report(_ elapsed: Double) {
        let truth = Set((readFile(request.truth) ?? "").split(separator: "\n").map(String.init))
        var frames = 0
        var bad = Int(unread)
        for (line, count) in seen {
            frames += count
            let isOwn = line.hasPrefix(request.script) || line.hasPrefix("<made")
            // 0: the interpreter says that the instruction has no line.
            if isOwn, !line.hasSuffix("\t0"), !truth.contains(line) { bad += count }
        }
        // For who looks into a figure that is over: LOOPLAG_BENCH_KEEP names a file.
        if let name = getenv("LOOPLAG_BENCH_KEEP"), let file = fopen(name, "we") {
            fputs("not read: \(unread)\n", file)
            for (line, count) in seen where !truth.contains(line) { fputs("\(count)\t\(line)\n", file) }
            fclose(file)
        }
        pauses.sort()
        func quantile(_ q: Double) -> UInt64 {
            pauses.isEmpty ? 0 : pauses[min(pauses.count - 1, Int(Double(pauses.count) * q))]
        }
        let rate = elapsed > 0 ? Double(pauses.count) / elapsed : 0
        say(
            "\(pauses.count) \(Int(rate)) \(dropped) \(frames) \(bad) \(quantile(0.5)) \(quantile(0.99)) "
                + "\(pauses.last ?? 0) \(lag_python_found().pointee.version >> 16 & 0xff) \(empty)")
    }

    private func say(_ text: String) {
        let bytes = Array((text + "\n").utf8)
        _ = write(STDOUT_FILENO, bytes, bytes.count)
    }

    /// The program ends when this file is there.
    private func finish() {
        if let file = fopen(request.truth + ".stop", "we") { fclose(file) }
    }
}
