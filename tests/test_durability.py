"""Replies against real processes: killed in mid-stream, read at 1 kB/s, not read at all, raced for a quota."""

import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.processes import ServerProcess
from tests.upstream import Upstream

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("durability")]
MEGABYTE = 1_000_000


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, upstream: Upstream) -> Iterator[ServerProcess]:
    env = {"OPENAI_API_KEY": "sk-test", "OPENAI_API_BASE": upstream.url, "NO_PROXY": "127.0.0.1"}
    with ServerProcess(tmp_path, env=env) as server:
        yield server


class Caller:
    """A registered user calling a real server."""

    def __init__(self, server: ServerProcess, name: str = "alice") -> None:
        self.server = server
        self.headers = {"Authorization": f"Bearer {server.register(name)['access']}"}
        self.http = httpx2.Client(base_url=server.url + "/api/v1", headers=self.headers, timeout=60, trust_env=False)
        self.conversation_id = self.http.post("/conversations", json={}).json()["id"]

    def say(self, content: str) -> httpx2.Response:
        return self.http.post("/messages", json={"conversation_id": self.conversation_id, "content": content})

    def open_stream(self, content: str) -> tuple[socket.socket, int]:
        """Post a streamed message over a bare socket; return it with the reply's id, most of the stream unread."""
        body = json.dumps({"conversation_id": self.conversation_id, "content": content, "stream": True})
        return self._open(f"POST /api/v1/messages HTTP/1.1\r\nContent-Length: {len(body)}\r\n", body)

    def attach(self, reply_id: int) -> socket.socket:
        return self._open(f"GET /api/v1/messages/{reply_id}/stream HTTP/1.1\r\n", "", wait=False)[0]

    def _open(self, head: str, body: str, *, wait: bool = True) -> tuple[socket.socket, int]:
        at = urlsplit(self.server.url)
        sock = socket.socket()
        # A small window, so that the server soon notices that nobody reads.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        sock.connect((at.hostname, at.port))
        headers = f"Host: {at.netloc}\r\nContent-Type: application/json\r\n"
        headers += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        sock.sendall(f"{head}{headers}\r\n{body}".encode())
        sock.settimeout(30)
        seen = b""
        while wait and b'"message.created"' not in seen:
            seen += sock.recv(4096)
        return sock, self.newest_reply()["id"] if wait else 0

    def newest_reply(self) -> dict[str, Any]:
        return self.http.get("/messages", params={"role": "assistant", "page_size": 1}).json()["results"][0]

    def status(self, reply_id: int) -> str:
        with sqlite3.connect(self.server.env["DATABASE_URL"].removeprefix("sqlite:///")) as database:
            return database.execute("SELECT status FROM chats_message WHERE id = ?", [reply_id]).fetchone()[0]

    def wait_for(self, reply_id: int, *statuses: str, within: float = 60.0) -> str:
        deadline = time.monotonic() + within
        while (status := self.status(reply_id)) not in statuses:
            assert time.monotonic() < deadline, f"still {status} after {within} s"
            time.sleep(0.05)
        return status

    def query(self, sql: str) -> list[Any]:
        with sqlite3.connect(self.server.env["DATABASE_URL"].removeprefix("sqlite:///")) as database:
            return database.execute(sql).fetchall()


