import Glibc

/// A folder that goes away with its owner.
final class TemporaryFolder {
    let path: String

    init() throws {
        var template = Array("/tmp/looplag-tests.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw POSIXFailure(code: errno) }
        path = String(decoding: template.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    deinit {
        for name in created.reversed() {
            unlink(name)
            rmdir(name)
        }
        rmdir(path)
    }

    private var created: [String] = []

    @discardableResult
    func file(_ name: String, _ bytes: [UInt8], mode: mode_t = 0o644) throws -> String {
        let path = "\(self.path)/\(name)"
        let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
        guard descriptor >= 0 else { throw POSIXFailure(code: errno) }
        defer { close(descriptor) }
        created.append(path)
        fchmod(descriptor, mode)
        guard bytes.isEmpty || write(descriptor, bytes, bytes.count) == bytes.count else {
            throw POSIXFailure(code: errno)
        }
        return path
    }

    @discardableResult
    func folder(_ name: String) throws -> String {
        let path = "\(self.path)/\(name)"
        guard mkdir(path, 0o755) == 0 else { throw POSIXFailure(code: errno) }
        created.append(path)
        return path
    }
}

struct POSIXFailure: Error { var code: Int32 }
