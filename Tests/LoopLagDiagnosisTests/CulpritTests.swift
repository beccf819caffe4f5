import LoopLagModel
import Testing

@testable import LoopLagDiagnosis

@Suite("The culprit")
struct CulpritTests {
    private static func culprit(_ stacks: [[Frame]], executable: String?, userCode: [String] = []) -> String? {
        let samples = stacks.map { makeSample(frames: $0) }
        return diagnose(makeStall(), samples: samples, executable: executable, userCode: userCode).culprit?.function
    }

    private static func swift(_ function: String, _ module: String = "HelloServer") -> Frame {
        Frame(function: function, kind: .swift, module: module, address: 1)
    }

    private static func python(_ function: String, _ file: String, line: Int = 1) -> Frame {
        Frame(function: function, kind: .python, file: file, line: line)
    }

    @Test("Of several requests in one iteration the one is named that most samples are of, and else none")
    func sharedIteration() {
        func request(_ paths: [String?]) -> String? {
            let samples = paths.map { path in
                var sample = makeSample(
                    frames: [Self.script("spin", line: 1)])
                sample.request = path.map { ReportStall.Request(method: "GET", path: $0) }
                return sample
            }
            return diagnose(makeStall(), samples: samples, executable: "/usr/bin/node", userCode: []).request?.path
        }
        #expect(request(["/a", "/a", "/b"]) == "/a")
        #expect(request(["/a", "/b"]) == nil)
        #expect(request(["/a", nil]) == "/a")
        #expect(request(["/a", nil, nil]) == nil)
        #expect(request(["/a", "/a", nil, "/b", "/b"]) == nil)
    }

    @Test("A sample that was served late blames nobody, however many there are")
    func late() {
        let block = Self.script("block", line: 7)
        let bystander = Self.script("bystander", line: 40)
        var samples = [makeSample(frames: [bystander]), makeSample(frames: [bystander]), makeSample(frames: [block])]
        samples[0].isLate = true
        samples[1].isLate = true
        let found = diagnose(makeStall(), samples: samples, executable: nil, userCode: [])
        #expect(found.culprit?.function == "block")
        let onlyLate = diagnose(makeStall(), samples: [samples[0]], executable: nil, userCode: [])
        #expect(onlyLate.culprit == nil)
    }

    @Test("The line that was seen most, and a known one before an approximate one")
    func line() {
        var first = Self.script("block", line: 6)
        first.approximate = true
        let stacks = [first, first, Self.script("block", line: 8), Self.script("block", line: 9)].map { [$0] }
        func line(_ stacks: [[Frame]]) -> Int? {
            diagnose(makeStall(), samples: stacks.map { makeSample(frames: $0) }, executable: nil, userCode: [])
                .culprit?
                .line
        }
        #expect(line(stacks) == 8)
        #expect(line(stacks + [[Self.script("block", line: 9)]]) == 9)
        #expect(line([[first]]) == 6)
    }

    private static func script(_ function: String, line: Int) -> Frame {
        Frame(function: function, kind: .javascript, file: "/srv/app.js", line: line)
    }

    @Test("A C server's own function, not libc's below it")
    func redis() {
        let stack = [
            native("__GI___clock_nanosleep", "libc.so.6"), native("usleep", "libc.so.6"), native("debugCommand"),
            native("call"), native("processCommand"), native("aeMain"), native("main"),
            native("__libc_start_call_main", "libc.so.6"), native("_start"),
        ]
        #expect(Self.culprit([stack], executable: "/usr/bin/redis-server") == "debugCommand")
    }

    @Test("A function without a symbol is still the server's own")
    func stripped() {
        let stack = [native("read", "libc.so.6"), native("nginx+0x4a2f1", "nginx")]
        #expect(Self.culprit([stack], executable: "/usr/sbin/nginx") == "nginx+0x4a2f1")
    }

    @Test("In a static Swift executable the handler, past NIO, Foundation and the runtime")
    func swiftServer() {
        let stack = [
            native("clock_nanosleep", "libc.so.6"), native("usleep", "libc.so.6"),
            Self.swift("static Foundation.Thread.sleep(forTimeInterval: Swift.Double) -> ()"),
            Self.swift("swift_retain"),
            Self.swift("HelloServer.BlockingHandler.channelRead(context: NIOCore.ChannelHandlerContext) -> ()"),
            Self.swift("closure #1 () -> () in NIOPosix.SelectableEventLoop.run() throws -> ()"),
            native("start_thread", "libc.so.6"),
        ]
        #expect(Self.culprit([stack], executable: "/srv/HelloServer")?.hasPrefix("HelloServer.BlockingHandler") == true)
    }

    @Test(
        "A function or library whose name only begins like the system's is the user's own",
        arguments: [
            native("clone_session"), native("dispatch_request"), native("_start_worker"), native("lag_report"),
            native("work", "libevil.so"), native("work", "lib_mine.so"),
            Frame(function: "LoopLagDemo.spin() -> ()", kind: .swift, module: "redis-server"),
        ])
    func lookalikes(frame: Frame) {
        let stack = [native("read", "libc.so.6"), frame, native("main")]
        #expect(Self.culprit([stack], executable: "/usr/bin/redis-server") == frame.function)
    }

    @Test("Mangled Swift names tell their module as well")
    func mangled() {
        let stack = [
            native("$s8NIOPosix19SelectableEventLoopC3runyyKF", "HelloServer"),
            native("$sSa6appendyyxnF", "HelloServer"),
            native("$s11HelloServer5blockyyF", "HelloServer"),
        ]
        #expect(Self.culprit([stack], executable: "/srv/HelloServer") == "$s11HelloServer5blockyyF")
    }

