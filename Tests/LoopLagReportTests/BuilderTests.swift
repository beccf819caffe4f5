import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import Testing

@Suite("Building a report")
struct BuilderTests {
    @Test("Ids are unique, and every reference leads somewhere")
    func references() {
        // The same pid twice: a process and the one that took its number later.
        let report = ReportBuilder.build(
            SampleReport.input([SampleReport.python, SampleReport.dead, SampleReport.python, SampleReport.empty]))
        let processes = report.processes
        let ids =
            processes.flatMap { $0.loops.map(\.id) + $0.pools.map(\.id) + $0.stalls.map(\.id) }
            + report.findings.map(\.id)
        #expect(Set(ids).count == ids.count)
        let stalls = Set(processes.flatMap { $0.stalls.map(\.id) })
        #expect(report.findings.allSatisfy { stalls.isSuperset(of: $0.stalls) })
        for process in processes {
            let loops = Set(process.loops.map(\.id))
            #expect(process.stalls.allSatisfy { loops.contains($0.loopID) })
            for sample in process.stalls.flatMap(\.samples) {
                #expect(sample.stack.allSatisfy { report.frames.indices.contains($0) })
            }
        }
        #expect(processes[0].loops[0].id == "4242.0.1")
        #expect(processes[0].stalls[0].id == "4242.s1")
        #expect(processes[2].loops[0].id == "4242-2.0.1")
    }

    @Test("Every distinct frame stands once in the table")
    func frames() {
        let report = ReportBuilder.build(SampleReport.input([SampleReport.python]))
        #expect(Set(report.frames).count == report.frames.count)
        #expect(report.frames.count == 6)
        let stacks = report.processes[0].stalls.map { $0.samples.map(\.stack) }
        #expect(stacks[0] == stacks[1])
    }

    @Test("Stalls carry cause, culprit, wall-clock start and samples in order of time")
    func stalls() {
        let stalls = ReportBuilder.build(SampleReport.input([SampleReport.python])).processes[0].stalls
        #expect(stalls.map(\.cause) == [.syscall, .syscall, .onCPU])
        #expect(stalls.map { $0.culprit?.function } == ["charge", "charge", "cpu"])
        #expect(stalls[0].syscall == "clock_nanosleep")
        #expect(stalls[0].start == "2026-03-01T12:03:23.000000Z")
        #expect(stalls[2].samples.map(\.offsetNS) == [100_000_000, 300_000_000])
        #expect(stalls.allSatisfy { !$0.open && $0.noStackReason == nil })
    }

    @Test("A killed process's open stall lasted until its last sign of life, not until it was read")
    func dead() throws {
        let process = ReportBuilder.build(SampleReport.input([SampleReport.dead])).processes[0]
        let stall = try #require(process.stalls.first)
        #expect(stall.open)
        #expect(stall.durationNS == 500_000_000)
        #expect(stall.culprit?.function == "debugCommand")
        #expect(process.loops[0].busyNS == 500_000_000)
        #expect(process.loops[0].idleNS == 20_000_000_000)
    }

    @Test("A living process's open stall has lasted until the snapshot")
    func open() {
        let process = ReportInput.Process(
            from: nil, to: makeProcess(loops: [makeLoop(busySince: 59_000, idle: 59_000)]),
            stalls: [makeStall(state: .open, start: 59_000, length: 600)])
        let stall = ReportBuilder.build(SampleReport.input([process])).processes[0].stalls.first
        #expect(stall?.durationNS == 1_000_000_000)
        #expect(stall?.open == true)
    }

    @Test("Stalls below the report's threshold, dropped ones and those of another time are left out")
    func filtered() {
        let from = makeProcess(takenAt: 10_000, loops: [makeLoop(idleSince: 9_000, idle: 9_000)])
        let to = makeProcess(loops: [makeLoop(idleSince: 9_000, idle: 9_000)])
        let stalls = [
            makeStall(id: 1, start: 1_000, length: 500), makeStall(id: 2, start: 20_000, length: 150),
            makeStall(id: 3, start: 30_000, length: 250), makeStall(id: 4, state: .dropped, start: 40_000, length: 900),
            makeStall(id: 5, start: 70_000, length: 900),
        ]
        let process = ReportInput.Process(from: from, to: to, stalls: stalls)
        let report = ReportBuilder.build(SampleReport.input([process], threshold: 200))
        #expect(report.processes[0].stalls.map(\.id) == ["4242.s3"])
    }

    @Test("Loops retired before the window are left out, those retired in it are not")
    func retired() {
        let old = makeLoop(slot: 0, isLive: false, retired: 5_000)
        let recent = makeLoop(slot: 1, isLive: false, retired: 15_000, busySince: 14_000)
        let process = ReportInput.Process(
            from: makeProcess(takenAt: 10_000), to: makeProcess(loops: [old, recent]), stalls: [])
        #expect(ReportBuilder.build(SampleReport.input([process])).processes[0].loops.map(\.id) == ["4242.1.1"])
    }

