"""Many connections from outside the proxy's process.

`server` prints its port; `client PORT ASKING SILENT` opens connections of which ASKING have been answered once, prints `held`, and on
a line of input asks again on some of them and prints `well`.
"""

import asyncio
import sys

REQUEST = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def serve(reader, writer):
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(ANSWER)


async def server():
    served = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    print(served.sockets[0].getsockname()[1], flush=True)
    await asyncio.Future()


async def ask(reader, writer):
    writer.write(REQUEST)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")


async def client(port, asking, silent):
    held = []
    for index in range(asking + silent):
        held.append(await asyncio.open_connection("127.0.0.1", port))
        if index < asking:
            await ask(*held[-1])
    print("held", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for reader, writer in held[::500]:
        await ask(reader, writer)
    print("well", flush=True)


if sys.argv[1] == "server":
    asyncio.run(server())
else:
    asyncio.run(client(*map(int, sys.argv[2:])))
