/// The threads of a Python process that serve pools: those of ThreadPoolExecutors and anyio's.
///
/// Watchdog only, without the interpreter's lock. A worker is known by a frame that lives as long as it does: `_worker` of
/// concurrent/futures/thread.py, which has the queue and the job in its locals, or `run` of anyio's WorkerThread. The frame
/// is verified before each use by its code. What has another shape than expected is no worker.

import CLoopLag

struct CPythonWorkers {
    static let known = 160
    /// One that has not come to its frame by then is looked at again now and then.
    private static let examinations: UInt32 = 30
    private static let laterExaminations: UInt32 = 32
    static let bytes: Int = known &* MemoryLayout<Worker>.stride

    enum Kind {
        case unknown, executor, anyio
    }

    struct Worker {
        var state: UInt64
        var thread: UInt64
        var kind = Kind.unknown
        /// The queue that it serves; 0 = an anyio thread, or not known yet.
        var queue: UInt64 = 0
        /// The frame that lives as long as the worker, and its code.
        var frame: UInt64 = 0
        var code: UInt64 = 0
        /// Where that frame has the job.
        var job: UInt64 = 0
        var examined: UInt32 = 0
        /// At which examination it was known; 0 = it is not.
        var foundAt: UInt32 = 0
        var seen: UInt64 = 0
    }

    private let frames: CPythonFrames
    private let memory: CPythonMemory
    private let layout: UnsafePointer<CPythonLayout>
    private let list: UnsafeMutablePointer<Worker>
    /// Memory to read into that holds nothing from one call to the next.
    private let piece: UnsafeMutablePointer<UInt64>
    static let pieceBytes = 512
    private(set) var count = 0
    private var newest: UInt64 = 0
    private var hasUnsettled = false

    /// - Parameter piece: `pieceBytes` of memory to read into.
    init(_ frames: CPythonFrames, _ bytes: UnsafeMutableRawPointer, piece: UnsafeMutablePointer<UInt64>) {
        self.piece = piece
        self.frames = frames
        memory = frames.memory
        layout = frames.layout
        list = bytes.bindMemory(to: Worker.self, capacity: Self.known)
    }

    subscript(_ index: Int) -> Worker { list[index] }

    /// Whether a thread has begun since, or one that has begun is not told apart yet: new threads come first in the list.
    func wantsRefresh(_ interpreter: UInt64) -> Bool {
        hasUnsettled || memory.word(interpreter &+ layout.pointee.threadsHead) ?? 0 != newest
    }

    /// Looks through the interpreter's threads.
    @inline(never)
    mutating func refresh(
        _ now: UInt64, _ interpreter: UInt64, _ copy: UnsafeMutablePointer<lag_python_frames>, isFull: Bool
    ) {
        var state = memory.word(interpreter &+ layout.pointee.threadsHead) ?? 0
        var states = 0
        newest = state
        hasUnsettled = false
        while state != 0, states < 512 {
            states &+= 1
            // With what lies before it, the next one's address.
            let bytes = Int(truncatingIfNeeded: layout.pointee.threadID &+ 8)
            guard bytes <= Self.pieceBytes, Int(lag_safe_read(state, piece, bytes)) == bytes else { break }
            let thread = piece[Int(truncatingIfNeeded: layout.pointee.threadID / 8)]
            let next = piece[Int(truncatingIfNeeded: layout.pointee.threadNext / 8)]
            if let index = index(of: state, thread) {
                list[index].seen = now
                list[index].examined &+= 1
                let examined = list[index].examined
                let isNew = examined <= Self.examinations
                if list[index].kind == .unknown, isNew || isFull || examined % Self.laterExaminations == 0 {
                    examine(index, copy)
                    if isNew, list[index].kind == .unknown { hasUnsettled = true }
                }
            }
            state = next
        }
        // Those that have ended make room.
        var kept = 0
        var i = 0
        while i < count {
            if list[i].seen == now {
                if kept != i { list[kept] = list[i] }
                kept &+= 1
            }
            i &+= 1
        }
        count = kept
    }

    private mutating func index(of state: UInt64, _ thread: UInt64) -> Int? {
        var i = 0
        while i < count {
            if list[i].state == state {
                if list[i].thread != thread { list[i] = Worker(state: state, thread: thread) }
                return i
            }
            i &+= 1
        }
        guard count < Self.known else { return nil }
        list[count] = Worker(state: state, thread: thread)
        count &+= 1
        return count &- 1
    }

    /// Looks for the worker's frame among a thread's. One that has just begun has not come to it yet.
    private mutating func examine(_ index: Int, _ copy: UnsafeMutablePointer<lag_python_frames>) {
        lag_python_copy(list[index].state, copy)
        guard copy.pointee.is_complete != 0 else { return }
        var i: UInt32 = 0
        while i < copy.pointee.count {
            let bytes = lag_python_frame(copy, i)
            let address = lag_python_frame_address(copy, i)
            i &+= 1
            guard let code = frames.code(bytes), let name = memory.word(code &+ layout.pointee.codeName) else {
                continue
            }
            if memory.isText(name, "_worker") {
                guard let queue = local("work_queue"),
                    let object = value(address, code, queue), memory.isNamed(object, "_queue.SimpleQueue")
                else { continue }
                list[index].kind = .executor
                list[index].queue = object
                list[index].job = local("work_item") ?? 0
            } else if memory.isText(name, "run") {
                guard memory.isNamed(frames.reference(bytes, layout.pointee.frameLocals), "WorkerThread") else {
                    continue
                }
                list[index].kind = .anyio
            } else {
                continue
            }
            list[index].frame = address
            list[index].code = code
            list[index].foundAt = list[index].examined
            return
        }
    }

    /// Where the frames of the function that was looked at last have this local; nil = nowhere.
    private func local(_ name: StaticString) -> UInt64? {
        let names = frames.localNames()
        var i = 0
        while i < names.count {
            if memory.isText(names[i], name) {
                return layout.pointee.frameLocals &+ UInt64(truncatingIfNeeded: i) &* 8
            }
            i &+= 1
        }
        return nil
    }

    /// A reference in a frame that still runs this code.
    private func value(_ frame: UInt64, _ code: UInt64, _ offset: UInt64) -> UInt64? {
        let mask: UInt64 = layout.pointee.hasTaggedReferences ? ~3 : ~0
        let bytes = Int(truncatingIfNeeded: offset &+ 8)
        guard bytes <= Self.pieceBytes, Int(lag_safe_read(frame, piece, bytes)) == bytes,
            piece[Int(truncatingIfNeeded: layout.pointee.frameCode / 8)] & mask == code
        else { return nil }
        return piece[bytes / 8 &- 1] & mask
    }

    /// The job that an executor's worker has now; 0 = it waits for one.
    func job(_ index: Int) -> UInt64 {
        let worker = list[index]
        return worker.job != 0 ? value(worker.frame, worker.code, worker.job) ?? 0 : 0
    }

    /// The same of anyio's, by what its frame has called: the queue it waits at, or a job.
    func isBusy(_ worker: Worker, _ copy: UnsafePointer<lag_python_frames>) -> Bool {
        var i: UInt32 = 0
        while i < copy.pointee.count, lag_python_frame_address(copy, i) != worker.frame { i &+= 1 }
        guard i < copy.pointee.count else { return false }
        guard i > 0, frames.code(lag_python_frame(copy, i &- 1)) != nil else { return true }
        return !memory.isText(frames.codeField(layout.pointee.codeName), "get")
            || !frames.isIn("/queue.py")
    }
}
