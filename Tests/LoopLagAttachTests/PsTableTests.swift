/// The table of `looplag ps`: a tree that fits any terminal.

import LoopLagDiagnosis
import Testing

@testable import LoopLagCLI

@Suite("The table of processes")
struct PsTableTests {
    private func worker(_ pid: Int32, parent: Int32?, _ server: String = "gunicorn", alive: Bool = true) -> PsVerb.Row {
        PsVerb.Row(
            pid: pid, parent: parent, user: "www-data", server: server,
            runtime: .init(name: "cpython", version: "3.11.2"), alive: alive,
            agent: .init(state: "running", mode: "preload", loops: 1, stalls: 12, degraded: ["no-private-fds"]),
            segment: alive ? nil : "/dev/shm/looplag-\(pid)-1")
    }

    private func master(_ pid: Int32, parent: Int32) -> PsVerb.Row {
        PsVerb.Row(
            pid: pid, parent: parent, user: "root", server: "gunicorn", alive: true, attachable: false,
            preloadable: true, obstacle: "it may not be traced: not permitted to trace it")
    }

    @Test("shows children under their parents, and the dead at the end")
    func tree() {
        let rows = [
            worker(30, parent: 20), worker(9, parent: nil, "redis-server"), worker(12, parent: 20, alive: false),
            master(20, parent: 1), worker(25, parent: 20), worker(40, parent: 30, "helper"),
        ]
        let order = PsTable.ordered(rows)
        #expect(order.map(\.row.pid) == [9, 20, 25, 30, 40, 12])
        #expect(order.map(\.depth) == [0, 0, 1, 1, 2, 0])
        let lines = PsTable.text(rows).split(separator: "\n").map(String.init)
        #expect(lines.count == 7)
        #expect(lines[2].contains("cannot be measured: it may not be traced"))
        #expect(lines[3].contains("└ gunicorn"))
        #expect(lines[5].contains("  └ helper"))
        #expect(lines[6].contains("looplag postmortem 12"))
    }

    @Test("shows every process once even when /proc was read in a circle")
    func circle() {
        let rows = [worker(1000, parent: 1001), worker(1001, parent: 1000), worker(5, parent: 5)]
        #expect(PsTable.ordered(rows).map(\.row.pid).sorted() == [5, 1000, 1001])
    }

    @Test("fits 40 to 200 columns and always says who, with what agent, and why not")
    func widths() {
        var rows = [
            worker(123_456, parent: nil, "a-server-with-quite-a-long-name.example"), master(20, parent: 1),
            worker(30, parent: 20), worker(7, parent: nil, "\u{1b}[2J\u{4e2d}\u{6587}\u{4e2d}\u{6587}", alive: false),
        ]
        rows[2].error = "cannot read the telemetry of 30: not permitted; run as that user or as root"
        for width in [1] + Array(40...200) + [500] {
            let lines = PsTable.text(rows, width: width).split(separator: "\n").map(String.init)
            let limit = min(200, max(40, width))
            #expect(lines.allSatisfy { PlainText.columns(of: $0) <= limit }, "\(width): \(lines)")
            #expect(lines[0].contains("PID") && lines[0].contains("SERVER") && lines[0].contains("AGENT"))
            #expect(lines.contains { $0.hasPrefix("123456") })
            let text = lines.joined(separator: "\n")
            #expect(text.contains("cannot be measured"), "\(width)")
            #expect(text.contains("unread"), "\(width)")
            #expect(!text.contains("\u{1b}"))
        }
    }
}
