import LoopLagDiagnosis
import LoopLagModel
import Testing

@Suite("Causes of stalls")
struct CauseTests {
    private static func diagnosis(_ evidence: StallEvidence, _ samples: [StackSample] = []) -> StallDiagnosis {
        diagnose(makeStall(evidence: evidence), samples: samples, executable: "/usr/bin/redis-server")
    }

    @Test("A stall that nobody looked at is unknown, even with a number left behind")
    func neverSeen() {
        let result = Self.diagnosis(StallEvidence(onCPU: .milliseconds(100)))
        #expect(result.cause == .unknown)
        #expect(result.syscall == nil)
        #expect(Self.diagnosis(StallEvidence()).evidence.isEmpty)
    }

    @Test("A wait for Python's lock that took most of the stall is its cause, also where nobody looked")
    func measuredLockWait() {
        let length = makeStall(evidence: StallEvidence()).duration
        #expect(Self.diagnosis(StallEvidence(gilWaitTime: length * 0.6)).cause == .gilWait)
        #expect(Self.diagnosis(StallEvidence(gilWaitTime: length * 0.4)).cause == .unknown)
        let looked = StallEvidence(looks: 2, observed: length / 4, onCPU: length / 4, gilWaitTime: length * 0.6)
        #expect(Self.diagnosis(looked).cause == .gilWait)
        let stopped = StallEvidence(looks: 2, observed: length, stopped: length, gilWaitTime: length * 0.6)
        #expect(Self.diagnosis(stopped).cause == .processStopped)
    }

