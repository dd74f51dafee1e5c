"""The WebSocket: a signed-in user's frames in, acknowledgements, events and deltas out.

Channels awaits each handler in turn, so handlers that wait for the database start a task and return. All sending is
the outbox's.
"""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http.request import validate_host
from django.utils import timezone
from drf_standardized_errors.formatter import flatten_errors
from rest_framework.exceptions import APIException

from accounts.tokens import AccountDisabled, InvalidToken, read_access_token
from chatgpt_backend.lib import db
from chats.api.messages import MessageInput, asked_of
from chats.generation.engine import engine
from chats.generation.live import START, parse_cursor
from chats.generation.reading import check_cursor, open_reply
from chats.rendering import time_string
from realtime.outbox import Outbox
from realtime.protocol import (
    Authenticate,
    BadFrame,
    ChatMessage,
    ClientFrame,
    Ping,
    Stop,
    Subscribe,
    Unsubscribe,
    read_frame,
)

log = structlog.get_logger(__name__)

UNREADABLE, NOT_AUTHENTICATED, DISABLED, TOO_MANY, GOING_AWAY = 4400, 4401, 4403, 4429, 4503
# 20 unreadable frames in 10 s, and 50 frames a second for 5 s, are more than any client of ours sends.
MOST_UNREADABLE, UNREADABLE_SECONDS = 20, 10.0
MOST_FRAMES, FRAMES_SECONDS = 250, 5.0
# Beyond this many characters a frame is encoded in a thread: a second of JSON would hold every other stream up.
LARGE = 1_000_000

_connections: Counter[int] = Counter()


def origin_is_allowed(origin: str) -> bool:
    """Say whether a browser's page from `origin` may connect: a host of ours, or one that CORS allows."""
    if origin in settings.CORS_ALLOWED_ORIGINS:
        return True
    host = urlsplit(origin).hostname
    return bool(host) and validate_host(f"[{host}]" if ":" in host else host, settings.ALLOWED_HOSTS)


