"""OpenAI's streamed chat completions, from bytes to pieces of text.

The SDK's own chunk objects cost 160 µs each, two thirds of the whole path of a token; this costs about two. What
servers that only resemble OpenAI's send is read as far as it makes sense: see `ChatParser`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from chats.llm.errors import UPSTREAM_REJECTED, UPSTREAM_UNAVAILABLE, UpstreamError, classify, rejected

# The longest event, or unstreamed answer, that is kept in memory to be parsed.
MAX_EVENT_BYTES = 64 * 1024 * 1024
# No reply has that many; a counter that says so would spoil the accounts.
MAX_TOKENS = 1_000_000_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Usage(NamedTuple):
    """Tokens as the provider counted them."""

    prompt_tokens: int
    completion_tokens: int


class Piece(NamedTuple):
    """What one read of the upstream brought: text to append, and near the end a reason and the usage."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None  # in an unstreamed answer
    finish_reason: str | None = None
    index: int = 0


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def read_usage(value: Any) -> Usage | None:
    """Return the usage that `value` states, or None where it makes no sense."""
    if not isinstance(value, dict):
        return None
    counts = [value.get("prompt_tokens"), value.get("completion_tokens")]
    sound = [count for count in counts if type(count) is int and 0 <= count <= MAX_TOKENS]
    return Usage(*sound) if len(sound) == 2 else None


def read_error(value: Any, *, secret: str = "") -> UpstreamError:
    """Return the failure that an upstream's `{"error": value}` in a 200 states."""
    if not isinstance(value, dict):
        value = {"message": value}
    message = value["message"] if isinstance(value.get("message"), str) else ""
    names = tuple(str(value[name]) for name in ("code", "type") if value.get(name))
    code = classify(None, names=names, message=message)
    return rejected(message, secret=secret) if code == UPSTREAM_REJECTED else UpstreamError(code)


def broke_off() -> UpstreamError:
    """Return the failure of a stream that ended before the reply did."""
    return UpstreamError(UPSTREAM_UNAVAILABLE, "The model's provider broke off in mid-reply.")


def unreadable() -> UpstreamError:
    """Return the failure of a stream that is not what was agreed on."""
    return UpstreamError(UPSTREAM_UNAVAILABLE, "The model's provider sent something unreadable.")


class EventSplitter:
    """Cuts a stream of server-sent events into their data, however its bytes arrive.

    Lines end with LF, CRLF or CR; an event's data lines are joined; everything but data is ignored.
    """

    __slots__ = ("_after_cr", "_data", "_held", "_rest")

    def __init__(self) -> None:
        self._rest: list[bytes] = []  # an unfinished line, in parts: joined once, or a long line costs its square
        self._data: list[bytes] = []  # an unfinished event
        self._held = 0
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of each event that `chunk` completes. Raises ValueError past MAX_EVENT_BYTES."""
        # Nearly every read is whole events of one line: at half the price.
        if chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and not (self._rest or self._data or self._after_cr):
            whole = chunk[6:-2].split(b"\n\ndata: ")
            if chunk.count(b"\n") == 2 * len(whole) and b"\r" not in chunk:
                return whole
        if self._after_cr or b"\r" in chunk:  # JSON escapes it, so it ends a line
            after_cr, self._after_cr = self._after_cr, chunk[-1:] == b"\r"
            if after_cr and chunk[:1] == b"\n":
                chunk = chunk[1:]
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._held += len(chunk)
        if self._held > MAX_EVENT_BYTES:
            raise ValueError("an event without an end")
        if b"\n" not in chunk:
            self._rest.append(chunk)
            return []
        if self._rest:
            self._rest.append(chunk)
            chunk = b"".join(self._rest)
            self._rest.clear()
        *lines, rest = chunk.split(b"\n")
        if rest:
            self._rest.append(rest)
        events = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and data:
                events.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
            elif line.startswith(BYTE_ORDER_MARK + b"data:"):
                data.append(line[8:].lstrip(b" "))
        if not data:
            self._held = len(rest)
        return events

    def finish(self) -> list[bytes]:
        """Return the last event where the stream ended without the blank line that closes it."""
        return self.feed(b"\n\n")


class ChatParser:
    """Reads one answer to a streamed request.

    `begun`: something came. `done`: the upstream said that nothing follows. `finished`: the reply is whole, whatever
    becomes of the connection. `error`: it failed; what came before is in the pieces returned until then. `secret` is
    masked in what it quotes.

    An answer that is one JSON object (some servers ignore `stream`) is read as one piece. Only the first choice is
    read; a refusal is text.
    """

    __slots__ = ("_events", "_secret", "_whole", "begun", "done", "error", "finished")

    def __init__(self, *, secret: str = "") -> None:
        self._secret = secret
        self._events = EventSplitter()
        self._whole: bytearray | None = None
        self.begun = False
        self.done = False
        self.finished = False
        self.error: UpstreamError | None = None

    def feed(self, chunk: bytes) -> Piece | None:
        """Return what `chunk` adds, all of its deltas in one, or None where it adds nothing."""
        if not self.begun:
            chunk = chunk.lstrip()
            if not chunk:
                return None
            self.begun = True
            if chunk.startswith(b"{"):
                self._whole = bytearray()
        if self._whole is not None:
            self._whole += chunk
            if len(self._whole) > MAX_EVENT_BYTES:
                self.error = unreadable()
            return None
        try:
            events = self._events.feed(chunk)
        except ValueError:
            self.error = unreadable()
            return None
        return self._read(events, if_garbled=unreadable)

    def finish(self) -> Piece | None:
        """Return what the end of the stream completes. Sets `error` where the reply is not whole."""
        if self._whole is not None:
            piece = self._read([bytes(self._whole)], if_garbled=broke_off)
            if piece is None and self.error is None:
                self.error = unreadable()
            self.finished = self.error is None
            return piece
        # Half an event at the end is the trace of a break, not garbage.
        piece = self._read(self._events.finish(), if_garbled=broke_off)
        if self.done or self.finished:
            self.error = None
        elif self.error is None:
            self.error = broke_off()
        return piece

    def _read(self, events: list[bytes], *, if_garbled: Callable[[], UpstreamError]) -> Piece | None:
        text: list[str] = []
        reasoning: list[str] = []
        finish_reason = usage = None
        for data in events:
            if data.startswith(b"[DONE]"):
                self.done = True
                break
            try:
                chunk = _decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self.error = if_garbled()
                break
            if chunk.error:
                self.error = read_error(chunk.error, secret=self._secret)
                break
            if chunk.usage:
                usage = read_usage(chunk.usage) or usage
            for choice in chunk.choices or ():
                if choice.index:
                    continue
                delta = choice.delta or choice.message
                if delta is not None:
                    if delta.content:
                        text.append(delta.content)
                    if delta.refusal:
                        text.append(delta.refusal)
                    if thought := delta.reasoning_content or delta.reasoning:
                        reasoning.append(thought)
                if choice.finish_reason:
                    finish_reason = choice.finish_reason
                    self.finished = True
        if text or reasoning or finish_reason or usage:
            return Piece("".join(text), "".join(reasoning), finish_reason, usage)
        return None
