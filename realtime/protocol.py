"""The frames that clients send."""

from typing import Annotated, Any

import msgspec

# They are repeated in every delta that the frame causes, and kept while a client does not read.
Echoed = Annotated[str, msgspec.Meta(max_length=255)]


class Frame(msgspec.Struct, tag_field="type", forbid_unknown_fields=False):
    """What every frame has: an id of the client's own, echoed as `request_id` in what the frame causes."""

    id: Echoed | None = None


class ChatMessage(Frame, tag="chat_message"):
    """Say something and get the reply streamed. Its fields are checked as those of the REST request are."""

    conversation_id: Any = msgspec.UNSET
    content: Any = msgspec.UNSET
    model: Any = msgspec.UNSET
    parent_id: Any = msgspec.UNSET
    attachments: Any = msgspec.UNSET
    temperature: Any = msgspec.UNSET
    top_p: Any = msgspec.UNSET
    max_tokens: Any = msgspec.UNSET
    stop: Any = msgspec.UNSET
    seed: Any = msgspec.UNSET
    reasoning_effort: Any = msgspec.UNSET

    def fields(self) -> dict[str, Any]:
        """Return what was given, as the REST request names it."""
        given = {name: getattr(self, name) for name in self.__struct_fields__ if name != "id"}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}


class Stop(Frame, tag="stop", kw_only=True):
    """Stop a reply."""

    message_id: int


class Subscribe(Frame, tag="subscribe", kw_only=True):
    """Get a reply's deltas, from a cursor on."""

    message_id: int
    cursor: str | None = None


class Unsubscribe(Frame, tag="unsubscribe", kw_only=True):
    """Get a reply's deltas no longer."""

    message_id: int


class Authenticate(Frame, tag="authenticate", kw_only=True):
    """Go on with a fresh access token of the same user."""

    token: str


class Ping(Frame, tag="ping"):
    """Ask for a pong."""

    ts: int | float | Echoed | None = None


ClientFrame = ChatMessage | Stop | Subscribe | Unsubscribe | Authenticate | Ping
TYPES = {kind.__struct_config__.tag for kind in (ChatMessage, Stop, Subscribe, Unsubscribe, Authenticate, Ping)}
_decoder = msgspec.json.Decoder(ClientFrame)
# Half a surrogate pair cannot be encoded; brackets nested by the thousand exhaust the stack.
UNREADABLE = (msgspec.DecodeError, UnicodeEncodeError, RecursionError)


class BadFrame(Exception):
    """A frame that cannot be understood. `request_id` where at least that could be read."""

    def __init__(self, code: str, detail: str, request_id: str | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.request_id = code, detail, request_id


def read_frame(text: str) -> ClientFrame:
    """Return the frame in `text`. Raises BadFrame."""
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise _explained(text, str(error)) from error
    except UNREADABLE as error:
        raise _no_json() from error


def _no_json() -> BadFrame:
    return BadFrame("invalid_json", "The frame is not JSON that can be read.")


def _explained(text: str, reason: str) -> BadFrame:
    try:
        frame = msgspec.json.decode(text)
    except UNREADABLE:
        # The typed decoder stops at the first wrong type; what comes after that may be anything.
        return _no_json()
    if not isinstance(frame, dict):
        return BadFrame("invalid_frame", "Give an object with a type.")
    request_id = frame.get("id")
    if not isinstance(request_id, str) or len(request_id) > 255:
        request_id = None
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        return BadFrame("unknown_type", f"Give a type out of {', '.join(sorted(map(str, TYPES)))}.", request_id)
    return BadFrame("invalid_frame", reason, request_id)
