"""Ends an interpreter while its loop is being sampled at every tick: every callback blocks for longer than a millisecond.

exits.py exit|threads|fork|subinterpreters ROUND: the round shifts the moment of the end.
"""

import asyncio
import os
import sys
import threading
import time

mode, turn = sys.argv[1], int(sys.argv[2])


def busy(milliseconds):
    end = time.monotonic() + milliseconds / 1000
    while time.monotonic() < end:
        sum(range(200))


async def nested(depth):
    if depth:
        return await nested(depth - 1)
    busy(6)
    try:
        raise ValueError
    except ValueError:
        await asyncio.sleep(0)


async def main(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.gather(*(nested(depth) for depth in range(4)))


def spin():
    while True:
        busy(3)


length = 0.15 + (turn % 10) * 0.007

if mode == "threads":
    # Daemon threads are still at it while the interpreter is taken down.
    for _ in range(3):
        threading.Thread(target=spin, daemon=True).start()
    threading.Thread(target=lambda: asyncio.run(main(60)), daemon=True).start()
elif mode == "fork":
    children = []
    asyncio.run(main(0.05))
    for _ in range(4):
        child = os.fork()
        if child == 0:
            asyncio.run(main(0.1))
            os._exit(0) if turn % 2 else sys.exit(0)
        children.append(child)
    # os._exit leaves a segment behind: the test takes it away.
    print(*children, flush=True)
    asyncio.run(main(length))
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"a child ended with {status}")
elif mode == "subinterpreters":
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        import _interpreters as interpreters

    def run_inside(code):
        inner = interpreters.create()
        # Later versions return what went wrong, earlier ones raise it.
        failure = interpreters.run_string(inner, code)
        interpreters.destroy(inner)
        if failure is not None:
            sys.exit(f"inside: {failure}")

    async def switch():
        # The thread of the measured loop runs another interpreter for a while.
        for _ in range(3):
            run_inside("import time\ne = time.monotonic() + .03\nwhile time.monotonic() < e: sum(range(1000))")
            await nested(1)

    asyncio.run(switch())
    # A loop inside as well; 3.8 and 3.12 crash at their end after that, with nothing loaded into them.
    if sys.version_info[:2] not in ((3, 8), (3, 12)):
        for _ in range(2):
            run_inside(
                "import asyncio, time\nasync def main():\n  e = time.monotonic() + .1\n  while time.monotonic() < e:\n"
                "    sum(range(100000))\n    await asyncio.sleep(0)\nasyncio.run(main())")
asyncio.run(main(length))
