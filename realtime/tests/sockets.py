"""A WebSocket client for tests, straight on the application."""

import json
from typing import Any

from channels.routing import get_default_application
from channels.testing import WebsocketCommunicator

ENDINGS = {"message.completed", "message.stopped", "message.failed", "message.interrupted"}
Frame = dict[str, Any]


class Closed(Exception):
    """The server closed the socket."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Socket:
    """One socket. `ready` is its greeting, where it got one; `code` the close code, where it was closed."""

    def __init__(
        self,
        *,
        path: str = "/api/v1/ws",
        subprotocols: list[str] | None = None,
        origin: str | None = None,
        timeout: float = 5.0,
    ) -> None:
        headers = [(b"origin", origin.encode("latin-1"))] if origin is not None else []
        self.communicator = WebsocketCommunicator(
            get_default_application(), path, headers=headers, subprotocols=subprotocols
        )
        self.timeout = timeout
        self.accepted = False
        self.subprotocol: str | None = None
        self.ready: Frame = {}
        self.code: int | None = None

    async def open(self) -> None:
        """Shake hands, and hear the greeting or the close."""
        self.accepted, answer = await self.communicator.connect(timeout=self.timeout)
        if not self.accepted:
            self.code = int(answer)
            return
        self.subprotocol = answer
        try:
            self.ready = await self.next()
        except Closed:
            return

    async def send(self, type: str, **fields: Any) -> None:
        """Send a frame."""
        await self.communicator.send_json_to({"type": type, **fields})

    async def send_raw(self, text: str) -> None:
        """Send any text, also none."""
        await self.communicator.send_input({"type": "websocket.receive", "text": text})

    async def next(self) -> Frame:
        """Return the next frame. Raises Closed, TimeoutError."""
        message = await self.communicator.receive_output(self.timeout)
        if message["type"] == "websocket.close":
            self.code = message["code"]
            raise Closed(message["code"])
        return dict(json.loads(message["text"]))

    async def until(self, *types: str) -> list[Frame]:
        """Return the frames up to the first of one of these types, that one included."""
        frames = [await self.next()]
        while frames[-1]["type"] not in types:
            frames.append(await self.next())
        return frames

    async def until_end(self) -> list[Frame]:
        """Return the frames up to a reply's end."""
        return await self.until(*ENDINGS)

    async def ask(self, type: str, **fields: Any) -> Frame:
        """Send a frame and return the next that comes."""
        await self.send(type, **fields)
        return await self.next()

    async def closed(self) -> int:
        """Wait for the close and return its code, whatever comes before."""
        try:
            while True:
                await self.next()
        except Closed as closed:
            return closed.code

    async def is_silent(self) -> bool:
        """Say whether nothing is sent for a moment."""
        return bool(await self.communicator.receive_nothing(0.1))

    async def leave(self) -> None:
        """Go away, and wait until the application is done."""
        if not self.communicator.future.done():
            await self.communicator.disconnect(timeout=self.timeout)


def text_of(frames: list[Frame]) -> str:
    """Return the text that deltas make up."""
    return "".join(one["delta"] for one in frames if one["type"] == "message.delta")


def reasoning_of(frames: list[Frame]) -> str:
    """Return the reasoning that deltas make up."""
    return "".join(one.get("reasoning", "") for one in frames if one["type"] == "message.delta")


def types_of(frames: list[Frame]) -> list[str]:
    """Return the types, runs of deltas as one."""
    types = [one["type"] for one in frames]
    return [kind for at, kind in enumerate(types) if kind != "message.delta" or types[at - 1 : at] != [kind]]
