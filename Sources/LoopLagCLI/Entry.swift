/// Where the process begins and ends: parses the command line, runs one verb, turns every error into one line on
/// stderr and an exit status.
///
/// Runs on the main thread, as all of the command line does. Nothing below it calls `exit`; verbs throw.

import ArgumentParser
import Glibc
import LoopLagAttach

@main
enum Entry {
    /// What we were started with; taken once, before anything else.
    static let dispositions = InheritedDispositions.prepare()

    static func main() {
        // Before anything can write to a closed pipe or start a child.
        Console.reserveStandardDescriptors()
        _ = dispositions
        exit(status())
    }

    private static func status() -> Int32 {
        do {
            var command = try LoopLagCommand.parseAsRoot()
            try command.run()
            return 0
        } catch let failure as Failure {
            Console.error(failure.message)
            return failure.status
        } catch let error as AttachError {
            Console.error(error.message)
            return Failure.status(of: error)
        } catch let code as ExitCode {
            return code.rawValue
        } catch {
            return parserStatus(error)
        }
    }

    /// Help and version go to stdout with status 0; a usage error is one line, with the way to the help.
    private static func parserStatus(_ error: any Error) -> Int32 {
        let code = LoopLagCommand.exitCode(for: error)
        if code == .success {
            var text = LoopLagCommand.fullMessage(for: error)
            if text.hasPrefix("OVERVIEW: "), let verb = helpedVerb, let examples = Examples.text(of: verb) {
                text += (text.hasSuffix("\n") ? "\n" : "\n\n") + examples
            }
            _ = Console.out.write(text.hasSuffix("\n") ? text : text + "\n")
            return 0
        }
        let message = LoopLagCommand.message(for: error).split(separator: "\n").joined(separator: " ")
        let verb = LoopLagCommand.configuration.subcommands.lazy.map { $0._commandName }
            .first { CommandLine.arguments.dropFirst().first == $0 }
        let help = ["looplag", verb, "--help"].compactMap { $0 }.joined(separator: " ")
        let plain = message.hasSuffix(".") ? String(message.dropLast()) : message
        Console.error("\(plain.prefix(1).lowercased())\(plain.dropFirst()); see '\(help)'")
        return code == .validationFailure ? Failure.usage : code.rawValue
    }
}

extension Entry {
    /// The verb whose help is asked for: `help VERB`, or `VERB --help`.
    private static var helpedVerb: String? {
        CommandLine.arguments.dropFirst().first { $0 != "help" && !$0.hasPrefix("-") }
    }
}

struct LoopLagCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "looplag",
        abstract: "What is blocking my event loop, right now, and why?",
        discussion: """
            Measures every iteration of a server's event loops, sees a stall while it is still running and shows the \
            stack that blocks. Durations are written 250us, 100ms, 2s, 1m.

            Exit status: 0 ok, 1 failure, 3 the target went away or does not exist, 4 not permitted, 64 usage. 'run' \
            exits as its command did.
            """,
        version: Version.text,
        subcommands: [
            DemoVerb.self, RunVerb.self, AttachVerb.self, DetachVerb.self, TopVerb.self, PsVerb.self, StallsVerb.self,
            DumpVerb.self, RecordVerb.self, PostmortemVerb.self, ReportVerb.self, DoctorVerb.self, InstallVerb.self,
        ])

    /// The manual page on standard output, for packagers; `install` puts it in its place.
    @Flag(name: .customLong("generate-manual"), help: .hidden)
    var generatesManual = false

    func run() throws {
        guard generatesManual else { throw CleanExit.helpRequest() }
        if case .failed(let code) = Console.out.write(try ManualPage.text()) {
            throw Failure("cannot write standard output: \(Console.reason(code))")
        }
    }
}
