"""What one socket still has to send: acknowledgements, the user's events in order, and the deltas it asked for.

One task sends, and waits for the transport each time. What grows while it waits is the replies' own text and this
socket's cursors in it, so a slow reader gets fewer and longer deltas and costs no queue.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import InterfaceError, OperationalError

from chatgpt_backend.lib import db
from chats import feed
from chats.generation.engine import ending_data
from chats.generation.live import Cursor, LiveReply, delta_after
from chats.generation.reading import RowReply

log = structlog.get_logger(__name__)
# Events kept ready for a reader that does not keep up; beyond, they are read again from their rows when it does.
MOST_PENDING = 50
# Answers that a client lets pile up before its socket is closed.
MOST_UNREAD = 1000
RETRY_SECONDS = 1.0


@dataclass
class Subscription:
    """A reply that the socket follows. `after`: the number of the event that must be sent before its deltas."""

    reply: LiveReply
    cursor: Cursor
    request_id: str | None
    after: int
    was_ended: bool
    forget: Callable[[], None]
    poller: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Follow it no longer."""
        self.forget()
        if self.poller is not None:
            self.poller.cancel()


class Outbox:
    """The order of one socket's frames. `send` takes a dict and returns when the transport has room again."""

    def __init__(self, user_id: int, connection_id: str, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self.user_id = user_id
        self.connection_id = connection_id
        self._send = send
        self._direct: deque[dict[str, Any]] = deque()
        self._pending: deque[feed.Event] = deque()
        self._subscriptions: dict[int, Subscription] = {}
        self._wake = asyncio.Event()
        self._seen = 0
        self._sent = 0
        self._behind = False
        self._retrying = False
        self._forget: Callable[[], None] | None = None

    async def open(self) -> int:
        """Start listening to the user's feed; return the number of its last event so far."""
        self._forget = feed.listen(self.user_id, self._hear)
        number = await db.run(feed.last_number, self.user_id)
        # What was heard while the number was read is in it, or follows it.
        self._behind = bool(self._pending) or self._behind
        self._pending.clear()
        self._seen = self._sent = number
        return number

    def close(self) -> None:
        """Stop listening and following."""
        if self._forget is not None:
            self._forget()
        for subscription in self._subscriptions.values():
            subscription.close()
        self._subscriptions.clear()

    def put(self, frame: dict[str, Any]) -> bool:
        """Send an acknowledgement or an error as soon as may be; False where the client asks but does not read."""
        if len(self._direct) >= MOST_UNREAD:
            return False
        self._direct.append(frame)
        self._wake.set()
        return True

    def follow(self, reply: LiveReply, cursor: Cursor, *, request_id: str | None, after: int = 0) -> None:
        """Send the deltas of `reply` beyond `cursor`, and its end."""
        self.unfollow(reply.message_id)
        cursor = Cursor(min(cursor.text, len(reply.text)), min(cursor.reasoning, len(reply.reasoning)))
        subscription = Subscription(
            reply, cursor, request_id, after, reply.ended is not None, reply.watch(self._wake.set)
        )
        if isinstance(reply, RowReply) and reply.ended is None:
            subscription.poller = asyncio.get_running_loop().create_task(_poll(reply))
        self._subscriptions[reply.message_id] = subscription
        self._wake.set()

    def unfollow(self, message_id: int) -> None:
        """Send the deltas of a reply no longer."""
        subscription = self._subscriptions.pop(message_id, None)
        if subscription is not None:
            subscription.close()
            self._wake.set()

    def _hear(self, event: feed.Event) -> None:
        """Take an event that was published here: at once if it is the next, else its number shows a gap."""
        if event.number == self._seen + 1 and event.data is not None and len(self._pending) < MOST_PENDING:
            self._pending.append(event)
            self._seen = event.number
        elif event.number > self._seen:
            self._behind = True
        self._wake.set()

    async def run(self) -> None:
        """Send for ever; ended by cancelling it."""
        while True:
            self._wake.clear()
            while self._direct:
                await self._send(self._direct.popleft())
            await self._send_events()
            busy = await self._send_deltas()
            if not busy and not self._direct and not (self._behind and not self._pending and not self._retrying):
                await self._wake.wait()

    async def _send_events(self) -> None:
        if self._behind and not self._pending and not self._retrying:
            await self._catch_up()
        while self._pending and self._pending[0].ends not in self._subscriptions:
            event = self._pending.popleft()
            frame = {"type": event.type, **event.rendered(), "feed": event.number}
            if event.origin is not None and event.origin[0] == self.connection_id and event.origin[1] is not None:
                frame["request_id"] = event.origin[1]
            await self._send(frame)
            self._sent = event.number

    async def _catch_up(self) -> None:
        self._behind = False
        try:
            missed = await db.run(feed.read, self.user_id, since=self._seen, limit=MOST_PENDING)
        except (OperationalError, InterfaceError):
            # The deltas go on meanwhile: they come from memory.
            self._behind = self._retrying = True
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._retry)
            return
        for event in missed:
            if event.number > self._seen:
                self._pending.append(event)
                self._seen = event.number
        if len(missed) == MOST_PENDING:
            self._behind = True

    def _retry(self) -> None:
        self._retrying = False
        self._wake.set()

    async def _send_deltas(self) -> bool:
        """Send each followed reply's next delta; return whether anything was done."""
        busy = False
        for message_id, subscription in list(self._subscriptions.items()):
            reply = subscription.reply
            if subscription.after > self._sent:
                continue
            delta = delta_after(reply.text, reply.reasoning, subscription.cursor)
            echo = {} if subscription.request_id is None else {"request_id": subscription.request_id}
            if delta is not None:
                subscription.cursor = delta.cursor
                frame = {
                    "type": "message.delta",
                    "conversation_id": reply.conversation_id,
                    "message_id": message_id,
                    "delta": delta.text,
                    "cursor": str(delta.cursor),
                    **({"reasoning": delta.reasoning} if delta.reasoning else {}),
                    **echo,
                }
                await self._send(frame)
                busy = True
            elif reply.ended is not None:
                self.unfollow(message_id)
                if subscription.was_ended:
                    # It had ended before it was asked for: its event is history, so this carries no number.
                    await self._send({"type": f"message.{reply.ended.status}", **ending_data(reply), **echo})
                elif isinstance(reply, RowReply):
                    self._behind = True  # its event was written elsewhere
                busy = True
        return busy


async def _poll(reply: RowReply) -> None:
    """Keep a reply of another process up to its row; its watchers hear of each change."""
    while reply.ended is None:
        try:
            await reply.wait_beyond(reply.length)
        except (OperationalError, InterfaceError):
            await asyncio.sleep(RETRY_SECONDS)
