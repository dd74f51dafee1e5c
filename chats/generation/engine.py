"""The process's generations: each a task of the process, not of the connection that asked for it.

`run` reads the model and lets the live reply grow; `keeper` saves what there is once a second and renews the leases,
and ends what dead processes left; `finish` writes the end. Between a run and its row stands one compare-and-set: who
loses it writes nothing and tells the readers what the row says.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError
from rest_framework import status
from rest_framework.exceptions import NotFound

from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError
from chats import feed
from chats.generation import store
from chats.generation.live import LiveReply
from chats.generation.store import INTERRUPTED, Asked, Ending, Started
from chats.llm import client
from chats.llm.errors import UpstreamError
from chats.llm.tokens import count_tokens
from chats.models import Message
from chats.rendering import message_dict, sibling_ids

log = structlog.get_logger(__name__)
T = TypeVar("T")
LONGEST_PAUSE = 5.0
UNENDED_PAUSE = 60.0
# What Django raises when a database is away or busy, whatever the statement.
OUTAGE = (OperationalError, InterfaceError)


class ShuttingDown(ClientError):
    """503: this process is going away; another, or its successor, will take the request."""

    def __init__(self) -> None:
        super().__init__(
            "shutting_down", "The server is restarting. Try again shortly.",
            status_code=status.HTTP_503_SERVICE_UNAVAILABLE, retry_after=2,
        )  # fmt: skip


class Engine:
    """All that one process generates. Lives on one event loop."""

    def __init__(self) -> None:
        self.lease_owner = ""
        self.draining = False
        self.replies: dict[int, LiveReply] = {}
        self._rows: dict[int, Started] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Past its grace a stopping process reads no upstream any more, whatever was on its way here.
        self._interrupting = False
        # Abandoned replies whose rows do not let themselves be ended, and when to try again.
        self._unended: dict[int, float] = {}

    async def start(self) -> None:
        """Start the keeper on the running loop, unless it runs there already."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._keeper is not None and not self._keeper.done():
            return
        if self._loop is not loop:
            self._loop = loop
            # A name of its own for each process: a restarted one is not the one that died.
            self.lease_owner = f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(6)}"
        self._interrupting = False
        self._keeper = loop.create_task(self._keep(), name="keeper")
        # The tokenizer's tables take a second to load: now, and not in the first request.
        self._spawn(db.run(count_tokens, "."))

    async def send(self, asked: Asked) -> tuple[Started, LiveReply | None]:
        """Store a message and set its reply going. Goes on to its end even when the caller is cancelled."""
        if self.draining:
            raise ShuttingDown
        await self.start()
        return await asyncio.shield(self._spawn(self._send(asked)))

    async def _send(self, asked: Asked) -> tuple[Started, LiveReply | None]:
        started = await db.run(store.start, asked, lease_owner=self.lease_owner)
        live = self._adopt(started) if started.reply else None
        for event in started.events:
            feed.publish(event)
        return started, live

    def _adopt(self, started: Started) -> LiveReply:
        reply = started.reply
        assert reply is not None
        live = LiveReply(reply.pk, reply.conversation_id, reply.owner_id)
        self.replies[reply.pk] = live
        self._rows[reply.pk] = started
        self._spawn(self._run(live, started))
        return live

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # The loop itself holds tasks weakly.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at, whether or not the caller is still there to hear: asyncio would complain of it otherwise.
            task.exception()

    async def _run(self, live: LiveReply, started: Started) -> None:
        """Read the model to its end, then write the reply's."""
        reading = asyncio.get_running_loop().create_task(self._read(live, started))
        live.task = reading
        if live.stopping or live.lost or self._interrupting:
            reading.cancel()
        await asyncio.wait({reading})
        live.task = None
        try:
            if live.lost:
                await self._hear_the_end(live, started)
            else:
                await self._finish(live, started, self._ending(live, reading))
        except Exception as error:
            # A defect of ours must not leave the readers waiting for ever.
            log.error("finish_crashed", message_id=live.message_id, exc_info=error)
            # Its lease is renewed no more, so that the keeper ends it.
            self._forget(live)
            await self._hear_the_end(live, started)
        finally:
            self._forget(live)

    def _forget(self, live: LiveReply) -> None:
        self.replies.pop(live.message_id, None)
        self._rows.pop(live.message_id, None)

    async def _read(self, live: LiveReply, started: Started) -> Ending:
        assert started.prompt is not None and started.target is not None
        finish_reason, usage = "", None
        pieces = client.stream_chat(
            started.target,
            started.prompt.messages,
            max_tokens=started.prompt.completion_tokens,
            options=started.options,
        )
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if piece.text or piece.reasoning:
                        live.append(piece.text, piece.reasoning)
                    finish_reason = piece.finish_reason or finish_reason
                    if piece.usage is not None:
                        usage = (piece.usage.prompt_tokens, piece.usage.completion_tokens)
        except UpstreamError as error:
            log.warning("upstream_failed", code=error.code, message_id=live.message_id)
            return Ending(Message.Status.FAILED, error_code=error.code, error_detail=error.detail, usage=usage)
        return Ending(Message.Status.COMPLETED, finish_reason or "stop", usage=usage)

    def _ending(self, live: LiveReply, reading: asyncio.Task[Ending]) -> Ending:
        if reading.cancelled():
            # `stop` and `drain` cancel the reading alone.
            return Ending(Message.Status.STOPPED) if live.stopping else INTERRUPTED
        error = reading.exception()
        if error is None:
            return reading.result()
        # Not an upstream's failure but a defect of ours: it must still give the reply an end and free its hold.
        log.error("generation_crashed", message_id=live.message_id, exc_info=error)
        return Ending(
            Message.Status.FAILED,
            error_code="internal_error",
            error_detail="The server failed while writing this reply.",
        )

    async def _finish(self, live: LiveReply, started: Started, ending: Ending) -> None:
        reply, hold = started.reply, started.hold
        assert reply is not None and hold is not None
        # Nothing is appended any more, so the buffers themselves can go to the thread.
        event = await self._until_the_database_answers(
            lambda: store.finish(reply, ending, text=live.text, reasoning=live.reasoning, hold=hold)
        )
        if event is None:
            await self._hear_the_end(live, started)
        else:
            live.end(reply, is_whole=True)
            feed.publish(replace(event, data=lambda: ending_data(live)))

    async def _hear_the_end(self, live: LiveReply, started: Started) -> None:
        """Tell the readers of a reply that somebody else ended what the row says."""
        log.warning("reply_lost", message_id=live.message_id)
        while True:
            row = await self._until_the_database_answers(lambda: Message.objects.filter(id=live.message_id).first())
            if row is None:
                # Deleted meanwhile: there is no row to speak for it, so the readers hear that it stopped.
                assert started.reply is not None
                started.reply.status = Message.Status.STOPPED
                live.end(started.reply, is_whole=True)
                return
            if row.status != Message.Status.STREAMING:
                live.end(row, is_whole=False)
                return
            await asyncio.sleep(settings.KEEPER_SECONDS)

    async def _until_the_database_answers(self, work: Callable[[], T]) -> T:
        """Do `work` in the pool, again and again while the database is away: the text lives on here meanwhile."""
        pause = 0.1
        while True:
            try:
                return await db.run(work)
            except OUTAGE:
                log.warning("database_unavailable", retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 2)

    # --- The keeper ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Save and renew once a second; after an outage wait one lease before ending anybody's replies.

        Nothing ends it but cancelling: every reply of the process hangs on it.
        """
        patient_until = 0.0
        while True:
            started = time.monotonic()
            try:
                await self._save()
                if started >= patient_until:
                    await self._reap()
            except OUTAGE as error:
                log.warning("keeper_failed", error=type(error).__name__)
                patient_until = time.monotonic() + settings.LEASE_SECONDS
            except Exception as error:
                # A defect that one row meets must not stop it for all the others.
                log.error("keeper_crashed", exc_info=error)
            await asyncio.sleep(max(0.0, settings.KEEPER_SECONDS - (time.monotonic() - started)))

    async def _save(self) -> None:
        held: dict[int, Any] = {}
        texts: dict[int, tuple[int, bytes, bytes]] = {}
        lengths = {}
        for message_id, live in self.replies.items():
            hold = self._rows[message_id].hold
            if hold is None or live.lost:
                continue
            held[message_id] = hold.pk
            if live.length != live.saved:
                texts[message_id] = (live.owner_id, bytes(live.text), bytes(live.reasoning))
                lengths[message_id] = live.length
        if not held:
            return
        mine = await db.run_reserved(store.save_progress, self.lease_owner, texts, held)
        for message_id in held:
            live_now = self.replies.get(message_id)
            if live_now is None:
                continue
            if message_id in mine:
                live_now.saved = lengths.get(message_id, live_now.saved)
            elif live_now.task is not None:
                # Not where it is being finished just now: that decides by its own compare-and-set.
                live_now.lose()

    async def _reap(self) -> int:
        now = time.monotonic()
        self._unended = {message_id: again for message_id, again in self._unended.items() if again > now}
        rows = await db.run_reserved(store.abandoned, besides=[*self.replies, *self._unended])
        for row in rows:
            try:
                event = await db.run_reserved(store.finish, row, INTERRUPTED, text=None, reasoning=None)
            except OUTAGE:
                raise
            except Exception as error:
                # As in `_keep`.
                log.error("reply_not_ended", message_id=row.pk, exc_info=error)
                self._unended[row.pk] = now + UNENDED_PAUSE
                continue
            if event is not None:
                log.warning("reply_interrupted", message_id=row.pk)
                feed.publish(event)
        await db.run_reserved(store.release_orphaned_holds)
        return len(rows)

    # --- Ends ---------------------------------------------------------------------------------------------------

    async def stop(self, *, user_id: int, message_id: int) -> dict[str, Any]:
        """Stop a reply of the user's and return it as it then stands; a finished one is returned as it is.

        A reply of a process that is gone is ended here at once. Raises NotFound.
        """
        live = self.replies.get(message_id)
        if live is not None and live.owner_id == user_id:
            live.stop()
            await live.wait_ended()
            return live.rendered()
        return await db.run(_stop_row, user_id, message_id)

    async def stop_all(self, *, user_id: int, message_ids: list[int]) -> None:
        """Stop these replies of the user's and wait until they are settled: before they are deleted."""
        await asyncio.gather(*(self._stop_quietly(user_id, one) for one in message_ids))

    async def _stop_quietly(self, user_id: int, message_id: int) -> None:
        try:
            await self.stop(user_id=user_id, message_id=message_id)
        except NotFound:
            return  # somebody else deleted it first

    async def drain(self, grace: float) -> None:
        """Take no more work, let what runs finish for `grace` seconds, then interrupt it, its text kept."""
        self.draining = True
        await self._wait_for_tasks(grace)
        self._interrupting = True
        for live in list(self.replies.values()):
            live.interrupt()
        await self._wait_for_tasks(LONGEST_PAUSE)
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None
        await client.close()

    async def _wait_for_tasks(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        # Again and again: a message that was being stored sets its reply going while it is waited for.
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(set(self._tasks), timeout=left)


def _stop_row(user_id: int, message_id: int) -> dict[str, Any]:
    mine = Message.objects.filter(id=message_id, owner_id=user_id)
    row = mine.first()
    if row is not None and row.status == Message.Status.STREAMING:
        event = store.finish(row, Ending(Message.Status.STOPPED), text=None, reasoning=None)
        if event is None:  # somebody else ended it just now
            row = mine.first()
        else:
            feed.publish(event)
    if row is None:
        raise NotFound
    return message_dict(row, sibling_ids([row])[row.pk])


def ending_data(reply: LiveReply) -> dict[str, Any]:
    """Return what the event of a reply's end says beside its type."""
    message = reply.rendered()
    data = {"conversation_id": reply.conversation_id, "message_id": reply.message_id, "message": message}
    if message["status"] == Message.Status.FAILED:
        data["error"] = message["error"]
    return data


engine = Engine()
