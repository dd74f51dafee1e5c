"""Sockets over real connections to a real server, answered by the embedded model."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
import pytest
import websockets

from tests.processes import ServerProcess
from tests.upstream import Upstream

# One group: the tests share their servers.
pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("sockets")]
ENDINGS = {"message.completed", "message.stopped", "message.failed", "message.interrupted"}
MB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("sockets")) as process:
        yield process


@pytest.fixture(scope="module")
def access(server: ServerProcess) -> str:
    return str(server.register()["access"])


def call(server: ServerProcess, access: str, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {access}"}
    answer = httpx2.request(
        method, f"{server.url}/api/v1{path}", json=body, headers=headers, trust_env=False, timeout=30
    )
    assert answer.status_code < 300, answer.text
    return answer.json()


def converse(server: ServerProcess, access: str) -> int:
    return int(call(server, access, "POST", "/conversations", {})["id"])


class Socket:
    """One client."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def next(self) -> dict[str, Any]:
        return dict(json.loads(await asyncio.wait_for(self.socket.recv(), 20)))

    async def until(self, *types: str) -> list[dict[str, Any]]:
        frames = [await self.next()]
        while frames[-1]["type"] not in types:
            frames.append(await self.next())
        return frames

    async def closed(self) -> int:
        await asyncio.wait_for(self.socket.wait_closed(), 20)
        return int(self.socket.close_code)


@asynccontextmanager
async def connected(server: ServerProcess, access: str, *, by: str = "path", **options: Any) -> Any:
    options = {"proxy": None, "max_size": None, **options}
    if by == "path":
        opening = websockets.connect(f"{server.ws_url}/api/v1/ws/{access}", **options)
    else:
        opening = websockets.connect(f"{server.ws_url}/api/v1/ws", subprotocols=["bearer", access], **options)
    async with opening as socket:
        one = Socket(socket)
        assert (await one.next())["type"] == "connection.ready"
        yield one


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame["delta"] for frame in frames if frame["type"] == "message.delta")


@pytest.mark.parametrize("by", ["path", "subprotocol"])
async def test_two_clients_share_a_conversation_with_the_embedded_model(server, access, by):
    conversation_id = converse(server, access)
    async with connected(server, access, by=by) as asker, connected(server, access, by=by) as other:
        assert asker.socket.subprotocol == (None if by == "path" else "bearer")
        await asker.send(
            type="chat_message", id="1", conversation_id=conversation_id, content="你好！", model="gpt-3.5-turbo"
        )
        frames, heard = await asker.until(*ENDINGS), await other.until(*ENDINGS)
        ended = frames[-1]
        assert (ended["type"], ended["message"]["model"]) == ("message.completed", "eliza")
        assert text_of(frames) == ended["message"]["content"] != ""
        assert [frame["type"] for frame in heard] == ["message.created", "message.completed"]
        assert heard[-1]["message"] == ended["message"]
        stored = call(server, access, "GET", f"/conversations/{conversation_id}/messages")["results"]
        assert [one["content"] for one in stored] == ["你好！", ended["message"]["content"]]
        # The other one may read it too, from the middle.
        cursor = next(frame["cursor"] for frame in frames if frame["type"] == "message.delta")
        await other.send(type="subscribe", message_id=ended["message_id"], cursor=cursor)
        rest = await other.until(*ENDINGS)
        first = next(frame["delta"] for frame in frames if frame["type"] == "message.delta")
        assert first + text_of(rest) == ended["message"]["content"]


async def test_who_may_not_connect_sees_why(server, access):
    for url, options, code in (
        (f"{server.ws_url}/api/v1/ws/nonsense", {}, 4401),
        (f"{server.ws_url}/api/v1/ws", {}, 4401),
        (f"{server.ws_url}/api/v1/ws", {"subprotocols": ["bearer", "nonsense"]}, 4401),
    ):
        async with websockets.connect(url, proxy=None, **options) as socket:
            await asyncio.wait_for(socket.wait_closed(), 10)
            assert socket.close_code == code
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"{server.ws_url}/api/v1/ws/{access}", proxy=None, origin="https://evil.example")
    assert refused.value.response.status_code == 403


async def test_a_frame_over_a_mebibyte_closes_and_one_of_it_is_read(server, access):
    async with connected(server, access) as one:
        await one.socket.send(" " * (MB - 15) + '{"type":"ping"}')
        assert (await one.next())["type"] == "pong"
        await one.socket.send(" " * (MB + 1))
        assert await one.closed() == 1009


async def test_what_no_client_should_send_is_told_then_closed(server, access):
    async with connected(server, access) as one:
        for frame in ["{", b"\xff\x00", "[" * 1_000_000, '{"type":"stop","message_id":1e999}', '{"type":5, x']:
            await one.socket.send(frame)
            assert (await one.next())["type"] == "error"
        for _ in range(16):
            await one.socket.send("?")
        assert await one.closed() == 4400
    async with connected(server, access, max_queue=None) as one:
        for _ in range(300):
            await one.send(type="ping")
        assert await one.closed() == 4429


