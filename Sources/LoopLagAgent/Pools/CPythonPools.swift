/// The pools behind a Python server: every ThreadPoolExecutor, asyncio's default one among them, and anyio's limiter.
///
/// Watchdog only, at its ticks, and never with the interpreter's lock. Executors are found by their workers (see
/// CPythonWorkers), the limiter through anyio.lowlevel. While a loop works or a pool is in use they are looked at every
/// 20 ms, less often while nothing in them changes, and now and then otherwise. What has another shape than expected is not
/// shown.

import CLoopLag

struct CPythonPools {
    private static let poolCount = Int(LAG_MAX_POOLS)
    private static let calmGap: UInt64 = 100_000_000
    private static let busyGap: UInt64 = 20_000_000
    /// Between two looks at pools in use in which nothing has changed for ten looks.
    private static let steadyGap: UInt64 = 50_000_000
    private static let steadyLooks: UInt32 = 10
    /// Between two looks at threads and pools that nothing announces: new threads do.
    private static let fullGap: UInt64 = 500_000_000
    private static let keptUnseen: UInt64 = 2_000_000_000
    private static let textBytes = 128
    private static let queueBytes: Int = PoolWaits.longestQueue &* 8
    private static let holdersBytes: Int = PoolWaits.holderLimit &* 8
    /// A set of borrowers that is larger is not looked through.
    private static let setBytes: Int = 512 &* 16

    private let header: UnsafeMutablePointer<lag_header>
    private let frames: CPythonFrames
    private let memory: CPythonMemory
    private let layout: UnsafePointer<CPythonLayout>
    private(set) var workers: CPythonWorkers
    private var activity: LoopActivity
    private let pools: UnsafeMutablePointer<PoolSlot>
    private let rows: Int
    private let queue: UnsafeMutablePointer<UInt64>
    private let holders: UnsafeMutablePointer<UInt64>
    private let set: UnsafeMutablePointer<UInt64>
    private let text: UnsafeMutablePointer<UInt8>
    private let block: UnsafeMutableRawPointer
    private var lastFull: UInt64 = 0
    private var lastLook: UInt64 = 0
    private var isInUse = false
    /// How many looks have found the same as the one before.
    private var sameLooks: UInt32 = 0
    private var lastSum: UInt64 = 0
    /// anyio's per-loop variables: a plain dict inside a WeakKeyDictionary.
    private var loopVariables: UInt64 = 0
    private var limitersWantedAt: UInt64 = 0
    /// When the pools are to be looked at again.
    private var nextTick: UInt64 = 0
    /// The same where it cannot wait for the watchdog's next look at calm loops.
    private(set) var nextLook = UInt64.max

    private static let poolsBytes: Int = poolCount &* MemoryLayout<PoolSlot>.stride
    private static let tableBytes: Int = CPythonWorkers.bytes &+ LoopActivity.bytes &+ poolsBytes
    private static let waitsBytes: Int = poolCount &* PoolWaits.bytes
    private static let listBytes: Int = queueBytes &+ holdersBytes &+ setBytes
    private static let blockBytes: Int = tableBytes &+ waitsBytes &+ listBytes &+ textBytes

    init?(_ segment: Segment, _ frames: CPythonFrames) {
        self.frames = frames
        header = segment.header
        memory = frames.memory
        layout = frames.layout
        guard let block = lag_memory_zeroed(Self.blockBytes) else { return nil }
        self.block = block
        var place = block
        let table = place
        place += CPythonWorkers.bytes
        activity = LoopActivity(place)
        place += LoopActivity.bytes
        pools = place.bindMemory(to: PoolSlot.self, capacity: Self.poolCount)
        place += Self.poolsBytes
        // The table as the start has just laid it out: later the file may say anything.
        let list = segment.header.pointee.pools
        let count = Int(list.count)
        rows = count < Self.poolCount ? count : Self.poolCount
        let first = (segment.base + Int(list.offset)).bindMemory(to: lag_pool_slot.self, capacity: rows)
        var i = 0
        while i < rows {
            (pools + i).initialize(to: PoolSlot(first + i, place))
            place += PoolWaits.bytes
            i &+= 1
        }
        queue = place.bindMemory(to: UInt64.self, capacity: PoolWaits.longestQueue)
        holders = (place + Self.queueBytes).bindMemory(to: UInt64.self, capacity: PoolWaits.holderLimit)
        place += Self.queueBytes &+ Self.holdersBytes
        set = place.bindMemory(to: UInt64.self, capacity: Self.setBytes / 8)
        workers = CPythonWorkers(frames, table, piece: set)
        text = (place + Self.setBytes).assumingMemoryBound(to: UInt8.self)
    }

    func release() { lag_memory_free(block, Self.blockBytes) }

