/// `looplag demo --host python`: a FastAPI server that blocks its event loop in every usual way, with its own traffic.
///
/// Called by DemoServer. The server is one program that Python is handed on its command line, so that nothing has to lie
/// anywhere; the agent comes by LD_PRELOAD, as `looplag run` gives it. It ends with its standard input. LOOPLAG_PYTHON names
/// the interpreter, else `python3` of the search path.

enum PythonDemo {
    /// The interpreter's path.
    static func interpreter() throws(Failure) -> String {
        try DemoServer.find("python3", variable: "LOOPLAG_PYTHON", remedy: "install Python with FastAPI")
    }

    /// By its own path: that is how an interpreter finds the virtual environment that it belongs to. Compiled under a name,
    /// so that stacks read like those of a program in a file.
    static func arguments(_ interpreter: String, _ more: [String]) -> [String] {
        [interpreter, "-c", "import sys; exec(compile(sys.argv.pop(1), 'shop.py', 'exec'))", program] + more
    }

    static let program = #"""
        import sys

        ROUTES = [
            ("/hello", "async def, nothing slow", "no stall"),
            ("/report", "async def, computes 300 ms of Python", "on_cpu in build_report"),
            ("/pay", "async def, time.sleep in a helper", "syscall clock_nanosleep in charge_card"),
            ("/login", "async def, pbkdf2 on the loop", "on_cpu in check_password"),
            ("/search", "async def, a regular expression that backtracks", "on_cpu in find_products"),
            ("/invoice", "def, time.sleep: a worker thread", "no stall"),
            ("/export", "def, computes 300 ms of Python on a worker thread", "no stall of its own, lock wait of the loop"),
        ]
        if "--list" in sys.argv:
            for path, what, shows in ROUTES:
                print(f"{path:<10} {what}\n{'':<10}   shows: {shows}")
            sys.exit(0)
        try:
            import fastapi, uvicorn
            from fastapi.responses import PlainTextResponse
        except ImportError as error:
            sys.exit(f"{error.name} is not installed for {sys.executable}: pip install fastapi uvicorn, or name another"
                     " interpreter in LOOPLAG_PYTHON")
        import asyncio, hashlib, http.client, os, random, re, socket, threading, time

        app = fastapi.FastAPI(default_response_class=PlainTextResponse)


        def build_report():
            end = time.monotonic() + 0.3
            total = 0
            while time.monotonic() < end:
                total += sum(range(100))
            return total


        def charge_card():
            time.sleep(0.18)


        def check_password():
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 100_000)


        def find_products():
            end = time.monotonic() + 0.15
            while time.monotonic() < end:
                re.match(r"(a+)+$", "a" * 18 + "b")


        @app.get("/hello")
        async def hello():
            return "hello\n"


        @app.get("/report")
        async def report():
            return f"{build_report()}\n"


        @app.get("/pay")
        async def pay():
            charge_card()
            return "paid\n"


        @app.get("/login")
        async def login():
            check_password()
            return "welcome\n"


        @app.get("/search")
        async def search():
            find_products()
            return "nothing\n"


        @app.get("/invoice")
        def invoice():
            time.sleep(0.25)
            return "sent\n"


        @app.get("/export")
        def export():
            return f"{build_report()}\n"


        def load(port):
            while True:
                path = random.choice(ROUTES)[0]
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                    connection.request("GET", path)
                    connection.getresponse().read()
                    connection.close()
                except OSError:
                    return
                time.sleep(0.15)


        def end_with_input():
            while os.read(0, 4096):
                pass
            server.should_exit = True


        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        if "--serve-only" in sys.argv:
            command = os.environ.get("LOOPLAG_COMMAND", "looplag")
            print(f"A FastAPI server that misbehaves listens on http://127.0.0.1:{port}/\n\nIn another terminal:\n"
                  f"  {command} stalls {os.getpid()} --follow\n  curl http://127.0.0.1:{port}/pay", flush=True)
        else:
            parent = os.getpid()
            if not os.fork():
                # The load is a process of its own: in threads it would fight the server for the interpreter's lock.
                for _ in range(3):
                    threading.Thread(target=load, args=(port,), daemon=True).start()
                while os.getppid() == parent:
                    time.sleep(0.1)
                os._exit(0)
            threading.Thread(target=end_with_input, daemon=True).start()
            print(f"listening on http={port}", flush=True)
        try:
            asyncio.run(server.serve(sockets=[listener]))
        except KeyboardInterrupt:
            pass

        """#
}
