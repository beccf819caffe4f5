/// Brings the agent into one running process, or wakes one that was parked there.
///
/// Made by the command line for one process; `attempt` is one try and takes milliseconds, so that a verb can go on with
/// its own work between two of them. All files are read and all addresses found before a thread is stopped. Nothing is
/// changed in a process that is not ready: the next attempt is the remedy. One injector at a time works on a process.

import CLoopLagTrace
import Glibc
import LoopLagModel

public final class Injector {
    /// What an attach did.
    public struct Success: Hashable, Sendable {
        /// The borrowed thread.
        public var tid: Int32
        public var threadName: String
        /// How long it did not do its own work.
        public var stopped: Duration
        /// Of that, until the tracer had let go.
        public var held: Duration
        public var attempts: Int
        /// The object was there and only had to be called.
        public var wasLoaded: Bool
        /// It measured already when it was called.
        public var wasRunning: Bool
    }

    public enum Attempt: Sendable {
        case done(Success)
        /// Nothing could be done at this moment; why.
        case notNow(String)
    }

    public let pid: Int32
    public let facts: ProcessFacts
    private let image: AgentImage
    private let library: TargetLibrary
    private let variables: [UInt8]
    /// The address of a loaded agent's entry.
    private let loaded: UInt64?
    private let lifeWord: UInt64?
    private let lock: TargetLock
    private let killAt: UInt32
    private var attempts = 0

    /// Looks at everything, and throws what can never work.
    /// - Parameter variables: LOOPLAG_* names and values for the agent, over those in the process's own environment.
    public init(pid: Int32, image: AgentImage, variables: [String: String]) throws(InjectError) {
        self.pid = pid
        self.image = image
        facts = try Obstacle.check(pid: pid)
        guard let lock = TargetLock(pid: pid) else {
            throw .failed("another looplag is attaching to it at this moment; try again")
        }
        self.lock = lock
        let memory = ProcessMemory(pid: pid)
        guard let map = MemoryMap.read(pid: pid) else { throw .gone }
        if let first = map.mappings.first, let reason = memory.refusal(at: first.start) {
            throw .notPermitted(
                "not permitted to read its memory (\(reason)): a seccomp filter or security module stands in the way; run"
                    + " looplag outside of it")
        }
        let modules = map.modules(memory: memory)
        library = try TargetLibrary(modules: modules, map: map, memory: memory)
        try Seccomp.check(pid: pid)
        if let object = modules.first(where: { Self.isAgent($0.path) }) {
            guard let remote = RemoteObject(object, memory: memory),
                let entry = remote.address(of: AgentImage.entryName)
            else {
                throw .failed(
                    "another version of the agent is in it already, which cannot be called; restart it to measure it")
            }
            loaded = entry
            lifeWord = remote.address(of: "lag_life_word")
        } else {
            (loaded, lifeWord) = (nil, nil)
        }
        self.variables = try Self.block(variables, pid: pid)
        // For tests: which step of the injection is to be its last.
        killAt = getenv("LOOPLAG_INJECT_KILL").flatMap { UInt32(String(cString: $0)) } ?? 0
    }

    /// What the agent is told: our variables over those that the process was started with.
    static func block(_ variables: [String: String], pid: Int32) throws(InjectError) -> [UInt8] {
        var merged = ProcessFacts.environment(pid: pid).filter { $0.key.hasPrefix("LOOPLAG_") }
            .merging(variables) { $1 }
        if let value = merged["LOOPLAG_DISABLE"], !value.isEmpty, value != "0" {
            throw .unfit("LOOPLAG_DISABLE=\(ProcessFacts.printable(value)) is set in its environment")
        }
        merged["ABI"] = "\(LAG_ABI_VERSION)"
        var block: [UInt8] = []
        for (name, value) in merged.sorted(by: { $0.key < $1.key }) where value.utf8.count < 256 {
            block += Array("\(name)=\(value)".utf8) + [0]
        }
        guard block.count <= Int(LAG_INJECT_VARIABLES) else { throw .failed("its LOOPLAG_ variables are too long") }
        return block
    }

