"""Does everything awkward: generators, recursion, exec, exceptions, coroutines, comprehensions, lambdas, callbacks from C,
deep stacks; from Python 3.9 on. `torture.py FILE` first writes into FILE which lines each of its code objects has, then
"end", and works until there is a FILE.stop.

The bench samples it in its own process; the tests run it as it is, with an agent.
"""

import asyncio, dis, functools, os, re, sys, time

truth = sys.argv[1]

def lines_of(code, out):
    name = getattr(code, "co_qualname", code.co_name)
    lines = {line for _, line in dis.findlinestarts(code) if line} | {code.co_firstlineno}
    out.extend(f"{code.co_filename}\t{name}\t{line}" for line in lines)
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            lines_of(constant, out)

MADE = "def made(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\nmade(50)\n"

def count(n):
    for i in range(n):
        yield i

def chain(depth):
    if depth:
        yield from chain(depth - 1)
    else:
        yield from count(20)

def recurse(n):
    if n == 0:
        return sum(chain(10))
    return recurse(n - 1) + 1

def raising(n):
    try:
        if n:
            raising(n - 1)
        raise ValueError(n)
    except ValueError as error:
        return str(error)
    finally:
        len("finally")

class Thing:
    def __init__(self, value):
        self.value = value

    def __lt__(self, other):
        return self.value < other.value

    @property
    def twice(self):
        return self.value * 2

    @functools.lru_cache(maxsize=2)
    def cached(self, n):
        return [x * n for x in range(30)]

def callbacks():
    things = [Thing(i * 7919 % 101) for i in range(100)]
    things.sort()
    return re.sub("a+", lambda match: match.group().upper(), "banana" * 20), max(things, key=lambda t: t.twice)

def made_anew(turn):
    scope = {}
    code = compile(MADE, f"<made {turn % 3}>", "exec")
    exec(code, scope)
    exec(code, scope)

async def inner(n):
    if n == 0:
        await asyncio.sleep(0)
    return {i: str(i) for i in range(n)}

# The coroutines run for a while before they give way: an agent looks at loops that are busy for a millisecond.
async def outer(depth):
    if depth:
        return await outer(depth - 1)
    for _ in range(120):
        async for value in ticks(5):
            await inner(value + 1)
    await inner(0)

async def ticks(n):
    for i in range(n):
        yield i

async def many():
    await asyncio.gather(*(outer(depth) for depth in range(8)))

def spin(n):
    total = 0
    while n:
        n -= 1
        total += n
    return total

out = []
with open(sys.argv[0]) as source:
    lines_of(compile(source.read(), sys.argv[0], "exec"), out)
for turn in range(3):
    lines_of(compile(MADE, f"<made {turn}>", "exec"), out)
with open(truth, "w") as file:
    file.write("\n".join(out) + "\nend\n")

async def work():
    turn = 0
    while not os.path.exists(truth + ".stop"):
        for _ in range(30):
            turn += 1
            recurse(40)
            raising(12)
            callbacks()
            made_anew(turn)
            Thing(turn).cached(3)
            spin(2000)
        await many()

asyncio.run(work())
