/// The pools behind a Python server: every ThreadPoolExecutor, asyncio's default one among them, and anyio's limiter.
///
/// Watchdog only, at its ticks, and never with the interpreter's lock. An executor is found by its workers: a thread
/// whose frames hold `_worker` of concurrent/futures/thread.py has the queue in a local; it is idle when that frame is its
/// leaf. The limiter is found through anyio.lowlevel. What has another shape than expected is not shown.

import CLoopLag

struct CPythonPools {
    private static let threadsKnown = 160
    private static let poolCount = Int(LAG_MAX_POOLS)
    private static let calmGap: UInt64 = 100_000_000
    private static let busyGap: UInt64 = 20_000_000
    private static let examinations: UInt32 = 20
    private static let keptUnseen: UInt64 = 2_000_000_000
    private static let textBytes = 128

    /// What is known of a thread state.
    private struct Worker {
        var state: UInt64
        var thread: UInt64
        /// The queue that it serves; 0 = it is no worker, or not known yet.
        var queue: UInt64
        var workerCode: UInt64
        var examined: UInt32
        var isSettled: Bool
        var seen: UInt64
    }

    private let frames: CPythonFrames
    private let memory: CPythonMemory
    private let layout: CPythonLayout
    private let workers: UnsafeMutablePointer<Worker>
    private var workerCount = 0
    private let pools: UnsafeMutablePointer<PoolSlot>
    private let rows: Int
    private let text: UnsafeMutablePointer<UInt8>
    private let block: UnsafeMutableRawPointer?
    private var nextTick: UInt64 = 0
    private var lastTick: UInt64 = 0
    private var lastFull: UInt64 = 0
    /// anyio's per-loop variables: a plain dict inside a WeakKeyDictionary.
    private var loopVariables: UInt64 = 0
    private var limitersWantedAt: UInt64 = 0
    /// Something waited in a queue at the last look.
    private(set) var isBusy = false

    private static let workersBytes = threadsKnown &* MemoryLayout<Worker>.stride
    private static let poolsBytes = poolCount &* MemoryLayout<PoolSlot>.stride
    private static let blockBytes = workersBytes &+ poolsBytes &+ poolCount &* PoolSlot.memoryBytes &+ textBytes

    init?(_ segment: Segment, _ frames: CPythonFrames) {
        self.frames = frames
        memory = frames.memory
        layout = frames.layout
        guard let block = lag_memory_zeroed(Self.blockBytes) else { return nil }
        self.block = block
        workers = block.bindMemory(to: Worker.self, capacity: Self.threadsKnown)
        pools = (block + Self.workersBytes).bindMemory(to: PoolSlot.self, capacity: Self.poolCount)
        // The table as the start has just laid it out: later the file may say anything.
        let table = segment.header.pointee.pools
        let count = Int(table.count)
        rows = count < Self.poolCount ? count : Self.poolCount
        let first = (segment.base + Int(table.offset)).bindMemory(to: lag_pool_slot.self, capacity: rows)
        var place = block + (Self.workersBytes &+ Self.poolsBytes)
        var i = 0
        while i < rows {
            (pools + i).initialize(to: PoolSlot(first + i, place))
            place += PoolSlot.memoryBytes
            i &+= 1
        }
        text = (block + (Self.blockBytes &- Self.textBytes)).assumingMemoryBound(to: UInt8.self)
    }

    func release() {
        if let block { lag_memory_free(block, Self.blockBytes) }
    }

    /// When the pools want to be looked at again.
    var nextLook: UInt64 { nextTick }

    mutating func tick(
        now: UInt64, interpreter: UInt64, modules: UInt64, copy: UnsafeMutablePointer<lag_python_frames>
    ) {
        guard now >= nextTick, rows > 0 else { return }
        if lastTick == 0 { lastTick = now }
        isBusy = false
        // Between two full looks only what waits is followed.
        let isFull = now &- lastFull >= Self.calmGap
        if isFull {
            lastFull = now
            lookAtThreads(now, interpreter, copy)
            findLimiters(now, modules)
        }
        readPools(now, isFull)
        var i = 0
        while i < rows {
            if pools[i].identity != 0 {
                pools[i].settle(now: now, lastTick: lastTick)
                if now &- pools[i].lastSeen > Self.keptUnseen { pools[i].end() }
            }
            i &+= 1
        }
        lastTick = now
        nextTick = now &+ (isBusy ? Self.busyGap : Self.calmGap)
    }