    public static func isAgent(_ path: String) -> Bool {
        path.hasSuffix("/\(AgentObject.fileName)") || path.hasPrefix("/memfd:looplag-agent")
    }

    /// Whether an agent's object is in the process; nil when its mappings may not be read.
    public static func isAgentLoaded(pid: Int32) -> Bool? {
        MemoryMap.read(pid: pid).map { map in map.mappings.contains { $0.offset == 0 && isAgent($0.path) } }
    }

    /// One try.
    public func attempt() throws(InjectError) -> Attempt {
        guard ProcessFacts.isRunning(facts.identity) else { throw .gone }
        attempts += 1
        let candidates = SafeThread.candidates(pid: pid)
        if candidates.isEmpty {
            // One that is always at work is met at the entrance of its next wait, now and then; one that is blocked is
            // not touched.
            if attempts % 4 == 0, let thread = SafeThread.running(pid: pid) {
                var reason = ""
                if let success = try judge(inject(thread), thread, &reason) { return .done(success) }
            }
            return .notNow(SafeThread.whyNone(pid: pid))
        }
        var reason = "its threads were busy whenever one was asked"
        for thread in candidates.prefix(4) {
            let result = inject(thread)
            if let success = try judge(result, thread, &reason) { return .done(success) }
        }
        return .notNow(reason)
    }

    /// Tries until it works or the time is over.
    public func attach(within limit: Duration) throws(InjectError) -> Success {
        let clock = ContinuousClock()
        let start = clock.now
        while true {
            let why: String
            switch try attempt() {
            case .done(let success): return success
            case .notNow(let reason): why = reason
            }
            let waited = clock.now - start
            guard waited < limit else { throw .noSafeThread(waited: waited, why: why) }
            usleep(attempts < 20 ? 2_000 : 20_000)
        }
    }

    /// Whether the agent that was called has given up; false while it starts.
    public var hasFailed: Bool {
        guard let lifeWord = lifeWord ?? Self.lifeWord(pid: pid) else { return false }
        return ProcessMemory(pid: pid).bytes(at: lifeWord, count: 4) == [0, 0, 0, 0]
    }

    private static func lifeWord(pid: Int32) -> UInt64? {
        let memory = ProcessMemory(pid: pid)
        guard let map = MemoryMap.read(pid: pid),
            let object = map.modules(memory: memory).first(where: { isAgent($0.path) })
        else { return nil }
        return RemoteObject(object, memory: memory)?.address(of: "lag_life_word")
    }

    // MARK: One thread

    private func inject(_ thread: SafeThread) -> lag_inject_result {
        var plan = lag_inject_plan()
        plan.pid = pid
        plan.tid = thread.tid
        plan.restorer = library.restorer
        plan.dlopen = library.dlopen
        plan.dlerror = library.dlerror
        plan.errno_location = library.errnoLocation
        plan.munmap = library.munmap
        plan.dlopen_mode = library.mode
        plan.kill_at = killAt
        plan.entry = loaded ?? image.entry
        plan.variables_bytes = UInt64(variables.count)
        let stale = leftDescriptors()
        plan.stale = (stale[0], stale[1], stale[2], stale[3])
        plan.stop_limit_ns = 200_000_000
        // It runs meanwhile; on a starved machine each of its calls waits for our turn.
        plan.ride_limit_ns = 400_000_000
        plan.load_limit_ns = 5_000_000_000
        var result = lag_inject_result()
        variables.withUnsafeBytes { variables in
            image.bytes.withUnsafeBytes { bytes in
                plan.variables = variables.baseAddress
                if loaded == nil {
                    plan.image = bytes.baseAddress
                    plan.image_bytes = UInt64(bytes.count)
                }
                lag_inject(&plan, &result)
            }
        }
        return result
    }