    /// - Parameter isFull: whether to look for new threads and pools whenever that was last done.
    @inline(never)
    mutating func tick(
        now: UInt64, interpreter: UInt64, modules: UInt64, copy: UnsafeMutablePointer<lag_python_frames>,
        loops: UnsafeMutablePointer<lag_loop_slot>, count: Int, isFull: Bool = false
    ) {
        guard isFull || now >= nextTick, rows > 0 else { return }
        activity.look(loops, count, now: now)
        nextTick = now &+ Self.calmGap
        nextLook = UInt64.max
        // Work comes from a loop, or from a thread that works.
        guard isFull || isInUse || activity.hasWorked || now &- lastFull >= Self.fullGap else { return }
        if isFull || now &- lastFull >= Self.fullGap || workers.wantsRefresh(interpreter) {
            lastFull = now
            lookAtThreads(now, interpreter, copy, isFull: isFull)
            findLimiters(now, modules)
        }
        lastLook = now
        isInUse = false
        var sum: UInt64 = 0
        var known = 0
        var i = 0
        while i < rows {
            if pools[i].identity != 0 {
                if pools[i].kind == UInt32(LAG_POOL_ANYIO) { readLimiter(i, now) } else { readExecutor(i, now) }
                if now &- pools[i].lastSeen > Self.keptUnseen { pools[i].end() }
                if pools[i].isInUse { isInUse = true }
                sum &+= pools[i].change
                known &+= 1
            }
            i &+= 1
        }
        // Over its budget the agent looks at pools as seldom as it can.
        guard known > 0, isInUse || activity.hasWorked,
            header.pointee.degraded & UInt64(LAG_DEGRADED_BUDGET) == 0
        else { return }
        sameLooks = sum == lastSum && isInUse ? sameLooks &+ 1 : 0
        lastSum = sum
        nextTick = now &+ (sameLooks > Self.steadyLooks ? Self.steadyGap : Self.busyGap)
        nextLook = nextTick
    }

    // MARK: - executors

    private mutating func lookAtThreads(
        _ now: UInt64, _ interpreter: UInt64, _ copy: UnsafeMutablePointer<lag_python_frames>, isFull: Bool
    ) {
        workers.refresh(now, interpreter, copy, isFull: isFull)
        var i = 0
        while i < workers.count {
            let worker = workers[i]
            if worker.kind == .executor, pool(worker.queue) == nil, let free = pool(0) {
                lag_python_copy(worker.state, copy)
                let count = name(copy)
                // Found at the first look at its first thread: it was not there at the look before.
                pools[free].begin(
                    worker.queue, kind: Int(LAG_POOL_EXECUTOR), name: text, count: count, now: now,
                    since: worker.foundAt == 1 ? lastLook : 0)
                pools[free].parts.queue = memory.type(worker.queue) ?? 0
            }
            i &+= 1
        }
    }

    /// The name of the executor from that of one of its threads: "asyncio_3" is one of "asyncio".
    private func name(_ copy: UnsafePointer<lag_python_frames>) -> Int {
        let count = CPythonThreads.name(copy, frames, into: text, capacity: Self.textBytes)
        var end = count
        while end > 0, text[end &- 1] >= 0x30, text[end &- 1] <= 0x39 { end &-= 1 }
        return end > 1 && end < count && text[end &- 1] == UInt8(ascii: "_") ? end &- 1 : count
    }

    private func pool(_ identity: UInt64) -> Int? {
        var i = 0
        while i < rows {
            if pools[i].identity == identity { return i }
            i &+= 1
        }
        return nil
    }

    /// The row of the pool that a worker serves: anyio's threads belong to no limiter by themselves, so only where there
    /// is one alone.
    func row(of worker: CPythonWorkers.Worker) -> Int? {
        if worker.kind == .executor { return pool(worker.queue) }
        var found: Int?
        var i = 0
        while i < rows {
            if pools[i].identity != 0, pools[i].kind == UInt32(LAG_POOL_ANYIO) {
                if found != nil { return nil }
                found = i
            }
            i &+= 1
        }
        return found
    }

    private mutating func readExecutor(_ row: Int, _ now: UInt64) {
        let object = pools[row].identity
        guard memory.isA(pools[row].parts.queue, object) else { return }
        var threads: Int64 = 0
        var busy = 0
        var i = 0
        while i < workers.count {
            if workers[i].queue == object {
                threads &+= 1
                let job = workers.job(i)
                if job != 0 {
                    if busy < PoolWaits.holderLimit { holders[busy] = job }
                    busy &+= 1
                }
            }
            i &+= 1
        }
        guard threads > 0 else { return }
        let depth = depth(object)
        if let depth {
            let read = readQueue(object, depth)
            pools[row].waits.look(
                queue, count: read, holding: holders, held: busy, now: now, arrival: activity.arrival,
                isWhole: Int64(truncatingIfNeeded: read) == depth)
        }
        pools[row].update(threads: threads, busy: Int64(truncatingIfNeeded: busy), depth: depth, now: now)
    }

