/// The manual page `looplag.1`, made from the same texts as --help.
///
/// Called by `looplag --generate-manual` (hidden) and by `install`. Reads the description that ArgumentParser gives of
/// the whole command line, so that an option cannot be missing here. Pure.

import ArgumentParser
import Foundation

enum ManualPage {
    static func text() throws -> String {
        let description = Data(LoopLagCommand._dumpHelp().utf8)
        return text(of: try JSONDecoder().decode(Tool.self, from: description).command)
    }

    // MARK: What ArgumentParser says (its ToolInfo, version 0)

    private struct Tool: Decodable { var command: Command }

    private struct Command: Decodable {
        var commandName: String
        var abstract: String?
        var discussion: String?
        var shouldDisplay: Bool?
        var subcommands: [Command]?
        var arguments: [Argument]?
    }

    private struct Argument: Decodable {
        struct Name: Decodable {
            var kind: String
            var name: String

            var text: String { (kind == "long" ? "--" : "-") + name }
        }

        var kind: String
        var shouldDisplay: Bool
        var isOptional: Bool
        var isRepeating: Bool
        var names: [Name]?
        var valueName: String?
        var abstract: String?
        var discussion: String?
    }

    // MARK: The page

    private static func text(of root: Command) -> String {
        let verbs = (root.subcommands ?? []).filter { $0.shouldDisplay != false && $0.commandName != "help" }
        var page = [
            #".TH LOOPLAG 1 "" "looplag \#(escaped(Version.number))" "User Commands""#, ".SH NAME",
            "looplag \\- \(escaped(root.abstract ?? ""))", ".SH SYNOPSIS", #"\fBlooplag\fR \fIverb\fR [\fIoptions\fR]"#,
            ".SH DESCRIPTION",
        ]
        page += paragraphs(root.discussion)
        page.append(".SH VERBS")
        for verb in verbs { page += section(of: verb) }
        page += [
            ".SH ENVIRONMENT", ".TP", #"\fBLOOPLAG_AGENT\fR"#,
            "The agent object, where it lies neither beside looplag nor in ../lib.", ".TP", #"\fBLOOPLAG_DEMO\fR"#,
            "The demo's server, where it lies neither beside looplag nor in ../libexec or ../bin.", ".TP",
            #"\fBLOOPLAG_THRESHOLD\fR, \fBLOOPLAG_DIR\fR, \fBLOOPLAG_WAITS\fR, \fBLOOPLAG_STACKS\fR, "#
                + #"\fBLOOPLAG_SIGNAL\fR, \fBLOOPLAG_BUDGET\fR, \fBLOOPLAG_DISABLE\fR"#,
            "Read by the agent in the server: the threshold, the folder of its segment, the waits it measures",
            "(epoll,poll), 0 for no stacks, the realtime signal, the per cent of one core that it may use before it",
            "looks less often (1), 1 for no agent at all.", ".TP", #"\fBNO_COLOR\fR"#,
            "No colours.",
        ]
        return page.joined(separator: "\n") + "\n"
    }

    private static func section(of verb: Command) -> [String] {
        let arguments = (verb.arguments ?? []).filter {
            $0.shouldDisplay && !["help", "version"].contains($0.names?.last?.name)
        }
        var usage = [#"\fBlooplag \#(escaped(verb.commandName))\fR"#]
        for argument in arguments { usage.append(synopsis(of: argument)) }
        var lines = [".SS \"\(escaped(verb.commandName))\"", usage.joined(separator: " "), ".PP"]
        lines += paragraphs(verb.abstract) + (verb.discussion.map { [".PP"] + paragraphs($0) } ?? [])
        for argument in arguments where argument.abstract != nil {
            let names = (argument.names ?? []).map { #"\fB\#(escaped($0.text))\fR"# }.joined(separator: ", ")
            let value = argument.kind == "flag" ? nil : argument.valueName.map { #"\fI\#(escaped($0))\fR"# }
            lines += [".TP", [names, value ?? ""].filter { !$0.isEmpty }.joined(separator: " ")]
            lines += paragraphs([argument.abstract, argument.discussion].compactMap { $0 }.joined(separator: " "))
        }
        if let examples = Examples.all[verb.commandName] {
            lines += [".PP", "Examples:"]
            for example in examples {
                lines += [".TP", #"\fB\#(escaped(example.command))\fR"#] + paragraphs(example.what)
            }
        }
        return lines
    }

    private static func synopsis(of argument: Argument) -> String {
        let name = argument.names?.last.map { #"\fB\#(escaped($0.text))\fR"# }
        let value = argument.kind == "flag" ? nil : #"\fI\#(escaped(argument.valueName ?? "value"))\fR"#
        let text = [name, value].compactMap { $0 }.joined(separator: " ") + (argument.isRepeating ? " ..." : "")
        return argument.isOptional ? "[\(text)]" : text
    }

    /// A line of its own each; an empty line begins a new paragraph.
    private static func paragraphs(_ text: String?) -> [String] {
        (text ?? "").split(separator: "\n", omittingEmptySubsequences: false).map {
            $0.isEmpty ? ".PP" : escaped(String($0))
        }
    }

    /// What troff would read as its own: backslashes, hyphens (a minus, so that options can be copied), and a dot or
    /// apostrophe at the beginning of a line.
    static func escaped(_ text: String) -> String {
        var result = text.replacing("\\", with: "\\e").replacing("-", with: "\\-").replacing("\"", with: "\\(dq")
        if result.hasPrefix(".") || result.hasPrefix("'") { result = "\\&" + result }
        return result
    }
}
