/// What `looplag top` itself costs while somebody watches: one busy server, and a hundred processes of eight loops.
///
/// Used by Bench. The view runs in a terminal of script(1), 120 by 40, at its four refreshes a second; the figure is its
/// whole processor time, reading included. The processes are real, with the real agent in them; every loop turns often
/// enough that each look finds something new to read.

import Glibc

enum TopCost {
    /// LOOPS threads, each with an epoll of its own that comes back every PERIOD milliseconds.
    private static let server = """
        from select import epoll
        from sys import argv
        from threading import Thread
        loops, period = int(argv[1]), float(argv[2]) / 1000
        def serve():
            waiter = epoll()
            while True:
                waiter.poll(period)
                sum(range(500))
        for _ in range(loops - 1):
            Thread(target=serve, daemon=True).start()
        print("ready", flush=True)
        serve()
        """

    static func measure(into table: inout Table, _ plan: Plan) {
        let cases: [(processes: Int, loops: Int, period: Int, bar: Double)] = [(1, 1, 20, 3), (100, 8, 200, 15)]
        for one in cases where !(plan.isQuick && one.processes > 1) {
            let what = one.processes == 1 ? "top, one process" : "top, \(one.processes) processes of \(one.loops) loops"
            let bar = "<= \(rounded(one.bar, digits: 0)) % of a core"
            table.attempt(what, bar: bar) { (table) throws(BenchError) in
                var hosts: [Host] = []
                defer { for host in hosts { host.end() } }
                for _ in 0..<one.processes {
                    hosts.append(
                        try Host(
                            ["python3", "-c", server, "\(one.loops)", "\(one.period)"],
                            environment: ["LD_PRELOAD": try Products.agent()]))
                }
                for host in hosts { _ = try host.line(within: 30) }
                let share = try share(of: hosts.map(\.pid), seconds: plan.isQuick ? 4 : 12)
                table.add(
                    what,
                    "\(rounded(share, digits: 2)) %, \(one.processes * one.loops) loops at \(1000 / one.period) Hz",
                    bar: bar, holds: share <= one.bar)
            }
        }
    }

    /// Per cent of one core that the view takes over a while, once it has settled.
    private static func share(of pids: [pid_t], seconds: Double) throws(BenchError) -> Double {
        let list = pids.map(String.init).joined(separator: " ")
        let command = "stty rows 40 cols 120; exec '\(try Products.path("looplag"))' top --no-children \(list)"
        // Its picture goes nowhere, and its keyboard stays open and silent.
        let terminal = try Host(
            ["sh", "-c", "sleep 120 | exec script -qfc \"$0\" /dev/null >/dev/null", command],
            environment: ["TERM": "xterm-256color", "LC_ALL": "C.UTF-8"])
        defer { terminal.end() }
        let view = try eventually("looplag top in its terminal", within: 10) { () throws(BenchError) -> pid_t? in
            descendants(of: terminal.pid).first { ProcFigures.executable(of: $0)?.hasSuffix("/looplag") == true }
        }
        defer { kill(view, SIGTERM) }
        pause(milliseconds: 3000)
        let start = now()
        guard let before = ProcFigures.cpu(of: view) else { throw BenchError("its schedstat cannot be read") }
        let deadline = Deadline(seconds: seconds)
        while !deadline.hasPassed { pause(milliseconds: 100) }
        guard let after = ProcFigures.cpu(of: view) else { throw BenchError("looplag top ended") }
        return Double(after &- before) / Double(now() - start) * 100
    }

    private static func descendants(of root: pid_t) -> [pid_t] {
        var result: [pid_t] = []
        var next = [root]
        while let parent = next.popLast() {
            for thread in ProcFigures.threads(of: parent) {
                let text = readFile("/proc/\(parent)/task/\(thread)/children") ?? ""
                let children = text.split(separator: " ").compactMap { pid_t($0) }
                result += children
                next += children
            }
        }
        return result
    }
}
