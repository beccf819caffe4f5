/// An opened segment: found without following anybody's links, proved to be the agent's, read by pread only.
///
/// Opened by SegmentReader and SegmentDiscovery, used on their thread. It refuses to map the file (a truncated mapping
/// kills its reader), and to touch anything with a side effect: a path is first opened as a mere place (O_PATH),
/// judged, and only then opened for reading through /proc/self/fd, which cannot be another file. A FIFO, a device or a
/// symbolic link that a hostile process puts in the way is never opened, even as root.

import CLoopLagLayout
import Glibc

final class SegmentFile {
    /// Who the file must belong to.
    enum Owner {
        /// One of a living process's users. It may have been started as root and have become another since; what root
        /// put there is no less trusted than what the process itself did.
        case process(users: [UInt32])
        /// Post-mortem: the reader's own, or anybody's when the reader is root.
        case reader
    }

    /// What fstat says of the open file at this moment.
    struct Condition {
        var size: Int
        var links: Int
        var device: UInt
        var inode: UInt
        var owner: UInt32
    }

    static let maximumBytes = 16 << 20

    let path: String
    /// It has no name in any folder: links say nothing.
    let isMemory: Bool
    private let descriptor: Int32

    init(path: String, pid: Int32?, owner: Owner) throws(TelemetryError) {
        let route = Route(path)
        let place: Int32
        do throws(SystemError) {
            place = try route.open()
        } catch {
            throw Self.failure(error, path: path, pid: pid)
        }
        defer { close(place) }

        var info = Glibc.stat()
        guard fstat(place, &info) == 0 else { throw Self.failure(.last, path: path, pid: pid) }
        let isMemory = route.isDescriptor && info.st_nlink == 0
        try Self.judge(info, path: path, owner: owner, isMemory: isMemory)

        let flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY
        let descriptor = Glibc.open("/proc/self/fd/\(place)", flags)
        guard descriptor >= 0 else { throw Self.failure(.last, path: path, pid: pid) }
        self.path = path
        self.isMemory = isMemory
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    func condition() throws(TelemetryError) -> Condition {
        var info = Glibc.stat()
        guard fstat(descriptor, &info) == 0 else { throw .io(path: path, errno: errno) }
        return Condition(
            size: Int(info.st_size), links: Int(info.st_nlink), device: info.st_dev, inode: info.st_ino,
            owner: info.st_uid)
    }

    /// A second description of the same file, for leases. -1 when writing is not allowed.
    func openForWriting() -> Int32 {
        Glibc.open("/proc/self/fd/\(descriptor)", O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
    }

    /// Exactly `count` bytes; fewer means that the file was cut under us.
    func read(_ target: UnsafeMutableRawPointer, count: Int, at offset: Int) throws(TelemetryError) {
        var done = 0
        while done < count {
            let got = pread(descriptor, target + done, count - done, off_t(offset + done))
            if got > 0 {
                done += got
            } else if got == 0 {
                if !isMemory, try condition().links == 0 { throw .gone(path: path) }
                throw .corrupt(path: path, reason: "it ends at byte \(offset + done)")
            } else if errno != EINTR {
                throw .io(path: path, errno: errno)
            }
        }
    }

    private static func judge(
        _ info: stat, path: String, owner: Owner, isMemory: Bool
    ) throws(TelemetryError) {
        func refuse(_ reason: String) -> TelemetryError { .untrusted(path: path, reason: reason) }
        switch info.st_mode & S_IFMT {
        case S_IFREG: break
        case S_IFLNK: throw refuse("it is a symbolic link")
        case S_IFDIR: throw refuse("it is a folder")
        case S_IFIFO: throw refuse("it is a pipe")
        default: throw refuse("it is not a regular file")
        }
        switch owner {
        case .process(let users):
            guard users.contains(info.st_uid) || info.st_uid == 0 else {
                let user = users.count > 1 ? users[1] : users.first ?? 0
                throw refuse("it belongs to uid \(info.st_uid), its process runs as uid \(user)")
            }
        case .reader:
            let user = geteuid()
            guard user == 0 || info.st_uid == user else {
                throw .notPermitted(pid: nil, path: path, detail: "it belongs to uid \(info.st_uid), you are \(user)")
            }
        }
        // A memory file has no folder in which a stranger could open it; the kernel makes it 0777.
        if !isMemory {
            guard info.st_mode & 0o7777 == 0o600 else {
                throw refuse("its mode is 0\(String(info.st_mode & 0o7777, radix: 8)) and not 0600")
            }
            if info.st_nlink == 0 { throw .gone(path: path) }
            guard info.st_nlink == 1 else { throw refuse("it has \(info.st_nlink) names") }
        }
        guard info.st_size <= maximumBytes else {
            throw .corrupt(path: path, reason: "\(info.st_size) bytes, more than any agent writes")
        }
    }

    static func failure(_ error: SystemError, path: String, pid: Int32?) -> TelemetryError {
        if error.isRefusal { return .notPermitted(pid: pid, path: path, detail: error.text) }
        if error.code == ELOOP { return .untrusted(path: path, reason: "a symbolic link stands in its path") }
        return .io(path: path, errno: error.code)
    }
}

/// O_PATH of linux/fcntl.h, which the Glibc module leaves out.
private let placeOnly: Int32 = 0o10_000_000

/// How a path is walked: where links may be followed and where not.
private struct Route {
    /// /proc/PID/root or /proc/PID/task/TID/root: a link made by the kernel, into the process's own tree.
    var root: String?
    /// Below `root`: no link is followed, for an absolute one would lead into the reader's tree.
    var components: [Substring] = []
    /// /proc/.../fd/N: the kernel's link is the file itself.
    var isDescriptor = false
    var path: String

    init(_ path: String) {
        self.path = path
        let parts = path.split(separator: "/", omittingEmptySubsequences: true)
        guard path.hasPrefix("/proc/"), parts.count > 2, parts[1].allSatisfy(\.isNumber) else { return }
        var next = 2
        if parts.count > 4, parts[2] == "task", parts[3].allSatisfy(\.isNumber) { next = 4 }
        if parts[next] == "root", parts.count > next + 1 {
            root = "/" + parts[...next].joined(separator: "/")
            components = Array(parts[(next + 1)...])
        } else if parts[next] == "fd", parts.count == next + 2, parts[next + 1].allSatisfy(\.isNumber) {
            isDescriptor = true
        }
    }

    /// A descriptor that names the file and can do nothing else with it.
    func open() throws(SystemError) -> Int32 {
        guard let root else {
            let place = Glibc.open(path, placeOnly | O_CLOEXEC | (isDescriptor ? 0 : O_NOFOLLOW))
            guard place >= 0 else { throw .last }
            return place
        }
        var place = Glibc.open(root, placeOnly | O_CLOEXEC | O_DIRECTORY)
        guard place >= 0 else { throw .last }
        for (i, component) in components.enumerated() {
            if component == ".." || component == "." {
                close(place)
                throw SystemError(code: ELOOP)
            }
            let next = openat(place, String(component), placeOnly | O_CLOEXEC | O_NOFOLLOW)
            let error = SystemError.last
            close(place)
            guard next >= 0 else { throw error }
            place = next
            if i < components.count - 1, isLink(place) {
                close(place)
                throw SystemError(code: ELOOP)
            }
        }
        return place
    }

    private func isLink(_ descriptor: Int32) -> Bool {
        var info = Glibc.stat()
        return fstat(descriptor, &info) == 0 && info.st_mode & S_IFMT == S_IFLNK
    }
}
