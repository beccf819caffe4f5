/// CPython in this process: which thread state belongs to a loop, what its frames say, who holds the interpreter's lock,
/// whether it collects garbage, and whether all that may be believed.
///
/// Made on the thread that starts the agent, used by the watchdog alone. It never takes the interpreter's lock and never
/// calls into it: all it knows it reads through `lag_safe_read`, while the host's threads run on.

import CLoopLag

struct CPython {
    private static let scratchBytes = CPythonFrames.scratchBytes &+ textBytes &+ blockerBytes
    private static let textBytes = 512
    private static let blockerBytes = MemoryLayout<lag_python_frames>.stride
    /// At most so many of one worker's go into a dump.
    private static let workerFrames: UInt32 = 48

    private let header: UnsafeMutablePointer<lag_header>
    private let layout: UnsafePointer<CPythonLayout>
    private let memory: CPythonMemory
    private let frames: CPythonFrames
    private let locks: CPythonLocks
    private var request: CPythonRequest
    private let scratch: UnsafeMutableRawPointer
    private let text: UnsafeMutablePointer<UInt8>
    private let blocker: UnsafeMutablePointer<lag_python_frames>
    private let runtime: UInt64
    private var pools: CPythonPools?
    /// Whether the interpreter's own account has been compared, and what came of it.
    private var isChecked = false
    private(set) var isTrusted: Bool
    private var lastTick: UInt64 = 0

