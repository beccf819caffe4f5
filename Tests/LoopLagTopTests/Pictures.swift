/// Pictures of something to look at, for the tests of screens and keys.

import LoopLagDiagnosis
import LoopLagModel
import LoopLagTop

enum Sample {
    static let charge = Frame(function: "charge", kind: .python, file: "/srv/app/billing.py", line: 41)
    static let sleeping = [
        Frame(function: "clock_nanosleep", kind: .native, module: "libc.so.6"),
        Frame(function: "time_sleep", kind: .native, module: "python3.11"), charge,
        Frame(
            function: "run_endpoint_function", kind: .python, file: "/v/site-packages/fastapi/routing.py", line: 212),
    ]
    static let spinning = [
        Frame(function: "cpu", kind: .python, file: "/srv/app/app.py", line: 9),
        Frame(function: "run", kind: .python, file: "/v/site-packages/uvicorn/main.py", line: 579),
    ]

    static func sample(_ position: UInt64, _ frames: [Frame], offset: Int = 100, truncated: Bool = false)
        -> StackSample
    {
        StackSample(
            stallID: 1, position: position, offset: .milliseconds(offset), threadState: "R", method: .signal,
            frames: frames, isTruncated: truncated)
    }

    static func stall(
        _ number: Int, pid: Int32 = 4242, loop: String = "4242.0.1", isOpen: Bool = false, length: Int = 300,
        cause: Cause = .onCPU, syscall: String? = nil, culprit: Frame? = spinning[0],
        samples: [StackSample] = [sample(1, spinning)]
    ) -> LiveStall {
        LiveStall(
            id: "\(pid).s\(number)", pid: pid, server: "uvicorn", loopID: loop, loop: "main", isOpen: isOpen,
            lengthNS: Int64(length) * 1_000_000, time: "12:03:20.114",
            diagnosis: StallDiagnosis(
                cause: cause, evidence: ["looks": 4, "on_cpu_ns": 250e6], syscall: syscall, culprit: culprit,
                request: ReportStall.Request(method: "POST", path: "/pay")), samples: samples,
            userCode: UserCode(executable: "/usr/bin/python3.11"))
    }

    static func loop(
        _ id: String, name: String = "main", kind: String = "uvloop", p99: Int64 = 182_000_000,
        open: LiveLoop.Open? = nil, busy: Double = 0.71, stalls: Int = 12
    ) -> LiveLoop {
        var delay = ReportLoop.Delay()
        delay.p50NS = 3_000_000
        delay.p99NS = p99
        delay.maxNS = 412_000_000
        return LiveLoop(
            id: id, name: name, kind: kind, utilization: busy, delay: delay, stallCount: stalls, open: open,
            history: (0..<60).map { Int64($0 == 30 ? 400_000_000 : 1_000_000) })
    }

    static let pool = ReportPool(
        id: "4242.p0", kind: "anyio", name: "default limiter", threads: 40,
        busy: Gauge(last: 40, mean: 31.5, max: 40), queueDepth: Gauge(last: 20, mean: 4, max: 25), inFlight: nil,
        queueWait: ReportPool.QueueWait(p50NS: 3_000_000, p99NS: 980_000_000, maxNS: 1_000_000_000), method: .probe)

    static let finding = Finding(
        id: "4242.busy-handler", severity: .critical, title: "CPU-bound work on the event loop: `cpu` (app.py:9)",
        evidence: "uvicorn (4242): 12 stalls, 3.1 s in all.", advice: "Move the work to a process pool.",
        stalls: ["4242.s9"])

    /// Two servers, a saturated pool, an open stall of 312 ms and two that have ended.
    static var picture: LivePicture {
        LivePicture(
            processes: [
                LiveProcess(
                    pid: 4242, server: "uvicorn",
                    loops: [
                        loop(
                            "4242.0.1",
                            open: LiveLoop.Open(
                                elapsedNS: 312_000_000, cause: .onCPU, threadState: "R", culprit: spinning[0]))
                    ], pools: [pool]),
                LiveProcess(
                    pid: 4310, server: "server.js",
                    loops: [loop("4310.0.1", kind: "libuv", p99: 4_000_000, busy: 0.02, stalls: 0)]),
            ],
            stalls: [
                stall(
                    9, isOpen: true, length: 312,
                    samples: [sample(1, spinning, offset: 100), sample(2, spinning, offset: 150)]),
                stall(
                    8, length: 409, cause: .syscall, syscall: "clock_nanosleep", culprit: charge,
                    samples: [sample(3, sleeping)]),
                stall(7, length: 120, culprit: nil, samples: []),
            ], findings: [finding], time: "12:03:22")
    }

