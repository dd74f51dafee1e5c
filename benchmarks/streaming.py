"""What the server adds to a stream: time to the first token beyond the upstream's own, and CPU for each token.

    .venv/bin/python -m benchmarks.streaming --streams 50 --tokens 100 --rate 25

An upstream, a server on SQLite (or DATABASE_URL) and this client run on one machine over loopback. The same streams are
read straight from the upstream, then through the server's WebSocket with sign-in, quota, storage and encryption, in
turn, `--rounds` times. Medians and ratios count; single figures are this machine's.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.processes import ServerProcess
from tests.upstream import Upstream

# The measure is of streams, not of the free plan.
UNLIMITED = (
    "from quotas.models import Plan; Plan.objects.update(requests_per_minute=None, requests_per_day=None, "
    "tokens_per_day=None, tokens_per_month=None, concurrent_generations=None)"
)


async def read_directly(http: aiohttp.ClientSession, url: str, prompt: str) -> float:
    """Return the seconds to the first token of one stream from the upstream, having read it to its end."""
    started, first = time.perf_counter(), 0.0
    body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with http.post(f"{url}/chat/completions", json=body) as answer:
        async for line in answer.content:
            if not first and b'"content"' in line and b'"content":""' not in line.replace(b" ", b""):
                first = time.perf_counter() - started
    return first


async def read_through(http: aiohttp.ClientSession, url: str, access: str, conversation_id: int, prompt: str) -> float:
    """Return the seconds to the first token of one reply over a socket of its own, having read it to its end."""
    async with http.ws_connect(f"{url}/api/v1/ws", protocols=("bearer", access)) as socket:
        await socket.receive_json()
        started, first = time.perf_counter(), 0.0
        await socket.send_json(
            {"type": "chat_message", "conversation_id": conversation_id, "content": prompt, "id": "1"}
        )
        while True:
            event = await socket.receive_json()
            if event.get("request_id") != "1":
                continue  # of another socket of the same user
            if event["type"] == "message.delta" and not first:
                first = time.perf_counter() - started
            if event["type"].startswith("message.") and event["type"] not in ("message.created", "message.delta"):
                return first
            assert event["type"] != "error", event


async def measure(server: ServerProcess, upstream: Upstream, options: argparse.Namespace) -> None:
    """Run the rounds and print what they say."""
    prompt = f"!tokens={options.tokens} !slow={1 / options.rate}"
    people = [server.register(f"user{number}")["access"] for number in range(max(1, options.streams // 5))]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        places: list[tuple[str, int]] = []
        for number in range(options.streams):
            access = people[number % len(people)]
            headers = {"Authorization": f"Bearer {access}"}
            async with http.post(f"{server.url}/api/v1/conversations", json={}, headers=headers) as answer:
                places.append((access, (await answer.json())["id"]))
        for access, place in places:  # what only a first time costs
            await read_through(http, server.ws_url, access, place, "!tokens=1")
        direct: list[float] = []
        through: list[float] = []
        cpu: list[float] = []
        for _ in range(options.rounds):
            direct += await asyncio.gather(*(read_directly(http, upstream.url, prompt) for _ in range(options.streams)))
            before = server.cpu_seconds()
            through += await asyncio.gather(
                *(read_through(http, server.ws_url, access, place, prompt) for access, place in places)
            )
            cpu.append((server.cpu_seconds() - before) / (options.streams * options.tokens) * 1e6)
    report("first token, direct", direct)
    report("first token, through the server", through)
    extra = statistics.median(through) - statistics.median(direct)
    print(
        f"overhead p50: {extra * 1000:.1f} ms ({statistics.median(through) / statistics.median(direct):.2f} × direct)"
    )
    print(f"CPU of the server, a whole turn included: {statistics.median(cpu):.0f} µs a token")
    print(f"RSS: {server.rss() / 1e6:.0f} MB")


def report(name: str, seconds: list[float]) -> None:
    """Print median and 99th percentile in milliseconds."""
    ordered: list[Any] = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{name}: p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms")


def main() -> None:
    """Start an upstream and a server, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rate", type=float, default=25, help="tokens a second and stream")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Upstream() as upstream:
        env = {
            "OPENAI_API_KEY": "sk-benchmark", "OPENAI_API_BASE": upstream.url, "NO_PROXY": "127.0.0.1",
            "LOG_LEVEL": "WARNING",
        }  # fmt: skip
        if "DATABASE_URL" in os.environ:
            env["DATABASE_URL"] = os.environ["DATABASE_URL"]
        with ServerProcess(Path(folder), env=env) as server:
            server.manage("shell", "-c", UNLIMITED)
            asyncio.run(measure(server, upstream, options))


if __name__ == "__main__":
    main()
