"""A server of asyncio's own, with no package: for every CPython from 3.7 on. Each path blocks the loop in another way and
answers `done NANOSECONDS` by the handler's own clock."""

import asyncio
import gc
import threading
import time

import locking

def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100))


def nap(seconds):
    time.sleep(seconds)


def hold_interpreter(begun):
    # One call of C that does not let anybody else run.
    begun.set()
    pow(3, 3_000_000) % 1_000_003


async def inside(function, *arguments):
    function(*arguments)


async def spin_here():
    await inside(spin, 0.25)


async def sleep_here():
    await inside(nap, 0.25)


async def collect_here():
    heap = [[i] for i in range(600_000)]
    gc.collect()
    return heap


async def wait_for_interpreter():
    begun = threading.Event()
    thread = threading.Thread(target=hold_interpreter, args=(begun,), name="number-cruncher")
    thread.start()
    # Gives the other one the turn, and gets it back when that has ended its call.
    while not begun.is_set():
        time.sleep(0.001)
    thread.join()


routes = {
    "/ok": inside,
    "/spin": spin_here,
    "/sleep": sleep_here,
    "/collect": collect_here,
    "/interpreter": wait_for_interpreter,
    **locking.routes,
}


async def serve(reader, writer):
    request = await reader.readuntil(b"\r\n\r\n")
    path = request.split()[1].decode()
    start = time.monotonic_ns()
    if path == "/ok":
        pass
    else:
        await routes[path]()
    body = f"done {time.monotonic_ns() - start}\n".encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"listening on http={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


asyncio.run(main())
