"""A server that speaks OpenAI's wire format and fails on request: the other end of every test of a model.

It serves `/v1/chat/completions`, streamed and not, and `/v1/models`, on loopback, over real sockets. In a test it runs
in a thread with a loop of its own (`with Upstream() as upstream:`, or the `upstream` fixture); for processes and
benchmarks, `python -m tests.upstream --port 9000`, which prints its address once it listens (port 0 takes a free one).

What it does is said by directives, in the last user message or in the name of the model, as `!name` or `!name=value`,
any number of them; or from Python, `upstream.behave(cut=3, slow=0.1)`, for the requests that carry none. A piece is one
delta, of three characters, and counts for one token.

What it says
    !reply=TEXT     this text, up to the end of the message (default: a greeting in two languages)
    !tokens=N       N words
    !bytes=N        N bytes of ASCII, in large pieces, as fast as they are taken
    !never          pieces without an end, one every `slow` seconds (default 0.02)
    !reasoning=N    N pieces of `reasoning_content` first;   !thinking=N   of `reasoning`
    !refusal        the text comes as `refusal`
How it says it
    !slow=S         S seconds before each piece;   !first=S   before the response begins
    !crlf           lines end with CR LF;          !comments  a comment before each event
    !whole          one JSON object, although a stream was asked for
    !nodone         no `[DONE]`;                   !nousage   no usage
    !usage=JSON     this instead of the usage
    !length         `finish_reason` is "length" (it is also when `max_tokens` is reached)
How it fails
    !fault=STATUS   that status with OpenAI's error object; in short !401, !429, !500 …
    !fault=500x2    the first two requests with these directives, then it works; in short !500x2
    !retryafter=S   `Retry-After` with the fault
    !context        400 context_length_exceeded;   !policy    400 content_policy_violation
    !nooptions      400 for a request with `stream_options`
    !silence        accepts the request and never answers
    !stall=N        N pieces, then silence
    !cut=N          N pieces, then the connection is torn down;   !eof=N   then an orderly end, too early
    !badjson=N      N pieces, then half a JSON object as an event
    !midstream=CODE two pieces, then `{"error": {"code": CODE}}`
From Python only
    raw=[bytes, …]  a 200 of these very bytes, one write each

`upstream.requests` holds what came: `path`, `headers`, `body`, and how it ended: `closed_at` (`time.monotonic()`) when
the client went away first, `finished_at` when the answer was given whole.
"""

import argparse
import asyncio
import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, fields
from typing import Any, Self

from aiohttp import web

GREETING = "Hello from the upstream! 你好，我是测试用的上游。🎉"
PIECE_CHARACTERS = 3
BULK_CHARACTERS = 4096
BULK_BYTES = 256 * 1024
START_SECONDS = 10.0

