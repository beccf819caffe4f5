/// The budgets of the design, measured as ratios within one run:
/// `swift build -c release && swift run -c release looplag-bench [--quick] [--only NAME]...`.
///
/// A person runs it; no test asserts a time. Every row says what was measured, the figure, the bar, and whether it
/// holds; a host that is not installed, or a counter that the machine does not have, gives a row that says so. The exit
/// status is 1 when a budget is exceeded. Every wait has a deadline, and what the bench starts it ends, also at Ctrl-C.
/// Threads: only this one, and in the hook measurement the agent's own.

import Glibc

@main
enum Bench {
    static let usage = "usage: looplag-bench [--quick] [--only NAME]..."

    private static let measurements: [(name: String, run: @Sendable (inout Table, Plan) -> Void)] = [
        ("hook", { HookCost.measure(into: &$0, $1) }),
        ("object", { ObjectCost.measure(into: &$0, $1) }),
        ("memory", { MemoryCost.measure(into: &$0, $1) }),
        ("idle", { IdleCost.measure(into: &$0, $1) }),
        ("requests", { RequestCost.measure(into: &$0, $1) }),
        ("stalls", { StallCost.measure(into: &$0, $1) }),
        ("fastapi", { PythonCost.measure(into: &$0, $1) }),
        ("python", { PythonTorture.measure(into: &$0, $1) }),
        ("symbols", { SymbolCost.measure(into: &$0, $1) }),
        ("top", { TopCost.measure(into: &$0, $1) }),
        ("node-requests", { NodeRequests.measure(into: &$0, $1) }),
        ("peers", { NodePeers.measure(into: &$0, $1) }),
        ("attach", { AttachCost.measure(into: &$0, $1) }),
    ]

    static func main() {
        if let request = SymbolWorker.Request(arguments: CommandLine.arguments) {
            exit(SymbolWorker.run(request))
        }
        if let request = PythonTorture.Request(arguments: CommandLine.arguments) {
            exit(PythonTorture.run(request))
        }
        guard let options = Options(CommandLine.arguments.dropFirst(), names: measurements.map(\.name)) else {
            say(usage + "\nNAME: " + measurements.map(\.name).joined(separator: ", "))
            exit(64)
        }
        Cleaner.install(seconds: options.isQuick ? 300 : 900)
        var table = Table()
        do throws(BenchError) {
            let plan = try Plan(isQuick: options.isQuick)
            defer { plan.clear() }
            let before = Machine.load
            for (name, run) in measurements where options.names.isEmpty || options.names.contains(name) {
                guard Cleaner.signalNumber == nil else { break }
                if isatty(STDERR_FILENO) == 1 { say("looplag-bench: \(name)") }
                run(&table, plan)
            }
            guard Cleaner.signalNumber == nil else { throw BenchError("told to end, nothing is reported") }
            print(table.text)
            print("\n\(Machine.description); load average \(before) before, \(Machine.load) after")
        } catch {
            say("looplag-bench: \(error.reason)")
            exit(Cleaner.signalNumber.map { 128 + $0 } ?? 1)
        }
        exit(table.holds ? 0 : 1)
    }

    private static func say(_ text: String) {
        let bytes = Array((text + "\n").utf8)
        _ = write(STDERR_FILENO, bytes, bytes.count)
    }
}

private struct Options {
    var isQuick = false
    var names: Set<String> = []

    init?(_ arguments: some Sequence<String>, names known: [String]) {
        var rest = Array(arguments)[...]
        while let argument = rest.popFirst() {
            switch argument {
            case "--quick": isQuick = true
            case "--only":
                guard let name = rest.popFirst(), known.contains(name) else { return nil }
                names.insert(name)
            default: return nil
            }
        }
    }
}

/// How much to measure, where the hosts are, and a folder for what they need.
final class Plan {
    let isQuick: Bool
    let folder: String
    private var files: [String] = []

    init(isQuick: Bool) throws(BenchError) {
        self.isQuick = isQuick
        let parent = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
        var template = Array((parent + "/looplag-bench-XXXXXX").utf8CString)
        guard mkdtemp(&template) != nil else { throw .system("a temporary folder in \(parent)", errno) }
        folder = template.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? parent }
    }

    /// The path of a new file in the bench's folder.
    func write(_ text: String, to name: String) throws(BenchError) -> String {
        let path = name.hasPrefix("/") ? name : folder + "/" + name
        guard let file = fopen(path, "we") else { throw .system(path, errno) }
        fputs(text, file)
        fclose(file)
        files.append(path)
        return path
    }

    /// Removes the folder and everything directly in it.
    func clear() { Plan.remove(folder) }

    static func remove(_ folder: String) {
        if let stream = opendir(folder) {
            while let entry = readdir(stream) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                guard name != ".", name != ".." else { continue }
                if unlink(folder + "/" + name) != 0 { Plan.remove(folder + "/" + name) }
            }
            closedir(stream)
        }
        rmdir(folder)
    }
}

private enum Machine {
    static var load: String {
        guard let text = readFile("/proc/loadavg") else { return "unknown" }
        return text.split(separator: " ").prefix(2).joined(separator: " ")
    }

    static var description: String {
        var name = utsname()
        uname(&name)
        let release = withUnsafePointer(to: &name.release) {
            $0.withMemoryRebound(to: CChar.self, capacity: 65) { String(cString: $0) }
        }
        return "\(sysconf(Int32(_SC_NPROCESSORS_ONLN))) CPUs, Linux \(release)"
    }
}