    @Test("An interpreter's C frames and site-packages are nobody's; the app's file is the user's")
    func pythonServer() {
        let stack = [
            native("clock_nanosleep", "libc.so.6"), native("time_sleep", "python3.11"),
            Self.python("read", "/usr/lib/python3.11/ssl.py"),
            Self.python("get", "/srv/venv/lib/python3.11/site-packages/requests/api.py"),
            Self.python("charge", "/srv/app/billing.py", line: 41),
            Self.python("<module>", "<frozen runpy>"),
            Self.python("run", "/srv/venv/lib/python3.11/site-packages/uvicorn/main.py"), native("main", "python3.11"),
        ]
        #expect(Self.culprit([stack], executable: "/usr/bin/python3.11") == "charge")
        let onlyC = [native("PyObject_Call", "python3.11"), native("main", "python3.11")]
        #expect(Self.culprit([onlyC], executable: "/usr/bin/python3.11") == nil)
    }

    @Test("Code that Python was handed as text is the user's, unless code of a file is on the stack")
    func givenAsText() {
        let generated = Self.python("__init__", "<string>")
        let given = [generated, Self.python("run", "/usr/lib/python3.11/asyncio/runners.py")]
        #expect(Self.culprit([given], executable: "/usr/bin/python3.11") == "__init__")
        #expect(
            Self.culprit([[generated, Self.python("pay", "/srv/app.py")]], executable: "/usr/bin/python3") == "pay")
    }

    @Test("Of a wait for Python's lock the holder is the culprit, and never the code that waits")
    func lockHolder() {
        let evidence = StallEvidence(looks: 4, observed: .milliseconds(200), inGILWait: .milliseconds(200))
        let waits = makeSample(state: "S", frames: [Self.python("pay", "/srv/app.py")])
        var told = waits
        told.blockedBy = BlockingThread(tid: 7, name: "w", frames: [Self.python("resize", "/srv/images.py")])
        func culprit(_ sample: StackSample) -> String? {
            diagnose(makeStall(evidence: evidence), samples: [sample], executable: "/usr/bin/python3").culprit?.function
        }
        #expect(culprit(told) == "resize")
        #expect(culprit(waits) == nil)
    }

    @Test("In node the script, not node: internals, packages or V8")
    func nodeServer() {
        func js(_ function: String, _ file: String) -> Frame {
            Frame(function: function, kind: .javascript, file: file)
        }
        let stack = [
            native("uv__io_poll", "node"), js("pbkdf2Sync", "node:internal/crypto/pbkdf2"),
            js("hash", "/srv/node_modules/bcrypt/index.js"), js("next", "/usr/share/nodejs/express/lib/router.js"),
            js("login", "/srv/server.js"), native("main", "node"),
        ]
        #expect(Self.culprit([stack], executable: "/usr/local/bin/node") == "login")
    }

    @Test("A prefix that the user gave wins over the rules")
    func override() {
        let stack = [
            Self.python("get", "/srv/venv/lib/python3.11/site-packages/ours/client.py"),
            Self.python("charge", "/srv/app/billing.py"),
        ]
        let prefix = "/srv/venv/lib/python3.11/site-packages/ours"
        #expect(Self.culprit([stack], executable: "/usr/bin/python3", userCode: [prefix]) == "get")
        let library = [native("work", "libengine.so.2"), native("main")]
        #expect(
            Self.culprit([library], executable: "/usr/bin/redis-server", userCode: ["/opt/libengine.so.2"]) == "work")
        #expect(Self.culprit([library], executable: "/usr/bin/redis-server", userCode: [""]) == "main")
    }

    @Test("Samples vote by function: the one seen most is to blame, with its first line")
    func vote() {
        let a = native("slowA", file: "/srv/a.c", line: 10)
        let b1 = native("slowB", file: "/srv/b.c", line: 20)
        let b2 = native("slowB", file: "/srv/b.c", line: 22)
        let samples = [[a], [b1], [b2]].map { makeSample(frames: $0) }
        let culprit = diagnose(makeStall(), samples: samples, executable: "/usr/bin/redis-server").culprit
        #expect(culprit == b1)
    }

    @Test(
        "The module of a Swift function is read from any form of its name",
        arguments: [
            ("App.Main.run() -> ()", "App"),
            ("static App.Main.main() throws -> ()", "App"),
            ("closure #1 (Swift.Int) -> () in closure #2 () -> () in App.run(_: () -> ()) -> ()", "App"),
            ("partial apply forwarder for closure #1 () -> () in NIOCore.EventLoopFuture.map<A>() -> A", "NIOCore"),
            ("(1) await resume partial function for App.Handler.respond() async -> ()", "App"),
            ("(extension in NIOPosix):NIOCore.EventLoop.spin() -> ()", "NIOPosix"),
            ("protocol witness for Swift.Sequence.next() -> () in conformance App.Rows : Swift.Sequence in App", "App"),
            ("generic specialization <Swift.Int> of Swift.Array.append(A) -> ()", "Swift"),
            ("App.Handler.count.getter : Swift.Int", "App"),
            ("specialized static Foundation.Thread.sleep(forTimeInterval: Swift.Double) -> ()", "Foundation"),
            ("$s10Foundation4DataV5countSivg", "Foundation"),
            ("$sSS6appendyySSF", "Swift"),
            ("$ss5printyyypd_tF", "Swift"),
        ])
    func swiftModules(name: String, module: String) {
        #expect(swiftModule(ofFunction: name) == module)
    }

    @Test(
        "Names of C and C++ name no Swift module",
        arguments: [
            "main", "printf(char const*, ...)", "ns::foo(std::vector<int>)", "", " ", "$s", "$s99999999999999999999x",
            "redis-server+0x1234", "$s9Short",
        ])
    func noSwiftModule(name: String) {
        #expect(swiftModule(ofFunction: name) == nil)
    }
}
