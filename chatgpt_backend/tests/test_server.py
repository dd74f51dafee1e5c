"""Our server's own guarantees, over real connections to a process of its own."""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import websockets

from tests.processes import Process, environment, spare_port

pytestmark = pytest.mark.processes
MB = 1024 * 1024
REQUEST = "GET /flood HTTP/1.1\r\nHost: localhost\r\n{more}\r\n"
HANDSHAKE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder, port = tmp_path_factory.mktemp("flood"), spare_port()
    command = [sys.executable, "-m", "chatgpt_backend.tests.flood_server", str(port)]
    with Process(command, env=environment(folder), folder=folder, port=port) as process:
        yield process


async def floods_ended(server: Process) -> list[str]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return [name for name in (await client.get(server.url + "/ended")).text.split(",") if name]


async def wait_for_end(server: Process, count: int) -> list[str]:
    deadline = time.monotonic() + 10
    while len(ended := await floods_ended(server)) < count and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return ended


@pytest.mark.parametrize(("more", "last"), [("", "http.disconnect"), (HANDSHAKE, "websocket.disconnect")])
async def test_client_that_stops_reading_costs_no_memory_and_its_leaving_ends_the_sender(server, more, last):
    before, ended_before = server.rss(), await floods_ended(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(REQUEST.format(more=more).encode())
    await writer.drain()
    await reader.readline()

    await asyncio.sleep(1.5)  # 200 MB would be in memory by now
    assert server.rss() - before < 30 * MB
    # Others are served meanwhile, and the stalled one has not ended.
    assert await floods_ended(server) == ended_before

    writer.transport.abort()
    assert await wait_for_end(server, len(ended_before) + 1) == [*ended_before, last]


async def test_slow_reader_gets_everything(server):
    async with (
        httpx2.AsyncClient(trust_env=False, timeout=60) as client,
        client.stream("GET", server.url + "/flood") as answer,
    ):
        got = 0
        async for piece in answer.aiter_bytes():
            got += len(piece)
            if got < MB:
                await asyncio.sleep(0.005)
    assert got == 200 * MB


@pytest.mark.parametrize("size", [MB, MB + 1])
async def test_frame_over_the_limit_is_closed_with_1009(server, size):
    async with websockets.connect(server.ws_url + "/?0", max_size=None, proxy=None) as unlimited:
        await unlimited.wait_closed()
    async with websockets.connect(server.ws_url, max_size=None, proxy=None) as socket:
        await socket.send(b"x" * size)
        if size > MB:
            with pytest.raises(websockets.ConnectionClosedError):
                while True:
                    await socket.recv()
            assert socket.close_code == 1009
        else:
            await socket.recv()
            assert socket.close_code is None


@pytest.mark.parametrize("code", [1000, 1001, 1011, 3001, 4401, 4503])
async def test_any_close_code_passes_with_its_reason(server, code):
    async with websockets.connect(f"{server.ws_url}/?{code}", proxy=None) as socket:
        await socket.wait_closed()
    assert (socket.close_code, socket.close_reason) == (code, "because")


async def test_no_compression_is_agreed_upon(server):
    async with websockets.connect(f"{server.ws_url}/?1000", proxy=None) as socket:
        assert "sec-websocket-extensions" not in socket.response.headers


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_413(server, chunked):
    async def pieces():
        for _ in range(3):
            yield b"x" * (MB // 2)

    content = pieces() if chunked else b"x" * (MB + 1)
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.post(server.url + "/", content=content, headers={"Connection": "close"})
    assert answer.status_code == 413
    assert answer.json()["errors"][0]["code"] == "request_too_large"


def test_stop_is_clean_and_says_goodbye(tmp_path: Path):
    port = spare_port()
    command = [sys.executable, "-m", "chatgpt_backend.tests.flood_server", str(port)]
    with Process(command, env=environment(tmp_path), folder=tmp_path, port=port) as server:
        assert server.terminate() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("asked", ["HEAD /pieces", "GET /pieces?304", "GET /pieces?204"])
async def test_answer_without_a_body_leaves_the_connection_clean(server, asked):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for request in (asked, "GET /pieces"):
        writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    first, second = [await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) for _ in range(2)]
    assert first.startswith(b"HTTP/1.1 ")
    assert second.startswith(b"HTTP/1.1 200")
    assert await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5) == b"6\r\npiece\n\r\n" * 3 + b"0\r\n\r\n"
    writer.close()


async def test_application_that_fails_in_mid_answer_breaks_it_off_and_nothing_else(server):
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=5) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get("/broken?late")
        # Who fails before it answers is answered for, still.
        answer = await client.get("/broken")
    assert answer.status_code == 500
    assert answer.json() == {
        "type": "server_error",
        "errors": [{"code": "error", "detail": "The server failed. It is in its log.", "attr": None}],
    }
