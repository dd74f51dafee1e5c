"""Which views take a thread each, and that a flood of requests for them takes not one more than there are."""

import asyncio
import json
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from chatgpt_backend.ops.middleware import is_async
from tests.processes import ServerProcess


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/api/v1/conversations", "/api/v1/messages", "/api/v1/messages/1/stream", "/x"],
)
def test_what_waits_or_streams_waits_for_no_thread(path):
    assert is_async(path)


@pytest.mark.parametrize("path", ["/admin/", "/api/v1/auth/login", "/docs"])
def test_sync_views_do(path):
    assert not is_async(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("threads")) as server:
        yield server


def count(server: ServerProcess, kind: str) -> int:
    return len(list(Path(f"/proc/{server.pid}/{kind}").iterdir()))


@pytest.mark.processes
async def test_a_flood_of_sign_ins_opens_few_files_and_leaves_the_rest_alone(server):
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=60, limits=limits) as client:
        body = {"username": "nobody", "password": "wrong"}
        flood = [asyncio.create_task(client.post("/api/v1/auth/login", json=body)) for _ in range(300)]
        files = threads = 0
        while not all(task.done() for task in flood):
            files, threads = max(files, count(server, "fd")), max(threads, count(server, "task"))
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.02)
    assert {task.result().status_code for task in flood} == {401}
    # Beside the sockets: each place in the pool has a file and its log, and as many again for what is being closed.
    assert files < 300 + 200
    assert threads < 100


@pytest.mark.processes
async def test_readers_of_a_reply_hold_no_threads(server):
    headers = {"Authorization": f"Bearer {server.register()['access']}"}
    async with (
        httpx2.AsyncClient(
            base_url=server.url,
            headers=headers,
            trust_env=False,
            timeout=60,
            limits=httpx2.Limits(max_connections=None),
        ) as client,
        AsyncExitStack() as readers,
    ):
        conversation_id = (await client.post("/api/v1/conversations", json={})).json()["id"]
        # It writes slowly enough.
        body = {"conversation_id": conversation_id, "content": "Who are you?", "stream": True}
        first = await readers.enter_async_context(client.stream("POST", "/api/v1/messages", json=body))
        lines = first.aiter_lines()
        while not (line := await anext(lines)).startswith("data: "):
            pass
        reply_id = json.loads(line.removeprefix("data: "))["reply"]["id"]
        before = count(server, "task")
        for _ in range(60):
            answer = await readers.enter_async_context(client.stream("GET", f"/api/v1/messages/{reply_id}/stream"))
            assert answer.status_code == 200
        # The pool may have grown to its size.
        assert count(server, "task") - before < 40


@pytest.mark.processes
def test_serve_may_open_many_files(server):
    allowed, most = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    assert allowed >= min(most, 65_536)
