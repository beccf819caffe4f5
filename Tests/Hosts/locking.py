"""An event loop that waits for a lock, of each kind, which a worker thread holds for 300 ms. As an application of uvicorn
and as what plain.py serves: every CPython from 3.7 on."""

import asyncio
import ctypes
import threading
import time

SECONDS = 0.3
plain = threading.Lock()
recursive = threading.RLock()
condition = threading.Condition()
libc = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)


def keep_plain(held):
    with plain:
        held.set()
        time.sleep(SECONDS)


def keep_recursive(held):
    with recursive, recursive:
        held.set()
        time.sleep(SECONDS)


def keep_by_name(held):
    plain.acquire()
    held.set()
    time.sleep(SECONDS)
    plain.release()


def keep_mutex(held):
    libc.pthread_mutex_lock(mutex)
    held.set()
    time.sleep(SECONDS)
    libc.pthread_mutex_unlock(mutex)


def notify_late(held):
    held.set()
    time.sleep(SECONDS)
    with condition:
        condition.notify()


async def keeping(keeper):
    held = threading.Event()
    threading.Thread(target=keeper, args=(held,), name="keeper").start()
    while not held.is_set():
        await asyncio.sleep(0.001)
    # The wait begins an iteration: what starting a thread took on a busy machine is not in it.
    await asyncio.sleep(0.001)


async def want_plain():
    await keeping(keep_plain)
    with plain:
        pass


async def want_recursive():
    await keeping(keep_recursive)
    recursive.acquire()
    recursive.release()


async def want_by_name():
    await keeping(keep_by_name)
    with plain:
        pass


async def want_mutex():
    await keeping(keep_mutex)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_unlock(mutex)


async def want_condition():
    with condition:
        await keeping(notify_late)
        condition.wait()


routes = {
    "/lock": want_plain,
    "/rlock": want_recursive,
    "/by-name": want_by_name,
    "/mutex": want_mutex,
    "/condition": want_condition,
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    start = time.monotonic_ns()
    if scope["path"] in routes:
        await routes[scope["path"]]()
    body = f"done {time.monotonic_ns() - start}\n".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