    /// Nil where there is no interpreter, or none that is known; the latter is said in `degraded`.
    init?(_ segment: Segment) {
        header = segment.header
        guard header.pointee.runtime == UInt32(LAG_RUNTIME_CPYTHON) else { return nil }
        let found = lag_python_found().pointee
        guard let known = CPythonLayout.of(version: found.version, runtime: found.runtime), found.code_type != 0,
            found.unicode_type != 0, let memory = lag_memory_zeroed(Self.scratchBytes)
        else {
            header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_PYTHON)
            return nil
        }
        isTrusted = known.isCertain
        if !isTrusted { header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_PYTHON) }
        runtime = found.runtime
        scratch = memory
        frames = CPythonFrames(known, memory)
        layout = frames.layout
        locks = CPythonLocks(frames, runtime)
        self.memory = frames.memory
        text = (memory + CPythonFrames.scratchBytes).assumingMemoryBound(to: UInt8.self)
        blocker = (memory + (CPythonFrames.scratchBytes &+ Self.textBytes))
            .bindMemory(to: lag_python_frames.self, capacity: 1)
        request = CPythonRequest(frames, text: text, capacity: Self.textBytes)
        pools = CPythonPools(segment, frames)
        if pools == nil { header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_POOLS) }
        var copying = known.forCopying
        lag_python_set_layout(&copying)
    }

    func release() {
        pools?.release()
        lag_memory_free(scratch, Self.scratchBytes)
    }

    /// When the pools want the next tick, however calm the loops are.
    var nextLook: UInt64 { pools?.nextLook ?? UInt64.max }

    // MARK: - thread states

    /// The thread state of a loop's thread, verified; 0 when there is none.
    func threadState(ofLoop index: Int) -> UInt64 {
        guard isTrusted else { return 0 }
        let index = UInt32(truncatingIfNeeded: index)
        let thread = lag_loop_pthread(index)
        let cached = lag_loop_thread_state(index)
        guard thread != 0 else { return 0 }
        if cached != 0, memory.word(cached &+ layout.pointee.threadID) == thread { return cached }
        // Another one since: a thread that ran in one interpreter and runs in another now.
        return CPythonThreads.state(ofThread: thread, runtime: runtime, frames)
    }

    private func interpreter(of state: UInt64) -> UInt64 { memory.word(state &+ layout.pointee.threadInterpreter) ?? 0 }

    /// Who has the interpreter's lock; 0 when nobody has it.
    private func lockHolder(_ interpreter: UInt64) -> UInt64 {
        let lock =
            layout.pointee.lockInRuntime != 0
            ? runtime &+ layout.pointee.lockInRuntime : memory.word(interpreter &+ layout.pointee.lockPointer) ?? 0
        guard lock != 0, memory.int32(lock &+ CPythonLayout.lockIsHeld) == 1 else { return 0 }
        return memory.word(lock &+ CPythonLayout.lockHolder) ?? 0
    }

    private func isCollecting(_ interpreter: UInt64) -> Bool {
        memory.int32(interpreter &+ layout.pointee.collecting).map { $0 == 1 } ?? false
    }

    /// Differs when other frames are on the loop's thread: coroutines have their frames in themselves.
    func place(ofLoop index: Int) -> UInt64 {
        lag_python_copy(threadState(ofLoop: index), blocker)
        var mixed = UInt64(blocker.pointee.count)
        var i: UInt32 = 0
        while i < blocker.pointee.count {
            mixed = (mixed &<< 7 | mixed &>> 57) ^ lag_python_frame_address(blocker, i)
            i &+= 1
        }
        return mixed
    }

    // MARK: - one sample

    mutating func describe(
        _ capture: UnsafePointer<lag_capture>, of loop: UnsafeMutablePointer<lag_loop_slot>, look: ThreadLook,
        into section: inout ManagedSection, sample: inout lag_sample
    ) {
        let copy = lag_capture_python(capture)
        let state = copy.pointee.thread_state
        guard isTrusted, state != 0 else { return }
        let isRunning = look.place == .running
        _ = frames.decode(copy, stack: isRunning ? capture : nil, asBlocker: false, into: &section)
        request.describe(copy, into: &section)
        let interpreter = interpreter(of: state)
        if let modules = memory.word(interpreter &+ layout.pointee.modules) {
            request.describeTask(copy, modules: modules, now: sample.time_ns, into: &section)
        }
        if isCollecting(interpreter) { sample.flags |= UInt16(LAG_SAMPLE_IN_GC) }
        if lag_load_u64(&loop.pointee.gil_wait_since_ns) != 0 {
            describeHolder(state, interpreter, into: &section)
        } else if look.place == .inCall(202) {
            let owner = locks.owner(copy, futex: look.arguments.0, spare: blocker)
            if owner != 0, owner != state {
                lag_python_copy(owner, blocker)
                describeBlocker(into: &section)
            }
        }
    }

    /// The thread that holds the lock for which the sampled one waits: its frames are read while it runs.
    private func describeHolder(_ waiting: UInt64, _ interpreter: UInt64, into section: inout ManagedSection) {
        let holder = lockHolder(interpreter)
        guard holder != 0, holder != waiting else { return }
        lag_python_copy(holder, blocker)
        guard lockHolder(interpreter) == holder else { return }
        describeBlocker(into: &section)
    }

    /// The thread whose frames lie in `blocker`.
    private func describeBlocker(into section: inout ManagedSection) {
        guard let thread = threadNumber(blocker.pointee.thread_state) else { return }
        section.header.blocker_tid = thread
        let name = CPythonThreads.name(blocker, frames, into: text, capacity: 64)
        if name > 0 { section.header.blocker_name = section.text(text, name) }
        _ = frames.decode(blocker, stack: nil, asBlocker: true, into: &section)
    }

    /// Names a thread that holds a native mutex, if it runs Python; false when it does not.
    func describeThread(_ thread: Int32, into section: inout ManagedSection) -> Bool {
        guard isTrusted else { return false }
        let state = CPythonThreads.find(runtime, frames) { threadNumber($0) == thread }
        guard state != 0 else { return false }
        lag_python_copy(state, blocker)
        guard blocker.pointee.count > 0 else { return false }
        describeBlocker(into: &section)
        return true
    }

    /// The kernel's number of a thread state's thread.
    private func threadNumber(_ state: UInt64) -> Int32? {
        // 3.11 and later write it beside thread_id; before, glibc's own thread structure has it (unchanged since 2.4).
        let at: UInt64
        if layout.pointee.minor >= 11 {
            at = state &+ layout.pointee.threadID &+ 8
        } else {
            guard let thread = memory.word(state &+ layout.pointee.threadID) else { return nil }
            at = thread &+ 720
        }
        guard let number = memory.int32(at), number > 0, lag_thread_exists(number) else { return nil }
        return number
    }

    // MARK: - looks

    /// What the interpreter adds to a look at a loop's thread: it collects garbage. Nil: it does not.
    func kind(_ look: ThreadLook, loop index: Int, _ loop: UnsafeMutablePointer<lag_loop_slot>) -> Int? {
        guard isTrusted, look.place == .running || look.place == .inFault else { return nil }
        let state = threadState(ofLoop: index)
        guard state != 0 else { return nil }
        let interpreter = interpreter(of: state)
        return isCollecting(interpreter) && lockHolder(interpreter) == state ? Int(LAG_LOOK_GC) : nil
    }

    /// At every tick of the watchdog.
    mutating func tick(now: UInt64, loops: UnsafeMutablePointer<lag_loop_slot>, count: Int) {
        defer { lastTick = now }
        if !isChecked, let answer = lag_python_answer() { check(answer) }
        guard isTrusted else { return }
        addCollections(now, loops, count)
        lookAtPools(now, loops, count, isFull: false)
    }

    mutating func lookAtPools(
        _ now: UInt64, _ loops: UnsafeMutablePointer<lag_loop_slot>, _ count: Int, isFull: Bool
    ) {
        guard isTrusted else { return }
        let main = memory.word(runtime &+ layout.pointee.interpretersHead &+ 8) ?? 0
        guard main != 0, let modules = memory.word(main &+ layout.pointee.modules) else { return }
        pools?.tick(
            now: now, interpreter: main, modules: modules, copy: blocker, loops: loops, count: count, isFull: isFull)
    }

    /// A collection that is seen at a tick counts for the time since the tick before: many short ones come out right in
    /// the long run, a long one within a tick.
    private func addCollections(_ now: UInt64, _ loops: UnsafeMutablePointer<lag_loop_slot>, _ count: Int) {
        var i = 0
        while i < count {
            let loop = loops + i
            if loop.pointee.state == UInt32(LAG_LOOP_LIVE), lag_loop_thread_state(UInt32(truncatingIfNeeded: i)) != 0 {
                if loop.pointee.known & UInt64(LAG_KNOWN_GC) == 0 { lag_loop_add_known(loop, UInt64(LAG_KNOWN_GC)) }
                let since = lag_load_u64(&loop.pointee.busy_since_ns)
                if since != 0, since < now {
                    let state = threadState(ofLoop: i)
                    let interpreter = state != 0 ? interpreter(of: state) : 0
                    if interpreter != 0, isCollecting(interpreter), lockHolder(interpreter) == state {
                        let from = since > lastTick ? since : lastTick
                        loop.pointee.gc_ns &+= now &- from
                    }
                }
            }
            i &+= 1
        }
    }

    // MARK: - workers

    @inline(never)
    func worker(_ index: Int) -> PoolWorker? {
        guard let pools, index < pools.workers.count else { return nil }
        let worker = pools.workers[index]
        let row = worker.kind == .unknown ? nil : pools.row(of: worker)
        return PoolWorker(
            tid: worker.kind == .unknown ? 0 : threadNumber(worker.state) ?? 0,
            pool: row.map { UInt32(truncatingIfNeeded: $0 &+ 1) } ?? 0)
    }

    /// The frames of a worker that has a job, as they are now: a running thread's may change meanwhile, then they are read
    /// once more.
    @inline(never)
    mutating func describeWorker(_ index: Int, into section: inout ManagedSection, sample: inout lag_sample) -> Bool {
        guard let pools, index < pools.workers.count else { return false }
        let worker = pools.workers[index]
        guard worker.kind != .unknown, sample.tid != 0 else { return false }
        var tries = 0
        repeat {
            tries &+= 1
            lag_python_copy(worker.state, blocker)
            let isBusy = worker.kind == .anyio ? pools.workers.isBusy(worker, blocker) : pools.workers.job(index) != 0
            guard isBusy else { return false }
            // A worker's frames are enough from the leaf on: forty of them are to fit the ring.
            if blocker.pointee.count > Self.workerFrames {
                blocker.pointee.count = Self.workerFrames
                blocker.pointee.is_complete = 0
                sample.flags |= UInt16(LAG_SAMPLE_TRUNCATED)
            }
            section.clear()
        } while frames.decode(blocker, stack: nil, asBlocker: false, into: &section) > 0 && tries < 3
        return section.frameCount > 0
    }

    // MARK: - the self-check

    /// Holds the agent's reading of the main thread's frames against the interpreter's own account of the same moment.
    private mutating func check(_ answer: UnsafePointer<lag_python_check>) {
        isChecked = true
        isTrusted = agrees(answer)
        if isTrusted {
            header.pointee.degraded &= ~UInt64(LAG_DEGRADED_NO_PYTHON)
        } else {
            header.pointee.degraded |= UInt64(LAG_DEGRADED_NO_PYTHON)
        }
    }

    private func agrees(_ answer: UnsafePointer<lag_python_check>) -> Bool {
        guard answer.pointee.agrees != 0 else { return false }
        let copy = lag_python_check_copy(answer)
        var i: UInt32 = 0
        while i < answer.pointee.count {
            let bytes = lag_python_frame(copy, lag_python_check_place(answer, i))
            // A code object that has gone since is no disagreement, nor is its line.
            if let code = frames.code(bytes) {
                guard let place = frames.instruction(code, bytes) else { return false }
                if case .at(let line) = frames.line(place), line != lag_python_check_line(answer, i) {
                    return false
                }
            }
            i &+= 1
        }
        return true
    }
}
