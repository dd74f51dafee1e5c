"""Daphne's server, subclassed where it must be.

- `send` waits until the peer has taken what was sent: a client that stops reading stalls its own sender and nothing
  else, and the process's memory stays flat. Stock Daphne buffers without end.
- A frame over the limit closes the socket with 1009; any close code passes; a reason goes along.
- A request body has a limit, also where the client declares no length.
- SIGTERM and SIGINT drain: nothing new is accepted, sockets are closed with 4503, running work may end.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from daphne.http_protocol import HTTPFactory, WebRequest
from daphne.server import Server as DaphneServer
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet import defer
from twisted.internet import reactor as installed_reactor
from twisted.internet.interfaces import IPushProducer
from twisted.logger import globalLogBeginner
from twisted.web.http import NO_BODY_CODES
from zope.interface import implementer

from chatgpt_backend.lib.logs import redact

log = structlog.get_logger("access")
server_log = structlog.get_logger(__name__)
# Its interfaces are declared in ways that type checkers do not follow.
reactor: Any = installed_reactor
Hook = Callable[[], Coroutine[Any, Any, None]]

GOING_AWAY = 4503
HTTP_SERVER_ERROR = 500
# A close frame holds 125 bytes, two of them the code.
MAX_REASON_BYTES = 123
# What a stopping server still waits for once its work is done: answers to be read, sockets to say goodbye.
LAST_WORDS_SECONDS = 3.0
# How long a refused body is still read, and thrown away.
REFUSED_SECONDS = 2.0

TOO_LARGE = (
    b'{"type":"client_error","errors":[{"code":"request_too_large","detail":"The request is too large.","attr":null}]}'
)
TOO_LARGE_ANSWER = (
    b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(TOO_LARGE), TOO_LARGE)
)


@implementer(IPushProducer)
class Valve:
    """Closed while the transport's buffer is full. Twisted turns it; senders wait until it is open."""

    def __init__(self) -> None:
        self._event: asyncio.Event | None = None

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Close it: the transport holds more than it wants to."""
        if self._event is None:
            self._event = asyncio.Event()

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Open it: the transport's buffer is empty."""
        if self._event is not None:
            self._event.set()
            self._event = None

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """Open it for good: the connection is lost, and what is sent now goes nowhere."""
        self.resumeProducing()

    async def opened(self) -> None:
        """Wait while it is closed."""
        while self._event is not None:
            await self._event.wait()