@pytest.fixture(scope="module")
def upstream_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with Upstream() as upstream:
        env = {"OPENAI_API_KEY": "k", "OPENAI_API_BASE": upstream.url, "SHUTDOWN_GRACE_SECONDS": "20"}
        with ServerProcess(tmp_path_factory.mktemp("sockets"), env=env) as process:
            yield process


async def test_clients_may_vanish_at_any_moment(upstream_server):
    access = upstream_server.register("dave")["access"]
    conversation_id = converse(upstream_server, access)
    async with connected(upstream_server, access) as last:
        await last.send(type="chat_message", conversation_id=conversation_id, content="!never !slow=0.002")
        reply_id = (await last.until("message.delta"))[-1]["message_id"]
        for way in ("close", "abort") * 8:
            async with connected(upstream_server, access) as one:
                await one.send(type="subscribe", message_id=reply_id)
                await one.until("message.delta")
                if way == "abort":
                    one.socket.transport.abort()
        await last.send(type="stop", message_id=reply_id)
        assert (await last.until(*ENDINGS))[-1]["type"] == "message.stopped"
    assert "_failed" not in upstream_server.log
    assert "Traceback" not in upstream_server.log


async def test_a_client_that_does_not_read_costs_the_text_and_others_nothing(upstream_server):
    access = upstream_server.register("erin")["access"]
    conversations = [converse(upstream_server, access), converse(upstream_server, access)]
    size = 32 * MB
    async with connected(upstream_server, access) as reader, connected(upstream_server, access, max_queue=1) as sleeper:
        before = upstream_server.rss()
        await sleeper.send(type="chat_message", conversation_id=conversations[0], content=f"!bytes={size}")
        # Others are answered meanwhile, and hear of the long one's end.
        await reader.send(type="chat_message", id="r", conversation_id=conversations[1], content="!tokens=50")
        ends: dict[int, Any] = {}
        while len(ends) < 2:
            ended = (await reader.until(*ENDINGS))[-1]
            ends[ended["conversation_id"]] = ended
        assert len(ends[conversations[0]]["message"]["content"]) == size
        # The text, its sealed row, and the reader's last event on its way: what is known of it, but for no queue.
        assert upstream_server.rss() - before < 10 * size
        slept = await sleeper.until("message.completed")
        while slept[-1]["conversation_id"] != conversations[0]:
            slept += await sleeper.until("message.completed")
        assert len(text_of(slept)) == size == len(slept[-1]["message"]["content"])


async def subscribe_and_never_answer(
    server: ServerProcess, access: str, message_id: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a socket by hand that follows a reply and leaves every ping and close unanswered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"GET /api/v1/ws/{access} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    await reader.readuntil(b"connection.ready")
    frame = json.dumps({"type": "subscribe", "message_id": message_id}).encode()
    writer.write(b"\x81" + bytes([0x80 | len(frame)]) + bytes(4) + frame)  # masked with zeros
    await reader.readuntil(b"message.delta")
    return reader, writer


def test_a_stop_sends_sockets_elsewhere_and_lets_the_reply_finish(upstream_server):
    access = upstream_server.register("frank")["access"]
    conversation_id = converse(upstream_server, access)

    async def scene() -> None:
        async with connected(upstream_server, access) as one, connected(upstream_server, access, by="offer") as other:
            await one.send(type="chat_message", conversation_id=conversation_id, content="!tokens=40 !slow=0.05")
            reply_id = (await one.until("message.delta"))[-1]["message_id"]
            rude, writer = await subscribe_and_never_answer(upstream_server, access, reply_id)
            upstream_server.signal(signal.SIGTERM)
            assert {await one.closed(), await other.closed()} == {4503}
            with suppress(ConnectionResetError):  # the server loses patience
                while await rude.read(4096):
                    pass
            writer.close()

    asyncio.run(scene())
    assert upstream_server.wait() == 0
    assert "Traceback" not in upstream_server.log
    assert "_failed" not in upstream_server.log
    upstream_server.start()
    _, reply = call(upstream_server, access, "GET", f"/conversations/{conversation_id}/messages")["results"]
    assert (reply["status"], reply["content"]) == ("completed", "".join(f"word{number} " for number in range(40)))


@pytest.mark.parametrize("by", ["path", "subprotocol"])
async def test_tokens_reach_no_log(server, access, by):
    async with connected(server, access, by=by) as one:
        await one.send(type="authenticate", token=access)
        assert (await one.next())["type"] == "authenticated"
        await one.socket.send(access)
        assert (await one.next())["type"] == "error"
    assert f"/api/v1/ws{'/[redacted]' if by == 'path' else ''}\n" in server.log
    assert access not in server.log
    assert access.split(".")[2] not in server.log
    assert "Traceback" not in server.log
