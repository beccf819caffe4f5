/// `looplag dump PID`: the stacks of all loop threads now, stalled or idle, the pools, and the stacks that hold their slots.
///
/// Main thread, one look. An agent in a CPython or node process is asked for the stacks of its loops and of its pools' busy
/// workers, with the interpreter's frames; where there is none one is loaded for the moment. All other stacks are taken
/// from outside: a blocked thread is read without a stop, one on a processor is stopped for some microseconds. Nothing is
/// loaded into a process without an interpreter; without an agent it shows the threads that look like loops.

import ArgumentParser
import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagSymbols
import LoopLagTelemetry

struct DumpVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "dump",
        abstract: "The stacks of a process's loop threads now, stalled or idle, and of its busy pool threads.",
        discussion: """
            With an agent in the process: the threads of its measured loops. Without one: the main thread, threads that \
            wait in epoll, poll or select, and threads on a processor. In a Python or Node.js process an agent adds the \
            interpreter's frames and the stacks that hold the slots of its pools: where there is none one is loaded, and \
            taken out again. Nothing is loaded into any other process.
            """)

    @Argument(help: ArgumentHelp("The process.", valueName: "pid"))
    var pid: Int32

    @Flag(help: "A JSON report on standard output.")
    var json = false

    @Flag(name: .customLong("all-threads"), help: "Every thread of the process.")
    var allThreads = false

    @Flag(name: .customLong("no-attach"), help: "Never load an agent: native frames only where there is none.")
    var noAttach = false

    @Flag(help: "Leave an agent that was loaded for this in the process.")
    var keep = false

    @OptionGroup var threshold: ThresholdOption

    @Option(
        name: .customLong("user-code"),
        help: ArgumentHelp("A source path or module that counts as your own code.", valueName: "path"))
    var userCode: [String] = []

    func validate() throws { try Targets.check([pid]) }

    func run() throws {
        let facts = try ProcessFacts.read(pid: pid)
        let subject = "\(pid) (\(facts.displayName))"
        if facts.isZombie { throw Failure("\(subject) has ended and waits for its parent", status: Failure.gone) }
        if facts.isKernelThread { throw Failure("\(subject) is a thread of the kernel: it has no stack to show") }
        let window = ReportWindow()
        // A leader that has left (dispatchMain does) has no map; the other threads show it.
        var map = MemoryMap.read(pid: pid) ?? .empty
        var followed = try agent()
        let isManaged = AgentDump.isManaged(facts, map)
        var loaded: DumpAgent?
        defer { loaded?.finish() }
        if followed == nil, isManaged, !noAttach {
            loaded = load(subject)
            if loaded != nil, let process = try agent() {
                AgentDump.awaitLoop(of: process, threshold: threshold.threshold)
                followed = process
                // With the agent's own code in it: every loop's wait goes through that.
                map = MemoryMap.read(pid: pid) ?? map
            }
        }
        let taken = isManaged ? followed.map { agentSamples($0, subject) } ?? [] : []
        let threads = capture(facts, map, followed, taken)
        guard !threads.isEmpty else {
            throw Failure("no thread of \(subject) waits for events or runs; --all-threads shows every one")
        }
        guard ProcessFacts.isRunning(facts.identity) else {
            throw Failure("\(subject) went away while it was looked at", status: Failure.gone)
        }
        if json {
            try OutputFile(path: "-").write(report: report(threads, facts, followed, window))
        } else {
            let title = title(facts, followed)
            let text = DumpText.text(title: title, pools: followed?.latest.pools ?? [], threads: threads)
            if case .failed(let code) = Console.out.write(text) {
                throw Failure("cannot write standard output: \(Console.reason(code))")
            }
        }
        if threads.allSatisfy({ $0.sample.frames.isEmpty }) {
            throw Failure(
                "no stack of \(subject): \(threads.first?.sample.noStackReason ?? "none was taken"); run as that user"
                    + " or as root, and see 'looplag doctor \(pid)'", status: Failure.notPermitted)
        }
    }

    /// nil, and a line that says why, where none can be loaded now.
    private func load(_ subject: String) -> DumpAgent? {
        do {
            return try DumpAgent(pid: pid, keep: keep, threshold: threshold.threshold, userCode: userCode)
        } catch {
            let reason = (error as? Failure)?.message ?? "\(error)"
            Console.error("native frames only of \(subject): \(reason)")
            return nil
        }
    }

    private func agentSamples(_ followed: FollowedProcess, _ subject: String) -> [RawSample] {
        do throws(TelemetryError) {
            let samples = try AgentDump.samples(of: try SegmentDiscovery.live(pid: pid))
            if samples.isEmpty, !followed.latest.loops.isEmpty {
                Console.error("native frames only of \(subject): its agent did not answer")
            }
            return samples
        } catch {
            Console.error("native frames only of \(subject): \(error.message)")
            return []
        }
    }

    /// The process's segment, when it has one that we may read.
    private func agent() throws -> FollowedProcess? {
        do throws(TelemetryError) {
            return try FollowedProcess(source: try SegmentDiscovery.live(pid: pid))
        } catch {
            switch error {
            case .noAgent: return nil
            case .noSuchProcess, .gone: throw Targets.failure(error, pid: pid)
            case .notPermitted, .untrusted, .corrupt, .otherVersion, .io:
                // The stacks can be had without it.
                Console.error(error.message)
                return nil
            }
        }
    }

    private func title(_ facts: ProcessFacts, _ followed: FollowedProcess?) -> String {
        guard let followed else {
            let name = serverName(command: facts.command, executable: facts.executable, runtime: nil)
            return "\(pid) \(name), no agent"
        }
        let loops = followed.serverLoops.count
        return "\(pid) \(followed.name), \(Readiness.count(loops, "loop"))"
    }

    // MARK: Looking

    private func capture(
        _ facts: ProcessFacts, _ map: MemoryMap, _ followed: FollowedProcess?, _ samples: [RawSample]
    ) -> [DumpedThread] {
        let capturing = StackCapture(pid: pid, map: map)
        let threads = ThreadFacts.all(pid: pid)
        let loops = followed.map { $0.latest.loops.filter(\.isLive) } ?? []
        let libuv = followed?.latest.pools.first { $0.kind == LibuvWorkers.kind }
        let own = Dictionary(samples.map { ($0.tid, $0) }, uniquingKeysWith: { first, _ in first })
        var taken: [CapturedThread] = []
        var candidates: [CapturedThread] = []
        // All stacks first: looking up symbols takes its time, and the picture is to be of one moment.
        for thread in threads {
            let sample = own[thread.innerTID]
            // Of the agent's samples those of helper loops are left out.
            if allThreads || sample.map({ $0.loopSlot < 0 }) ?? false || isWanted(thread, loops: loops, followed) {
                taken.append(
                    sample.map {
                        CapturedThread(
                            thread: thread, syscallNumber: $0.syscallNumber, wasRunning: $0.threadState == "R",
                            sample: $0)
                    } ?? capturing.capture(thread))
            } else if libuv != nil {
                candidates.append(capturing.capture(thread))
            }
        }
        // Asked again afterwards: what an iteration's begin says is then no older than the stack.
        _ = followed?.poll(threshold: threshold.threshold)
        let decoder = StackDecoder(
            identity: facts.identity, modules: modules(map, followed), cacheDirectory: CacheFolder.path)
        if let libuv {
            // Threads that were only looked at for the pool's sake are shown only where they hold a slot.
            let shown = taken.count
            taken += candidates
            for i in taken.indices where LibuvWorkers.isBusy(taken[i].sample, decoder) {
                taken[i].sample.pool = libuv.slot
            }
            taken = Array(taken[..<shown]) + taken[shown...].filter { $0.sample.pool != nil }
        }
        return taken.map { dumped($0, capturing, decoder, followed, facts) }.sorted { rank($0) < rank($1) }
    }

    private func modules(_ map: MemoryMap, _ followed: FollowedProcess?) -> [ModuleRecord] {
        let modules = map.modules(memory: ProcessMemory(pid: pid))
        return modules.isEmpty ? followed?.latest.modules ?? [] : modules
    }

    private func isWanted(_ thread: ThreadFacts, loops: [LoopSnapshot], _ followed: FollowedProcess?) -> Bool {
        if let followed, !followed.serverLoops.isEmpty {
            return followed.serverLoops.contains { $0.tid == thread.innerTID }
        }
        if thread.tid == pid { return true }
        switch ThreadFacts.syscall(pid: pid, tid: thread.tid) {
        case .running: return true
        case .blocked(let number, _, _, _): return number.map(WaitCall.isLoopWait) ?? false
        case nil: return false
        }
    }

    /// Loops before other threads, the main thread first.
    private func rank(_ thread: DumpedThread) -> (Int, Int, Int32) {
        (thread.loop == nil ? 2 : thread.loop?.role == .helper ? 1 : 0, thread.tid == pid ? 0 : 1, thread.tid)
    }

    private func dumped(
        _ taken: CapturedThread, _ capturing: StackCapture, _ decoder: StackDecoder, _ followed: FollowedProcess?,
        _ facts: ProcessFacts
    ) -> DumpedThread {
        var taken = taken
        var sample = decoder.decode(taken.sample)
        if sample.isTruncated, taken.sample.isTruncated, taken.sample.dump == nil,
            taken.sample.stack.count >= StackCapture.usualBytes
        {
            // Deeper than the usual copy reaches. It is a later moment, so only a fuller picture counts.
            let again = capturing.capture(taken.thread, atMost: StackCapture.mostBytes)
            let deeper = decoder.decode(again.sample)
            if deeper.frames.count > sample.frames.count { (taken, sample) = (again, deeper) }
        }
        let now = taken.sample.time
        let loop = followed?.latest.loops.first { $0.isLive && $0.tid == taken.thread.innerTID }
        let isInWait = taken.syscallNumber.map(WaitCall.isLoopWait) ?? false
        let isWorker = taken.sample.pool != nil || (taken.sample.dump != nil && taken.sample.loopSlot < 0)
        var activity: ReportThread.Activity?
        var since: Duration?
        if isWorker {
            activity = .busy
        } else if let began = loop?.busySince, began <= now {
            (activity, since) = (.busy, now.since(began))
        } else if let began = loop?.idleSince, began <= now {
            (activity, since) = (.idle, now.since(began))
        } else if isInWait {
            activity = .idle
        } else if loop != nil || taken.wasRunning {
            // The loop went on between the stack and the look at its numbers, or nobody measures it.
            activity = sample.noStackReason == nil ? .busy : nil
        }
        let executable = followed?.latest.executable ?? facts.executable
        let rules = UserCode(executable: executable, prefixes: userCode)
        let isStalled = activity == .busy && (since ?? .zero) >= threshold.threshold
        if let loop, isStalled,
            let stall = followed?.latest.stalls.last(where: {
                $0.state == .open && $0.loop == loop.id && $0.start == loop.busySince
            })
        {
            sample.stallID = stall.id
            sample.offset = now.since(stall.start)
        }
        // A thread of a pool that waits for work blames nobody; a main thread that nobody measures is likely a loop.
        let mayBlame = activity == .busy || (loop == nil && activity == nil && taken.thread.tid == pid)
        var result = DumpedThread(
            loopID: loop?.id, loop: loop.flatMap { found in followed?.loopClass(of: found) }, tid: taken.thread.tid,
            name: taken.thread.name, activity: activity, since: since, isStalled: isStalled,
            syscallNumber: taken.syscallNumber, sample: sample,
            culprit: mayBlame ? rules.culprit(of: [sample]) : nil)
        result.pool = taken.sample.pool
        return result
    }

    // MARK: The report

    /// The open stalls, with what was seen of them just now, and every thread.
    private func report(
        _ threads: [DumpedThread], _ facts: ProcessFacts, _ followed: FollowedProcess?, _ window: ReportWindow
    ) -> Report {
        let end = Clock.monotonic()
        let snapshot = followed?.latest ?? bare(facts, end)
        let open = snapshot.stalls.filter { $0.state == .open }
        let ids = Set(open.map(\.id))
        var samples = followed?.samples.filter { ids.contains($0.key) }.values.flatMap { $0 } ?? []
        samples += threads.map(\.sample).filter { ids.contains($0.stallID) }
        let process = ReportInput.Process(
            from: nil, to: snapshot, stalls: open, samples: samples, callers: followed?.loopCallers ?? [:],
            startedWallNanoseconds: facts.startedWallNanoseconds, dump: threads)
        var report = ReportBuilder.build(
            ReportInput(
                processes: [process], start: window.start, end: end, startWallNanoseconds: window.startWall,
                endWallNanoseconds: Clock.wall(), threshold: threshold.threshold, machine: MachineInfo.current(),
                version: Version.number, userCode: userCode))
        // Nothing was measured, so nothing was found.
        if followed == nil { report.findings = [] }
        return report
    }

    /// What can be said of a process without an agent: it has no loops that anybody measured.
    private func bare(_ facts: ProcessFacts, _ now: MonotonicTime) -> ProcessSnapshot {
        ProcessSnapshot(
            identity: facts.identity, takenAt: now, isAlive: true, state: .starting, runtime: nil,
            runtimeVersion: nil, executable: facts.executable, command: facts.command,
            anchor: ClockAnchor(monotonic: now, realtimeNanoseconds: Clock.wall()), startThreshold: threshold.threshold,
            captureThreshold: threshold.threshold, loops: [], pools: [], stalls: [], modules: [],
            agent: AgentSnapshot(
                mode: "none", watchdogTID: nil, heartbeat: now, cpu: .zero, ticks: 0, lateMax: .zero, signalsSent: 0,
                samplesTaken: 0, samplesDropped: [:], pauseMax: .zero, pauseTotal: .zero, stallsMissed: 0,
                loopsRefused: 0, degraded: ["no-agent"]))
    }
}
