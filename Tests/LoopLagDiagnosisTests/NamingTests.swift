import LoopLagDiagnosis
import LoopLagModel
import Testing

@Suite("Names of loops and servers")
struct NamingTests {
    @Test(
        "A server is called by its script or module, never by a path or an argument",
        arguments: [
            (["/usr/bin/redis-server *:6379"], Runtime.native, "redis-server"),
            (["nginx: worker process"], .native, "nginx"),
            (["/usr/bin/python3", "/usr/local/bin/uvicorn", "app:app", "--port", "80"], .cpython, "uvicorn"),
            (["python", "-X", "dev", "-m", "uvicorn", "app:app"], .cpython, "uvicorn"),
            (["python3", "-u", "/srv/app.py", "--password", "hunter2"], .cpython, "app.py"),
            (["python3", "-c", "import secrets"], .cpython, "python3"),
            (["python3", "/x/site-packages/hypercorn/__main__.py"], .cpython, "hypercorn"),
            (["gunicorn: worker [app]"], .cpython, "gunicorn"),
            (["node", "--inspect", "-r", "dotenv", "/srv/server.js", "secret"], .node, "server.js"),
            (["node", "-e", "while(1);"], .node, "node"),
            (["/srv/.build/release/HelloServer"], .swift, "HelloServer"),
            (["evil\u{1b}[2J"], .native, "evil\u{fffd}[2J"),
            ([], .native, "redis-server"),
        ] as [([String], Runtime, String)])
    func servers(command: [String], runtime: Runtime, name: String) {
        #expect(serverName(makeProcess(runtime: runtime, command: command)) == name)
    }

    @Test("A process that says nothing of itself still has a name")
    func nameless() {
        #expect(serverName(makeProcess(runtime: nil, executable: nil, command: [])) == "process")
    }

    private static func kind(
        _ runtime: Runtime?, caller: Frame?, name: String = "x", wait: WaitKind = .epollWait,
        modules: [ModuleRecord] = []
    ) -> String {
        let loop = makeLoop(name: name, wait: wait)
        return classify(loop, process: makeProcess(runtime: runtime, loops: [loop], modules: modules), caller: caller)
            .kind
    }

    @Test("Who called the wait tells the library that drives the loop")
    func kinds() {
        let select = "select.cpython-311-x86_64-linux-gnu.so"
        #expect(Self.kind(.cpython, caller: native("select_epoll_poll", select)) == "asyncio")
        #expect(Self.kind(.cpython, caller: native("select_epoll_poll_impl", "python3.11")) == "asyncio")
        #expect(Self.kind(.cpython, caller: native("uv__io_poll", "loop.cpython-311-x86_64-linux-gnu.so")) == "uvloop")
        #expect(Self.kind(.node, caller: native("uv__io_poll", "node"), wait: .epollPwait) == "libuv")
        #expect(Self.kind(.node, caller: nil, wait: .epollPwait) == "libuv")
        #expect(Self.kind(.swift, caller: nil, name: "NIO-SGLTN-1-#0") == "nio")
        #expect(Self.kind(.swift, caller: native("$s8NIOPosix8SelectorC", "App")) == "nio")
        #expect(Self.kind(.swift, caller: native("_dispatch_event_loop_drain", "App")) == "dispatch")
        #expect(Self.kind(.native, caller: native("aeApiPoll")) == "epoll")
        #expect(Self.kind(.native, caller: native("epoll_dispatch", "libevent-2.1.so.7")) == "libevent")
        #expect(Self.kind(.native, caller: nil, wait: .ppoll) == "poll")
        #expect(Self.kind(.native, caller: nil, wait: .pselect) == "select")
        #expect(Self.kind(nil, caller: nil) == "epoll")
    }

    @Test("Without a caller a Python loop is asyncio's, or uvloop's where that is mapped")
    func pythonWithoutCaller() {
        let module = ModuleRecord(
            path: "/v/site-packages/uvloop/loop.cpython-311-x86_64-linux-gnu.so", buildID: [], loadBias: 0, start: 0,
            end: 1, isDeleted: false, isVDSO: false, isMapped: true, device: 0, inode: 0)
        #expect(Self.kind(.cpython, caller: nil) == "asyncio")
        #expect(Self.kind(.cpython, caller: nil, modules: [module]) == "uvloop")
    }

    @Test("Dispatch's manager is a helper, by module, function or thread name")
    func dispatchManager() {
        for (caller, name) in [
            (native("x", "libdispatch.so"), "a"), (native("_dispatch_event_loop_wait", "App"), "a"),
        ] as [(Frame, String)] {
            let loop = makeLoop(tid: 4250, name: name)
            let result = classify(loop, process: makeProcess(runtime: .swift, loops: [loop]), caller: caller)
            #expect(result.role == .helper)
        }
        let named = makeLoop(tid: 4250, name: "ispatch-manager")
        #expect(classify(named, process: makeProcess(runtime: .swift, loops: [named]), caller: nil).role == .helper)
    }

