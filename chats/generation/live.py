"""A reply while it grows: two UTF-8 buffers that are only ever appended to, and readers with cursors.

A cursor says how many bytes of text and of reasoning its holder has. A reader takes what lies beyond it whenever it
gets round to it, so a slow reader gets fewer and longer deltas, never a gap, and costs nothing but its cursor; replay
is the same code as live. Everything here runs on the event loop; no locks.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.conf import settings

from chatgpt_backend.lib.errors import ClientError
from chats.models import Message
from chats.rendering import message_dict

CURSOR = re.compile(r"([0-9]{1,12})-([0-9]{1,12})")


class InvalidCursor(ClientError):
    """400: a cursor that this server did not hand out."""

    def __init__(self) -> None:
        super().__init__("invalid_cursor", "The cursor is not one that this server hands out.")


class Cursor(NamedTuple):
    """A place in a reply: bytes of text and of reasoning already had."""

    text: int = 0
    reasoning: int = 0

    def __str__(self) -> str:
        return f"{self.text}-{self.reasoning}"


START = Cursor()


def parse_cursor(value: str | None) -> Cursor:
    """Return the place that a client names; none is the start. Raises InvalidCursor."""
    if not value:
        return START
    match = CURSOR.fullmatch(value)
    if match is None:
        raise InvalidCursor
    return Cursor(int(match[1]), int(match[2]))


class Delta(NamedTuple):
    """What came after a cursor, and the cursor after it."""

    text: str
    reasoning: str
    cursor: Cursor


def _slice(buffer: bytes | bytearray, start: int, most: int) -> bytes:
    """Return at most `most` bytes from `start`, cut between characters."""
    end = min(len(buffer), start + most)
    # A continuation byte (10xxxxxx) at the cut belongs to the character before it.
    while start < end < len(buffer) and buffer[end] & 0xC0 == 0x80:
        end -= 1
    return bytes(buffer[start:end])


def delta_after(text: bytes | bytearray, reasoning: bytes | bytearray, cursor: Cursor) -> Delta | None:
    """Return the next delta beyond `cursor`, at most MAX_DELTA_BYTES, or None where nothing lies beyond it.

    A cursor beyond the end is taken as the end: a reply that was cut short by a crash may be shorter than what its
    reader has seen. Raises InvalidCursor for one inside a character.
    """
    for buffer, place in ((text, cursor.text), (reasoning, cursor.reasoning)):
        if place < len(buffer) and buffer[place] & 0xC0 == 0x80:
            raise InvalidCursor
    new_reasoning = _slice(reasoning, cursor.reasoning, settings.MAX_DELTA_BYTES)
    new_text = _slice(text, cursor.text, settings.MAX_DELTA_BYTES - len(new_reasoning))
    if not new_text and not new_reasoning:
        return None
    after = Cursor(cursor.text + len(new_text), cursor.reasoning + len(new_reasoning))
    return Delta(new_text.decode(), new_reasoning.decode(), after)


@dataclass(eq=False)
class LiveReply:
    """A reply that this process owns.

    `ended` holds the row's final state once the row has it, whoever wrote it; without its text where the buffers have
    that, so that a reader that dawdles costs the text once.
    """

    message_id: int
    conversation_id: int
    owner_id: int
    text: bytearray = field(default_factory=bytearray)
    reasoning: bytearray = field(default_factory=bytearray)
    ended: Message | None = None
    is_whole: bool = False
    stopping: bool = False
    lost: bool = False
    saved: Cursor = START
    task: asyncio.Task[Any] | None = None
    _watchers: set[Callable[[], None]] = field(default_factory=set)

    @property
    def length(self) -> Cursor:
        """Return the place at the end of what there is."""
        return Cursor(len(self.text), len(self.reasoning))

    def append(self, text: str, reasoning: str = "") -> None:
        """Let the reply grow, and wake its readers."""
        self.text += text.encode("utf-8", "replace")
        self.reasoning += reasoning.encode("utf-8", "replace")
        self._wake()

    def end(self, message: Message, *, is_whole: bool) -> None:
        """Tell the readers how the row says that it ended. `is_whole`: the buffers hold the row's text."""
        if is_whole:
            Message.content.forget(message)
            Message.reasoning.forget(message)
        self.ended, self.is_whole = message, is_whole
        self._wake()

    def rendered(self) -> dict[str, Any]:
        """Return the ended reply as clients see it."""
        assert self.ended is not None
        message = message_dict(self.ended)
        if self.is_whole:
            message["content"] = self.text.decode()
            message["reasoning"] = self.reasoning.decode() or None
        return message

    def stop(self) -> None:
        """Ask the run to close its upstream request and finish with what there is. Repeating it is harmless."""
        self.stopping = True
        self.interrupt()

    def lose(self) -> None:
        """Tell the run that the row is no longer its own: close the upstream request and write nothing."""
        self.lost = True
        self.interrupt()

    def interrupt(self) -> None:
        """Let the run read no further."""
        # Once: a second time would cut off the closing of the upstream's connection.
        if self.task is not None and not self.task.cancelling():
            self.task.cancel()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever the reply grows or ends; return what ends that."""
        self._watchers.add(callback)
        return lambda: self._watchers.discard(callback)

    def _wake(self) -> None:
        for callback in list(self._watchers):
            callback()

    async def wait_beyond(self, cursor: Cursor, *, timeout: float | None = None) -> bool:
        """Wait until there is more than `cursor` or the end; return False where `timeout` seconds passed first."""
        changed = asyncio.Event()
        forget = self.watch(changed.set)
        try:
            async with asyncio.timeout(timeout):
                while self.ended is None and self.length == cursor:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return False
        finally:
            forget()
        return True

    async def wait_ended(self) -> Message:
        """Wait for the end and return the final row."""
        while self.ended is None:
            await self.wait_beyond(self.length)
        return self.ended