class Window:
    """How many times something happened in the last seconds, with a bound."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self.times: deque[float] = deque()

    def is_full(self) -> bool:
        """Count once more; return whether that is more than the bound."""
        now = time.monotonic()
        self.times.append(now)
        while self.times[0] <= now - self.seconds:
            self.times.popleft()
        return len(self.times) > self.most


class ChatConsumer(AsyncWebsocketConsumer):
    """One socket of one user."""

    outbox: Outbox | None = None

    async def connect(self) -> None:
        """Accept, so that a browser sees why it is closed; then close it, or greet it."""
        headers = dict(self.scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not origin_is_allowed(origin):
            await self.close()  # before it was accepted: 403
            return
        self.unreadable = Window(MOST_UNREADABLE, UNREADABLE_SECONDS)
        self.frames = Window(MOST_FRAMES, FRAMES_SECONDS)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.ending: asyncio.TimerHandle | None = None
        token, protocol = self._token()
        await self.accept(subprotocol=protocol)
        if engine.draining:
            await self.close(GOING_AWAY)
        elif await self._authenticate(token):
            await self._greet()

    def _token(self) -> tuple[str, str | None]:
        """Return the access token, and the subprotocol to accept where it came in one."""
        path_token = self.scope["url_route"]["kwargs"].get("token")
        if path_token:
            return path_token, None
        protocols = self.scope.get("subprotocols") or []
        if len(protocols) == 2 and protocols[0] == "bearer":
            return protocols[1], "bearer"
        return "", None

    async def _authenticate(self, token: str) -> bool:
        """Read the session of `token` and the time that it ends, or close the socket."""
        try:
            session = await db.run(read_access_token, token)
        except InvalidToken:
            await self.close(NOT_AUTHENTICATED)
            return False
        except AccountDisabled:
            await self.close(DISABLED)
            return False
        except (OperationalError, InterfaceError):
            await self.close(GOING_AWAY)
            return False
        self.session = session
        left = (session.token_expires_at - timezone.now()).total_seconds()
        if self.ending is not None:
            self.ending.cancel()
        self.ending = asyncio.get_running_loop().call_later(left, lambda: self._spawn(self.close(NOT_AUTHENTICATED)))
        return True

    async def _greet(self) -> None:
        self.user_id: int = self.session.user_id
        if _connections[self.user_id] >= settings.WEBSOCKET_MAX_PER_USER:
            await self.close(TOO_MANY)
            return
        self.connection_id = uuid.uuid4().hex
        _connections[self.user_id] += 1
        self.outbox = Outbox(self.user_id, self.connection_id, self._send_frame)
        try:
            number = await self.outbox.open()
        except (OperationalError, InterfaceError):
            await self.close(GOING_AWAY)
            return
        await self._send_frame(
            {
                "type": "connection.ready",
                "connection_id": self.connection_id,
                "user_id": self.user_id,
                "heartbeat_interval": settings.WEBSOCKET_HEARTBEAT_SECONDS,
                "feed": number,
            }
        )
        self._spawn(self.outbox.run())
        self._spawn(self._beat())

    async def disconnect(self, code: int) -> None:
        """Let go of everything; the replies go on."""
        if self.outbox is None:
            return
        self.outbox.close()
        self.outbox = None
        if self.ending is not None:
            self.ending.cancel()
        for task in self.tasks:
            task.cancel()
        _connections[self.user_id] -= 1
        if not _connections[self.user_id]:
            del _connections[self.user_id]

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Take one frame."""
        if self.outbox is None:
            return
        if self.frames.is_full():
            await self.close(TOO_MANY)
            return
        try:
            if text_data is None:
                raise BadFrame("invalid_frame", "Send text, not binary.")
            frame = read_frame(text_data)
        except BadFrame as error:
            if self.unreadable.is_full():
                await self.close(UNREADABLE)
            else:
                await self._put({"type": "error", "code": error.code, "detail": error.detail}, error.request_id)
            return
        await self._take(frame)

    async def _take(self, frame: ClientFrame) -> None:
        assert self.outbox is not None
        match frame:
            case Ping(ts=ts):
                await self._put({"type": "pong", "ts": ts}, frame.id)
            case Unsubscribe(message_id=message_id):
                self.outbox.unfollow(message_id)
            case ChatMessage():
                self._spawn(self._answer(self._chat(frame), frame.id))
            case Stop():
                self._spawn(self._answer(self._stop(frame), frame.id))
            case Subscribe():
                self._spawn(self._answer(self._subscribe(frame), frame.id))
            case Authenticate():
                self._spawn(self._answer(self._renew(frame), frame.id))

    async def _answer(self, work: Coroutine[Any, Any, None], request_id: str | None) -> None:
        """Do what a frame asks; tell an expected failure as an `error`."""
        try:
            await work
        except APIException as error:
            first = flatten_errors(error.detail)[0]
            frame = {"type": "error", "code": first.code, "detail": first.detail}
            if first.attr:
                frame["attr"] = first.attr
            await self._put(frame, request_id)
        except (OperationalError, InterfaceError):
            detail = "The database does not answer. Try again shortly."
            await self._put({"type": "error", "code": "database_unavailable", "detail": detail}, request_id)

    async def _chat(self, frame: ChatMessage) -> None:
        body = MessageInput(data=frame.fields())
        body.is_valid(raise_exception=True)
        asked = asked_of(self.user_id, body.validated_data, origin=(self.connection_id, frame.id))
        started, live = await engine.send(asked)
        if self.outbox is not None and live is not None:
            self.outbox.follow(live, START, request_id=frame.id, after=started.events[-1].number)

    async def _stop(self, frame: Stop) -> None:
        await engine.stop(user_id=self.user_id, message_id=frame.message_id)

    async def _subscribe(self, frame: Subscribe) -> None:
        cursor = parse_cursor(frame.cursor)
        reply = await open_reply(user_id=self.user_id, message_id=frame.message_id)
        check_cursor(reply, cursor)
        await self._put({"type": "subscribed", "message_id": frame.message_id}, frame.id)
        if self.outbox is not None:
            self.outbox.follow(reply, cursor, request_id=frame.id)

    async def _renew(self, frame: Authenticate) -> None:
        before = self.user_id
        if not await self._authenticate(frame.token):
            return
        if self.session.user_id != before:
            await self.close(NOT_AUTHENTICATED)
            return
        expires_at = time_string(self.session.token_expires_at)
        await self._put({"type": "authenticated", "expires_at": expires_at}, frame.id)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(settings.WEBSOCKET_HEARTBEAT_SECONDS)
            await self._put({"type": "heartbeat", "ts": time_string(timezone.now())}, None)

    async def _put(self, frame: dict[str, Any], request_id: str | None) -> None:
        if request_id is not None:
            frame["request_id"] = request_id
        if self.outbox is not None and not self.outbox.put(frame):
            await self.close(TOO_MANY)

    async def _send_frame(self, frame: dict[str, Any]) -> None:
        if len((frame.get("message") or {}).get("content") or "") > LARGE:
            text = await asyncio.to_thread(msgspec.json.encode, frame)
        else:
            text = msgspec.json.encode(frame)
        await self.send(text_data=text.decode())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("socket_task_failed", exc_info=task.exception())
