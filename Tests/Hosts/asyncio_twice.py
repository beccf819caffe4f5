"""Two loops, one after the other on the same thread; each blocks once for 150 ms and then serves until it is told to
go on by a line on standard input.

The second loop's epoll descriptor replaces the first one's, often under the same number.
"""

import asyncio
import sys
import time


def block():
    start = time.monotonic_ns()
    time.sleep(0.15)
    return time.monotonic_ns() - start


async def main(name):
    loop = asyncio.get_running_loop()
    go_on = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: (sys.stdin.buffer.raw.read(2), go_on.set()))
    await asyncio.sleep(0.05)
    print(f"{name} done {block()}", flush=True)
    await go_on.wait()
    loop.remove_reader(sys.stdin.fileno())


asyncio.run(main("first"))
asyncio.run(main("second"))
print("ended", flush=True)