    /// Items in a SimpleQueue: a list with a moving start up to 3.12, a ring since.
    private func depth(_ queue: UInt64) -> Int64? {
        let count: Int64
        if layout.pointee.minor <= 12 {
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

    /// The items themselves, the next to be served first; how many were read.
    private func readQueue(_ object: UInt64, _ depth: Int64) -> Int {
        let wanted = depth < Int64(PoolWaits.longestQueue) ? Int(truncatingIfNeeded: depth) : PoolWaits.longestQueue
        guard wanted > 0 else { return 0 }
        let array: UInt64
        let start: UInt64
        var capacity = UInt64.max
        if layout.pointee.minor <= 12 {
            array = memory.word(memory.word(object &+ 32).map { $0 &+ 24 } ?? 0) ?? 0
            start = memory.word(object &+ 40) ?? 0
        } else {
            array = memory.word(object &+ 40) ?? 0
            start = memory.word(object &+ 32) ?? 0
            capacity = memory.word(object &+ 48) ?? 0
        }
        guard array != 0, start < capacity, start < 1 &<< 40 else { return 0 }
        // Up to the ring's end, and from its beginning.
        let first =
            capacity &- start < UInt64(truncatingIfNeeded: wanted) ? Int(truncatingIfNeeded: capacity &- start) : wanted
        let read = Int(lag_safe_read(array &+ start &* 8, queue, first &* 8)) / 8
        guard read == first, first < wanted else { return read }
        return first &+ Int(lag_safe_read(array, queue + first, (wanted &- first) &* 8)) / 8
    }

    // MARK: - anyio

    private mutating func findLimiters(_ now: UInt64, _ modules: UInt64) {
        let since = loopVariables != 0 ? lastLook : 0
        if loopVariables == 0 {
            // Through all modules: not at every look.
            guard now >= limitersWantedAt else { return }
            limitersWantedAt = now &+ 1_000_000_000
            guard let holder = CPythonModules.value(memory, modules, "anyio.lowlevel", "_run_vars") else { return }
            loopVariables = memory.attribute(holder, "data", cachedKeys: layout.pointee.cachedKeys) ?? 0
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
                if pool(variable.value) == nil, isDefaultLimiter(variable.key) {
                    beginLimiter(variable.value, now, since: since)
                }
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

    private mutating func beginLimiter(_ limiter: UInt64, _ now: UInt64, since: UInt64) {
        guard let free = pool(0) else { return }
        let found = lag_python_found().pointee
        var borrowers = memory.attribute(limiter, "_borrowers", cachedKeys: layout.pointee.cachedKeys) ?? 0
        var queue = memory.attribute(limiter, "_wait_queue", cachedKeys: layout.pointee.cachedKeys) ?? 0
        var tokens = memory.attribute(limiter, "_total_tokens", cachedKeys: layout.pointee.cachedKeys) ?? 0
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
        pools[free].begin(limiter, kind: Int(LAG_POOL_ANYIO), name: text, count: builder.count, now: now, since: since)
        pools[free].parts = (borrowers, queue, tokens)
    }

    private mutating func readLimiter(_ row: Int, _ now: UInt64) {
        let found = lag_python_found().pointee
        let parts = pools[row].parts
        guard memory.isA(found.set_type, parts.borrowers), memory.isA(found.ordered_dict_type, parts.queue),
            let borrowed = memory.word(parts.borrowers &+ 24), let waiting = memory.word(parts.queue &+ 16),
            borrowed < 1 &<< 32, waiting < 1 &<< 32
        else { return }
        var read = 0
        if waiting > 0, var items = memory.entries(parts.queue) {
            read = items.keys(into: queue, capacity: PoolWaits.longestQueue, piece: set, words: Self.setBytes / 8)
        }
        let holding = readSet(parts.borrowers, borrowed)
        pools[row].waits.look(
            queue, count: read, holding: holding == nil ? nil : UnsafePointer(holders), held: holding ?? 0, now: now,
            arrival: activity.arrival, isWhole: UInt64(truncatingIfNeeded: read) == waiting)
        pools[row].update(
            threads: memory.smallInt(parts.tokens) ?? -1, busy: Int64(bitPattern: borrowed),
            depth: Int64(bitPattern: waiting), now: now)
    }

    /// Puts the members of a `set` into `holders`; how many, nil when it is too large, or was changing.
    private func readSet(_ object: UInt64, _ used: UInt64) -> Int? {
        guard used <= UInt64(truncatingIfNeeded: PoolWaits.holderLimit), let mask = memory.word(object &+ 32),
            mask < UInt64(truncatingIfNeeded: Self.setBytes / 16), let table = memory.word(object &+ 40)
        else { return nil }
        let bytes = Int(truncatingIfNeeded: mask &+ 1) &* 16
        guard Int(lag_safe_read(table, set, bytes)) == bytes else { return nil }
        var count = 0
        var i = 0
        while i < bytes / 8 {
            // A key and its hash; one that was taken out leaves a mark with a hash of -1.
            if set[i] != 0, set[i &+ 1] != UInt64.max {
                guard count < PoolWaits.holderLimit else { return nil }
                holders[count] = set[i]
                count &+= 1
            }
            i &+= 2
        }
        return count == Int(truncatingIfNeeded: used) ? count : nil
    }
}
