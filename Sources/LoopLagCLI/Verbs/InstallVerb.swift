/// `looplag install --prefix DIR`: copies a build to where it is used from.
///
/// Main thread. Each file is written beside its place and renamed into it: the agent object may be mapped into running
/// servers, which keep the old file, and writing into it would be their crash. Running it again changes nothing.
/// Refuses: a prefix that LD_PRELOAD cannot name, and to remove anything.

import ArgumentParser
import Foundation
import Glibc
import LoopLagAttach

struct InstallVerb: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "install",
        abstract: "Copy looplag, its agent, the demo, completions and the manual page to a folder.",
        discussion: """
            Puts this build below the prefix: bin/looplag, lib/liblooplag-agent.so, libexec/looplag/looplag-demo, \
            completions for bash, zsh and fish and looplag.1 in share. Every file is replaced as a whole, so it is safe \
            while servers run with the agent; they keep the one they have. A build with 'swift build -c release' is the \
            one to install.
            """)

    @Option(help: ArgumentHelp("Where to, like /usr/local or ~/.local.", valueName: "folder"))
    var prefix: String

    @Flag(name: .customLong("dry-run"), help: "Only say what would be done.")
    var dryRun = false

    func validate() throws {
        if prefix.isEmpty { throw ValidationError("--prefix needs a folder") }
        if prefix.contains(where: { $0 == " " || $0 == ":" || $0 == "\n" }) {
            throw ValidationError("A folder with a space or a colon cannot stand in LD_PRELOAD: '\(prefix)'")
        }
    }

    func run() throws {
        // Everything is found and made before anything is written.
        let items = try Self.items()
        let folder = prefix.hasPrefix("/") ? prefix : FileManager.default.currentDirectoryPath + "/" + prefix
        var report = ""
        for item in items {
            let target = Installation.joined(folder, item.place)
            let outcome: String
            if dryRun {
                outcome = Installation.isSame(item, at: target) ? "unchanged" : "would install"
            } else {
                outcome = try Installation.install(item, at: target) ? "installed" : "unchanged"
            }
            report += "\(outcome.padding(toLength: 13, withPad: " ", startingAt: 0))  \(target)\n"
        }
        let bin = Installation.joined(folder, "bin")
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        if !path.split(separator: ":").contains(where: { $0 == bin }) {
            report += "\(bin) is not on your PATH: export PATH=\(bin):$PATH\n"
        }
        if case .failed(let code) = Console.out.write(report) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }

    private static func items() throws -> [Installation.Item] {
        guard let executable = SystemFacts.ownExecutable else {
            throw Failure("cannot find this looplag's own file: /proc is not mounted")
        }
        let agent = try AgentObject.locate().path
        let demo = try DemoServer.locate()
        func completions(_ shell: CompletionShell) -> [UInt8] {
            Array(LoopLagCommand.completionScript(for: shell).utf8)
        }
        return [
            .init(place: "bin/looplag", content: try Installation.content(of: executable), isExecutable: true),
            .init(
                place: "lib/\(AgentObject.fileName)", content: try Installation.stripped(agent), isExecutable: false),
            .init(
                place: "libexec/looplag/\(DemoServer.fileName)", content: try Installation.content(of: demo),
                isExecutable: true),
            .init(place: "share/bash-completion/completions/looplag", content: completions(.bash), isExecutable: false),
            .init(place: "share/zsh/site-functions/_looplag", content: completions(.zsh), isExecutable: false),
            .init(
                place: "share/fish/vendor_completions.d/looplag.fish", content: completions(.fish), isExecutable: false),
            .init(place: "share/man/man1/looplag.1", content: Array(try ManualPage.text().utf8), isExecutable: false),
        ]
    }
}

/// The files of `install` and how each gets to its place.
enum Installation {
    struct Item {
        /// Below the prefix.
        var place: String
        var content: [UInt8]
        var isExecutable: Bool

        var mode: mode_t { isExecutable ? 0o755 : 0o644 }
    }

    static func joined(_ folder: String, _ place: String) -> String {
        folder.hasSuffix("/") ? folder + place : "\(folder)/\(place)"
    }

    static func content(of path: String) throws(Failure) -> [UInt8] {
        do {
            return Array(try Data(contentsOf: URL(filePath: path), options: .mappedIfSafe))
        } catch {
            throw Failure("cannot read \(path): \(Console.reason(errno))")
        }
    }

    /// Without symbols, where there is a strip that leaves a usable object; else as it is.
    static func stripped(_ agent: String) throws(Failure) -> [UInt8] {
        var name = Array("/tmp/looplag-agent-XXXXXX".utf8CString)
        let file = mkstemp(&name)
        guard file >= 0 else { return try content(of: agent) }
        close(file)
        defer { unlink(name) }
        let copy = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        // A debug build carries the Swift compiler's own debug section, which strip does not know.
        let command = "exec strip --strip-all --remove-section=.swift_ast -o \"$1\" \"$0\""
        let null = open("/dev/null", O_RDWR | O_CLOEXEC)
        guard null >= 0 else { return try content(of: agent) }
        defer { close(null) }
        guard
            let process = try? Subprocess.start(
                "/bin/sh", ["sh", "-c", command, agent, copy], streams: .init(input: null, output: null, errors: null))
        else { return try content(of: agent) }
        while process.reap() == nil { usleep(2_000) }
        guard process.reap() == .exited(0), AgentObject.isUsable(copy) else { return try content(of: agent) }
        return try content(of: copy)
    }

    static func isSame(_ item: Item, at path: String) -> Bool {
        var status = stat()
        guard lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG, Int(status.st_size) == item.content.count,
            status.st_mode & 0o777 == item.mode
        else { return false }
        return (try? content(of: path)) == item.content
    }

    /// False when it lies there already.
    static func install(_ item: Item, at path: String) throws(Failure) -> Bool {
        if isSame(item, at: path) { return false }
        guard let slash = path.lastIndex(of: "/") else { return false }
        let folder = String(path[..<slash])
        try makeFolders(folder, for: path)
        let temporary = "\(folder)/.looplag-\(getpid())-\(UInt32.random(in: 0...UInt32.max))"
        let file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, item.mode)
        guard file >= 0 else { throw failure(path, errno) }
        var code: Int32 = 0
        item.content.withUnsafeBytes { bytes in
            var done = 0
            while done < bytes.count {
                let count = write(file, bytes.baseAddress.map { $0 + done }, bytes.count - done)
                if count < 0 && errno == EINTR { continue }
                guard count > 0 else {
                    code = errno
                    return
                }
                done += count
            }
        }
        // Whatever the umask: what is installed for everybody is for everybody to read.
        if code == 0, fchmod(file, item.mode) != 0 || fsync(file) != 0 { code = errno }
        close(file)
        if code == 0, rename(temporary, path) != 0 { code = errno }
        if code != 0 {
            unlink(temporary)
            throw failure(path, code)
        }
        return true
    }

    private static func makeFolders(_ folder: String, for path: String) throws(Failure) {
        var made = ""
        for part in folder.split(separator: "/") {
            made += "/\(part)"
            if mkdir(made, 0o755) != 0, errno != EEXIST, access(made, F_OK) != 0 { throw failure(path, errno) }
        }
    }

    private static func failure(_ path: String, _ code: Int32) -> Failure {
        let refused = code == EACCES || code == EPERM || code == EROFS
        return Failure(
            "cannot install \(path): \(Console.reason(code)); choose a --prefix that you may write"
                + (refused ? ", or use sudo" : ""), status: refused ? Failure.notPermitted : Failure.general)
    }
}
