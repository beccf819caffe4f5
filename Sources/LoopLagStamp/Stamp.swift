/// Writes down which commit a build is of: `enum BuildStamp`, for `looplag --version`.
///
/// Run by `swift build` itself, as a plugin of the command line's target; it needs git and does without it. Not
/// Context.gitInformation of the manifest: SwiftPM caches the manifest's answers and would show the commit before.
/// Refuses: to guess. Outside a clone of our own, without git or where git distrusts the folder, the commit is empty.

import Foundation
import PackagePlugin

@main
struct Stamp: BuildToolPlugin {
    /// The folder may lie inside another repository, whose commit says nothing of ours. A file that says the same is
    /// left alone, so that nothing is compiled again.
    private static let script = #"""
        cd "$0" || exit 1
        commit=
        if top=$(git rev-parse --show-cdup 2>/dev/null) && [ -z "$top" ]; then
            commit=$(git describe --always --abbrev=7 --exclude '*' --dirty 2>/dev/null)
        fi
        text="/// Made by Sources/LoopLagStamp.
        enum BuildStamp {
            static let commit: String = \"$commit\"
        }"
        [ "$(cat "$1" 2>/dev/null)" = "$text" ] || printf '%s\n' "$text" >"$1"
        """#

    func createBuildCommands(context: PluginContext, target: any Target) throws -> [Command] {
        let package = context.package.directoryURL
        let output = context.pluginWorkDirectoryURL.appending(path: "BuildStamp.swift")
        return [
            .buildCommand(
                displayName: "Noting the commit", executable: URL(filePath: "/bin/sh"),
                arguments: ["-c", Self.script, package.path, output.path], inputFiles: inputs(of: package),
                outputFiles: [output])
        ]
    }

    /// What the answer depends on: the log of commits and checkouts, and every source, for it may differ from its
    /// commit.
    private func inputs(of package: URL) -> [URL] {
        let files = FileManager.default
        var inputs = [".git/logs/HEAD", "Package.swift"].map { package.appending(path: $0) }
            .filter { files.fileExists(atPath: $0.path) }
        let keys: Set<URLResourceKey> = [.isRegularFileKey]
        let walk = files.enumerator(at: package.appending(path: "Sources"), includingPropertiesForKeys: Array(keys))
        for case let file as URL in walk ?? .init() {
            if (try? file.resourceValues(forKeys: keys))?.isRegularFile == true { inputs.append(file) }
        }
        return inputs
    }
}
