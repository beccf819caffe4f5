/// A terminal for `looplag top`: a tmux server of its own, a window of a given size, keys in and the picture out.
///
/// The shell in it writes the terminal's settings before and after into files, so that a test can compare them. `end()`
/// kills the server and with it all that runs in the window.

import Foundation
import LoopLagModel

final class TopTerminal {
    let folder: TemporaryFolder
    private let socket: String
    private let tmux: String

    /// - Parameters:
    ///   - arguments: of looplag.
    ///   - environment: set in the window, `TERM` among it if it is to be another than tmux's.
    init(
        _ arguments: [String], columns: Int = 120, rows: Int = 30, environment: [String: String] = [:],
        hasJobControl: Bool = false
    ) throws {
        folder = try TemporaryFolder()
        tmux = try Tools.installed("TMUX")
        socket = "\(folder.path)/tmux.sock"
        let variables = ["LANG=C.UTF-8", "LC_ALL=C.UTF-8"].filter { variable in
            !environment.keys.contains { variable.hasPrefix($0 + "=") }
        }
        let settings = variables + environment.map { "\($0)=\($1)" }
        let script = """
            \(hasJobControl ? "set -m" : "")
            cd '\(folder.path)'
            echo before the view
            stty -a >before
            env -u NO_COLOR \(settings.joined(separator: " ")) '\(try Tools.looplag())' \(arguments.joined(separator: " "))
            status=$?
            \(hasJobControl ? "read line; fg; status=$?" : "")
            echo "status=$status"
            stty -a >after
            echo back in the shell
            exec sleep 1000
            """
        let file = folder.path + "/window.sh"
        try script.write(toFile: file, atomically: true, encoding: .utf8)
        try command(
            ["-f", "/dev/null", "new-session", "-d", "-x", "\(columns)", "-y", "\(rows)", "bash \(file)"],
            environment: ["LC_ALL": "C.UTF-8"])
        try command(["set-option", "-g", "status", "off"])
    }

    @discardableResult
    func command(_ arguments: [String], environment: [String: String] = [:]) throws -> String {
        let child = try Child(
            [tmux, "-u", "-S", socket] + arguments, environment: ["TMUX": ""].merging(environment) { $1 })
        defer { child.end() }
        let status = try child.exitStatus(within: .seconds(20))
        guard status == .exited(0) else {
            throw SpawnFailed(description: "tmux \(arguments.joined(separator: " ")): \(child.errors.text)")
        }
        return try child.output.wholeText()
    }

    func press(_ keys: String...) throws { try command(["send-keys"] + keys) }

    /// The picture as lines; with `styled` the escapes of its colours are kept.
    func lines(styled: Bool = false) throws -> [String] {
        try command(["capture-pane", "-p"] + (styled ? ["-e"] : [])).split(
            separator: "\n", omittingEmptySubsequences: false
        ).map(String.init)
    }

    /// Waits for a picture with a line that matches, and gives it.
    @discardableResult
    func wait(for pattern: String, within limit: Duration = .seconds(20)) throws -> [String] {
        let expression = try Regex(pattern)
        var last: [String] = []
        do {
            return try eventually("a line that matches \(pattern)", within: limit) {
                last = try lines()
                return last.contains { $0.contains(expression) } ? last : nil
            }
        } catch is TimedOut {
            throw TimedOut(what: "a line that matches \(pattern)", seen: last.joined(separator: "\n"))
        }
    }

    func resize(columns: Int, rows: Int) throws {
        try command(["resize-window", "-x", "\(columns)", "-y", "\(rows)"])
    }

    /// The process of the view itself.
    func process() throws -> Int32 {
        try eventually("looplag in the window") {
            let shell = try Int32(
                command(["display-message", "-p", "#{pane_pid}"]).trimmingCharacters(in: .whitespacesAndNewlines))
            return shell.flatMap { ProcessTable.children(of: $0).first }
        }
    }

    /// The shell's picture after the view's end: status, the text from before, settings as they were, a cursor.
    /// - Parameter expectsText: the lines from before must be in sight again.
    func expectRestored(expectsText: Bool = true) throws -> (status: Int?, faults: [String]) {
        let lines = try wait(for: "back in the shell")
        var faults: [String] = []
        if expectsText, !lines.contains("before the view") { faults.append("the text from before is gone: \(lines)") }
        let flags = try command(["display-message", "-p", "#{cursor_flag} #{alternate_on} #{keypad_cursor_flag}"])
        if flags.trimmingCharacters(in: .whitespacesAndNewlines) != "1 0 0" { faults.append("flags \(flags)") }
        let before = try String(contentsOfFile: folder.path + "/before", encoding: .utf8)
        let after = try String(contentsOfFile: folder.path + "/after", encoding: .utf8)
        // The window may have another size by now, which is no setting of ours.
        let size = /rows \d+; columns \d+;/
        if before.replacing(size, with: "") != after.replacing(size, with: "") || before.isEmpty {
            faults.append("stty before:\n\(before)\nafter:\n\(after)")
        }
        let status = lines.joined(separator: "\n").firstMatch(of: /status=(\d+)/).flatMap { Int($0.1) }
        return (status, faults)
    }

    func end() { _ = try? command(["kill-server"]) }
}
