"""What blocks an event loop in Python, one FastAPI route each; and what does not. Every handler answers `done NANOSECONDS`,
by its own clock; the time that a test compares with is the handler's."""

import asyncio
import concurrent.futures
import gc
import hashlib
import importlib
import json
import os
import re
import socket
import sqlite3
import sys
import tempfile
import threading
import time

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI(default_response_class=PlainTextResponse)
jobs = concurrent.futures.ThreadPoolExecutor(6, thread_name_prefix="jobs")
text = "[" + ",".join(["1"] * (int(os.environ.get("JSON_MEGABYTES", "10")) << 19)) + "]"


def took(start):
    return f"done {time.monotonic_ns() - start}\n"


@app.get("/ok")
async def ok():
    return "done 0\n"


@app.get("/cpu")
async def cpu_in_async():
    start = time.monotonic_ns()
    total = 0
    for i in range(10_000_000):
        total += i
    return took(start)


def slow_helper(seconds):
    time.sleep(seconds)


@app.get("/sleep")
async def sleep_in_async(ms: int = 500):
    start = time.monotonic_ns()
    slow_helper(ms / 1000)
    return took(start)


@app.get("/nap/{number}")
async def nap(number: int):
    start = time.monotonic_ns()
    time.sleep(0.2)
    return took(start)


@app.get("/json")
async def parse_json():
    start = time.monotonic_ns()
    json.loads(text)
    return took(start)


@app.get("/regex")
async def match_regex():
    start = time.monotonic_ns()
    re.match(r"(a+)+$", "a" * 23 + "b")
    return took(start)


@app.get("/pbkdf2")
async def hash_password():
    start = time.monotonic_ns()
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 700_000)
    return took(start)


@app.get("/sqlite")
async def query_database():
    start = time.monotonic_ns()
    database = sqlite3.connect(":memory:")
    database.execute(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000000) select sum(i) from n"
    ).fetchall()
    return took(start)


@app.get("/socket")
async def read_socket():
    start = time.monotonic_ns()
    ours, theirs = socket.socketpair()
    threading.Timer(0.5, theirs.send, [b"x"]).start()
    ours.recv(1)
    return took(start)


heap = []


@app.get("/fill")
async def fill_heap():
    start = time.monotonic_ns()
    gc.disable()
    heap.extend([[i] for i in range(3_000_000)])
    gc.enable()
    return took(start)


@app.get("/collect")
async def collect_garbage():
    start = time.monotonic_ns()
    gc.collect()
    return took(start)


@app.get("/import")
async def import_module():
    folder = tempfile.mkdtemp()
    with open(os.path.join(folder, "slow_to_import.py"), "w") as module:
        module.write("import time\n\ndef load():\n    time.sleep(0.5)\n\nload()\n")
    sys.path.insert(0, folder)
    start = time.monotonic_ns()
    importlib.import_module("slow_to_import")
    return took(start)


# What does not block the loop.


@app.get("/sync-sleep")
def sleep_in_sync():
    start = time.monotonic_ns()
    time.sleep(0.5)
    return took(start)


@app.get("/executor-sleep")
async def sleep_in_executor():
    start = time.monotonic_ns()
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.5)
    return took(start)


@app.get("/to-thread-sleep")
async def sleep_in_to_thread():
    start = time.monotonic_ns()
    await asyncio.to_thread(time.sleep, 0.5)
    return took(start)


held = set()


@app.get("/sync-second")
def hold_worker(ms: int = 1000):
    start = time.monotonic_ns()
    held.add(threading.get_native_id())
    time.sleep(ms / 1000)
    held.discard(threading.get_native_id())
    return took(start)


@app.get("/held")
async def tell_held():
    """The threads that are in hold_worker now, by the kernel's numbers."""
    return " ".join(str(thread) for thread in held) + "\n"


@app.get("/jobs")
async def submit_jobs(ms: int = 1000):
    loop = asyncio.get_running_loop()
    for _ in range(30):
        loop.run_in_executor(jobs, time.sleep, ms / 1000)
    return "done 0\n"


pair = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="pair")


@app.get("/pair")
async def wait_for_pair(jobs: int = 6, ms: int = 100):
    """How long each of these jobs waited for one of two threads, in nanoseconds, by the jobs' own clock."""
    loop = asyncio.get_running_loop()

    def job(submitted):
        waited = time.monotonic_ns() - submitted
        time.sleep(ms / 1000)
        return waited

    waits = await asyncio.gather(*[loop.run_in_executor(pair, job, time.monotonic_ns()) for _ in range(jobs)])
    return " ".join(str(wait) for wait in waits) + "\n"


def burn():
    total = 0
    for i in range(2_000_000):
        total += i


@app.get("/sync-cpu")
def cpu_in_sync():
    start = time.monotonic_ns()
    burn()
    return took(start)


def parse_in_thread():
    json.loads(text)


@app.get("/thread-json")
async def parse_json_in_thread():
    start = time.monotonic_ns()
    await asyncio.to_thread(parse_in_thread)
    return took(start)