class Request(WebRequest):
    """An HTTP request whose response feels the client's pace, and whose body has a limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.valve = Valve()
        self.body_bytes = 0
        self.refused = False
        super().__init__(*args, **kwargs)

    def gotLength(self, length: int | None) -> None:  # noqa: N802 - Twisted's name
        """Make room for the body, or refuse it by its declared length before it comes."""
        super().gotLength(length)
        if length is not None and length > self.server.max_body_bytes:
            self.refuse()

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        """Take a piece of the body, or refuse it where a body without a declared length grows too long."""
        self.body_bytes += len(data)
        if self.body_bytes > self.server.max_body_bytes:
            self.refuse()
        if not self.refused:
            super().handleContentChunk(data)

    def refuse(self) -> None:
        """Answer 413, and hang up a little later: a client that still writes would lose the answer to a reset."""
        if not self.refused and self.channel is not None:
            self.refused = True
            transport = self.channel.transport
            transport.write(TOO_LARGE_ANSWER)
            transport.loseWriteConnection()
            reactor.callLater(REFUSED_SECONDS, transport.abortConnection)

    def process(self) -> Any:
        """Hand the request to the application."""
        if self.refused:
            return None
        if self.body_bytes and not self.requestHeaders.hasHeader(b"content-length"):
            # It came in chunks and is whole now. Django and DRF take a body without a length for none.
            self.requestHeaders.removeHeader(b"transfer-encoding")
            self.requestHeaders.setRawHeaders(b"content-length", [b"%d" % self.body_bytes])
        if self.server.draining and self.requestHeaders.hasHeader(b"upgrade"):
            self.basic_error(503, b"Service Unavailable", "The server is going away")
            return None
        return super().process()

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Write a part of the response."""
        if message.get("type") == "http.response.start" and self.channel is not None and not self._response_started:
            self.registerProducer(self.valve, True)
            if self.channel._waitingForTransport:
                # The connection's last response is still on its way: nobody will tell a producer that comes after.
                self.valve.pauseProducing()
        if message.get("body") and (self.method == b"HEAD" or self.code in NO_BODY_CODES):
            # Twisted leaves out the first piece alone: the others would be read as the connection's next response.
            message = {**message, "body": b""}
        super().handle_reply(message)

    def finish(self) -> None:
        """End the response."""
        if self.producer is not None:
            self.unregisterProducer()
        self.valve.resumeProducing()
        super().finish()

    def basic_error(self, status: int, status_text: bytes, body: str) -> None:
        """Answer for an application that did not, in the words of our own errors."""
        if status >= HTTP_SERVER_ERROR:
            kind, code, detail = "server_error", "error", "The server failed. It is in its log."
        else:
            kind, code, detail = "client_error", "bad_request", f"{body}."
        error = {"type": kind, "errors": [{"code": code, "detail": detail, "attr": None}]}
        headers = [(b"Content-Type", b"application/json")]
        self.handle_reply({"type": "http.response.start", "status": status, "headers": headers})
        self.handle_reply({"type": "http.response.body", "body": json.dumps(error).encode()})

    def handle_exception(self, exception: BaseException) -> None:
        """Answer for an application that failed; where it had begun to answer, let the client see that this broke off.

        Daphne's own would raise there, and end the loop that looks after all connections.
        """
        if not self._response_started:
            super().handle_exception(exception)
        elif self.channel is not None:
            self.channel.transport.abortConnection()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
        """Let waiting senders go on, and tell the application."""
        self.valve.stopProducing()
        super().connectionLost(reason)


class RequestFactory(HTTPFactory):
    """Builds our requests."""

    def buildProtocol(self, addr: Any) -> Any:  # noqa: N802 - Twisted's name
        """Return a channel for a new connection."""
        channel = super().buildProtocol(addr)
        channel.requestFactory = Request
        return channel


