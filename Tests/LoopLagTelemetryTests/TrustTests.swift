/// Which files the reader refuses, and with what words.

import CLoopLagLayout
import Glibc
import LoopLagModel
import Testing

@testable import LoopLagTelemetry

@Suite("The reader refuses")
struct TrustTests {
    let folder: Folder
    let image: SegmentImage

    init() throws {
        folder = try Folder()
        image = try SegmentImage(path: folder.file())
    }

    private func refusal(_ path: String) -> TelemetryError? {
        var source = image.source
        source.path = path
        do throws(TelemetryError) {
            _ = try SegmentReader(source)
            return nil
        } catch {
            return error
        }
    }

    private func isUntrusted(_ path: String, _ reason: String) -> Bool {
        if case .untrusted(path, let said) = refusal(path) { return said.contains(reason) }
        return false
    }

    @Test("a symbolic link")
    func symbolicLink() {
        symlink(image.path, folder.file("link"))
        #expect(isUntrusted(folder.file("link"), "symbolic link"))
    }

    @Test("a second name, a folder, a pipe and a device, without opening any of them")
    func otherFiles() throws {
        mkdir(folder.file("folder"), 0o600)
        #expect(isUntrusted(folder.file("folder"), "folder"))
        mkfifo(folder.file("pipe"), 0o600)
        #expect(isUntrusted(folder.file("pipe"), "pipe"))
        #expect(isUntrusted("/dev/null", "regular"))
        link(image.path, folder.file("second"))
        #expect(isUntrusted(image.path, "2 names"))
        #expect(isUntrusted(folder.file("second"), "2 names"))
    }

    @Test("a mode that lets others in", arguments: [0o640, 0o604, 0o700, 0o400, 0o666, 0o4600] as [mode_t])
    func mode(_ mode: mode_t) {
        chmod(image.path, mode)
        #expect(isUntrusted(image.path, "mode"))
    }

    @Test("a file of another user", .enabled(if: geteuid() == 0))
    func owner() throws {
        chown(image.path, 12_345, 12_345)
        #expect(isUntrusted(image.path, "uid 12345"))
        // Post-mortem root may read anybody's.
        #expect(try SegmentReader(image.deadSource).snapshot().isAlive == false)
    }

    @Test("a link in the folders of the process's own root")
    func linkedFolder() throws {
        let inside = "/proc/\(getpid())/root"
        #expect(refusal(inside + image.path) == nil)
        symlink(folder.path, folder.file("way"))
        #expect(isUntrusted("\(inside)\(folder.path)/way/segment", "symbolic link"))
        #expect(isUntrusted("\(inside)\(folder.path)/../segment", "symbolic link"))
        // Asked for by a person, the folders may be links as they like.
        #expect(refusal("\(folder.path)/way/segment") == nil)
    }

    @Test("another version, and says which")
    func version() {
        let known = UInt32(LAG_ABI_VERSION)
        image.header.pointee.abi_version = known + 1
        #expect(refusal(image.path) == .otherVersion(path: image.path, found: known + 1, known: known))
    }

    @Test("a file that is no segment, too short or too long")
    func damaged() throws {
        image.header.pointee.magic ^= 1
        #expect(refusal(image.path)?.isCorrupt == true)
        let short = try SegmentImage(path: folder.file("short"))
        truncate(short.path, 100)
        #expect(throws: TelemetryError.self) { try SegmentReader(short.deadSource) }
        let long = try SegmentImage(path: folder.file("long"))
        truncate(long.path, off_t(SegmentFile.maximumBytes + 1))
        #expect(refusal(long.path)?.isCorrupt == true)
    }

    @Test("a segment that is still being written, which is no agent yet")
    func starting() {
        image.header.pointee.magic = 0
        #expect(refusal(image.path) == .noAgent(pid: getpid()))
        truncate(image.path, 0)
        #expect(refusal(image.path) == .noAgent(pid: getpid()))
    }

    @Test("tables that do not fit the file")
    func tables() {
        let header = image.header
        let good = header.pointee
        let changes: [(String, (inout lag_header) -> Void)] = [
            ("count", { $0.loops.count = .max }),
            ("offset", { $0.stalls.offset = .max - 7 }),
            ("offset into the header", { $0.pools.offset = 8 }),
            ("stride below ours", { $0.modules.stride = 88 }),
            ("stride of all", { $0.loops.stride = .max - 7 }),
            ("odd stride", { $0.stalls.stride += 4 }),
            ("crooked offset", { $0.stalls.offset += 4 }),
            ("ring of odd length", { $0.samples.count -= 4 }),
            ("ring of wide bytes", { $0.samples.stride = 8 }),
            ("total beyond the file", { $0.total_bytes += 8 }),
            ("total below the header", { $0.total_bytes = 8 }),
            ("endless total", { $0.total_bytes = .max }),
            ("short header", { $0.header_bytes -= 8 }),
            ("long header", { $0.header_bytes = 5000 }),
            ("last byte", { $0.samples.count += 8 }),
        ]
        for (name, change) in changes {
            change(&header.pointee)
            #expect(refusal(image.path)?.isCorrupt == true, "\(name)")
            header.pointee = good
        }
        #expect(refusal(image.path) == nil)
    }

    @Test("to go on when the file is cut under it, or its tables move")
    func truncation() throws {
        let reader = try SegmentReader(image.source)
        image.header.pointee.loops.count -= 1
        #expect(throws: TelemetryError.corrupt(path: image.path, reason: "its tables moved")) { try reader.snapshot() }
        image.header.pointee.loops.count += 1
        #expect(throws: Never.self) { try reader.snapshot() }
        for size in [image.bytes - 1, 5000, 4096, 1000, 1, 0] {
            truncate(image.path, off_t(size))
            #expect(throws: TelemetryError.self) { try reader.snapshot() }
            #expect(throws: TelemetryError.self) { try reader.samples(after: nil) }
        }
        // As between the look at the size and the reading.
        let file = try SegmentFile(path: image.path, pid: nil, owner: .reader)
        let buffer = RecordBuffer(count: 64)
        #expect(throws: TelemetryError.corrupt(path: image.path, reason: "it ends at byte 0")) {
            try file.read(buffer.start, count: 64, at: 0)
        }
        unlink(image.path)
        #expect(throws: TelemetryError.gone(path: image.path)) { try file.read(buffer.start, count: 64, at: 0) }
        #expect(throws: TelemetryError.gone(path: image.path)) { try reader.snapshot() }
    }

    @Test("nothing in silence: every error is one line that names its object")
    func messages() {
        let errors: [(TelemetryError, String)] = [
            (.noSuchProcess(pid: 7), "7"), (.notPermitted(pid: 7, path: "/p", detail: "d"), "7"),
            (.notPermitted(pid: nil, path: "/p", detail: "d"), "/p"), (.noAgent(pid: 7), "7"),
            (.untrusted(path: "/p\n\u{1b}[1m", reason: "r"), "/p [1m"), (.corrupt(path: "/p", reason: "r"), "/p"),
            (.otherVersion(path: "/p", found: 9, known: 1), "9"), (.gone(path: "/p"), "/p"),
            (.io(path: "/p", errno: EIO), "Input/output error"),
        ]
        for (error, part) in errors {
            #expect(error.message.contains(part))
            #expect(!error.message.contains("\n"))
            #expect(!error.message.contains("\u{1b}"))
        }
    }
}

extension TelemetryError {
    var isCorrupt: Bool {
        if case .corrupt = self { return true }
        return false
    }
}
