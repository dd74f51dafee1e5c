"""The client against a real server on loopback, which fails in every way that a provider can."""

import asyncio
import json
import time
from contextlib import aclosing
from typing import Any

import pytest

from chats.llm import client
from chats.llm.client import Piece, Usage, last_outcome
from chats.llm.errors import UpstreamError
from chats.llm.tests.targets import ask, collect, make_target
from tests.upstream import GREETING


async def failure_of(stream: Any) -> tuple[str, UpstreamError]:
    """Return the text that came, and the failure that ended it."""
    text = ""
    with pytest.raises(UpstreamError) as raised:
        async for piece in stream:
            text += piece.text
    return text, raised.value


async def test_streams_text_reason_and_usage(upstream):
    reply = await collect(ask("Hello"))

    assert reply.text == GREETING
    assert reply.finish_reason == "stop"
    assert reply.usage == Usage(prompt_tokens=13, completion_tokens=-(-len(GREETING) // 3))


async def test_sends_what_the_model_takes(upstream):
    await collect(ask("Hello", max_tokens=77, temperature=0.5, top_p=0.9, seed=7, stop=["END"], reasoning_effort=None))
    thinker = make_target(model="o3", takes_temperature=False, wants_max_completion_tokens=True)
    await collect(ask("Hello", target=thinker, max_tokens=78, temperature=0.5, top_p=0.9, reasoning_effort="low"))

    plain, thinking = (received.body for received in upstream.requests)
    assert plain == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 77,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert thinking == {
        "model": "o3",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 78,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert upstream.requests[0].headers["authorization"] == "Bearer sk-test-0123456789"


@pytest.mark.parametrize(
    ("directive", "code", "status"),
    [
        ("!401", "upstream_auth", 502),
        ("!403", "upstream_auth", 502),
        ("!429", "upstream_rate_limited", 502),
        ("!context", "context_length_exceeded", 400),
        ("!fault=400", "upstream_rejected", 502),
        ("!404", "upstream_rejected", 502),
        ("!422", "upstream_rejected", 502),
        ("!policy", "upstream_rejected", 502),
        ("!500", "upstream_unavailable", 502),
        ("!503", "upstream_unavailable", 502),
        ("!silence", "upstream_timeout", 504),
        ("!first=9", "upstream_timeout", 504),
        ("!stall=0", "upstream_timeout", 504),
        ("!cut=0", "upstream_unavailable", 502),
        ("!eof=0", "upstream_unavailable", 502),
        ("!badjson=0", "upstream_unavailable", 502),
    ],
)
async def test_failure_before_the_first_token(upstream, settings, directive, code, status):
    settings.OPENAI_MAX_RETRIES = 0
    settings.OPENAI_TIMEOUT = 0.3

    text, error = await failure_of(ask(f"Please {directive}"))

    assert (text, error.code, error.status_code) == ("", code, status)
    assert "sk-" not in error.detail


@pytest.mark.parametrize(
    ("directive", "code"),
    [
        ("!stall=5", "upstream_timeout"),
        ("!cut=5", "upstream_unavailable"),
        ("!eof=5", "upstream_unavailable"),
        ("!badjson=5", "upstream_unavailable"),
    ],
)
async def test_failure_in_mid_stream_keeps_the_text(upstream, settings, directive, code):
    settings.OPENAI_TIMEOUT = 0.3

    text, error = await failure_of(ask(directive))

    assert (text, error.code) == (GREETING[:15], code)
    assert len(upstream.requests) == 1, "nothing is tried again once the answer has begun"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("rate_limit_exceeded", "upstream_rate_limited"),
        ("429", "upstream_rate_limited"),
        ("invalid_api_key", "upstream_auth"),
        ("context_length_exceeded", "context_length_exceeded"),
        ("content_filter", "upstream_rejected"),
        ("server_error", "upstream_unavailable"),
        ("503", "upstream_unavailable"),
    ],
)
async def test_error_object_in_mid_stream(upstream, name, code):
    text, error = await failure_of(ask(f"!midstream={name}"))

    assert (text, error.code) == (GREETING[:6], code)


async def test_rejection_quotes_the_upstream_without_keys(upstream):
    _, error = await failure_of(ask("!policy"))

    assert error.detail == (
        "The model's provider refused this request: Your request was rejected by the content policy. (key …)"
    )


async def test_nobody_listens(upstream, settings):
    settings.OPENAI_API_BASE = "http://127.0.0.1:9/v1"
    settings.OPENAI_MAX_RETRIES = 0

    _, error = await failure_of(ask("Hello"))

    assert error.code == "upstream_unavailable"


async def test_tries_again_before_the_answer_begins(upstream):
    reply = await collect(ask("!500x1"))

    assert reply.text == GREETING
    assert len(upstream.requests) == 2


async def test_timeout_is_not_tried_again(upstream, settings):
    settings.OPENAI_TIMEOUT = 0.3
    began = time.monotonic()

    _, error = await failure_of(ask("!silence"))

    assert error.code == "upstream_timeout"
    assert len(upstream.requests) == 1
    assert time.monotonic() - began < 1


async def test_slow_but_steady_is_no_timeout(upstream, settings):
    settings.OPENAI_TIMEOUT = 0.3

    reply = await collect(ask("!slow=0.1 !reply=fifteen letters"))

    assert reply.text == "fifteen letters"


@pytest.mark.parametrize("directive", ["!crlf", "!comments", "!whole", "!nodone", "!nousage", "!refusal"])
async def test_understands_dialects(upstream, directive):
    reply = await collect(ask(f"{directive} !reply=你好，世界 👋🏽"))

    assert (reply.text, reply.finish_reason) == ("你好，世界 👋🏽", "stop")
    assert (reply.usage is None) == (directive == "!nousage")


@pytest.mark.parametrize("directive", ["!reasoning=2", "!thinking=2"])
async def test_reasoning_has_two_names(upstream, directive):
    reply = await collect(ask(directive))

    assert (reply.reasoning, reply.text) == ("thought 0. thought 1. ", GREETING)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": "1", "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": True},
        {"prompt_tokens": 1, "completion_tokens": 10**18},
    ],
)
async def test_usage_that_makes_no_sense_is_none(upstream, usage):
    upstream.behave(usage=usage, nousage=usage is None)

    reply = await collect(ask("Hello"))

    assert (reply.text, reply.usage) == (GREETING, None)


