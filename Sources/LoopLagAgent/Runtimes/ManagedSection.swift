/// Builds the managed section of one sample: frames of the sampled thread, frames of the thread that blocks it, the
/// bytes of all texts, as `struct lag_managed` lays them out.
///
/// Watchdog only. All memory is taken once; what does not fit is left out: texts are cut, frames beyond the limit are
/// not added. Nothing here reads the host's memory.

import CLoopLag

struct ManagedSection {
    private static let textLimit = 20 << 10
    private static let longestText = 512

    private let memory: UnsafeMutableRawPointer
    private let frames: UnsafeMutablePointer<lag_managed_frame>
    private let texts: UnsafeMutablePointer<UInt8>
    private let result: UnsafeMutableRawPointer
    /// Everything but the counts, which `assemble` fills in.
    var header = lag_managed()
    private var textCount = 0
    private var sampled = 0
    private var blocking = 0

    private static let frameBytes = MemoryLayout<lag_managed_frame>.stride
    private static let framesBytes = Int(LAG_MAX_MANAGED_FRAMES) &* frameBytes
    private static let memoryBytes = framesBytes &+ textLimit &+ Int(LAG_MANAGED_BYTES)

    init?() {
        guard let memory = lag_memory_zeroed(Self.memoryBytes) else { return nil }
        self.memory = memory
        frames = memory.bindMemory(to: lag_managed_frame.self, capacity: Int(LAG_MAX_MANAGED_FRAMES))
        texts = (memory + Self.framesBytes).bindMemory(to: UInt8.self, capacity: Self.textLimit)
        result = memory + (Self.framesBytes &+ Self.textLimit)
    }

    func release() { lag_memory_free(memory, Self.memoryBytes) }

    mutating func clear() {
        header = lag_managed()
        textCount = 0
        sampled = 0
        blocking = 0
    }

    var isEmpty: Bool { sampled == 0 && blocking == 0 && textCount == 0 && header.blocker_tid == 0 }
    /// Frames of the sampled thread so far.
    var frameCount: Int { sampled }

    /// A text in this section; the same bytes are kept once. Empty where there is no room.
    @inline(never)
    mutating func text(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> lag_text {
        var length = count < Self.longestText ? count : Self.longestText
        // A character is not cut in two.
        if length < count { while length > 0, bytes[length] & 0xc0 == 0x80 { length &-= 1 } }
        guard length > 0 else { return lag_text() }
        if let known = find(bytes, length) { return known }
        guard textCount &+ length <= Self.textLimit else { return lag_text() }
        lag_copy(texts + textCount, bytes, length)
        let text = lag_text(
            offset: UInt32(truncatingIfNeeded: textCount), bytes: UInt32(truncatingIfNeeded: length))
        textCount &+= length
        return text
    }

    /// Among the texts of the frames so far: file names repeat from frame to frame.
    private func find(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> lag_text? {
        var i = sampled &+ blocking
        while i > 0 {
            i &-= 1
            if isSame(frames[i].file, bytes, count) { return frames[i].file }
            if isSame(frames[i].function, bytes, count) { return frames[i].function }
        }
        return nil
    }

    private func isSame(_ text: lag_text, _ bytes: UnsafePointer<UInt8>, _ count: Int) -> Bool {
        guard Int(text.bytes) == count else { return false }
        let start = texts + Int(text.offset)
        var i = 0
        while i < count {
            if start[i] != bytes[i] { return false }
            i &+= 1
        }
        return true
    }

    /// Adds the next frame of the sampled thread, leaf first. False when there is no room for more.
    mutating func add(_ frame: lag_managed_frame) -> Bool {
        guard blocking == 0, sampled < Int(LAG_MAX_MANAGED_FRAMES) else { return false }
        frames[sampled] = frame
        sampled &+= 1
        return true
    }

    /// Adds the next frame of the blocking thread, leaf first; all frames of the sampled one come before.
    mutating func addBlocker(_ frame: lag_managed_frame) -> Bool {
        guard sampled &+ blocking < Int(LAG_MAX_MANAGED_FRAMES) else { return false }
        frames[sampled &+ blocking] = frame
        blocking &+= 1
        return true
    }

    /// The section as it goes into the ring; valid until the next call. No bytes when nothing was added.
    mutating func assemble() -> (bytes: UnsafeRawPointer, count: Int) {
        guard !isEmpty else { return (UnsafeRawPointer(result), 0) }
        header.frames = UInt32(truncatingIfNeeded: sampled)
        header.blocker_frames = UInt32(truncatingIfNeeded: blocking)
        header.text_bytes = UInt32(truncatingIfNeeded: textCount)
        let headerBytes = MemoryLayout<lag_managed>.stride
        let frameBytes = (sampled &+ blocking) &* Self.frameBytes
        result.assumingMemoryBound(to: lag_managed.self).pointee = header
        lag_copy(result + headerBytes, frames, frameBytes)
        lag_copy(result + (headerBytes &+ frameBytes), texts, textCount)
        // Records are a multiple of 8 long.
        return (UnsafeRawPointer(result), (headerBytes &+ frameBytes &+ textCount &+ 7) & ~7)
    }
}
