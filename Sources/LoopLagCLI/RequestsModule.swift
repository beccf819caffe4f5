/// The module that `run --requests` gives to every node process that it starts, by NODE_OPTIONS, as a file.
///
/// Made and removed by `run`, on the main thread. The file holds no secret, and whoever the server starts under another
/// user has to read it too, or node would not start there: readable for all, writable for us alone, in a folder of a random
/// name. A node that cannot find it does not start either, so it stays where it is while any process that is left has it
/// in its environment.

import Foundation
import Glibc
import LoopLagAttach

struct RequestsModule {
    private let folder: String
    private var path: String { "\(folder)/looplag-requests.cjs" }

    init(agent: AgentObject) throws(Failure) {
        var parent = getenv("TMPDIR").map { String(cString: $0) } ?? ""
        // NODE_OPTIONS has quotes of its own kind: a plain path needs none.
        if !parent.hasPrefix("/") || parent.contains(where: { " \t\"'\\".contains($0) }) { parent = "/tmp" }
        var template = Array("\(parent)/looplag-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw Failure("cannot make a folder for --requests in \(parent): \(Console.reason(errno))")
        }
        folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        chmod(folder, 0o755)
        let text = NodeProgram.module(agent: agent.path)
        guard
            FileManager.default.createFile(
                atPath: path, contents: Data(text.utf8), attributes: [.posixPermissions: 0o644])
        else {
            let reason = Console.reason(errno)
            remove()
            throw Failure("cannot write the module for --requests into \(folder): \(reason)")
        }
    }

    /// NODE_OPTIONS for the command, what it would have had included.
    var nodeOptions: String {
        let inherited = getenv("NODE_OPTIONS").map { String(cString: $0) } ?? ""
        return "--require=\(path)" + (inherited.isEmpty ? "" : " \(inherited)")
    }

    /// Once the command has ended. Says so when it has to stay.
    func clean() {
        if let user = ProcessFacts.all().first(where: { hasIt($0.pid) }) {
            Console.error(
                "\(folder) stays: \(user.pid) (\(user.displayName)) is left, and node needs it to start there")
        } else {
            remove()
        }
    }

    func remove() {
        unlink(path)
        rmdir(folder)
    }

    private func hasIt(_ pid: Int32) -> Bool {
        pid != getpid() && ProcessFacts.environment(pid: pid)["NODE_OPTIONS"]?.contains(path) == true
    }
}
