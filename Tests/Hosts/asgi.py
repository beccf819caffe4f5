"""A bare ASGI application for uvicorn and gunicorn. Every handler answers `done NANOSECONDS`, by its own clock."""

import time
from urllib.parse import parse_qs


def sleep(milliseconds):
    start = time.monotonic_ns()
    time.sleep(milliseconds / 1000)
    return time.monotonic_ns() - start


def cpu(milliseconds):
    start = time.monotonic_ns()
    end = start + milliseconds * 1_000_000
    while time.monotonic_ns() < end:
        pass
    return time.monotonic_ns() - start


WORK = {"/sleep": sleep, "/cpu": cpu}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    query = parse_qs(scope["query_string"].decode())
    milliseconds = int(query.get("ms", ["0"])[0])
    work = WORK.get(scope["path"])
    if work:
        body = f"done {work(milliseconds)}\n"
    elif scope["path"] == "/ok":
        body = "done 0\n"
    else:
        body = "error: no such path\n"
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
