/// The examples that close the help of each verb and stand in the manual page.
///
/// Read by Entry and ManualPage. Pure text. A test holds every verb to having some and runs what can be run; another
/// holds them to options that exist.

enum Examples {
    struct Example {
        let command: String
        let what: String

        init(_ command: String, _ what: String) {
            self.command = command
            self.what = what
        }
    }

    /// By the verb's name.
    static let all: [String: [Example]] = [
        "demo": [
            Example("looplag demo", "a misbehaving server, watched live, until q"),
            Example("looplag demo --duration 20s", "the same for 20 seconds"),
            Example("looplag demo --host node", "with a Node.js server; python: with FastAPI"),
            Example("looplag demo --serve-only", "only the server, to try the other verbs on"),
            Example("looplag demo --list", "what its routes do wrong"),
        ],
        "run": [
            Example("looplag run -- node server.js", "stalls on standard error while the server runs"),
            Example("looplag run -o lag.json -- uvicorn app:app", "and a JSON report at the end"),
            Example("looplag run --requests -- node server.js", "with each stall's request behind awaits, too"),
            Example("looplag run --threshold 20ms -- redis-server", "what blocks for 20 ms or more"),
            Example("LOOPLAG_WAITS=epoll,poll looplag run -- ./server", "for a server that waits in poll or select"),
        ],
        "attach": [
            Example("looplag attach 4242", "measure a running server and the workers that it has started"),
            Example("looplag attach 4242 --verbose", "and say for how long it was stopped"),
            Example("looplag attach 4242 --requests", "of node: follow its requests behind awaits, too"),
        ],
        "detach": [
            Example("looplag detach 4242", "give it back as it was")
        ],
        "ps": [
            Example("looplag ps", "processes with an agent"),
            Example("looplag ps --clean", "remove the segments of your dead processes"),
            Example("looplag ps --all", "all, with what stands in the way of an agent"),
        ],
        "top": [
            Example("looplag top", "every process with an agent"),
            Example("looplag top 4242 --threshold 20ms", "one process and what it starts; stalls of 20 ms and more"),
            Example("looplag top --iterations 5 | cat", "five seconds as plain lines"),
            Example("looplag top 4242 --json --interval 10s", "a report of the last minute every ten seconds"),
        ],
        "stalls": [
            Example("looplag stalls 4242", "the stalls still on record, also of a process that was killed"),
            Example("looplag stalls 4242 --follow", "a line when one opens, another when it closes"),
            Example("looplag stalls --follow --json | jq .culprit", "one JSON object a line, for programs"),
            Example(
                "looplag stalls --follow --on-stall 'jq -r .loop | xargs notify-send stall'",
                "a command for each stall, at most one a second"),
        ],
        "dump": [
            Example("looplag dump 4242", "the stacks of the loop threads, now"),
            Example("looplag dump 4242 --all-threads --json", "of every thread, as a report"),
        ],
        "record": [
            Example("looplag record 4242 --duration 30s -o lag.json", "a JSON report of the next 30 seconds"),
            Example("looplag record 4242 4310 -o lag-%p.json", "two processes, until Ctrl-C"),
        ],
        "postmortem": [
            Example("looplag postmortem 4242", "what a killed process left: its last stalls, with stacks"),
            Example("looplag postmortem 4242 --json", "the same as a report, for programs"),
        ],
        "report": [
            Example("looplag report lag.json", "for people"),
            Example("looplag report lag.json --format json -o copy.json", "for programs"),
        ],
        "doctor": [
            Example("looplag doctor", "what works on this machine"),
            Example("looplag doctor 4242", "what can be measured of one process, and why not more"),
        ],
        "install": [
            Example("swift build -c release && .build/release/looplag install --prefix ~/.local", "for yourself"),
            Example("sudo .build/release/looplag install --prefix /usr/local", "for everybody"),
            Example("looplag install --prefix /usr/local --dry-run", "only say what would be done"),
        ],
    ]

    /// The block that ends a verb's help; nil for a verb without examples.
    static func text(of verb: String) -> String? {
        all[verb].map { examples in
            "EXAMPLES:\n" + examples.map { "  \($0.command)\n      \($0.what)\n" }.joined()
        }
    }
}