_DIRECTIVE = re.compile(r"!([a-z]+|\d{3}(?:x\d+)?)(?:=(\S+))?")
_ERRORS = {
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-secret-1234567890."),
    403: ("permission_error", "permission_denied", "This key may not use this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
}


@dataclass
class Behaviour:
    """How one request is answered: a field for each directive of the module's docstring."""

    raw: list[bytes] | None = None
    reply: str | None = None
    tokens: int | None = None
    bytes: int | None = None
    never: bool = False
    reasoning: int = 0
    thinking: int = 0
    refusal: bool = False
    slow: float = 0.0
    first: float = 0.0
    crlf: bool = False
    comments: bool = False
    whole: bool = False
    nodone: bool = False
    nousage: bool = False
    usage: Any = None
    length: bool = False
    fault: str = ""
    retryafter: str = ""
    context: bool = False
    policy: bool = False
    nooptions: bool = False
    silence: bool = False
    stall: int | None = None
    cut: int | None = None
    eof: int | None = None
    badjson: int | None = None
    midstream: str = ""

    @classmethod
    def of(cls, text: str) -> "Behaviour | None":
        """Return what the directives in `text` say, or None when there are none. Unknown ones are plain text."""
        kinds: dict[str, Callable[[str], Any]] = {name: _KINDS[str(kind)] for name, kind in _field_types().items()}
        values: dict[str, Any] = {}
        head, found, reply = text.partition("!reply=")
        if found:
            values["reply"] = reply
        for name, value in _DIRECTIVE.findall(head):
            if name[0].isdigit():
                values["fault"] = name
            elif name in kinds:
                values[name] = kinds[name](value)
        return cls(**values) if values else None

    def pieces(self) -> list[str]:
        """Return the reply's text in pieces (not for `never` and `bytes`)."""
        if self.tokens is not None:
            return [f"word{number} " for number in range(self.tokens)]
        text = GREETING if self.reply is None else self.reply
        return [text[at : at + PIECE_CHARACTERS] for at in range(0, len(text), PIECE_CHARACTERS)]

    @property
    def stops_after(self) -> int | None:
        """Return after how many pieces something other than the end happens."""
        counts = [self.stall, self.cut, self.eof, self.badjson, 2 if self.midstream else None]
        return next((count for count in counts if count is not None), None)


def _field_types() -> dict[str, Any]:
    return {one.name: one.type for one in fields(Behaviour) if one.name not in {"reply", "raw"}}


_KINDS: dict[str, Callable[[str], Any]] = {
    str(int): lambda value: int(value or 1),
    str(int | None): lambda value: int(value or 1),
    str(float): float,
    str(bool): lambda value: True,
    str(str): str,
    str(Any): json.loads,
}


@dataclass
class Received:
    """One request, and how it ended."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)
    finished_at: float | None = None
    closed_at: float | None = None
    connection: int = 0  # the port it came from


class Upstream:
    """The server, in a thread of its own from `start` to `stop`. Its attributes may be read from any thread."""

    def __init__(self, *, port: int = 0) -> None:
        self.port = port
        self.requests: list[Received] = []
        self.models = ["gpt-3.5-turbo", "gpt-4o", "gpt-4o-mini"]
        self._default = Behaviour()
        self._failed: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    # --- For tests ---

    @property
    def url(self) -> str:
        """Return what OPENAI_API_BASE is to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    def behave(self, **behaviour: Any) -> None:
        """Answer requests without directives like this from now on; without arguments, as at the start."""
        self._default = Behaviour(**behaviour)

    def reset(self) -> None:
        """Forget requests, faults already given, and `behave`."""
        self.behave()
        self.requests = []
        self._failed = Counter()

    @property
    def open_streams(self) -> int:
        """Return how many requests are being answered now."""
        return sum(1 for one in list(self.requests) if one.finished_at is None and one.closed_at is None)

    @property
    def closed_at(self) -> list[float]:
        """Return when clients went away before their answer's end."""
        return [one.closed_at for one in list(self.requests) if one.closed_at is not None]

    async def until(self, condition: Callable[[], bool], *, within: float = 5.0) -> None:
        """Wait, on the caller's loop, until `condition()` holds. Raises TimeoutError."""
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 - what is waited for happens on another loop
                await asyncio.sleep(0.005)

    # --- Running ---

    def start(self) -> Self:
        """Start serving, and return once the port is open."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), name="upstream", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise RuntimeError("the upstream did not start")
        return self

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def serve(self) -> None:
        """Serve until `stop` (or until cancelled), on the running loop."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        # Handlers are cancelled when their client goes away: that is how it is noticed at once.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            await runner.cleanup()

    # --- Answering ---

    async def _models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "upstream"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        received = Received(
            path=request.path,
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.json(),
            connection=request.transport.get_extra_info("peername")[1],  # type: ignore[union-attr]
        )
        self.requests.append(received)
        said, model = _last_user_text(received.body), str(received.body.get("model", ""))
        behaviour = Behaviour.of(said) or Behaviour.of(model) or self._default
        try:
            response = await self._answer(request, received.body, behaviour, f"{said} {model}")
        except (asyncio.CancelledError, ConnectionError):
            received.closed_at = time.monotonic()
            raise
        received.finished_at = time.monotonic()
        return response

    async def _answer(
        self, request: web.Request, body: dict[str, Any], behaviour: Behaviour, text: str
    ) -> web.StreamResponse:
        if behaviour.silence:
            await asyncio.Event().wait()
        await asyncio.sleep(behaviour.first)
        if (refusal := self._refusal(body, behaviour, text)) is not None:
            return refusal
        if not body.get("stream") or behaviour.whole:
            return web.json_response(_completion(body, behaviour))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": "req-upstream"})
        await response.prepare(request)
        if behaviour.raw is not None:
            for chunk in behaviour.raw:
                await response.write(chunk)
                # One write is one read of the client's, so far as TCP lets one say so.
                await asyncio.sleep(behaviour.slow)
        elif behaviour.bytes is not None:
            await self._write_bulk(response, body, behaviour.bytes)
        else:
            async for event in _events(body, behaviour):
                await response.write(event)
        if behaviour.cut is not None:
            # What was written must leave first: a reset would overtake it.
            await asyncio.sleep(0.02)
            request.transport.abort()  # type: ignore[union-attr]
        if behaviour.stall is not None:
            await asyncio.Event().wait()
        return response

    def _refusal(self, body: dict[str, Any], behaviour: Behaviour, text: str) -> web.Response | None:
        if behaviour.fault:
            status, _, times = behaviour.fault.partition("x")
            self._failed[text] += 1
            if not times or self._failed[text] <= int(times):
                headers = {"Retry-After": behaviour.retryafter} if behaviour.retryafter else {}
                unknown = ("server_error", "server_error", f"The server answers {status}.")
                return _error(int(status), *_ERRORS.get(int(status), unknown), headers=headers)
        if behaviour.context:
            message = "This model's maximum context length is 128000 tokens. Please reduce the length of the messages."
            return _error(400, "invalid_request_error", "context_length_exceeded", message)
        if behaviour.policy:
            message = "Your request was rejected by the content policy. (key sk-secret-1234567890)"
            return _error(400, "invalid_request_error", "content_policy_violation", message)
        if behaviour.nooptions and "stream_options" in body:
            return _error(400, "invalid_request_error", "", "Unrecognized request argument supplied: stream_options")
        return None

    async def _write_bulk(self, response: web.StreamResponse, body: dict[str, Any], total: int) -> None:
        piece = "abcdefg " * (BULK_CHARACTERS // 8)
        event = _event(body, {"content": piece})
        block = event * (BULK_BYTES // len(event))
        for _ in range(total // (BULK_CHARACTERS * (BULK_BYTES // len(event)))):
            await response.write(block)
        left = total % (BULK_CHARACTERS * (BULK_BYTES // len(event)))
        for _ in range(left // BULK_CHARACTERS):
            await response.write(event)
        await response.write(_event(body, {"content": "x" * (left % BULK_CHARACTERS)}))
        await response.write(_event(body, {}, "stop") + b"data: [DONE]\n\n")


def _last_user_text(body: dict[str, Any]) -> str:
    for message in reversed(body.get("messages", [])):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                return " ".join(part.get("text", "") for part in content)
            return content or ""
    return ""


def _error(status: int, kind: str, code: str, message: str, *, headers: dict[str, str] | None = None) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code or None}}
    return web.json_response(body, status=status, headers={"x-request-id": "req-upstream", **(headers or {})})


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-upstream", "object": kind, "created": 1_700_000_000, "model": body.get("model")}


def _event(body: dict[str, Any], delta: dict[str, Any] | None, finish_reason: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
    chunk = {**_head(body, "chat.completion.chunk"), "choices": choices, **more}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


def _cut_to_limit(body: dict[str, Any], behaviour: Behaviour) -> tuple[list[str], str]:
    pieces = behaviour.pieces()
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(pieces)
    return pieces[:limit], "length" if behaviour.length or len(pieces) > limit else "stop"


def _usage(body: dict[str, Any], behaviour: Behaviour, completion: int) -> Any:
    if behaviour.usage is not None:
        return behaviour.usage
    prompt = sum(4 + len(json.dumps(message)) // 4 for message in body.get("messages", []))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _completion(body: dict[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    pieces, finish_reason = _cut_to_limit(body, behaviour)
    message = {"role": "assistant", "content": "".join(pieces)}
    whole = {
        **_head(body, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }
    return whole if behaviour.nousage else {**whole, "usage": _usage(body, behaviour, len(pieces))}


async def _events(body: dict[str, Any], behaviour: Behaviour) -> AsyncIterator[bytes]:
    """Yield the stream's events, up to where the behaviour leaves the path of virtue."""

    def dressed(event: bytes) -> bytes:
        event = b": still here\n\n" + event if behaviour.comments else event
        return event.replace(b"\n", b"\r\n") if behaviour.crlf else event

    yield dressed(_event(body, {"role": "assistant", "content": ""}))
    for number in range(behaviour.reasoning):
        yield dressed(_event(body, {"reasoning_content": f"thought {number}. "}))
    for number in range(behaviour.thinking):
        yield dressed(_event(body, {"reasoning": f"thought {number}. "}))
    pieces, finish_reason = _cut_to_limit(body, behaviour)
    written = 0
    while behaviour.never or written < len(pieces):
        if written == behaviour.stops_after:
            break
        if behaviour.slow or behaviour.never:
            await asyncio.sleep(behaviour.slow or 0.02)
        text = pieces[written % len(pieces)]
        yield dressed(_event(body, {"refusal" if behaviour.refusal else "content": text}))
        written += 1
    if behaviour.stops_after is not None:
        if behaviour.badjson is not None:
            yield b'data: {"choices": [{"delta": {"content": "ha\n\n'
        if behaviour.midstream:
            error = {"message": "It went wrong in the middle.", "type": "error", "code": behaviour.midstream}
            yield b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
        return
    yield dressed(_event(body, {}, finish_reason))
    if (body.get("stream_options") or {}).get("include_usage") and not behaviour.nousage:
        yield dressed(_event(body, None, usage=_usage(body, behaviour, written)))
    if not behaviour.nodone:
        yield dressed(b"data: [DONE]\n\n")


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A server that speaks OpenAI's wire format and fails on request.")
    parser.add_argument("--port", type=int, default=9000)
    with Upstream(port=parser.parse_args().port) as upstream, contextlib.suppress(KeyboardInterrupt):
        print(upstream.url, flush=True)  # noqa: T201 - whoever started it waits for this line
        threading.Event().wait()


if __name__ == "__main__":
    main()
