"""The same routes in FastAPI: `async def` runs on the loop, plain `def` on an AnyIO worker thread."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

import asgi

app = FastAPI(default_response_class=PlainTextResponse)


@app.get("/ok")
async def ok():
    return "done 0\n"


@app.get("/sleep")
async def sleep(ms: int):
    return f"done {asgi.sleep(ms)}\n"


@app.get("/cpu")
async def cpu(ms: int):
    return f"done {asgi.cpu(ms)}\n"


@app.get("/threaded-sleep")
def threaded_sleep(ms: int):
    return f"done {asgi.sleep(ms)}\n"
