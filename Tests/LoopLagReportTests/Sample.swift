/// A report with something of everything in it, for the tests of coding, schema, text and screen.

import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport

enum SampleReport {
    static let machine = Report.Machine(
        hostname: "web-1", kernel: "Linux 6.1.0", cpus: 4,
        cgroupLimits: Report.CgroupLimits(cpus: 2.5, memoryBytes: 1 << 30))

    static func input(_ processes: [ReportInput.Process], threshold: Int = 100) -> ReportInput {
        ReportInput(
            processes: processes, start: at(0), end: at(60_000), startWallNanoseconds: 1_772_366_602_000_000_000,
            endWallNanoseconds: 1_772_366_662_000_000_000, threshold: .milliseconds(threshold), machine: machine,
            version: "1.2.3")
    }

    static let python = ReportInput.Process(
        from: nil,
        to: makeProcess(
            runtime: .cpython, executable: "/usr/bin/python3.11",
            command: ["python3", "/usr/local/bin/uvicorn", "app:app"],
            loops: [
                makeLoop(idleSince: 59_000, busy: 4_900, idle: 54_100, lengths: [200, 200, 400, 3, 2, 1]),
                makeLoop(slot: 1, tid: 4250, name: "ispatch-manager", idleSince: 10),
            ],
            pools: [
                PoolSnapshot(
                    slot: 0, kind: "anyio", name: "default limiter", threads: 40,
                    busy: Gauge(last: 40, mean: 31.5, max: 40), queueDepth: Gauge(last: 20, mean: 4, max: 25),
                    inFlight: nil, queueWaitP50: .milliseconds(3), queueWaitP99: .milliseconds(980),
                    queueWaitMax: .seconds(1), method: .probe)
            ],
            agent: makeAgent(
                cpu: .milliseconds(40), degraded: ["no-signal"], dropped: ["no_signal": 2], refused: 1, samples: 3)),
        stalls: [
            makeStall(
                id: 1, start: 1_000, length: 200,
                evidence: StallEvidence(
                    looks: 4, observed: .milliseconds(150), inSyscall: .milliseconds(150), syscallNumber: 230)),
            makeStall(
                id: 2, start: 5_000, length: 200,
                evidence: StallEvidence(
                    looks: 4, observed: .milliseconds(150), inSyscall: .milliseconds(150), syscallNumber: 230)),
            makeStall(
                id: 3, start: 9_000, length: 400,
                evidence: StallEvidence(
                    looks: 9, observed: .milliseconds(350), onCPU: .milliseconds(350), cpuTime: .milliseconds(345))),
        ],
        samples: [
            makeSample(stall: 1, position: 0, state: "S", frames: sleeping),
            makeSample(stall: 2, position: 1, state: "S", frames: sleeping),
            makeSample(stall: 3, position: 2, offset: 300, frames: spinning),
            makeSample(stall: 3, position: 3, offset: 100, frames: spinning),
        ],
        callers: [LoopID(slot: 0, generation: 1): native("select_epoll_poll", "python3.11")],
        startedWallNanoseconds: 1_772_366_000_000_000_000)

    static let sleeping = [
        native("clock_nanosleep", "libc.so.6"), native("time_sleep", "python3.11"),
        Frame(function: "charge", kind: .python, file: "/srv/app/billing.py", line: 41),
        Frame(function: "run", kind: .python, file: "/v/site-packages/uvicorn/main.py", line: 579),
    ]

    static let spinning = [
        Frame(function: "cpu", kind: .python, file: "/srv/app/app.py", line: 9),
        Frame(function: "run", kind: .python, file: "/v/site-packages/uvicorn/main.py", line: 579),
        native("_PyEval_EvalFrameDefault", "python3.11"),
    ]

    /// Killed in the middle of a stall; its segment is read long after.
    static let dead = ReportInput.Process(
        from: nil,
        to: makeProcess(
            pid: 77, takenAt: 60_000, isAlive: false,
            loops: [makeLoop(tid: 77, name: "redis-server", busySince: 20_000, busy: 0, idle: 20_000)],
            agent: makeAgent(heartbeat: at(20_500))),
        stalls: [
            makeStall(
                id: 9, state: .open, start: 20_000, length: 40_000,
                evidence: StallEvidence(looks: 3, observed: .milliseconds(400), onCPU: .milliseconds(400)))
        ],
        samples: [makeSample(stall: 9, frames: [native("usleep", "libc.so.6"), native("debugCommand")])])

    static let empty = ReportInput.Process(from: nil, to: makeProcess(pid: 99), stalls: [])

    static var everything: Report { ReportBuilder.build(input([python, dead, empty])) }
}