    @Test("A loop whose slot another has taken keeps its numbers by its last snapshot")
    func gone() {
        let first = makeLoop(generation: 1, busySince: 3_000, busy: 200, idle: 2_800, lengths: [200])
        let second = makeLoop(generation: 2, registered: 4_000, idleSince: 4_000)
        let process = ReportInput.Process(
            from: nil, to: makeProcess(loops: [second]), stalls: [makeStall(start: 1_000, length: 200)],
            goneLoops: [first])
        let result = ReportBuilder.build(SampleReport.input([process])).processes[0]
        #expect(result.loops.map(\.id) == ["4242.0.2", "4242.0.1"])
        #expect(result.loops[1].busyNS == 200_000_000)
        #expect(result.loops[1].stallCount == 1)
        #expect(result.stalls.map(\.loopID) == ["4242.0.1"])
    }

    @Test("Helpers are in the report, marked")
    func helpers() {
        let loops = ReportBuilder.build(SampleReport.input([SampleReport.python])).processes[0].loops
        #expect(loops.map(\.role) == [.server, .helper])
        #expect(loops.map(\.kind) == ["asyncio", "dispatch"])
    }

    @Test("The agent's own figures are of the window; refused loops show as a degraded agent")
    func agent() {
        var from = SampleReport.python.to
        from.takenAt = at(20_000)
        from.agent.cpu = .milliseconds(20)
        from.agent.loopsRefused = 0
        from.agent.samplesDropped = ["no_signal": 1]
        var process = SampleReport.python
        process.from = from
        let agent = ReportBuilder.build(SampleReport.input([process])).processes[0].agent
        #expect(agent.cpuNS == 20_000_000)
        #expect(abs(agent.cpuShare - 0.0005) < 1e-12)
        #expect(agent.samplesDropped == 1)
        #expect(agent.degraded == ["no-signal", "loops-full"])
    }

    @Test("Findings say what blocks, on what they rest and what to do")
    func findings() throws {
        let report = SampleReport.everything
        let byName = Dictionary(uniqueKeysWithValues: report.findings.map { ($0.id, $0) })
        let blocking = try #require(byName["4242.blocking-call"])
        #expect(blocking.title == "Blocking call on the event loop: `charge` (billing.py:41) waits in clock_nanosleep")
        #expect(blocking.stalls == ["4242.s1", "4242.s2"])
        #expect(blocking.evidence.contains("2 stalls, 400 ms in all, the worst 200 ms"))
        #expect(blocking.advice.contains("asyncio.to_thread"))
        #expect(byName["4242.busy-handler"]?.title.contains("`cpu` (app.py:9)") == true)
        #expect(byName["4242.loops-refused"] != nil)
        #expect(byName["4242.degraded"]?.evidence.contains("no realtime signal") == true)
        #expect(byName["99.no-loop"]?.advice.contains("LOOPLAG_WAITS") == true)
        let order = report.findings.map(\.severity)
        #expect(order == [.critical, .warning, .info].flatMap { severity in order.filter { $0 == severity } })
    }

    @Test("A healthy server has no findings")
    func healthy() {
        let process = ReportInput.Process(
            from: nil, to: makeProcess(loops: [makeLoop(idleSince: 59_000, busy: 10, idle: 58_990, lengths: [5, 5])]),
            stalls: [])
        #expect(ReportBuilder.build(SampleReport.input([process])).findings.isEmpty)
    }

    @Test("A starved machine is never blamed on the code")
    func starved() {
        let evidence = StallEvidence(
            looks: 3, observed: .milliseconds(180), onCPU: .milliseconds(180), cpuTime: .milliseconds(20),
            runQueueTime: .milliseconds(160))
        let process = ReportInput.Process(
            from: nil, to: makeProcess(loops: [makeLoop(idleSince: 2_000, busy: 200, idle: 1_800, lengths: [200])]),
            stalls: [makeStall(start: 500, length: 200, evidence: evidence)])
        let findings = ReportBuilder.build(SampleReport.input([process])).findings
        #expect(findings.map(\.id) == ["4242.starved"])
    }

    @Test("A stall without a stack says why")
    func noStack() {
        let process = ReportInput.Process(
            from: nil, to: makeProcess(loops: [makeLoop(idleSince: 9_000)]),
            stalls: [makeStall(id: 1, start: 100), makeStall(id: 2, start: 900, detected: false)],
            samples: [makeSample(stall: 1, frames: [], reason: "the thread moved on")])
        let stalls = ReportBuilder.build(SampleReport.input([process])).processes[0].stalls
        #expect(stalls.map(\.noStackReason) == ["the thread moved on", "it had ended before the watchdog looked"])
        #expect(stalls.allSatisfy { $0.samples.isEmpty })
    }
}