    // MARK: - executors

    private mutating func lookAtThreads(
        _ now: UInt64, _ interpreter: UInt64, _ copy: UnsafeMutablePointer<lag_python_frames>
    ) {
        var state = memory.word(interpreter &+ layout.threadsHead) ?? 0
        var states = 0
        while state != 0, states < 512 {
            states &+= 1
            let thread = memory.word(state &+ layout.threadID) ?? 0
            if let index = index(of: state, thread, now) {
                workers[index].seen = now
                if !workers[index].isSettled { examine(index, copy) }
            }
            state = memory.word(state &+ layout.threadNext) ?? 0
        }
        // Those that have ended make room.
        var kept = 0
        var i = 0
        while i < workerCount {
            if workers[i].seen == now {
                if kept != i { workers[kept] = workers[i] }
                kept &+= 1
            }
            i &+= 1
        }
        workerCount = kept
    }

    private mutating func index(of state: UInt64, _ thread: UInt64, _ now: UInt64) -> Int? {
        var i = 0
        while i < workerCount {
            if workers[i].state == state {
                if workers[i].thread != thread { workers[i] = Self.fresh(state, thread) }
                return i
            }
            i &+= 1
        }
        guard workerCount < Self.threadsKnown else { return nil }
        workers[workerCount] = Self.fresh(state, thread)
        workerCount &+= 1
        return workerCount &- 1
    }

    private static func fresh(_ state: UInt64, _ thread: UInt64) -> Worker {
        Worker(state: state, thread: thread, queue: 0, workerCode: 0, examined: 0, isSettled: false, seen: 0)
    }

    /// Looks for `_worker` among a thread's frames. A thread that has just begun has not come to it yet.
    private mutating func examine(_ index: Int, _ copy: UnsafeMutablePointer<lag_python_frames>) {
        workers[index].examined &+= 1
        if workers[index].examined >= Self.examinations { workers[index].isSettled = true }
        lag_python_copy(workers[index].state, copy)
        guard copy.pointee.is_complete != 0 else { return }
        var i: UInt32 = 0
        while i < copy.pointee.count {
            let bytes = lag_python_frame(copy, i)
            i &+= 1
            guard let code = frames.code(bytes), memory.isText(memory.word(code &+ layout.codeName) ?? 0, "_worker"),
                let queue = local(bytes, code), isSimpleQueue(queue)
            else { continue }
            workers[index].queue = queue
            workers[index].workerCode = code
            workers[index].isSettled = true
            nameThread(copy)
            beginPool(queue)
            return
        }
    }

    private func local(_ bytes: UnsafePointer<UInt8>, _ code: UInt64) -> UInt64? {
        guard let names = memory.word(code &+ layout.codeLocalNames), let count = memory.word(names &+ 16) else {
            return nil
        }
        var i: UInt64 = 0
        while i < count, i < 8 {
            if memory.isText(frames.localName(names, i) ?? 0, "work_queue") {
                return frames.reference(bytes, layout.frameLocals &+ i &* 8)
            }
            i &+= 1
        }
        return nil
    }

    /// The C implementation's type, by its name.
    private func isSimpleQueue(_ object: UInt64) -> Bool {
        var name: (UInt64, UInt64, UInt64) = (0, 0, 0)
        guard let type = memory.type(object), let at = memory.word(type &+ 24), lag_safe_read(at, &name, 19) == 19
        else {
            return false
        }
        return withUnsafePointer(to: &name) { raw in
            raw.withMemoryRebound(to: UInt8.self, capacity: 24) {
                var parser = ByteParser($0, count: 19)
                return parser.take("_queue.SimpleQueue") && parser.peek == 0
            }
        }
    }

    private var nameCount = 0

