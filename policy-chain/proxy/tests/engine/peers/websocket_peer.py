"""A WebSocket implementation on both sides of the proxy: `server` prints its port; `client PORT` exercises it."""

import asyncio
import sys

import websockets


async def echo(socket, path=None):
    async for message in socket:
        await socket.send(message)


async def server():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=None) as served:
        print(served.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


async def client(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}/public/ws", max_size=None) as socket:
        for message in ("hello", b"\x00\xff" * 10, "x" * 2_000_000):
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
    try:
        async with websockets.connect(f"ws://127.0.0.1:{port}/secret"):
            raise AssertionError("refused requests do not upgrade")
    except websockets.InvalidStatusCode as error:
        assert error.status_code == 403, error
    print("well")


asyncio.run(server() if sys.argv[1] == "server" else client(int(sys.argv[2])))