    /// `processes` of `loops` each, every one with a stall that has ended.
    static func crowd(_ processes: Int, _ loops: Int) -> LivePicture {
        var picture = LivePicture(time: "12:03:22")
        for p in 0..<processes {
            let pid = Int32(5000 + p)
            picture.processes.append(
                LiveProcess(
                    pid: pid, server: "server-\(p)",
                    loops: (0..<loops).map {
                        loop("\(pid).\($0).1", name: "NIO-\($0)", kind: "nio", p99: Int64(p * 10 + $0) * 1_000_000)
                    }))
            picture.stalls += (0..<loops).map { stall($0, pid: pid, loop: "\(pid).\($0).1", length: 100 + p) }
        }
        return picture
    }

    static let evil = "\u{1b}[2J\u{1b}]0;x\u{7}\nname\u{202e}\u{0}日本語🚀é"

    /// Everything that a foreign process can name says something that a terminal must not hear.
    static var hostile: LivePicture {
        var picture = picture
        let frame = Frame(function: evil, kind: .native, file: "/x/\(evil).c", line: 1, module: evil)
        for i in picture.processes.indices {
            picture.processes[i].server = evil
            for j in picture.processes[i].loops.indices {
                picture.processes[i].loops[j].name = evil
                picture.processes[i].loops[j].kind = evil
            }
        }
        picture.stalls = [
            stall(1, isOpen: true, culprit: frame, samples: [sample(1, [frame, frame])]), stall(2, culprit: frame),
        ]
        picture.stalls[0].loop = evil
        picture.stalls[0].server = evil
        picture.stalls[0].diagnosis.request = ReportStall.Request(method: evil, path: evil)
        picture.stalls[0].diagnosis.task = evil
        picture.stalls[0].diagnosis.phase = evil
        picture.stalls[0].diagnosis.blockedBy = BlockingThread(tid: 7, name: evil, frames: [frame])
        picture.stalls[1].samples = []
        picture.stalls[1].noStackReason = evil
        picture.findings = [
            Finding(id: evil, severity: .warning, title: evil, evidence: evil, advice: evil, stalls: [])
        ]
        picture.notice = evil
        return picture
    }

    /// Numbers that only a corrupt segment can hold.
    static var absurd: LivePicture {
        var picture = picture
        for value in [Int64.max, .min, -1, 0] {
            var loop = loop("1.\(value)", busy: value < 0 ? -.infinity : .nan, stalls: Int(value))
            loop.delay.p50NS = value
            loop.delay.p99NS = value
            loop.delay.maxNS = value
            loop.history = Array(repeating: value, count: 90)
            loop.open = LiveLoop.Open(elapsedNS: value, cause: .unknown, threadState: "\u{1b}")
            picture.processes.append(
                LiveProcess(
                    pid: Int32(truncatingIfNeeded: value), server: "", loops: [loop],
                    pools: [
                        ReportPool(
                            id: "p\(value)", kind: "", name: "", threads: Int(value),
                            busy: Gauge(last: value, mean: .nan, max: value),
                            queueDepth: Gauge(last: value, mean: .nan, max: value), inFlight: nil,
                            queueWait: ReportPool.QueueWait(p50NS: value, p99NS: value, maxNS: value), method: .exact)
                    ]))
            var stall = stall(Int(value))
            stall.lengthNS = value
            stall.diagnosis.evidence = ["a_ns": .infinity, "b_ns": .nan, "c": .nan, "d": -.infinity, "e": 1e300]
            stall.samples[0].offset = .nanoseconds(value)
            picture.stalls.append(stall)
        }
        return picture
    }
}