    /// nil: the next thread may be tried.
    private func judge(
        _ result: lag_inject_result, _ thread: SafeThread, _ reason: inout String
    ) throws(InjectError) -> Success? {
        var result = result
        let message = withUnsafeBytes(of: &result.message) {
            ProcessFacts.printable(String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self))
        }
        switch lag_inject_outcome(rawValue: UInt32(bitPattern: result.outcome)) {
        case LAG_INJECT_DONE:
            return try success(result, thread)
        case LAG_INJECT_MISSED:
            reason = "its threads never waited for long enough to be borrowed"
            return nil
        case LAG_INJECT_UNSAFE:
            reason = "thread \(thread.tid) cannot be borrowed: \(message)"
            return nil
        case LAG_INJECT_ENDED:
            guard ProcessFacts.isRunning(facts.identity) else { throw .gone }
            reason = "the thread that was to be borrowed ended"
            return nil
        case LAG_INJECT_STOPPED:
            throw .failed("it is stopped; let it go on with 'kill -CONT \(pid)' first")
        case LAG_INJECT_REFUSED:
            throw .notPermitted(
                "not permitted to trace it: \(systemReason(result.code)); run as root or with CAP_SYS_PTRACE")
        case LAG_INJECT_CALL_FAILED:
            throw .failed("\(message) failed in it: \(systemReason(result.code))")
        case LAG_INJECT_FILL_FAILED:
            throw .failed("its memory file cannot be written: \(systemReason(result.code))")
        case LAG_INJECT_LOAD_FAILED:
            throw .failed("its loader refused the agent: \(message.isEmpty ? "no reason given" : message)")
        case LAG_INJECT_SLOW:
            throw .failed(
                "the agent is on its way in, but waits for a lock of the process; it will come in once that is free")
        default:
            throw .failed("an answer that I do not know (\(result.outcome))")
        }
    }

    private func success(_ result: lag_inject_result, _ thread: SafeThread) throws(InjectError) -> Success {
        Success(
            tid: thread.tid, threadName: ProcessFacts.printable(thread.name),
            stopped: .nanoseconds(Int64(clamping: result.stopped_ns)),
            held: .nanoseconds(Int64(clamping: result.held_ns)), attempts: attempts, wasLoaded: loaded != nil,
            wasRunning: try Self.wasRunning(answer: UInt32(truncatingIfNeeded: result.answer)))
    }

    /// What a called agent answered: whether it measured already.
    static func wasRunning(answer: UInt32) throws(InjectError) -> Bool {
        switch Int(answer) {
        case LAG_ATTACH_STARTED: return false
        case LAG_ATTACH_RUNNING: return true
        case LAG_ATTACH_DISABLED: throw .unfit("the agent may not run in it (LOOPLAG_DISABLE, or raised privileges)")
        case LAG_ATTACH_NO_THREAD: throw .failed("no thread could be made in it (its limit of threads or memory)")
        case LAG_ATTACH_OTHER_VERSION:
            throw .failed("another version of the agent is in it already; use that version's looplag, or restart it")
        default: throw .failed("its agent gave an answer that I do not know (\(answer))")
        }
    }

    // MARK: What lies about

    /// Memory files that an injector which was killed half-way has left; none while one of them is mapped as code, which
    /// may be at work.
    private func leftDescriptors() -> [Int32] {
        var found: [Int32] = []
        let isAtWork =
            MemoryMap.read(pid: pid)?.mappings.contains {
                $0.isExecutable && $0.offset > 0 && $0.path.hasPrefix("/memfd:looplag-agent")
                    && $0.end - $0.start == 4096
            } ?? true
        if !isAtWork {
            let folder = "/proc/\(pid)/fd"
            for number in ProcFile.numbers(in: folder)
            where ProcFile.target(ofLink: "\(folder)/\(number)") == "/memfd:looplag-agent (deleted)" {
                found.append(number)
            }
        }
        return Array((found + [-1, -1, -1, -1]).prefix(4))
    }
}

/// Held while one command line works on a process: a lock on its folder in procfs.
private final class TargetLock {
    private let descriptor: Int32

    init?(pid: Int32) {
        descriptor = open("/proc/\(pid)", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        for _ in 0..<100 {
            if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { return }
            usleep(20_000)
        }
        close(descriptor)
        return nil
    }

    deinit { close(descriptor) }
}