    /// The name of the executor from that of one of its threads: "asyncio_3" is one of "asyncio".
    private mutating func nameThread(_ copy: UnsafePointer<lag_python_frames>) {
        nameCount = CPythonThreads.name(copy, frames, into: text, capacity: Self.textBytes)
        var end = nameCount
        while end > 0, text[end &- 1] >= 0x30, text[end &- 1] <= 0x39 { end &-= 1 }
        if end > 1, end < nameCount, text[end &- 1] == UInt8(ascii: "_") { nameCount = end &- 1 }
    }

    private mutating func beginPool(_ queue: UInt64) {
        guard pool(queue) == nil, let free = pool(0) else { return }
        pools[free].begin(queue, kind: Int(LAG_POOL_EXECUTOR), name: text, count: nameCount, now: lag_clock_now())
    }

    private func pool(_ identity: UInt64) -> Int? {
        var i = 0
        while i < rows {
            if pools[i].identity == identity { return i }
            i &+= 1
        }
        return nil
    }

    private mutating func readPools(_ now: UInt64, _ isFull: Bool) {
        var p = 0
        while p < rows {
            if pools[p].identity != 0, isFull || pools[p].depth > 0 {
                if pools[p].kind == UInt32(LAG_POOL_ANYIO) {
                    readLimiter(p, now, isFull)
                } else {
                    readExecutor(p, now, isFull)
                }
            }
            p &+= 1
        }
    }

    private mutating func readExecutor(_ pool: Int, _ now: UInt64, _ isFull: Bool) {
        let queue = pools[pool].identity
        guard isSimpleQueue(queue) else { return }
        let depth = depth(queue)
        if isFull {
            var threads: Int64 = 0
            var busy: Int64 = 0
            var i = 0
            while i < workerCount {
                if workers[i].queue == queue {
                    threads &+= 1
                    if leafCode(workers[i].state) != workers[i].workerCode { busy &+= 1 }
                }
                i &+= 1
            }
            guard threads > 0 else { return }
            pools[pool].update(threads: threads, busy: busy, depth: depth)
        }
        pools[pool].lastSeen = now
        if let depth, depth > 0 {
            isBusy = true
            seeItems(pool, queue, depth, now)
        }
    }

    /// The code object of a thread's leaf frame, 0 = unknown.
    private func leafCode(_ state: UInt64) -> UInt64 {
        var frame: UInt64
        if layout.cframeFrame != UInt64.max {
            let cframe = memory.word(state &+ layout.threadCFrame) ?? 0
            frame = cframe != 0 ? memory.word(cframe &+ layout.cframeFrame) ?? 0 : 0
        } else {
            frame = memory.word(state &+ layout.threadFrame) ?? 0
        }
        guard frame != 0, let code = memory.word(frame &+ layout.frameCode) else { return 0 }
        return layout.hasTaggedReferences ? code & ~3 : code
    }

    /// Items in a SimpleQueue: a list with a moving start up to 3.12, a ring since.
    private func depth(_ queue: UInt64) -> Int64? {
        let count: Int64
        if layout.minor <= 12 {
            guard let list = memory.word(queue &+ 32), let size = memory.word(list &+ 16),
                let start = memory.word(queue &+ 40)
            else { return nil }
            count = Int64(bitPattern: size &- start)
        } else {
            guard let size = memory.word(queue &+ 56) else { return nil }
            count = Int64(bitPattern: size)
        }
        return count >= 0 && count < 1 &<< 32 ? count : nil
    }

    private mutating func seeItems(_ pool: Int, _ queue: UInt64, _ depth: Int64, _ now: UInt64) {
        let array: UInt64
        let start: UInt64
        var capacity = UInt64.max
        if layout.minor <= 12 {
            array = memory.word(memory.word(queue &+ 32).map { $0 &+ 24 } ?? 0) ?? 0
            start = memory.word(queue &+ 40) ?? 0
        } else {
            array = memory.word(queue &+ 40) ?? 0
            start = memory.word(queue &+ 32) ?? 0
            capacity = memory.word(queue &+ 48) ?? 0
        }
        guard array != 0, capacity != 0 else { return }
        var i: UInt64 = 0
        while i < UInt64(bitPattern: depth), i < UInt64(truncatingIfNeeded: PoolSlot.itemsTracked) {
            let at = lag_remainder(start &+ i, capacity)
            if let item = memory.word(array &+ at &* 8), item != 0 {
                pools[pool].see(item, now: now, lastTick: lastTick)
            }
            i &+= 1
        }
    }

