"""The WebSocket: a signed-in user's frames in, acknowledgements, events and deltas out.

Channels awaits each handler in turn, so handlers that wait for the database start a task and return. All sending is
the outbox's.
"""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from channels.consumer import get_handler_name
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.http.request import validate_host
from django.utils import timezone
from drf_standardized_errors.formatter import flatten_errors
from rest_framework import status
from rest_framework.exceptions import APIException

from accounts.models import Session
from accounts.tokens import AccountDisabled, InvalidToken, read_access_token
from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError
from chats.api.messages import MessageInput, asked_of
from chats.generation.engine import engine
from chats.generation.live import START, parse_cursor
from chats.generation.reading import check_cursor, open_reply
from chats.rendering import time_string
from realtime.outbox import MOST_SUBSCRIPTIONS, Outbox
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
DEFECT = 1011
REFUSALS = {InvalidToken: NOT_AUTHENTICATED, AccountDisabled: DISABLED}
OUTAGE = (OperationalError, InterfaceError)
# 20 unreadable frames in 10 s, and 50 frames a second for 5 s, are more than any client of ours sends.
MOST_UNREADABLE, UNREADABLE_SECONDS = 20, 10.0
MOST_FRAMES, FRAMES_SECONDS = 250, 5.0
# What one socket asks for at once: each waits for the database, and a frame may be a mebibyte.
MOST_AT_ONCE = 128
# Beyond this many characters a frame is encoded in a thread: a second of JSON would hold every other stream up.
LARGE = 1_000_000

_connections: Counter[int] = Counter()


def origin_is_allowed(origin: str) -> bool:
    """Say whether a browser's page from `origin` may connect: a host of ours, or one that CORS allows."""
    if origin in settings.CORS_ALLOWED_ORIGINS:
        return True
    try:
        host = urlsplit(origin).hostname
    except ValueError:  # an address in brackets that is none
        return False
    return host is not None and validate_host(f"[{host}]" if ":" in host else host, settings.ALLOWED_HOSTS)


