/// One process that an agent is to be loaded into as soon as it comes to a wait, and what is seen of it until then.
///
/// Used by Attaching, on the main thread. While no thread of the process waits, its main thread is looked at from
/// outside, by the laws of StackCapture: nothing is stopped that a stop would cut short.

import LoopLagAttach
import LoopLagDiagnosis
import LoopLagModel
import LoopLagReport
import LoopLagSymbols

final class PendingAttach {
    let injector: Injector
    var isDone = false

    private let threshold: Duration
    private let limit: Duration
    private let userCode: [String]
    private let started: MonotonicTime
    private var next: MonotonicTime
    /// Since when it has not waited whenever we looked.
    private var awaySince: MonotonicTime?
    private var isOpen = false
    private var nextSample: MonotonicTime?
    private var samples: [StackSample] = []
    /// The system call that the main thread was in last, where that was to be seen.
    private var systemCall: Int?
    private var events: [StallEvent] = []

    init(_ injector: Injector, threshold: Duration, limit: Duration, userCode: [String]) {
        self.injector = injector
        self.threshold = threshold
        self.limit = limit
        self.userCode = userCode
        started = Clock.monotonic()
        next = started
    }

    func isDue(_ now: MonotonicTime) -> Bool { !isDone && now >= next }

    func takeEvents() -> [StallEvent] {
        defer { events = [] }
        return events
    }

    /// One try; nil when it is not over. Throws when it never will be.
    func attempt(now: MonotonicTime) throws(InjectError) -> Injector.Success? {
        // Often at first: a loaded server waits for moments only.
        next = now.advanced(by: now.since(started) < .seconds(1) ? .milliseconds(5) : .milliseconds(40))
        let reason: String
        do throws(InjectError) {
            switch try injector.attempt() {
            case .done(let success):
                close(now: now)
                return success
            case .notNow(let why): reason = why
            }
        } catch {
            close(now: now)
            throw error
        }
        guard now.since(started) < limit else {
            close(now: now)
            throw .noSafeThread(waited: now.since(started), why: reason)
        }
        watch(now: now)
        return nil
    }

    // MARK: From outside

    private func watch(now: MonotonicTime) {
        let since = awaySince ?? now
        awaySince = since
        guard now.since(since) >= threshold, nextSample.map({ now >= $0 }) ?? true else { return }
        nextSample = now.advanced(by: .seconds(1))
        guard let thread = ThreadFacts.read(pid: injector.pid, tid: injector.pid) else { return }
        let map = MemoryMap.read(pid: injector.pid) ?? .empty
        var raw = StackCapture(pid: injector.pid, map: map).capture(thread).sample
        raw.offset = now.since(since)
        let decoder = StackDecoder(
            identity: injector.facts.identity, modules: map.modules(memory: ProcessMemory(pid: injector.pid)),
            cacheDirectory: CacheFolder.path)
        samples.append(decoder.decode(raw))
        systemCall = raw.syscallNumber ?? systemCall
        tell(isOpen ? .sampled : .opened, now: now)
        isOpen = true
    }

    private func close(now: MonotonicTime) {
        if isOpen { tell(.closed, now: now) }
        isOpen = false
    }

    /// No loop is known yet: a slot that no segment has.
    private static let noLoop = LoopID(slot: -1, generation: 0)

    /// The stall that is or was seen; nil for a process that was never away for long.
    private(set) var stall: ProvisionalStall?

    /// While it is open it lasts until now.
    func refreshStall(now: MonotonicTime) {
        guard isOpen, let since = awaySince else { return }
        stall?.record.duration = now.since(since)
    }

    private func tell(_ kind: StallEvent.Kind, now: MonotonicTime) {
        guard let since = awaySince else { return }
        let pid = injector.pid
        let loop = Self.noLoop
        let stall = StallRecord(
            id: 0, loop: loop, tid: pid, state: kind == .closed ? .closed : .open, start: since,
            duration: now.since(since), detectedAt: now, sampleCount: samples.count,
            evidence: StallEvidence(looks: samples.count, syscallNumber: systemCall))
        self.stall = ProvisionalStall(
            identity: injector.facts.identity, server: injector.name, executable: injector.facts.executable,
            record: stall, samples: samples)
        let diagnosis = diagnose(
            stall, samples: samples, executable: injector.facts.executable, userCode: userCode)
        var event = StallEvent(
            kind: kind, wallNanoseconds: Clock.wall(of: now), pid: pid, server: injector.name, loopID: loop,
            loop: LoopClass(kind: "unmeasured", role: .server, name: "main"), stall: stall, threshold: threshold,
            diagnosis: diagnosis, stack: samples.last { !$0.frames.isEmpty }?.frames)
        event.isProvisional = true
        events.append(event)
    }
}
