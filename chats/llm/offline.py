"""The embedded model as a server that needs no network: a transport which speaks OpenAI's wire format.

It stands beneath the official client in the place of a connection, so that nothing above it knows the difference.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
from django.conf import settings

from chats.llm import eliza
from chats.llm.catalogue import OFFLINE_MODEL
from chats.llm.tokens import TOKENS_PER_MESSAGE, TOKENS_PER_REPLY, count_tokens

# The pause before each piece, which makes it read like writing. The setting OFFLINE_PIECE_SECONDS overrides it.
PIECE_SECONDS = 0.015
# A word with the blanks behind it, or one or two Chinese characters with the punctuation behind them.
_PIECES = re.compile(
    r"[^\s\u3000-\u9fff\uf900-\uffef]+\s*|[\u3400-\u9fff]{1,2}[\u3000-\u303f\uff00-\uffef]*|\s+|.", re.DOTALL
)

_encode = msgspec.json.encode


class _Request(msgspec.Struct):
    messages: list[dict[str, Any]]
    model: str = OFFLINE_MODEL
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None


class _Reply(msgspec.Struct):
    pieces: list[str]
    finish_reason: str
    usage: dict[str, int]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""


def split(text: str) -> list[str]:
    """Return `text` in the pieces that it is written in: words, or a Chinese character or two."""
    return _PIECES.findall(text)


def compose(request: _Request) -> _Reply:
    """Return the reply, cut by `stop` and by the tokens allowed. Counts and imports: not for the event loop."""
    users = [message for message in request.messages if message.get("role") == "user"]
    seed = request.seed
    if seed is None and request.temperature == 0:
        seed = 0
    text = eliza.answer(_text(users[-1].get("content")) if users else "", turn=len(users), seed=seed)
    for stop in [request.stop] if isinstance(request.stop, str) else request.stop or []:
        text = text.partition(stop)[0] if stop else text
    pieces, finish_reason = split(text), "stop"
    limit = request.max_completion_tokens or request.max_tokens
    completion = count_tokens(text)
    while limit is not None and completion > limit and pieces:
        pieces.pop()
        finish_reason = "length"
        completion = count_tokens("".join(pieces))
    prompt = TOKENS_PER_REPLY + sum(
        TOKENS_PER_MESSAGE + count_tokens(_text(message.get("content"))) for message in request.messages
    )
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return _Reply(pieces, finish_reason, usage)


class _Events(httpx2.AsyncByteStream):
    """The reply as server-sent events, at the pace of somebody who writes."""

    def __init__(self, reply: _Reply, head: dict[str, Any], *, include_usage: bool) -> None:
        self._reply = reply
        self._head = head
        self._include_usage = include_usage

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + _encode({**self._head, "choices": choices, **more}) + b"\n\n"

    def _delta(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        return self._event([{"index": 0, "delta": delta, "finish_reason": finish_reason}])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pause = getattr(settings, "OFFLINE_PIECE_SECONDS", PIECE_SECONDS)
        yield self._delta({"role": "assistant", "content": ""})
        for piece in self._reply.pieces:
            await asyncio.sleep(pause)
            yield self._delta({"content": piece})
        yield self._delta({}, self._reply.finish_reason)
        if self._include_usage:
            yield self._event([], usage=self._reply.usage)
        yield b"data: [DONE]\n\n"


class OfflineTransport(httpx2.AsyncBaseTransport):
    """Answers `/chat/completions`, streamed or not, and `/models`, as a server of OpenAI's API would."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to `request`. What is not understood gets OpenAI's error object."""
        if request.method == "GET" and request.url.path.endswith("/models"):
            model = {"id": OFFLINE_MODEL, "object": "model", "created": 0, "owned_by": "offline"}
            return _json(200, {"object": "list", "data": [model]})
        if request.method != "POST" or not request.url.path.endswith("/chat/completions"):
            return _error(404, "The embedded model answers chat completions only.")
        try:
            asked = msgspec.json.decode(await request.aread(), type=_Request)
        except msgspec.MsgspecError as error:
            return _error(400, str(error))
        # In a thread: the first English message imports NLTK, and a long prompt takes a while to count.
        reply = await asyncio.to_thread(compose, asked)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": OFFLINE_MODEL}
        if asked.stream:
            head["object"] = "chat.completion.chunk"
            include_usage = bool((asked.stream_options or {}).get("include_usage"))
            events = _Events(reply, head, include_usage=include_usage)
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=events)
        message = {"role": "assistant", "content": "".join(reply.pieces)}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return _json(200, {**head, "object": "chat.completion", "choices": [choice], "usage": reply.usage})


def _json(status: int, body: dict[str, Any]) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": "application/json"}, content=_encode(body))


def _error(status: int, message: str) -> httpx2.Response:
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _json(status, {"error": body})