async def test_asks_once_more_without_stream_options(upstream):
    first = await collect(ask("!nooptions"))
    second = await collect(ask("!nooptions"))

    assert first.text == second.text == GREETING
    assert first.usage is None
    assert ["stream_options" in received.body for received in upstream.requests] == [True, False, False]


async def test_limit_reached(upstream):
    reply = await collect(ask("!tokens=50", max_tokens=3))

    assert (reply.text, reply.finish_reason) == ("word0 word1 word2 ", "length")


async def test_deltas_of_one_read_are_one_piece(upstream):
    def event(text: str) -> bytes:
        return b'data: {"choices":[{"delta":{"content":%s}}]}\n\n' % json.dumps(text).encode()

    upstream.behave(raw=[event("a") + event("b") + event("c"), event("d") + b"data: [DONE]\n\n"], slow=0.05)

    pieces = [piece async for piece in ask("Hello")]

    assert pieces == [Piece("abc"), Piece("d")]


async def test_a_reply_with_an_end_survives_a_bad_close(upstream):
    upstream.behave(
        raw=[b'data: {"choices":[{"delta":{"content":"whole"},"finish_reason":"stop"}]}\n\n'], cut=1, slow=0.02
    )

    assert await collect(ask("Hello")) == Piece("whole", "", "stop")


async def test_closing_the_generator_closes_the_connection(upstream):
    async with aclosing(ask("!never")) as stream:
        await anext(stream)
    closed = time.monotonic()

    await upstream.until(lambda: upstream.open_streams == 0)

    assert upstream.closed_at[0] - closed < 0.2


@pytest.mark.parametrize("directive", ["!never", "!stall=3", "!silence"])
async def test_cancelling_the_task_closes_the_connection(upstream, directive):
    task = asyncio.create_task(collect(ask(directive)))
    await upstream.until(lambda: len(upstream.requests) == 1)
    await asyncio.sleep(0.1)

    cancelled = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.until(lambda: upstream.open_streams == 0)

    assert upstream.closed_at[0] - cancelled < 0.2


async def test_a_reader_that_stops_reading_stops_the_upstream(upstream):
    stream = ask("!bytes=200000000")
    async with aclosing(stream):
        first = await anext(stream)
        await asyncio.sleep(0.3)

        assert len(first.text) <= 64 * 1024
        assert upstream.requests[0].finished_at is None


async def test_connections_are_used_again(upstream):
    for _ in range(3):
        await collect(ask("Hello"))

    assert len({received.connection for received in upstream.requests}) == 1


async def test_more_than_a_hundred_at_once(upstream):
    tasks = [asyncio.create_task(collect(ask("!stall=1"))) for _ in range(130)]

    await upstream.until(lambda: upstream.open_streams == 130)

    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await upstream.until(lambda: upstream.open_streams == 0)


def test_another_loop_gets_a_client_of_its_own(upstream):
    async def in_a_loop() -> str:
        return (await collect(ask("Hello"))).text

    assert [asyncio.run(in_a_loop()) for _ in range(2)] == [GREETING, GREETING]


async def test_last_outcome(upstream, monkeypatch):
    monkeypatch.setattr(client, "_last", None)
    assert last_outcome()["status"] == "unknown"

    await collect(ask("Hello"))
    assert last_outcome()["status"] == "ok"

    await failure_of(ask("!401"))
    assert (last_outcome()["status"], last_outcome()["code"]) == ("failing", "upstream_auth")

    await failure_of(ask("!policy"))
    assert last_outcome()["status"] == "ok", "an upstream that refuses one request works"


async def test_last_outcome_without_a_key(upstream, settings):
    settings.OPENAI_API_KEY = ""

    assert last_outcome() == {"status": "offline", "code": None, "at": None}


async def test_lists_the_upstreams_models(upstream):
    assert await client.list_upstream_models() == ["gpt-3.5-turbo", "gpt-4o", "gpt-4o-mini"]
