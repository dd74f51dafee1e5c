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
# Each holds a reply's text where that is not live.
MOST_SUBSCRIPTIONS = 100
RETRY_SECONDS = 1.0
# How long an event that another thread committed earlier may come later, before its row is read.
REORDER_SECONDS = 0.1


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

    @property
    def ended_elsewhere(self) -> bool:
        """Say whether the event of its end, though committed, need not have been published here."""
        return not self.was_ended and (self.reply.lost or isinstance(self.reply, RowReply))


class Outbox:
    """The order of one socket's frames. `send` takes a dict and returns when the transport has room again."""

    def __init__(self, user_id: int, connection_id: str, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self.user_id = user_id
        self.connection_id = connection_id
        self._send = send
        self._direct: deque[dict[str, Any]] = deque()
        self._pending: deque[feed.Event] = deque()
        self._early: dict[int, feed.Event] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._wake = asyncio.Event()
        # The numbers of the last event that was taken into `_pending`, was sent, and is known to exist. Until the
        # feed is open none is next.
        self._seen = -1
        self._sent = 0
        self._known = 0
        self._paused = False
        # Request ids to echo: by the number of the event that one caused, and by the reply whose end is to carry it.
        self._echoes: dict[int, str] = {}
        self._end_echoes: dict[int, str] = {}
        self._forget: Callable[[], None] | None = None
        self._is_closed = False

    async def open(self) -> int:
        """Start listening to the user's feed; return the number of its last event so far."""
        self._forget = feed.listen(self.user_id, self._hear)
        number = await db.run(feed.last_number, self.user_id)
        # What was heard while the number was read is in it, or follows it.
        self._seen = self._sent = number
        self._take_early()
        return number

    def close(self) -> None:
        """Stop listening and following."""
        self._is_closed = True
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

    @property
    def is_full(self) -> bool:
        """Say whether the socket follows as many replies as it may."""
        return len(self._subscriptions) >= MOST_SUBSCRIPTIONS

    def follow(self, reply: LiveReply, cursor: Cursor, *, request_id: str | None, after: int = 0) -> None:
        """Send the deltas of `reply` beyond `cursor`, and its end."""
        if self._is_closed:
            return
        self.unfollow(reply.message_id)
        cursor = Cursor(min(cursor.text, len(reply.text)), min(cursor.reasoning, len(reply.reasoning)))
        subscription = Subscription(
            reply, cursor, request_id, after, reply.ended is not None, reply.watch(self._wake.set)
        )
        if isinstance(reply, RowReply) and reply.ended is None:
            subscription.poller = asyncio.get_running_loop().create_task(_poll(reply))
            subscription.poller.add_done_callback(lambda _: self._wake.set())
        self._subscriptions[reply.message_id] = subscription
        self._wake.set()

    def unfollow(self, message_id: int) -> None:
        """Send the deltas of a reply no longer."""
        subscription = self._subscriptions.pop(message_id, None)
        if subscription is not None:
            subscription.close()
            self._wake.set()

    def echo_end(self, message_id: int, request_id: str) -> None:
        """Send `request_id` along with the end of a reply that runs here."""
        self._end_echoes[message_id] = request_id

    async def run(self) -> None:
        """Send for ever; ended by cancelling it."""
        while True:
            self._wake.clear()
            while self._direct:
                await self._send(self._direct.popleft())
            await self._send_events()
            busy = await self._send_deltas()
            if not busy and not self._direct and not self._must_catch_up():
                await self._wake.wait()

    # --- Events -------------------------------------------------------------------------------------------------

    def _hear(self, event: feed.Event) -> None:
        """Take an event that was published here; what is missing before it is waited for, then read."""
        if event.number <= self._seen:
            return
        self._known = max(self._known, event.number)
        if event.origin is not None and event.origin[0] == self.connection_id and event.origin[1] is not None:
            self._echoes[event.number] = event.origin[1]
        if event.data is not None and len(self._pending) + len(self._early) < MOST_PENDING:
            self._early[event.number] = event
            self._take_early()
        if self._known > self._seen:
            self._pause(REORDER_SECONDS)
        self._wake.set()

    def _take_early(self) -> None:
        for number in [number for number in self._early if number <= self._seen]:
            del self._early[number]
        while (event := self._early.pop(self._seen + 1, None)) is not None:
            self._pending.append(event)
            self._seen = event.number

    def _must_catch_up(self) -> bool:
        return self._known > self._seen and not self._pending and not self._paused

    async def _send_events(self) -> None:
        if self._must_catch_up():
            await self._catch_up()
        while self._pending and not self._is_held(self._pending[0]):
            event = self._pending.popleft()
            frame = {"type": event.type, **event.rendered(), "feed": event.number}
            request_id = self._echoes.pop(event.number, None)
            if event.ends is not None:
                request_id = self._end_echoes.pop(event.ends, request_id)
            if request_id is not None:
                frame["request_id"] = request_id
            await self._send(frame)
            self._sent = event.number

    def _is_held(self, event: feed.Event) -> bool:
        """Say whether a reply's end has to wait for its deltas."""
        subscription = self._subscriptions.get(event.ends) if event.ends is not None else None
        return subscription is not None and subscription.after < event.number

    async def _catch_up(self) -> bool:
        """Read the events that were missed from their rows; return whether those were all."""
        known = self._known
        try:
            missed = await db.run(feed.read, self.user_id, since=self._seen, limit=MOST_PENDING)
        except (OperationalError, InterfaceError):
            # The deltas go on meanwhile: they come from memory.
            self._pause(RETRY_SECONDS)
            return False
        for event in missed:
            if event.number > self._seen:
                self._pending.append(self._early.pop(event.number, event))
                self._seen = event.number
        if len(missed) == MOST_PENDING:
            return False
        # An event is committed before it is heard of: one that was not read now has been deleted since.
        self._seen = max(self._seen, known)
        self._take_early()
        return True

    def _pause(self, seconds: float) -> None:
        """Read no rows for a while."""
        if not self._paused:
            self._paused = True
            asyncio.get_running_loop().call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = False
        self._wake.set()

    # --- Deltas -------------------------------------------------------------------------------------------------

    async def _send_deltas(self) -> bool:
        """Send each followed reply's next delta, or its end; return whether anything was done."""
        busy = False
        for subscription in list(self._subscriptions.values()):
            reply = subscription.reply
            if subscription.after > self._sent or self._subscriptions.get(reply.message_id) is not subscription:
                continue
            delta = delta_after(reply.text, reply.reasoning, subscription.cursor)
            if delta is not None:
                subscription.cursor = delta.cursor
                frame = {
                    "type": "message.delta",
                    "conversation_id": reply.conversation_id,
                    "message_id": reply.message_id,
                    "delta": delta.text,
                    "cursor": str(delta.cursor),
                }
                if delta.reasoning:
                    frame["reasoning"] = delta.reasoning
                if subscription.request_id is not None:
                    frame["request_id"] = subscription.request_id
                await self._send(frame)
                busy = True
            elif reply.ended is not None:
                busy |= await self._tell_end(subscription)
            elif subscription.poller is not None and subscription.poller.done():
                subscription.poller.result()  # it ends before its reply only by an error: let that be seen
        return busy

    async def _tell_end(self, subscription: Subscription) -> bool:
        """Let the event of a reply's end follow its last delta; return False where that has to wait."""
        reply = subscription.reply
        if subscription.ended_elsewhere and not self._is_pending(reply):
            if self._paused or len(self._pending) >= MOST_PENDING:
                return False
            if not await self._catch_up():
                return bool(self._pending)
            if self._subscriptions.get(reply.message_id) is not subscription:
                return True
        self.unfollow(reply.message_id)
        is_coming = not subscription.was_ended and not subscription.ended_elsewhere
        if is_coming or self._is_pending(reply):
            if subscription.request_id is not None:
                self._end_echoes[reply.message_id] = subscription.request_id
            return True
        # The event is history, so this carries no number.
        assert reply.ended is not None
        frame = {"type": f"message.{reply.ended.status}", **ending_data(reply)}
        if subscription.request_id is not None:
            frame["request_id"] = subscription.request_id
        await self._send(frame)
        return True

    def _is_pending(self, reply: LiveReply) -> bool:
        return any(event.ends == reply.message_id for event in self._pending)


async def _poll(reply: RowReply) -> None:
    """Keep a reply of another process up to its row; its watchers hear of each change."""
    while reply.ended is None:
        try:
            await reply.wait_beyond(reply.length)
        except (OperationalError, InterfaceError):
            await asyncio.sleep(RETRY_SECONDS)
