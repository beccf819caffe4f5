/// Keeps what addresses of a file meant from one run to the next: one small file per build ID in the user's cache.
///
/// Who calls it: ModuleFile, with SymbolLock held. An entry is keyed by build ID, size and owner of the file, for a
/// process can give its own file the build ID of another; and it is valid only for the debug file it was made with.
/// It is bounded (entries a file, bytes in all, the oldest files go first), written at once under another name and
/// renamed, private to the user, and never followed through a link. Losing it costs time, nothing else: no error of it
/// reaches anyone.

import Glibc

struct SymbolCache {
    /// Raised whenever the form of the file or of the names in it changes.
    private static let format = "looplag-symbols 1"
    static let maximumEntries = 8192
    private static let maximumFileBytes = 4 << 20
    private static let maximumTotalBytes: Int64 = 32 << 20

    /// nil when the folder cannot be had, or is not ours alone.
    private let folder: String?

    init(directory: String?) {
        guard let directory, directory.hasPrefix("/") else {
            folder = nil
            return
        }
        let folder = directory + "/symbols"
        mkdir(directory, 0o700)
        mkdir(folder, 0o700)
        var status = stat()
        let isPrivate =
            lstat(folder, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR && status.st_uid == geteuid()
            && status.st_mode & 0o022 == 0
        self.folder = isPrivate ? folder : nil
    }

    // MARK: - reading

    func load(_ key: String, source: String) -> [UInt64: [SymbolFrame]] {
        guard let folder, let text = read(folder + "/" + key) else { return [:] }
        return Self.parse(text, source: source)
    }

    private func read(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var status = stat()
        guard fstat(fd, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_uid == geteuid(),
            status.st_size <= Self.maximumFileBytes
        else { return nil }
        var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
        guard Glibc.read(fd, &bytes, bytes.count) == bytes.count else { return nil }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// A head line, then for each address a line `@hex` and a line for each of its frames, innermost first.
    static func parse(_ text: String, source: String) -> [UInt64: [SymbolFrame]] {
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).makeIterator()
        guard lines.next().map(String.init) == format, lines.next().map(String.init) == source else { return [:] }
        var entries: [UInt64: [SymbolFrame]] = [:]
        var address: UInt64?
        while let line = lines.next(), line != "end" {
            if line.first == "@" {
                address = UInt64(line.dropFirst(), radix: 16)
                if let address, entries.count < maximumEntries { entries[address] = [] } else { address = nil }
                continue
            }
            let fields = line.split(separator: "\t", omittingEmptySubsequences: false)
            guard let known = address, fields.count == 5, entries[known]?.count ?? 0 < 128, !fields[4].isEmpty else {
                return [:]
            }
            entries[known]?.append(
                SymbolFrame(
                    function: String(fields[4]), isSwift: fields[0].contains("s"),
                    file: fields[3].isEmpty ? nil : String(fields[3]), line: Int(fields[1]), column: Int(fields[2]),
                    isInlined: fields[0].contains("i")))
        }
        return entries.filter { !$0.value.isEmpty }
    }

    // MARK: - writing

    func save(_ key: String, source: String, entries: [UInt64: [SymbolFrame]]) {
        guard let folder else { return }
        let text = Self.text(source: source, entries: entries)
        guard text.utf8.count <= Self.maximumFileBytes else { return }
        let temporary = folder + "/.\(getpid())-" + key
        let fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard fd >= 0 else {
            // Left by a process of the same number that was killed at this point.
            unlink(temporary)
            return
        }
        var text8 = text
        let isWritten = text8.withUTF8 { write(fd, $0.baseAddress, $0.count) == $0.count }
        close(fd)
        if !isWritten || rename(temporary, folder + "/" + key) != 0 {
            unlink(temporary)
            return
        }
        evict(folder)
    }

    static func text(source: String, entries: [UInt64: [SymbolFrame]]) -> String {
        var text = format + "\n" + source + "\n"
        for (address, frames) in entries.sorted(by: { $0.key < $1.key }).prefix(maximumEntries) {
            text += "@" + String(address, radix: 16) + "\n"
            for frame in frames {
                text += (frame.isSwift ? "s" : "") + (frame.isInlined ? "i" : "") + "\t"
                text += (frame.line.map { String($0) } ?? "") + "\t" + (frame.column.map { String($0) } ?? "") + "\t"
                text += (frame.file ?? "") + "\t" + frame.function + "\n"
            }
        }
        return text + "end\n"
    }

    /// Removes the files that were written longest ago until the rest fits.
    private func evict(_ folder: String) {
        guard let directory = opendir(folder) else { return }
        defer { closedir(directory) }
        var files: [(name: String, size: Int64, time: Int)] = []
        var total: Int64 = 0
        while let entry = readdir(directory), files.count < 4096 {
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            var status = stat()
            guard name != ".", name != "..", lstat(folder + "/" + name, &status) == 0,
                status.st_mode & S_IFMT == S_IFREG
            else { continue }
            files.append((name, Int64(status.st_size), status.st_mtim.tv_sec))
            total += Int64(status.st_size)
        }
        files.sort { $0.time < $1.time }
        for file in files {
            guard total > Self.maximumTotalBytes else { return }
            if unlink(folder + "/" + file.name) == 0 { total -= file.size }
        }
    }
}