    @Test("The largest share names the cause, and only known numbers are evidence")
    func largestShare() {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 5, observed: .milliseconds(125), onCPU: .milliseconds(25), inSyscall: .milliseconds(100),
                cpuTime: .milliseconds(25), syscallNumber: 230))
        #expect(result.cause == .syscall)
        #expect(result.syscall == "clock_nanosleep")
        #expect(
            result.evidence == [
                "syscall_ns": 100e6, "on_cpu_ns": 25e6, "observed_ns": 125e6, "cpu_time_ns": 25e6, "looks": 5,
            ])
    }

    @Test("The owner of a lock is that of the longest wait, or nobody")
    func lockOwners() {
        func sample(_ offset: Int, _ owner: String?) -> StackSample {
            StackSample(
                stallID: 1, position: UInt64(offset), offset: .milliseconds(offset), threadState: "S", method: .passive,
                frames: [], isTruncated: false,
                blockedBy: owner.map {
                    BlockingThread(tid: 7, name: $0, frames: [Frame(function: "keep", kind: .python)])
                })
        }
        let evidence = StallEvidence(looks: 5, observed: .milliseconds(400), inLock: .milliseconds(400))
        let stall = makeStall(length: 500, evidence: evidence)
        func owner(_ samples: StackSample...) -> String? {
            diagnose(stall, samples: samples, executable: "python3").blockedBy?.name
        }
        #expect(owner(sample(100, "keeper"), sample(450, "other")) == "keeper")
        #expect(owner(sample(100, nil), sample(450, "other")) == nil)
        #expect(owner(sample(100, "keeper"), sample(200, "other")) == "other")
    }

    private static func busy(events: UInt64?, _ functions: [String]) -> StallDiagnosis {
        let samples = functions.enumerated().map { i, name in
            StackSample(
                stallID: 1, position: UInt64(i), offset: .milliseconds(100 + 50 * i), threadState: "R", method: .signal,
                frames: [
                    Frame(function: name, kind: .native, module: "server"),
                    Frame(function: "dispatch", kind: .native, module: "server"),
                    Frame(function: "main", kind: .native, module: "server"),
                ], isTruncated: false)
        }
        return diagnose(
            makeStall(
                evidence: StallEvidence(
                    looks: 9, observed: .milliseconds(400), onCPU: .milliseconds(400), cpuTime: .milliseconds(400),
                    events: events)), samples: samples, executable: "/opt/server")
    }

    @Test("Many events of which no function holds a fifth are many small callbacks, and nobody is the culprit")
    func manySmall() {
        let many = Self.busy(events: 200, ["a", "b", "c", "d", "e", "f"])
        #expect(many.cause == .manySmall)
        #expect(many.culprit == nil)
        #expect(many.evidence["events"] == 200)
        #expect((many.evidence["largest_function_share"] ?? 1) < 0.2)
        #expect(many.evidence["on_cpu_ns"] == 400e6)
        // One function with a fifth, one event, an unknown number of events, too few samples to tell.
        #expect(Self.busy(events: 200, ["a", "b", "c", "a", "e", "f"]).cause == .onCPU)
        #expect(Self.busy(events: 200, ["a", "b", "c", "a", "e", "f"]).culprit?.function == "a")
        #expect(Self.busy(events: 1, ["a", "b", "c", "d", "e", "f"]).cause == .onCPU)
        #expect(Self.busy(events: nil, ["a", "b", "c", "d", "e", "f"]).cause == .onCPU)
        #expect(Self.busy(events: 200, ["a", "b", "c", "d", "e"]).cause == .onCPU)
        #expect(Self.busy(events: 200, []).cause == .onCPU)
    }

    @Test("Causes partition the observed time", arguments: [0, 30, 80, 200])
    func partition(queued: Int) {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 9, observed: .milliseconds(200), onCPU: .milliseconds(90), inSyscall: .milliseconds(40),
                inLock: .milliseconds(30), pageFault: .milliseconds(20), runQueueLooks: .milliseconds(10),
                unknown: .milliseconds(10), cpuTime: .milliseconds(100), runQueueTime: .milliseconds(queued)))
        let names = ["on_cpu_ns", "syscall_ns", "lock_ns", "page_fault_ns", "run_queue_ns", "stopped_ns", "unknown_ns"]
        #expect(abs(names.reduce(0) { $0 + (result.evidence[$1] ?? 0) } - 200e6) < 1)
    }

    @Test("A thread that was ready to run and not let is a matter of the run queue, whatever the looks thought")
    func runQueue() {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 5, observed: .milliseconds(200), onCPU: .milliseconds(200), cpuTime: .milliseconds(40),
                runQueueTime: .milliseconds(160)))
        #expect(result.cause == .runQueue)
        #expect(result.evidence["run_queue_ns"] == 160e6)
        #expect(result.evidence["on_cpu_ns"] == 40e6)
    }

    @Test("A process halted together with its watchdog is stopped, not busy")
    func halted() {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 2, observed: .milliseconds(1000), onCPU: .milliseconds(1000), cpuTime: .milliseconds(20),
                watchdogLate: .milliseconds(950)))
        #expect(result.cause == .processStopped)
        #expect(result.evidence["watchdog_late_ns"] == 950e6)
        #expect(result.evidence["stopped_ns"] == 950e6)
    }

    @Test("A late watchdog does not excuse a thread that did run")
    func lateButBusy() {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 2, observed: .milliseconds(1000), onCPU: .milliseconds(1000), cpuTime: .milliseconds(990),
                watchdogLate: .milliseconds(900)))
        #expect(result.cause == .onCPU)
    }

    @Test("What a late watchdog did not see is unknown, with or without the scheduler's account", arguments: [0, 15])
    func lateAndUnseen(ran: Int) {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 2, observed: .milliseconds(20), onCPU: .milliseconds(300), cpuTime: .milliseconds(ran),
                watchdogLate: .milliseconds(250)))
        #expect(result.cause == .unknown)
        #expect(result.evidence["on_cpu_ns"] == 50e6)
    }

    @Test("The time before the first look has no account and is not taken for a halt")
    func beforeTheFirstLook() {
        let result = Self.diagnosis(
            StallEvidence(
                looks: 5, observed: .milliseconds(100), onCPU: .milliseconds(200), cpuTime: .milliseconds(98),
                watchdogLate: .milliseconds(60)))
        #expect(result.cause == .onCPU)
        #expect(result.evidence["stopped_ns"] == nil)
    }

    @Test(
        "A single look spans no time: the samples' thread states decide",
        arguments: [
            ("R", 0, Cause.onCPU), ("S", 230, .syscall), ("S", 202, .lock), ("D", 0, .syscall),
            ("T", -1, .processStopped),
            ("S", -1, .unknown),
        ] as [(Character, Int, Cause)])
    func singleLook(state: Character, number: Int, cause: Cause) {
        let evidence = StallEvidence(looks: 1, syscallNumber: number < 0 ? nil : number)
        let result = Self.diagnosis(evidence, [makeSample(state: state, frames: [])])
        #expect(result.cause == cause)
        #expect(result.evidence == ["looks": 1])
    }

    @Test("Only waits in the kernel name a system call")
    func syscallOnlyForWaits() {
        let result = Self.diagnosis(
            StallEvidence(looks: 4, observed: .milliseconds(90), onCPU: .milliseconds(90), syscallNumber: 0))
        #expect(result.cause == .onCPU)
        #expect(result.syscall == nil)
        let odd = Self.diagnosis(
            StallEvidence(looks: 4, observed: .milliseconds(90), inSyscall: .milliseconds(90), syscallNumber: 9999))
        #expect(odd.syscall == "syscall_9999")
    }

    @Test("Hostile evidence does not trap")
    func hostile() {
        let huge = Duration.nanoseconds(Int64.max)
        let result = Self.diagnosis(
            StallEvidence(
                looks: .max, observed: huge, onCPU: huge, inSyscall: huge, inLock: huge, stopped: huge,
                pageFault: huge, runQueueLooks: huge, unknown: huge, cpuTime: huge, runQueueTime: huge,
                majorFaults: .max, watchdogLate: huge, syscallNumber: .min))
        #expect(result.evidence.values.allSatisfy { $0.isFinite })
    }

    @Test(
        "System calls are named as the kernel's table has them",
        arguments: [
            (0, "read"), (35, "nanosleep"), (61, "wait4"), (202, "futex"), (230, "clock_nanosleep"),
            (232, "epoll_wait"),
            (281, "epoll_pwait"), (334, "rseq"), (424, "pidfd_send_signal"), (441, "epoll_pwait2"),
            (449, "futex_waitv"),
            (462, "mseal"),
        ])
    func syscallNames(number: Int, name: String) {
        #expect(syscallName(number) == name)
    }

    @Test("Numbers without a call have no name", arguments: [-1, 336, 423, 5000, Int.max, Int.min])
    func unknownSyscalls(number: Int) {
        #expect(syscallName(number) == nil)
    }
}