    @Test("What the agent says of a loop's role stands")
    func agentWins() {
        let loop = makeLoop(role: .server)
        let caller = native("_dispatch_x", "libdispatch.so")
        #expect(classify(loop, process: makeProcess(loops: [loop]), caller: caller).role == .server)
        let helper = makeLoop(role: .helper)
        #expect(classify(helper, process: makeProcess(loops: [helper]), caller: nil).role == .helper)
    }

    @Test("node's delayed-task and inspector threads are helpers, its workers are not")
    func nodeThreads() {
        // Offsets as node 20 showed them on a machine where another process took a number in between.
        let main = makeLoop(slot: 1, tid: 4242, name: "node")
        let delayed = makeLoop(slot: 0, tid: 4244, name: "node")
        let inspector = makeLoop(slot: 2, tid: 4250, name: "node")
        let worker = makeLoop(slot: 3, tid: 4252, name: "node")
        func roles(_ loops: [LoopSnapshot], _ command: [String], mode: String = "preload") -> [LoopRole] {
            var process = makeProcess(runtime: .node, command: command, loops: loops)
            process.agent.mode = mode
            return loops.map { classify($0, process: process, caller: nil).role }
        }
        #expect(roles([delayed, main, worker], ["node", "s.js"]) == [.helper, .server, .server])
        #expect(
            roles([delayed, main, inspector, worker], ["node", "--inspect=0", "s.js"])
                == [.helper, .server, .helper, .server])
        #expect(roles([main, worker], ["node", "s.js"], mode: "attached") == [.server, .server])
        #expect(roles([main, delayed, worker], ["node", "s.js"], mode: "attached") == [.server, .helper, .server])
        // Named ones need no guess.
        let named = makeLoop(slot: 3, tid: 4300, name: "DelayedTaskSche")
        #expect(roles([main, worker, named], ["node", "s.js"], mode: "attached") == [.server, .server, .helper])
        let process = makeProcess(runtime: .node, command: ["node", "s.js"], loops: [main, worker])
        #expect(classify(main, process: process, caller: nil) == LoopClass(kind: "libuv", role: .server, name: "main"))
        #expect(classify(worker, process: process, caller: nil).name == "thread 4252")
    }

    @Test("The main thread is recognised from another pid namespace as well")
    func namespaced() {
        let main = makeLoop(slot: 0, tid: 7, name: "node")
        let worker = makeLoop(slot: 1, tid: 30, name: "node")
        let process = makeProcess(pid: 81234, runtime: .node, command: ["node", "s.js"], loops: [main, worker])
        #expect(classify(main, process: process, caller: nil).name == "main")
        #expect(classify(worker, process: process, caller: nil).name == "thread 30")
    }

    @Test("Loops of NIO and threads with a name of their own keep it, made printable")
    func names() {
        #expect(loopName(tid: 9, main: 4242, threadName: "NIO-SGLTN-1-#0") == "NIO-SGLTN-1-#0")
        #expect(loopName(tid: 4242, main: 4242, threadName: "redis-server") == "main")
        #expect(loopName(tid: 9, main: 4242, threadName: "io_thd_1") == "io_thd_1")
        #expect(loopName(tid: 9, main: 4242, threadName: "python3") == "thread 9")
        #expect(loopName(tid: 9, main: 4242, threadName: "a\nb") == "a\u{fffd}b")
    }

    @Test("Text for people holds no control, format or bidirectional characters")
    func printable() {
        #expect(PlainText.printable("ok – ünï 漢字") == "ok – ünï 漢字")
        #expect(
            PlainText.printable("a\u{1b}[31m\r\n\u{202e}b\u{7f}\u{0}")
                == "a\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}b\u{fffd}\u{fffd}")
    }

    @Test("Columns count wide characters twice and marks not at all; a cut shows")
    func columns() {
        #expect(PlainText.columns(of: "漢字") == 4)
        #expect(PlainText.columns(of: "e\u{301}a") == 2)
        #expect(PlainText.clip("漢字漢字", to: 5) == "漢字…")
        #expect(PlainText.left("ab", 4) == "ab  ")
        #expect(PlainText.right("abcdef", 4) == "abc…")
        #expect(PlainText.clip("abc", to: 0) == "")
    }

    @Test(
        "Durations have two or three digits and a unit",
        arguments: [
            (0, "0 ms"), (999, "999 ns"), (1500, "1.5 us"), (999_600, "1.0 ms"), (2_340_000, "2.3 ms"),
            (182_400_000, "182 ms"),
            (999_600_000, "1.0 s"), (3_100_000_000, "3.1 s"), (59_000_000_000, "59 s"), (125_000_000_000, "2 min 5 s"),
            (7_500_000_000_000, "2 h 5 min"), (-5, "0 ms"),
        ] as [(Int64, String)])
    func durations(nanoseconds: Int64, text: String) {
        #expect(PlainText.duration(nanoseconds: nanoseconds) == text)
    }

    @Test("Shares read as per cent, and a number that is none does not trap")
    func percents() {
        #expect(PlainText.percent(0.714) == "71 %")
        #expect(PlainText.percent(0.023) == "2.3 %")
        #expect(PlainText.percent(0) == "0 %")
        #expect(PlainText.percent(.nan) == "?")
        #expect(PlainText.percent(1e300) == "1000000000 %")
    }
}
