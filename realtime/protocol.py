"""The frames that clients send."""

from typing import Any

import msgspec


class Frame(msgspec.Struct, tag_field="type", forbid_unknown_fields=False):
    """What every frame has: an id of the client's own, echoed as `request_id` in what the frame causes."""

    id: str | None = None


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

    ts: Any = None


ClientFrame = ChatMessage | Stop | Subscribe | Unsubscribe | Authenticate | Ping
TYPES = {kind.__struct_config__.tag for kind in (ChatMessage, Stop, Subscribe, Unsubscribe, Authenticate, Ping)}
_decoder = msgspec.json.Decoder(ClientFrame)


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
        return _explain(text, str(error))
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise BadFrame("invalid_json", "The frame is not JSON that can be read.") from error


def _explain(text: str, reason: str) -> ClientFrame:
    frame = msgspec.json.decode(text)  # the types were wrong, not the JSON
    if not isinstance(frame, dict):
        raise BadFrame("invalid_frame", "Give an object with a type.")
    request_id = frame["id"] if isinstance(frame.get("id"), str) else None
    kind = frame.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise BadFrame("unknown_type", f"Give a type out of {', '.join(sorted(map(str, TYPES)))}.", request_id)
    raise BadFrame("invalid_frame", reason, request_id)
