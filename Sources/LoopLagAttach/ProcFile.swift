/// Bounded reads of small files: procfs entries, ELF headers, the first line of a script.
///
/// Used by the process and executable inspection of this module, on whatever thread calls it. Everything read belongs
/// to somebody else and may change, grow or vanish between two calls: a read has a byte limit, never blocks on a FIFO,
/// and refuses to guess when it fails.

import Glibc

enum ProcFile {
    /// The limit for one procfs entry; a command line longer than this is cut.
    static let entryLimit = 256 << 10

    /// Reads at most `limit` bytes from the start of `path`.
    static func read(_ path: String, limit: Int = entryLimit) throws(FileError) -> [UInt8] {
        let file = try OpenFile(path: path)
        return try file.read(limit: limit)
    }

    /// Where a symbolic link points; nil when it cannot be read.
    static func target(ofLink path: String) -> String? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = buffer.withUnsafeMutableBytes { bytes -> Int in
            guard let start = bytes.baseAddress else { return 0 }
            return readlink(path, start.assumingMemoryBound(to: CChar.self), bytes.count)
        }
        guard count > 0 else { return nil }
        return String(decoding: buffer.prefix(count), as: UTF8.self)
    }

    /// The names in a folder that are plain decimal numbers, as procfs uses them for processes and threads.
    static func numbers(in folder: String) -> [Int32] {
        guard let stream = opendir(folder) else { return [] }
        defer { closedir(stream) }
        var result: [Int32] = []
        // A dirent is only as long as its name: point at the bytes, never copy the 256 that the type declares.
        let offset = MemoryLayout<dirent>.offset(of: \.d_name) ?? 19
        while let entry = readdir(stream) {
            let name = String(cString: UnsafeRawPointer(entry).advanced(by: offset).assumingMemoryBound(to: CChar.self))
            if let first = name.utf8.first, first != UInt8(ascii: "+"), let number = Int32(name), number > 0 {
                result.append(number)
            }
        }
        return result
    }
}

/// Why a file could not be read.
struct FileError: Error {
    var path: String
    var code: Int32

    var isMissing: Bool { code == ENOENT || code == ESRCH || code == ENOTDIR }
    var isForbidden: Bool { code == EACCES || code == EPERM }
    var reason: String { systemReason(code) }
}

/// The C library's words for an error number, lower case as the middle of a sentence.
func systemReason(_ code: Int32) -> String {
    // glibc keeps the text of an unknown number per thread, so this is safe anywhere.
    let text = strerror(code).map { String(cString: $0) } ?? ""
    guard let first = text.first else { return "error \(code)" }
    return first.lowercased() + text.dropFirst()
}

/// One open descriptor, closed with its owner.
final class OpenFile {
    let path: String
    let descriptor: Int32

    init(path: String) throws(FileError) {
        self.path = path
        // O_NONBLOCK: a FIFO in the place of an executable must not hang us.
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        if descriptor < 0 { throw FileError(path: path, code: errno) }
    }

    deinit { close(descriptor) }

    /// Reads from the current position until the end or the limit.
    func read(limit: Int) throws(FileError) -> [UInt8] {
        var result: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: min(limit, 16 << 10))
        while result.count < limit {
            let count = Glibc.read(descriptor, &chunk, min(chunk.count, limit - result.count))
            if count < 0 {
                if errno == EINTR { continue }
                throw FileError(path: path, code: errno)
            }
            if count == 0 { break }
            result.append(contentsOf: chunk.prefix(count))
        }
        return result
    }

    /// Exactly `count` bytes at `offset`, or nil when the file is shorter or the range is absurd.
    func bytes(at offset: UInt64, count: Int) -> [UInt8]? {
        guard count > 0, count <= 1 << 20, offset <= UInt64(Int64.max) - UInt64(count) else { return nil }
        var result = [UInt8](repeating: 0, count: count)
        var done = 0
        while done < count {
            let step = result.withUnsafeMutableBytes { bytes in
                pread(descriptor, bytes.baseAddress.map { $0 + done }, count - done, off_t(offset) + off_t(done))
            }
            if step < 0 && errno == EINTR { continue }
            if step <= 0 { return nil }
            done += step
        }
        return result
    }

    var status: stat? {
        var result = stat()
        return fstat(descriptor, &result) == 0 ? result : nil
    }
}
