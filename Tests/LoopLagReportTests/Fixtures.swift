/// Snapshots, stalls and frames as tests want them: everything idle and unknown unless a test says otherwise.
///
/// The diagnosis tests use this file too, by a symbolic link.

import LoopLagModel

func at(_ milliseconds: Int) -> MonotonicTime {
    MonotonicTime(nanoseconds: UInt64(1_000_000_000_000 + milliseconds * 1_000_000))
}

func makeLoop(
    slot: Int = 0, generation: UInt32 = 1, tid: Int32 = 4242, name: String = "server", isLive: Bool = true,
    role: LoopRole? = nil, registered: Int = 0, retired: Int? = nil, busySince: Int? = nil, idleSince: Int? = nil,
    busy: Int = 0, idle: Int = 0, lengths: [Int] = [], wait: WaitKind = .epollWait, threshold: Int = 100
) -> LoopSnapshot {
    var histogram = IterationHistogram()
    for length in lengths { histogram.record(UInt64(length) * 1_000_000) }
    let stalls = lengths.filter { $0 >= threshold }
    return LoopSnapshot(
        id: LoopID(slot: slot, generation: generation), isLive: isLive, tid: tid, threadName: name, descriptor: 5,
        wait: wait, agentRole: role, callerPC: 0, registeredAt: at(registered), retiredAt: retired.map(at),
        busySince: busySince.map(at), idleSince: idleSince.map(at), iterations: UInt64(lengths.count),
        busy: .milliseconds(busy), idle: .milliseconds(idle), events: UInt64(lengths.count),
        stallCount: UInt64(stalls.count), stalled: .milliseconds(stalls.reduce(0, +)),
        longest: lengths.max().map { .milliseconds($0) }, shortest: lengths.min().map { .milliseconds($0) },
        histogram: histogram, runQueueWait: nil)
}

func makeAgent(
    cpu: Duration = .zero, degraded: [String] = [], dropped: [String: UInt64] = [:], refused: UInt64 = 0,
    heartbeat: MonotonicTime = at(0), samples: UInt64 = 0
) -> AgentSnapshot {
    AgentSnapshot(
        mode: "preload", watchdogTID: 4243, heartbeat: heartbeat, cpu: cpu, ticks: 0, lateMax: .zero, signalsSent: 0,
        samplesTaken: samples, samplesDropped: dropped, pauseMax: .zero, pauseTotal: .zero, stallsMissed: 0,
        loopsRefused: refused, degraded: degraded)
}

func makeProcess(
    pid: Int32 = 4242, takenAt: Int = 60_000, isAlive: Bool = true, runtime: Runtime? = .native,
    executable: String? = "/usr/bin/redis-server", command: [String] = ["redis-server", "*:6379"],
    loops: [LoopSnapshot] = [], pools: [PoolSnapshot] = [], stalls: [StallRecord] = [],
    modules: [ModuleRecord] = [], agent: AgentSnapshot = makeAgent(), threshold: Int = 100
) -> ProcessSnapshot {
    ProcessSnapshot(
        identity: ProcessIdentity(pid: pid, startTicks: 1), takenAt: at(takenAt), isAlive: isAlive, state: .running,
        runtime: runtime, runtimeVersion: nil, executable: executable, command: command,
        anchor: ClockAnchor(monotonic: at(0), realtimeNanoseconds: 1_772_366_602_000_000_000),
        startThreshold: .milliseconds(threshold), captureThreshold: .milliseconds(threshold), loops: loops,
        pools: pools, stalls: stalls, modules: modules, agent: agent)
}

func makeStall(
    id: UInt64 = 1, slot: Int = 0, generation: UInt32 = 1, state: StallState = .closed, start: Int = 1000,
    length: Int = 200, evidence: StallEvidence = StallEvidence(), detected: Bool = true, samples: Int = 0
) -> StallRecord {
    StallRecord(
        id: id, loop: LoopID(slot: slot, generation: generation), tid: 4242, state: state, start: at(start),
        duration: .milliseconds(length), detectedAt: detected ? at(start + 100) : nil, sampleCount: samples,
        evidence: evidence)
}

func makeSample(
    stall: UInt64 = 1, position: UInt64 = 0, offset: Int = 100, state: Character = "R", frames: [Frame],
    reason: String? = nil
) -> StackSample {
    StackSample(
        stallID: stall, position: position, offset: .milliseconds(offset), threadState: state, method: .signal,
        frames: frames, isTruncated: false, noStackReason: reason)
}

func native(_ function: String, _ module: String = "redis-server", file: String? = nil, line: Int? = nil) -> Frame {
    Frame(function: function, kind: .native, file: file, line: line, module: module, address: 0x1000)
}
