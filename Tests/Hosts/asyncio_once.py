"""Runs a loop once, and then waits in thread.join() for as long as standard input stays open.

The thread that ran the loop does not come back to it: that must not look like a stall without an end.
"""

import asyncio
import sys
import threading


async def main():
    for _ in range(20):
        await asyncio.sleep(0.005)


asyncio.run(main())
waiter = threading.Thread(target=sys.stdin.read)
waiter.start()
print("joining", flush=True)
waiter.join()
