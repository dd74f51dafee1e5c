"""Replies as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from django.conf import settings
from django.http import StreamingHttpResponse

from chats.generation.live import Cursor, LiveReply
from chats.generation.reading import follow

# Beyond this many characters an event is encoded in a thread: a second of JSON would hold every other stream up.
LARGE = 1_000_000


def stream_response(
    reply: LiveReply, cursor: Cursor, *, first: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> StreamingHttpResponse:
    """Return the answer that follows `reply` from `cursor` to its end, after the event `first` if there is one."""
    return StreamingHttpResponse(
        _events(reply, cursor, first),
        content_type="text/event-stream; charset=utf-8",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})},
    )


async def _events(reply: LiveReply, cursor: Cursor, first: dict[str, Any] | None) -> AsyncIterator[bytes]:
    if first is not None:
        yield _frame(first, cursor)
    async for event, place in follow(reply, cursor, keepalive=settings.SSE_KEEPALIVE_SECONDS):
        if event is None:
            yield b": keep-alive\n\n"
        elif len((event.get("message") or {}).get("content") or "") > LARGE:
            yield await asyncio.to_thread(_frame, event, place)
        else:
            yield _frame(event, place)


def _frame(event: dict[str, Any], cursor: Cursor) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (
        event["type"].encode(),
        str(cursor).encode(),
        msgspec.json.encode(event),
    )