def test_a_killed_process_loses_at_most_two_seconds(server: ServerProcess, upstream: Upstream) -> None:
    caller = Caller(server)
    pieces: list[tuple[float, str]] = []
    body = {"conversation_id": caller.conversation_id, "content": "!never !slow=0.02 你好", "stream": True}
    with caller.http.stream("POST", "/messages", json=body) as answer:
        reply_id = 0
        try:
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                reply_id = reply_id or event["reply"]["id"]
                pieces.append((time.monotonic(), event.get("delta", "")))
                if pieces[-1][0] - pieces[0][0] > 4:
                    server.kill()
                    killed_at = time.monotonic()
                    break
        except httpx2.TransportError:
            pass
    started = time.monotonic()
    server.start()
    caller.wait_for(reply_id, "interrupted", within=30)
    assert time.monotonic() - started < 30
    reply = caller.http.get(f"/messages/{reply_id}").json()
    seen = "".join(text for _, text in pieces)
    older = "".join(text for at, text in pieces if at < killed_at - 2)
    assert len(older) > 50
    assert reply["content"].startswith(older)
    assert seen.startswith(reply["content"]) or reply["content"].startswith(seen)
    assert reply["usage"]["source"] == "estimated"
    assert caller.query("SELECT status, count(*) FROM quotas_hold GROUP BY status") == [("settled", 1)]
    assert caller.query("SELECT DISTINCT requests_held, tokens_held, requests_used FROM quotas_counter") == [(0, 0, 1)]
    assert caller.query("SELECT count(*) FROM chats_message WHERE status = 'streaming'") == [(0,)]
    # Who was reading it reads on, from the cursor it had, to the end.
    stream = caller.http.get(f"/messages/{reply_id}/stream", headers={"Last-Event-ID": "10-0"}).text
    assert "event: message.interrupted" in stream


def test_a_reader_at_a_kilobyte_a_second_gets_every_byte(server: ServerProcess) -> None:
    caller = Caller(server)
    starter, reply_id = caller.open_stream("!tokens=4000 !slow=0.0005")
    starter.close()
    with caller.attach(reply_id) as sock:
        reader = HTTPResponse(sock)
        reader.begin()
        received = b""
        for _ in range(4):
            received += reader.read(1000)
            time.sleep(1)
        caller.wait_for(reply_id, "completed")
        received += reader.read()
    data = [line.removeprefix(b"data: ") for line in received.split(b"\n") if line.startswith(b"data: ")]
    events = [json.loads(line) for line in data]
    assert events[-1]["type"] == "message.completed"
    stored = caller.newest_reply()["content"]
    assert "".join(event.get("delta", "") for event in events) == stored == events[-1]["message"]["content"]
    assert len(stored) > 30_000


def test_a_reader_that_stops_reading_costs_no_more_than_the_text(server: ServerProcess) -> None:
    size = 200 * MEGABYTE
    caller = Caller(server)
    caller.say("!reply=warm up")
    before = server.rss()
    stalled, reply_id = caller.open_stream(f"!bytes={size}")
    with stalled:
        readers = [caller.attach(reply_id) for _ in range(4)]
        caller.wait_for(reply_id, "completed", within=120)
        # What the end needed for a moment is given back; what stays belongs to the readers that stand still.
        deadline = time.monotonic() + 20
        while (grown := server.rss() - before) > 1.5 * size and time.monotonic() < deadline:
            time.sleep(0.2)
        for reader in readers:
            reader.close()
    assert grown < 1.5 * size, f"{grown / MEGABYTE:.0f} MB for five readers of a reply of 200 MB"
    assert caller.http.get("/quota").status_code == 200


def test_a_hundred_clients_race_for_five_requests(server: ServerProcess) -> None:
    caller = Caller(server)
    with sqlite3.connect(server.env["DATABASE_URL"].removeprefix("sqlite:///")) as database:
        none = dict.fromkeys(
            ("requests_per_minute", "tokens_per_day", "tokens_per_month", "concurrent_generations"), None
        )
        database.execute("UPDATE quotas_allowance SET overrides = ?", [json.dumps({**none, "requests_per_day": 5})])
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda n: caller.say(f"{n} !reply=ok").status_code, range(100)))
    assert sorted(answers) == [201] * 5 + [429] * 95
    assert caller.query("SELECT count(*), sum(prompt_tokens + completion_tokens) FROM quotas_usagerecord")[0][0] == 5
    assert caller.query("SELECT requests_used, requests_held FROM quotas_counter WHERE window = 'day'") == [(5, 0)]