class Socket(WebSocketProtocol):
    """A WebSocket that feels the client's pace."""

    server: "Server"
    last_ping: float
    maxMessagePayloadSize: int  # noqa: N815 - Autobahn's name

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        """Take the transport over from the HTTP channel, which listens to its buffer until now."""
        self.valve = Valve()
        self.transport.unregisterProducer()
        self.transport.registerProducer(self.valve, True)
        super().connectionMade()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802 - Twisted's name
        """Let waiting senders go on, and tell the application."""
        self.valve.stopProducing()
        super().connectionLost(reason)

    def dropConnection(self, abort: bool = False) -> None:  # noqa: N802 - Autobahn's name
        """Drop the connection: Autobahn takes the producer off, so that nobody else would open the valve."""
        super().dropConnection(abort)
        self.valve.stopProducing()

    def handle_reply(self, message: dict[str, Any]) -> None:
        """Do what the application asks; a close may have a reason. What comes after a goodbye goes nowhere."""
        if message.get("type") == "websocket.close" and self.state == self.STATE_OPEN:
            self.serverClose(message.get("code"), message.get("reason"))
        elif message.get("type") != "websocket.send" or self.state in (self.STATE_CONNECTING, self.STATE_OPEN):
            super().handle_reply(message)

    def sendMessage(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802 - Autobahn's name
        """Send a message of any length: Autobahn would hold ours, too, to the limit on those of peers."""
        limit, self.maxMessagePayloadSize = self.maxMessagePayloadSize, 0
        try:
            super().sendMessage(*args, **kwargs)
        finally:
            self.maxMessagePayloadSize = limit

    def serverClose(self, code: int | None = None, reason: str | None = None) -> None:  # noqa: N802 - Daphne's name
        """Close with any code: Autobahn's `sendClose` takes 1000 and 3000 to 4999 alone."""
        if self.state == self.STATE_OPEN:
            text = (reason or "").encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode()
            self.sendCloseFrame(code=code or 1000, reasonUtf8=text or None)

    def go_away(self) -> None:
        """Send the client elsewhere: the server stops."""
        if self.state == self.STATE_OPEN:
            self.serverClose(GOING_AWAY, "The server is going away.")
        elif self.state == self.STATE_CONNECTING and hasattr(self, "handshake_deferred"):
            self.serverReject()

    def onOpen(self) -> None:  # noqa: N802 - Autobahn's name
        """Log it, without the token or ticket of its address."""
        super().onOpen()
        log.info("socket_connected", path=redact(self.request.path), client=self.client)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:  # noqa: N802, N803
        """Tell the application, and log it."""
        if not hasattr(self, "server"):
            return  # the handshake never got so far that anybody knew of it
        opened = hasattr(self, "application_queue") and not hasattr(self, "handshake_deferred")
        super().onClose(wasClean, code, reason)
        if opened:
            log.info(
                "socket_disconnected", path=redact(self.request.path), client=self.client,
                code=self.localCloseCode or code, seconds=round(self.duration(), 1),
            )  # fmt: skip

    def serverReject(self) -> None:  # noqa: N802 - Daphne's name
        """Refuse the handshake, and log it."""
        super().serverReject()
        log.info("socket_rejected", path=redact(self.request.path), client=self.client)

    def check_timeouts(self) -> None:
        """Refuse a handshake that the application leaves open; ping a silent peer, one ping at a time.

        Daphne pings again while an answer is due. Autobahn then forgets the first ping but not its deadline, and drops
        a peer whose answers take longer than the interval.
        """
        if self.state == self.STATE_CONNECTING:
            if self.duration() > self.server.websocket_connect_timeout and hasattr(self, "handshake_deferred"):
                self.serverReject()
        elif (
            self.state == self.STATE_OPEN
            and self.autoPingTimeoutCall is None
            and time.time() - self.last_ping > self.server.ping_interval
        ):
            self._sendAutoPing()
            self.last_ping = time.time()

    @property
    def client(self) -> str | None:
        """The peer's address, as the log shows it."""
        return self.client_addr[0] if self.client_addr else None

    def __repr__(self) -> str:
        return f"<Socket {self.client_addr!r} {redact(self.request.path)}>"


class SocketFactory(WebSocketFactory):
    """Builds our sockets."""

    protocol = Socket


class Server(DaphneServer):
    """The server of `manage.py serve`.

    `on_start` runs when the loop does; `on_drain` when the process was asked to stop, before it does.
    """

    def __init__(
        self,
        application: Any,
        *,
        host: str,
        port: int,
        max_frame_bytes: int,
        max_body_bytes: int,
        on_start: Hook | None = None,
        on_drain: Hook | None = None,
    ) -> None:
        super().__init__(
            application,
            endpoints=[f"{host}:{port}"],
            websocket_handshake_timeout=20,
            websocket_max_message_size=max_frame_bytes,
            websocket_max_frame_size=max_frame_bytes,
            ping_interval=20,
            ping_timeout=30,
            server_name="",
        )
        self.host, self.port = host, port
        self.max_body_bytes = max_body_bytes
        self.on_start = on_start
        self.on_drain = on_drain
        self.draining: asyncio.Task[None] | None = None
        self.connections: dict[Any, dict[str, Any]] = {}

    def listen(self) -> None:
        """Take the port. Raises twisted.internet.error.CannotListenError."""
        self.http_factory = RequestFactory(self)
        self.ws_factory = SocketFactory(self, server=self.server_name)
        self.ws_factory.setProtocolOptions(
            autoPingTimeout=self.ping_timeout,
            allowNullOrigin=True,
            openHandshakeTimeout=self.websocket_handshake_timeout,
            maxMessagePayloadSize=self.websocket_max_message_size,
            maxFramePayloadSize=self.websocket_max_frame_size,
            # A frame over the size is answered by a close frame; otherwise the client would see a broken connection.
            failByDrop=False,
            closeHandshakeTimeout=5,
        )
        self.listener = reactor.listenTCP(self.port, self.http_factory, backlog=1024, interface=self.host)

    def run(self) -> None:
        """Serve, on the port that `listen` has taken, until a signal ends it."""
        # Twisted and Autobahn say at length what is no news; what matters they raise.
        silence: Any = lambda _event: None  # noqa: E731
        globalLogBeginner.beginLoggingTo([silence], redirectStandardIO=False, discardBuffer=True)
        loop = reactor._asyncioEventloop
        asyncio.set_event_loop(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.asked_to_stop)
        reactor.callLater(1, self.application_checker)
        reactor.callLater(2, self.timeout_checker)
        reactor.callWhenRunning(self.started)
        reactor.addSystemEventTrigger("before", "shutdown", self.kill_all_applications)
        reactor.run(installSignalHandlers=False)
        loop.run_until_complete(cancel_what_is_left())
        loop.close()
        # The loop has given the signals back. One more of them, while the interpreter tidies up, is no failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: os._exit(0))

    def started(self) -> None:
        """Start what belongs to the process."""
        if self.on_start is not None:
            self.starting = asyncio.ensure_future(self.on_start())
            self.starting.add_done_callback(self.start_ended)

    def start_ended(self, task: "asyncio.Task[None]") -> None:
        """Say so when the start failed; the first request tries it again."""
        if not task.cancelled() and (error := task.exception()) is not None:
            server_log.error("start_failed", exc_info=error)

    # --- The end -------------------------------------------------------------------------------------------------

    def asked_to_stop(self) -> None:
        """Drain and stop; asked again, stop at once; asked a third time, die."""
        if self.draining is None:
            self.draining = asyncio.ensure_future(self.drain())
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            reactor._asyncioEventloop.remove_signal_handler(number)
        self.draining.cancel()
        self.stop()

    async def drain(self) -> None:
        """Accept nothing new, send sockets elsewhere, let running work end, and stop."""
        server_log.info("server_draining", connections=len(self.connections))
        self.listener.stopListening()
        work = asyncio.ensure_future(self.on_drain()) if self.on_drain is not None else None
        for connection in list(self.connections):
            if isinstance(connection, Socket):
                connection.go_away()
        try:
            if work is not None:
                await work
            await self.last_words()
        finally:
            self.stop()

    async def last_words(self) -> None:
        """Give responses and close frames that are under way a moment to reach their readers."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LAST_WORDS_SECONDS
        if running := self.running_applications():
            await asyncio.wait(running, timeout=LAST_WORDS_SECONDS)
        while reactor.getWriters() and loop.time() < deadline:  # noqa: ASYNC110 - the reactor has no event for it
            await asyncio.sleep(0.02)

    def running_applications(self) -> list["asyncio.Future[Any]"]:
        """Return the applications of connections that have not ended."""
        known = [details.get("application_instance") for details in self.connections.values()]
        return [application for application in known if application is not None and not application.done()]

    def kill_all_applications(self) -> Any:
        """Cancel what still runs, and let the reactor wait for it. Daphne's own fails on a half-read request."""
        running = self.running_applications()
        for application in running:
            application.cancel()
        if not running:
            return None
        return defer.Deferred.fromFuture(asyncio.ensure_future(asyncio.wait(running, timeout=LAST_WORDS_SECONDS)))

    # --- Messages ------------------------------------------------------------------------------------------------

    async def handle_reply(self, protocol: Request | Socket, message: dict[str, Any]) -> None:
        """Send a message of the application, and come back when the peer has room for the next.

        Comes back, too, when the connection is lost; what is sent after that goes nowhere.
        """
        await super().handle_reply(protocol, message)
        await protocol.valve.opened()


async def cancel_what_is_left() -> None:
    """Cancel the loop's other tasks, so that none is destroyed pending."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=LAST_WORDS_SECONDS)
    await asyncio.get_running_loop().shutdown_asyncgens()