    // MARK: - anyio

    private mutating func findLimiters(_ now: UInt64, _ modules: UInt64) {
        guard now >= limitersWantedAt else { return }
        limitersWantedAt = now &+ 1_000_000_000
        if loopVariables == 0 {
            guard let holder = CPythonModules.value(memory, modules, "anyio.lowlevel", "_run_vars") else { return }
            loopVariables = memory.attribute(holder, "data", cachedKeys: layout.cachedKeys) ?? 0
        }
        guard memory.isA(lag_python_found().pointee.dict_type, loopVariables),
            var loops = memory.entries(loopVariables, limit: 16)
        else {
            loopVariables = 0
            return
        }
        while let loop = loops.next() {
            guard memory.isA(lag_python_found().pointee.dict_type, loop.value),
                var variables = memory.entries(loop.value, limit: 32)
            else { continue }
            while let variable = variables.next() {
                if isDefaultLimiter(variable.key) { beginLimiter(variable.value, now) }
            }
        }
    }

    /// The key is the variable, or in older versions its name.
    private func isDefaultLimiter(_ key: UInt64) -> Bool {
        if memory.isA(lag_python_found().pointee.unicode_type, key) {
            return memory.isText(key, "_default_thread_limiter")
        }
        var offset: UInt64 = 16
        while offset <= 32 {
            if let word = memory.word(key &+ offset), memory.isText(word, "_default_thread_limiter") { return true }
            offset &+= 8
        }
        return false
    }

    private mutating func beginLimiter(_ limiter: UInt64, _ now: UInt64) {
        guard pool(limiter) == nil, let free = pool(0) else { return }
        let found = lag_python_found().pointee
        var borrowers = memory.attribute(limiter, "_borrowers", cachedKeys: layout.cachedKeys) ?? 0
        var queue = memory.attribute(limiter, "_wait_queue", cachedKeys: layout.cachedKeys) ?? 0
        var tokens = memory.attribute(limiter, "_total_tokens", cachedKeys: layout.cachedKeys) ?? 0
        // A class with slots has its attributes in the object itself.
        var offset: UInt64 = 16
        while borrowers == 0 || queue == 0 || tokens == 0, offset <= 56 {
            let word = memory.word(limiter &+ offset) ?? 0
            offset &+= 8
            guard word & 7 == 0, word != 0, let type = memory.type(word) else { continue }
            if type == found.set_type, borrowers == 0 { borrowers = word }
            if type == found.ordered_dict_type, queue == 0 { queue = word }
            if type == found.long_type || type == found.float_type, tokens == 0 { tokens = word }
        }
        guard memory.isA(found.set_type, borrowers), memory.isA(found.ordered_dict_type, queue) else { return }
        var builder = ByteBuilder(text, capacity: Self.textBytes)
        builder.append("anyio")
        pools[free].begin(limiter, kind: Int(LAG_POOL_ANYIO), name: text, count: builder.count, now: now)
        pools[free].parts = (borrowers, queue, tokens)
    }

    private mutating func readLimiter(_ pool: Int, _ now: UInt64, _ isFull: Bool) {
        let found = lag_python_found().pointee
        let parts = pools[pool].parts
        guard memory.isA(found.set_type, parts.borrowers), memory.isA(found.ordered_dict_type, parts.queue),
            let borrowed = memory.word(parts.borrowers &+ 24), let waiting = memory.word(parts.queue &+ 16),
            borrowed < 1 &<< 32, waiting < 1 &<< 32
        else { return }
        pools[pool].lastSeen = now
        if isFull {
            pools[pool].update(
                threads: memory.smallInt(parts.tokens) ?? -1, busy: Int64(bitPattern: borrowed),
                depth: Int64(bitPattern: waiting))
        }
        guard waiting > 0 else { return }
        isBusy = true
        guard var items = memory.entries(parts.queue, limit: UInt64(truncatingIfNeeded: PoolSlot.itemsTracked &* 4))
        else { return }
        while let item = items.next() { pools[pool].see(item.key, now: now, lastTick: lastTick) }
    }
}
