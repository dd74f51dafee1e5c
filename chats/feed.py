"""The per-user feed: every change to a user's data gets the next number, in the transaction that writes it.

The rows are the truth. `publish` tells this process's listeners after the commit; it may be lost or overtaken, and a
listener that sees a gap reads the rows. An event names ids; what they name is rendered when the event is read, as it
stands then.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import F

from chatgpt_backend.lib import db
from chats.models import Conversation, FeedCounter, FeedEvent, Message
from chats.rendering import conversation_dict, message_dict, sibling_ids

PAGE = 200


@dataclass(frozen=True)
class Event:
    """One event. `data` is what clients get beside `type` and `feed`, or what returns it; None: read the row.

    `origin` names the socket and its request that caused it, for the echo of the request's id.
    """

    user_id: int
    type: str
    number: int
    conversation_id: int | None = None
    message_id: int | None = None
    reply_id: int | None = None
    data: dict[str, Any] | Callable[[], dict[str, Any]] | None = field(default=None, compare=False)
    origin: tuple[str, str | None] | None = field(default=None, compare=False)

    def rendered(self) -> dict[str, Any]:
        """Return what clients get beside `type` and `feed`."""
        return self.data() if callable(self.data) else self.data or {}

    @property
    def ends(self) -> int | None:
        """Return the id of the reply that this event ends, if it does."""
        return self.message_id if self.type in ENDINGS else None


ENDINGS = {f"message.{status}" for status in ("completed", "stopped", "failed", "interrupted")}
Listener = Callable[[Event], None]
_listeners: dict[int, dict[object, tuple[asyncio.AbstractEventLoop, Listener]]] = {}


def append(
    user_id: int,
    type: str,
    *,
    now: datetime,
    conversation_id: int | None = None,
    message_id: int | None = None,
    reply_id: int | None = None,
) -> int:
    """Write one event with the user's next number, and return the number.

    Needs a transaction. Two statements; locks the user's feed counter, so it comes last in the order of locks.
    """
    bumped = db.update_returning(FeedCounter.objects.filter(user_id=user_id), "number", number=F("number") + 1)
    if not bumped:
        FeedCounter.objects.bulk_create([FeedCounter(user_id=user_id)], ignore_conflicts=True)
        bumped = db.update_returning(FeedCounter.objects.filter(user_id=user_id), "number", number=F("number") + 1)
    number: int = bumped[0][0]
    FeedEvent.objects.create(
        user_id=user_id, number=number, type=type, conversation_id=conversation_id, message_id=message_id,
        reply_id=reply_id, created_at=now,
    )  # fmt: skip
    return number


def last_number(user_id: int) -> int:
    """Return the number of a user's last event, 0 before the first."""
    return FeedCounter.objects.filter(user_id=user_id).values_list("number", flat=True).first() or 0


def read(user_id: int, *, since: int, limit: int = PAGE) -> list[Event]:
    """Return the rendered events after number `since`, in order. Up to four queries, however many events."""
    rows = list(FeedEvent.objects.filter(user_id=user_id, number__gt=since).order_by("number")[:limit])
    named = {one for row in rows for one in (row.message_id, row.reply_id) if one}
    messages = {message.pk: message for message in Message.objects.filter(owner_id=user_id, id__in=named)}
    talked = {row.conversation_id or 0 for row in rows if row.type.startswith("conversation.")}
    conversations = {one.pk: one for one in Conversation.objects.filter(owner_id=user_id, id__in=talked)}
    siblings = sibling_ids(list(messages.values()))

    def shown(message_id: int | None) -> dict[str, Any] | None:
        message = messages.get(message_id or 0)
        return message_dict(message, siblings.get(message.pk)) if message else None

    events = []
    for row in rows:
        data: dict[str, Any] = {"conversation_id": row.conversation_id}
        if row.type == "message.created":
            data |= {"message": shown(row.message_id), "reply": shown(row.reply_id)}
        elif row.type in ENDINGS:
            message = shown(row.message_id)
            data |= {"message_id": row.message_id, "message": message}
            if row.type == "message.failed":
                data["error"] = message and message["error"]
        elif row.type == "message.deleted":
            data["message_id"] = row.message_id
        elif row.conversation_id in conversations:
            data["conversation"] = conversation_dict(conversations[row.conversation_id])
        events.append(
            Event(user_id, row.type, row.number, row.conversation_id, row.message_id, row.reply_id, data=data)
        )
    return events


def listen(user_id: int, listener: Listener) -> Callable[[], None]:
    """Call `listener` on this event loop for each event of a user that this process publishes; return the ending."""
    key = object()
    _listeners.setdefault(user_id, {})[key] = (asyncio.get_running_loop(), listener)

    def forget() -> None:
        mine = _listeners.get(user_id, {})
        mine.pop(key, None)
        if not mine:
            _listeners.pop(user_id, None)

    return forget


def has_listeners(user_id: int) -> bool:
    """Say whether anybody here wants a user's events: else they need not be rendered."""
    return user_id in _listeners


def publish(event: Event) -> None:
    """Tell this process's listeners of a committed event. May be called from any thread."""
    for loop, listener in list(_listeners.get(event.user_id, {}).values()):
        loop.call_soon_threadsafe(listener, event)
