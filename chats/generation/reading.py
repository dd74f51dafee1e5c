"""Reading a reply from any cursor, running or done, here or elsewhere, by the same code."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from rest_framework.exceptions import NotFound

from chatgpt_backend.lib import db
from chats.generation.engine import ending_data, engine
from chats.generation.live import Cursor, LiveReply, delta_after
from chats.models import Message

# How often a reply that this process does not own is looked up: its owner saves it about once a second.
POLL_SECONDS = 0.5


async def open_reply(*, user_id: int, message_id: int) -> LiveReply:
    """Return the live reply that this process owns, or one that follows the row. Raises NotFound."""
    live = engine.replies.get(message_id)
    if live is not None and live.owner_id == user_id:
        return live
    row = await db.run(Message.objects.filter(id=message_id, owner_id=user_id).first)
    if row is None:
        raise NotFound
    followed = RowReply(row.pk, row.conversation_id, row.owner_id)
    followed.take(row)
    return followed


class RowReply(LiveReply):
    """A reply read from its row: finished, or owned by another process, whose saves it follows."""

    row: Message

    def take(self, row: Message) -> None:
        """Bring the text, and the end if there is one, up to the row."""
        self.row = row
        # Never shorter: a reader may be ahead of what a crash has left.
        text, reasoning = row.content.encode(), row.reasoning.encode()
        is_whole = len(text) >= len(self.text) and len(reasoning) >= len(self.reasoning)
        self.text += text[len(self.text) :]
        self.reasoning += reasoning[len(self.reasoning) :]
        if row.status != Message.Status.STREAMING:
            self.end(row, is_whole=is_whole)

    def _end_deleted(self) -> None:
        """End for the readers of a reply whose row was deleted: deleting stops it first."""
        self.row.status = Message.Status.STOPPED
        self.end(self.row, is_whole=True)

    async def wait_beyond(self, cursor: Cursor, *, timeout: float | None = None) -> bool:
        """Wait as a live reply does, by looking at the row."""
        try:
            async with asyncio.timeout(timeout):
                while self.ended is None and self.length == cursor:
                    await asyncio.sleep(POLL_SECONDS)
                    row = await db.run(Message.objects.filter(id=self.message_id, owner_id=self.owner_id).first)
                    if row is None:
                        self._end_deleted()
                    else:
                        self.take(row)
        except TimeoutError:
            return False
        return True


def check_cursor(reply: LiveReply, cursor: Cursor) -> None:
    """Raise InvalidCursor for a place that no reader of this reply was ever given."""
    delta_after(reply.text, reply.reasoning, cursor)


async def follow(
    reply: LiveReply, cursor: Cursor, *, keepalive: float | None = None
) -> AsyncIterator[tuple[dict[str, Any] | None, Cursor]]:
    """Yield each event after `cursor` with the cursor after it, until the reply's end.

    After `keepalive` seconds of silence the event is None. Raises InvalidCursor for a place inside a character.
    """
    cursor = Cursor(min(cursor.text, len(reply.text)), min(cursor.reasoning, len(reply.reasoning)))
    while True:
        delta = delta_after(reply.text, reply.reasoning, cursor)
        if delta is not None:
            cursor = delta.cursor
            event = {
                "type": "message.delta",
                "conversation_id": reply.conversation_id,
                "message_id": reply.message_id,
                "delta": delta.text,
                "cursor": str(cursor),
            }
            if delta.reasoning:
                event["reasoning"] = delta.reasoning
            yield event, cursor
        elif reply.ended is not None:
            yield {"type": f"message.{reply.ended.status}", **ending_data(reply)}, cursor
            return
        elif not await reply.wait_beyond(cursor, timeout=keepalive):
            yield None, cursor
