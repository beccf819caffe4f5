/// Writes a result to a file so that it is whole or not there at all.
///
/// Used by `run -o`, `record -o` and `report -o`, on the main thread. A temporary file in the same folder, fsync, then
/// rename: a full disk or a kill leaves whatever was there before. `-` is stdout; what is no regular file (a FIFO,
/// /dev/null) is written straight, for a rename would replace it.

import Glibc

struct OutputFile {
    let path: String

    /// `%p` becomes the process id, `%%` a percent sign.
    init(pattern: String, pid: Int32) {
        var result = ""
        var rest = pattern[...]
        while let percent = rest.firstIndex(of: "%") {
            result += rest[..<percent]
            let after = rest.index(after: percent)
            guard after < rest.endIndex else {
                rest = rest[percent...]
                break
            }
            switch rest[after] {
            case "p": result += String(pid)
            case "%": result += "%"
            default: result += rest[percent...after]
            }
            rest = rest[rest.index(after: after)...]
        }
        self.init(path: result + rest)
    }

    init(path: String) { self.path = path }

    var isStandardOutput: Bool { path == "-" }

    /// Fails early, before a long recording, when the file could never be written.
    func check() throws(Failure) {
        guard !isStandardOutput, !isSpecial else { return }
        if path.isEmpty { throw Failure("cannot write the report: the file name is empty", status: Failure.usage) }
        var status = stat()
        if stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR { throw failure(EISDIR) }
        if access(folder, W_OK | X_OK) != 0 { throw failure(errno) }
    }

    func write(_ bytes: [UInt8]) throws(Failure) {
        if isStandardOutput {
            try writeStraight(bytes, to: STDOUT_FILENO, name: "standard output")
            return
        }
        if isSpecial {
            let descriptor = open(path, O_WRONLY | O_CLOEXEC)
            guard descriptor >= 0 else { throw failure(errno) }
            defer { close(descriptor) }
            try writeStraight(bytes, to: descriptor, name: path)
            return
        }
        // In the same folder, or the rename would be a copy. The mode is that of any file the user makes.
        let temporary = "\(resolved).\(getpid()).\(UInt32.random(in: 0...UInt32.max))"
        let descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o666)
        guard descriptor >= 0 else { throw failure(errno) }
        do throws(Failure) {
            try writeStraight(bytes, to: descriptor, name: path)
            // A delayed allocation can fail as late as this.
            if fsync(descriptor) != 0 && errno != EINVAL { throw failure(errno) }
        } catch {
            close(descriptor)
            unlink(temporary)
            throw error
        }
        close(descriptor)
        if rename(temporary, resolved) != 0 {
            let code = errno
            unlink(temporary)
            throw failure(code)
        }
    }

    /// The file behind a symbolic link, so that the link stays one.
    private var resolved: String {
        guard let target = realpath(path, nil) else { return path }
        defer { free(target) }
        return String(cString: target)
    }

    private var folder: String {
        guard let slash = path.lastIndex(of: "/") else { return "." }
        return slash == path.startIndex ? "/" : String(path[..<slash])
    }

    private var isSpecial: Bool {
        var status = stat()
        guard stat(path, &status) == 0 else { return false }
        let type = status.st_mode & S_IFMT
        return type != S_IFREG && type != S_IFDIR
    }

    private func failure(_ code: Int32) -> Failure {
        Failure("cannot write \(path): \(Console.reason(code)); name another file with -o")
    }

    private func writeStraight(_ bytes: [UInt8], to descriptor: Int32, name: String) throws(Failure) {
        var done = 0
        while done < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress.map { $0 + done }, $0.count - done)
            }
            if count > 0 {
                done += count
            } else if count < 0 && errno == EAGAIN {
                var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = poll(&entry, 1, 1000)
            } else if count == 0 || errno != EINTR {
                // A closed pipe wanted no more: `looplag report x | head` is no failure.
                if errno == EPIPE && descriptor == STDOUT_FILENO { return }
                throw Failure("cannot write \(name): \(Console.reason(errno))")
            }
        }
    }
}