class Refused(Exception):
    """The socket may not, or no longer, be used."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outbox: Outbox | None = None
        self.is_over = False
        self.token_timer: asyncio.TimerHandle | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.unreadable = Window(MOST_UNREADABLE, UNREADABLE_SECONDS)
        self.frames = Window(MOST_FRAMES, FRAMES_SECONDS)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the socket; however that ends, leave nothing behind."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._let_go()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Handle one message as Channels does, without its look after old database connections.

        For each frame that takes a turn of the one thread that all sync code shares; `lib/db.py` looks after ours.
        """
        await getattr(self, get_handler_name(message))(message)

    async def connect(self) -> None:
        """Accept, so that a browser sees why it is closed; then close it, or greet it."""
        headers = dict(self.scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and not origin_is_allowed(origin):
            await self.close()  # before it was accepted: 403
            return
        token, protocol = self._given_token()
        await self.accept(subprotocol=protocol)
        try:
            if engine.draining:
                raise Refused(GOING_AWAY)
            await self._greet(token)
        except Refused as refusal:
            await self._end(refusal.code)
        except OUTAGE:
            await self._end(GOING_AWAY)

    def _given_token(self) -> tuple[str, str | None]:
        """Return the access token, and the subprotocol to accept where one was offered."""
        protocols = self.scope.get("subprotocols") or []
        protocol = "bearer" if "bearer" in protocols[:1] else None
        path_token = self.scope["url_route"]["kwargs"].get("token")
        if path_token:
            return path_token, protocol
        return (protocols[1], protocol) if protocol and len(protocols) > 1 else ("", protocol)

    async def _greet(self, token: str) -> None:
        session = await _read_session(token)
        self.user_id: int = session.user_id
        if _connections[self.user_id] >= settings.WEBSOCKET_MAX_PER_USER:
            raise Refused(TOO_MANY)
        _connections[self.user_id] += 1
        self.connection_id = uuid.uuid4().hex
        self.outbox = outbox = Outbox(self.user_id, self.connection_id, self._send_frame)
        self._adopt(token, session)
        number = await outbox.open()
        if self.is_over:  # the token ended just now
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
        self._spawn(outbox.run())
        self._spawn(self._beat())

    def _adopt(self, token: str, session: Session) -> None:
        """Go on until the end of `token`."""
        self.token = token
        left = (session.token_expires_at - timezone.now()).total_seconds()
        if self.token_timer is not None:
            self.token_timer.cancel()
        loop = asyncio.get_running_loop()
        self.token_timer = loop.call_later(left, lambda: self._spawn(self._end(NOT_AUTHENTICATED)))

    # --- Ends -------------------------------------------------------------------------------------------------------

    async def disconnect(self, code: int) -> None:
        """Let go of everything; the replies go on."""
        self._let_go()

    async def _end(self, code: int) -> None:
        """Close the socket. What the client says or would have heard until it notices is lost."""
        if not self.is_over:
            self._let_go()
            await self.close(code)

    def _let_go(self) -> None:
        self.is_over = True
        if self.token_timer is not None:
            self.token_timer.cancel()
        for task in self.tasks - {asyncio.current_task()}:
            task.cancel()
        if self.outbox is not None:
            self.outbox.close()
            self.outbox = None
            _connections[self.user_id] -= 1
            if not _connections[self.user_id]:
                del _connections[self.user_id]

    # --- Frames -----------------------------------------------------------------------------------------------------

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Take one frame."""
        if self.outbox is None:
            return
        if self.frames.is_full():
            await self._end(TOO_MANY)
            return
        try:
            if text_data is None:
                raise BadFrame("invalid_frame", "Send text, not binary.")
            frame = read_frame(text_data)
        except BadFrame as error:
            if self.unreadable.is_full():
                await self._end(UNREADABLE)
            else:
                await self._put({"type": "error", "code": error.code, "detail": error.detail}, error.request_id)
            return
        await self._take(self.outbox, frame)

    async def _take(self, outbox: Outbox, frame: ClientFrame) -> None:
        match frame:
            case Ping(ts=ts):
                await self._put({"type": "pong", "ts": ts}, frame.id)
            case Unsubscribe(message_id=message_id):
                outbox.unfollow(message_id)
            case _ if len(self.tasks) >= MOST_AT_ONCE:
                detail = "This socket asks for too much at once. Wait for answers."
                await self._put({"type": "error", "code": "rate_limited", "detail": detail}, frame.id)
            case ChatMessage():
                self._serve(self._chat, outbox, frame)
            case Stop():
                self._serve(self._stop, outbox, frame)
            case Subscribe():
                self._serve(self._subscribe, outbox, frame)
            case Authenticate():
                self._serve(self._renew, outbox, frame)

    def _serve(self, handler: Callable[[Outbox, Any], Awaitable[None]], outbox: Outbox, frame: ClientFrame) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(handler, outbox, frame))
        self.tasks.add(task)
        task.add_done_callback(partial(self._answered, frame.id))

    async def _answer(self, handler: Callable[[Outbox, Any], Awaitable[None]], outbox: Outbox, frame: Any) -> None:
        """Do what a frame asks; tell an expected failure as an `error`."""
        try:
            await handler(outbox, frame)
        except Refused as refusal:
            await self._end(refusal.code)
        except APIException as error:
            first = flatten_errors(error.detail)[0]
            told: dict[str, Any] = {"type": "error", "code": first.code, "detail": first.detail}
            if first.attr:
                told["attr"] = first.attr
            if wait := getattr(error, "wait", None):
                told["retry_after"] = wait
            await self._put(told, frame.id)
        except OUTAGE:
            detail = "The database does not answer. Try again shortly."
            await self._put({"type": "error", "code": "database_unavailable", "detail": detail}, frame.id)

    async def _chat(self, outbox: Outbox, frame: ChatMessage) -> None:
        body = MessageInput(data=frame.fields())
        body.is_valid(raise_exception=True)
        asked = asked_of(self.user_id, body.validated_data, origin=(self.connection_id, frame.id))
        started, live = await engine.send(asked)
        if live is not None:
            outbox.follow(live, START, request_id=frame.id, after=started.events[-1].number)

    async def _stop(self, outbox: Outbox, frame: Stop) -> None:
        live = engine.replies.get(frame.message_id)
        if live is not None and live.owner_id == self.user_id and live.ended is None and frame.id is not None:
            outbox.echo_end(frame.message_id, frame.id)
        await engine.stop(user_id=self.user_id, message_id=frame.message_id)

    async def _subscribe(self, outbox: Outbox, frame: Subscribe) -> None:
        cursor = parse_cursor(frame.cursor)
        if outbox.is_full:
            raise ClientError(
                "too_many_subscriptions", f"A socket follows at most {MOST_SUBSCRIPTIONS} replies at once.",
                status_code=status.HTTP_429_TOO_MANY_REQUESTS,
            )  # fmt: skip
        reply = await open_reply(user_id=self.user_id, message_id=frame.message_id)
        check_cursor(reply, cursor)
        await self._put({"type": "subscribed", "message_id": frame.message_id}, frame.id)
        outbox.follow(reply, cursor, request_id=frame.id)

    async def _renew(self, outbox: Outbox, frame: Authenticate) -> None:
        session = await _read_session(frame.token)
        if session.user_id != self.user_id:
            raise Refused(NOT_AUTHENTICATED)
        self._adopt(frame.token, session)
        expires_at = time_string(session.token_expires_at)
        await self._put({"type": "authenticated", "expires_at": expires_at}, frame.id)

    # --- Sending ----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Say now and then that we are there, and look whether the session still is."""
        while True:
            await asyncio.sleep(settings.WEBSOCKET_HEARTBEAT_SECONDS)
            token = self.token
            try:
                await _read_session(token)
            except Refused as refusal:
                if token == self.token:  # else it has been renewed just now
                    await self._end(refusal.code)
                    return
            except OUTAGE:
                log.warning("session_not_checked", user_id=self.user_id)
            await self._put({"type": "heartbeat", "ts": time_string(timezone.now())}, None)

    async def _put(self, frame: dict[str, Any], request_id: str | None) -> None:
        if request_id is not None:
            frame["request_id"] = request_id
        if self.outbox is not None and not self.outbox.put(frame):
            await self._end(TOO_MANY)

    async def _send_frame(self, frame: dict[str, Any]) -> None:
        if len((frame.get("message") or {}).get("content") or "") > LARGE:
            text = await asyncio.to_thread(_encode, frame)
        else:
            text = _encode(frame)
        await self.send(text_data=text)

    # --- Tasks ------------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what the socket cannot be without."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("socket_task_failed", exc_info=error)
            self._spawn(self._end(DEFECT))

    def _answered(self, request_id: str | None, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("socket_request_failed", exc_info=error)
            told = {"type": "error", "code": "internal_error", "detail": "The server failed at this request."}
            self._spawn(self._put(told, request_id))


async def _read_session(token: str) -> Session:
    """Return the live session of an access token. Raises Refused, OperationalError, InterfaceError."""
    try:
        return await db.run(read_access_token, token)
    except (InvalidToken, AccountDisabled) as error:
        raise Refused(REFUSALS[type(error)]) from error


def _encode(frame: dict[str, Any]) -> str:
    return msgspec.json.encode(frame).decode()
