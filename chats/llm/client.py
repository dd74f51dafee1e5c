"""One door to the models: the official client, pooled, with its answers parsed lean and its failures made ours.

The embedded model is a transport beneath the same client, so that with or without a key the same code runs.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import httpx2
import openai
import structlog
from django.conf import settings

from chats.llm.catalogue import Target, answers_offline
from chats.llm.errors import (
    CONTEXT_LENGTH_EXCEEDED,
    UPSTREAM_REJECTED,
    UPSTREAM_TIMEOUT,
    UPSTREAM_UNAVAILABLE,
    UpstreamError,
    classify,
    rejected,
)
from chats.llm.offline import OfflineTransport
from chats.llm.wire import ChatParser, Piece, Usage, broke_off

__all__ = ["Piece", "Usage", "close", "last_outcome", "list_upstream_models", "stream_chat"]

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 10.0
# Idle connections are kept this long, and save the next request a TLS handshake.
KEEPALIVE_SECONDS = 30.0
# After `[DONE]` the end of the body is awaited this long: read to its end, a connection can be used again.
DRAIN_SECONDS = 0.1


def _is_timeout(error: Exception) -> bool:
    # The transport calls whatever aiohttp reports of a connection a time-out, a refusal too: its cause knows better.
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    return isinstance(cause, TimeoutError | httpx2.TimeoutException)


class _HttpClient(openai.DefaultAioHttpClient):
    """The official client's aiohttp transport, its failures called by their right names.

    A time-out goes straight to the caller, past the official client's retries: it promises "so many seconds without a
    byte", and three times that is another promise. Everything else is a connection error, and is tried again.
    """

    async def send(self, request: httpx2.Request, **kwargs: Any) -> httpx2.Response:
        try:
            return await super().send(request, **kwargs)
        except (httpx2.TransportError, aiohttp.ClientError) as error:
            if _is_timeout(error):
                raise openai.APITimeoutError(request) from error
            raise httpx2.ConnectError(type(error).__name__, request=request) from error


@dataclass(slots=True)
class _Upstream:
    """A client and what was learned of what it talks to."""

    client: openai.AsyncOpenAI
    loop: asyncio.AbstractEventLoop
    # Models that refuse `stream_options`: asked without it, they report no usage, and it is counted.
    without_stream_options: set[str] = field(default_factory=set)


_upstreams: dict[bool, _Upstream] = {}


def _upstream(*, offline: bool) -> _Upstream:
    """Return this process's client, made anew where the running loop is another: connections belong to a loop."""
    loop = asyncio.get_running_loop()
    held = _upstreams.get(offline)
    if held is not None and held.loop is loop:
        return held
    read = settings.OPENAI_TIMEOUT
    timeout = httpx2.Timeout(connect=CONNECT_SECONDS, read=read, write=read, pool=max(read, CONNECT_SECONDS))
    http_client = _HttpClient(
        timeout=timeout,
        # Explicit: with none given the transport takes aiohttp's own limit, 100.
        limits=httpx2.Limits(max_connections=settings.OPENAI_MAX_CONNECTIONS, keepalive_expiry=KEEPALIVE_SECONDS),
        transport=OfflineTransport() if offline else None,
    )
    client = openai.AsyncOpenAI(
        api_key="offline" if offline else settings.OPENAI_API_KEY,
        base_url="http://offline.invalid/v1" if offline else settings.OPENAI_API_BASE,
        timeout=timeout,
        max_retries=settings.OPENAI_MAX_RETRIES,
        http_client=http_client,
    )
    _upstreams[offline] = held = _Upstream(client, loop)
    return held


async def close() -> None:
    """Close the connections of this loop. The next request opens new ones, by the settings of then."""
    loop = asyncio.get_running_loop()
    held = list(_upstreams.values())
    _upstreams.clear()
    for upstream in held:
        if upstream.loop is loop:
            await upstream.client.close()


async def stream_chat(
    target: Target, messages: list[dict[str, Any]], *, max_tokens: int, options: dict[str, Any]
) -> AsyncGenerator[Piece, None]:
    """Ask `target` and yield the reply as it comes, the deltas of one read joined.

    `options` may hold temperature, top_p, stop, seed and reasoning_effort; None is "not given", and what the model
    takes no notice of is left out. The official client tries again (OPENAI_MAX_RETRIES) until the answer begins, never
    after. Raises `UpstreamError`; what was yielded before it stands. Closing the generator, or cancelling the task that
    reads it, closes the upstream's connection at once.
    """
    upstream = _upstream(offline=target.is_offline)
    request = _request(target, messages, max_tokens, options)
    parser = ChatParser(secret=upstream.client.api_key)
    began = time.monotonic()
    try:
        async with AsyncExitStack() as stack:
            response = await _send(upstream, stack, request)
            chunks = await stack.enter_async_context(aclosing(response.iter_bytes()))
            async for chunk in chunks:
                piece = parser.feed(chunk)
                if piece is not None:
                    yield piece
                if parser.error is not None:
                    raise parser.error
                if parser.done:
                    await _drain(chunks)
                    break
            else:
                piece = parser.finish()
                if piece is not None:
                    yield piece
                if parser.error is not None:
                    raise parser.error
    except (UpstreamError, openai.OpenAIError, httpx2.TransportError, aiohttp.ClientError) as error:
        if parser.finished and not isinstance(error, UpstreamError):
            log.info("upstream_closed_badly", model=target.model, cause=type(error).__name__)
        else:
            failure = _failure(error, begun=parser.begun, secret=upstream.client.api_key)
            _report(target, failure, error)
            if failure is error:
                raise
            raise failure from error
    _note_outcome(target, None)
    log.debug("upstream_answered", model=target.model, seconds=round(time.monotonic() - began, 3))


