/// What a person calls a process: uvicorn, server.js, redis-server; never a path and never an argument.
///
/// Called by every view. Pure. It refuses to show arguments beyond the script's or module's own name: they hold secrets.

import LoopLagModel

public func serverName(_ process: ProcessSnapshot) -> String {
    serverName(command: process.command, executable: process.executable, runtime: process.runtime)
}

/// The same from a report's process, which holds the command and the runtime only.
public func serverName(command: [String], executable: String?, runtime: Runtime?) -> String {
    let program = shortName(command.first ?? executable ?? "")
    let name: String
    // A process may rewrite its command line ("gunicorn: worker [app]", "nginx: master process"): one argument that
    // says what it is before the colon.
    if let title = command.first, let colon = title.firstIndex(of: ":"), title[colon...].hasPrefix(": ") {
        name = PlainText.fileName(String(title[..<colon]))
    } else if runtime == .cpython || program.hasPrefix("python") || program.hasPrefix("pypy") {
        name = pythonScript(command) ?? program
    } else if runtime == .node || program == "node" || program == "nodejs" {
        name = nodeScript(command) ?? program
    } else {
        name = program
    }
    let printable = PlainText.printable(name.isEmpty ? shortName(executable ?? "") : name)
    return printable.isEmpty ? "process" : printable
}

/// "redis-server *:6379" in one argument is redis's title; a program's own name holds no blank.
private func shortName(_ path: String) -> String {
    let program = path.split(separator: " ", maxSplits: 1).first.map(String.init) ?? path
    let name = PlainText.fileName(program)
    // A login shell's "-" and a deleted file's mark say nothing of the server.
    return name.hasPrefix("-") ? String(name.dropFirst()) : name
}

private func pythonScript(_ command: [String]) -> String? {
    var rest = command.dropFirst()
    while let argument = rest.popFirst() {
        if argument == "-m" { return rest.popFirst().map(moduleName) }
        // `-c` holds a program text; a multiprocessing child is one of those.
        if argument == "-c" { return nil }
        if argument == "-X" || argument == "-W" || argument == "--check-hash-based-pycs" {
            _ = rest.popFirst()
        } else if argument.hasPrefix("-m"), argument.count > 2 {
            return moduleName(String(argument.dropFirst(2)))
        } else if !argument.hasPrefix("-") {
            return scriptName(argument)
        }
    }
    return nil
}

/// `python -m package.__main__` is the package.
private func moduleName(_ name: String) -> String {
    name.hasSuffix(".__main__") ? String(name.dropLast(".__main__".count)) : name
}

/// `.../uvicorn/__main__.py` is uvicorn.
private func scriptName(_ path: String) -> String? {
    let parts = path.split(separator: "/").map(String.init)
    guard let last = parts.last else { return nil }
    if last == "__main__.py", parts.count > 1 { return parts[parts.count - 2] }
    return last
}

private func nodeScript(_ command: [String]) -> String? {
    let takesValue: Set<String> = [
        "-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--input-type",
        "--title", "--icu-data-dir", "--openssl-config", "--max-http-header-size", "--stack-trace-limit",
    ]
    var rest = command.dropFirst()
    while let argument = rest.popFirst() {
        if ["-e", "--eval", "-p", "--print", "-pe"].contains(argument) { return nil }
        if takesValue.contains(argument) {
            _ = rest.popFirst()
        } else if !argument.hasPrefix("-") {
            let parts = argument.split(separator: "/").map(String.init)
            guard let last = parts.last else { return nil }
            // `node dist/index.js` of a package is told by its folder only by luck: the script's name stays.
            return last
        }
    }
    return nil
}
