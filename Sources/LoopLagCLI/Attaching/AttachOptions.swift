/// The options of every verb that names a process and may load an agent into it.

import ArgumentParser

struct AttachOptions: ParsableArguments {
    @Flag(name: .customLong("no-attach"), help: "Never load an agent: a process without one is an error.")
    var noAttach = false

    @Flag(help: "Leave an agent that was loaded for this in the process.")
    var keep = false

    @Flag(name: .customLong("no-children"), help: "Leave the processes that it starts alone.")
    var noChildren = false

    @Option(
        help: ArgumentHelp("How long to wait for a moment to load the agent.", valueName: "duration"),
        transform: DurationArgument.parse)
    var wait: Duration = .seconds(30)

    @OptionGroup var node: NodeOptions

    @Flag(name: .shortAndLong, help: "Say what was done, and how long the process was stopped for it.")
    var verbose = false

    func validate() throws {
        if node.requests, noAttach { throw ValidationError("--requests loads an agent, and --no-attach forbids it") }
    }
}

/// What is there for node alone, also in `attach`.
struct NodeOptions: ParsableArguments {
    enum Inspector: String, ExpressibleByArgument, CaseIterable { case auto, always, never }

    @Flag(
        help: """
            Of node: name each stall's request also behind awaits and timers; goes in by node's inspector, and costs 20 \
            to 40 % more CPU per request.
            """)
    var requests = false

    @Option(
        help: ArgumentHelp(
            """
            Of node: send SIGUSR1 to come in by its inspector where it may not be traced (auto), also where its source \
            names that signal (always), or never.
            """, valueName: "when"))
    var inspector: Inspector = .auto

    func validate() throws {
        if requests, inspector == .never { throw ValidationError("--requests needs node's inspector") }
    }
}