def _request(
    target: Target, messages: list[dict[str, Any]], max_tokens: int, options: dict[str, Any]
) -> dict[str, Any]:
    request = {name: value for name, value in options.items() if value is not None}
    if not target.takes_temperature:
        request.pop("temperature", None)
        request.pop("top_p", None)
    limit = "max_completion_tokens" if target.wants_max_completion_tokens else "max_tokens"
    return {**request, "model": target.model, "messages": messages, "stream": True, limit: max_tokens}


async def _send(upstream: _Upstream, stack: AsyncExitStack, request: dict[str, Any]) -> Any:
    """Return the open response, left to `stack` to close."""
    create = upstream.client.chat.completions.with_streaming_response.create
    if request["model"] not in upstream.without_stream_options:
        try:
            return await stack.enter_async_context(create(**request, stream_options={"include_usage": True}))
        except openai.BadRequestError as error:
            if "stream_options" not in f"{error.param} {error.message}":
                raise
            upstream.without_stream_options.add(request["model"])
            log.info("upstream_refuses_stream_options", model=request["model"])
    return await stack.enter_async_context(create(**request))


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    with suppress(TimeoutError, httpx2.TransportError, aiohttp.ClientError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in chunks:
                pass


def _failure(error: Exception, *, begun: bool, secret: str) -> UpstreamError:
    """Return `error` as one of ours; `begun` says whether the answer had begun."""
    if isinstance(error, UpstreamError):
        return error
    if isinstance(error, openai.APITimeoutError) or _is_timeout(error):
        return UpstreamError(UPSTREAM_TIMEOUT)
    if isinstance(error, openai.APIStatusError):
        message = _own_words(error)
        names = tuple(name for name in (error.code, error.type) if isinstance(name, str))
        code = classify(error.status_code, names=names, message=message)
        return rejected(message, secret=secret) if code == UPSTREAM_REJECTED else UpstreamError(code)
    return broke_off() if begun else UpstreamError(UPSTREAM_UNAVAILABLE)


def _own_words(error: openai.APIStatusError) -> str:
    """Return what the upstream says itself, where it says it in JSON: pages of proxies are nothing for users."""
    body = error.body
    if isinstance(body, dict):
        return next((body[name] for name in ("message", "detail") if isinstance(body.get(name), str)), "")
    is_json = error.response.headers.get("content-type", "").startswith("application/json")
    return body if isinstance(body, str) and is_json else ""


# --- For /health: how the last calls went -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    code: str | None
    at: datetime


_last: _Outcome | None = None


def _note_outcome(target: Target, code: str | None) -> None:
    global _last
    if not target.is_offline:
        _last = _Outcome(code, datetime.now(UTC))


def _report(target: Target, failure: UpstreamError, error: Exception) -> None:
    # An upstream that refuses one request works.
    _note_outcome(target, None if failure.code in {UPSTREAM_REJECTED, CONTEXT_LENGTH_EXCEEDED} else failure.code)
    log.warning(
        "upstream_failed",
        code=failure.code,
        model=target.model,
        provider=target.provider,
        cause=type(error).__name__,
        status=getattr(error, "status_code", None),
        upstream_request_id=getattr(error, "request_id", None),
    )


def last_outcome() -> dict[str, Any]:
    """Return how this process's last call went: `{"status": "ok|failing|unknown|offline", "code", "at"}`.

    `unknown` before the first; `offline` where the embedded model answers for all. Asks nobody.
    """
    if answers_offline():
        return {"status": "offline", "code": None, "at": None}
    if _last is None:
        return {"status": "unknown", "code": None, "at": None}
    return {"status": "failing" if _last.code else "ok", "code": _last.code, "at": _last.at}


async def list_upstream_models() -> list[str]:
    """Return the ids that the upstream lists under `/models`, without the embedded model's where there is no key.

    Raises `UpstreamError`.
    """
    if answers_offline():
        return []
    upstream = _upstream(offline=False)
    try:
        return [model.id async for model in upstream.client.models.list()]
    except (openai.OpenAIError, httpx2.TransportError, aiohttp.ClientError) as error:
        raise _failure(error, begun=False, secret=upstream.client.api_key) from error
