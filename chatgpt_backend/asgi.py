"""The ASGI application, for `manage.py serve` and for any other ASGI server."""

import json
import os
from typing import Any

import structlog
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatgpt_backend.settings")
http_application = get_asgi_application()

# What follows needs the apps to be loaded.
from django.conf import settings  # noqa: E402
from django.core.signals import request_started  # noqa: E402
from django.db import DatabaseError, InterfaceError, close_old_connections, reset_queries  # noqa: E402
from django.urls import re_path  # noqa: E402

from chatgpt_backend.lib import db  # noqa: E402
from chatgpt_backend.ops.canary import KeysDoNotFit, verify_keys  # noqa: E402
from chats.generation.engine import engine  # noqa: E402
from realtime.routing import websocket_urlpatterns  # noqa: E402

log = structlog.get_logger(__name__)
# A receiver that is not async gets a thread, and Django keeps that for as long as the request lasts: 300 readers of a
# reply were 300 threads. Neither is needed here: the database pool looks after its own connections, and those of views
# that are not async begin with their thread.
request_started.disconnect(close_old_connections)
request_started.disconnect(reset_queries)


class Application:
    """The routes, behind a start that proves the keys and sets the engine going.

    `manage.py serve` and servers that know lifespan start it before the first request. Stock Daphne has no lifespan:
    there the first connection does. With keys that do not fit, nothing but 503 is ever answered.
    """

    def __init__(self, routes: Any) -> None:
        self.routes = routes
        self.started = False

    async def start(self) -> None:
        """Prove the keys and start the engine, once. Raises KeysDoNotFit, or django.db's errors."""
        if not self.started:
            await db.run(verify_keys)
            await engine.start()
            self.started = True

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        try:
            await self.start()
        except KeysDoNotFit as error:
            log.critical("keys_do_not_fit", detail=str(error))
            await refuse(scope, receive, send)
            return
        except (DatabaseError, InterfaceError) as error:
            # The views say so in their own words, and `/health/live` still answers; the next connection tries again.
            log.warning("start_postponed", error=type(error).__name__)
        await self.routes(scope, receive, send)

    async def live(self, receive: Any, send: Any) -> None:
        """Start and stop with a server that knows lifespan."""
        await receive()
        try:
            await self.start()
        except (KeysDoNotFit, DatabaseError, InterfaceError) as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await engine.drain(settings.SHUTDOWN_GRACE_SECONDS)
        await send({"type": "lifespan.shutdown.complete"})


async def refuse(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer 503, or 403 to a handshake."""
    if scope["type"] == "websocket":
        await close(scope, receive, send)
        return
    error = {"code": "misconfigured", "detail": "The server is misconfigured: its log says how.", "attr": None}
    body = json.dumps({"type": "server_error", "errors": [error]}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def close(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Refuse a handshake: 403."""
    await receive()
    await send({"type": "websocket.close"})


# Last: an address that no consumer has. (Django's stubs know views alone.)
nowhere: Any = close
application = Application(
    ProtocolTypeRouter(
        {"http": http_application, "websocket": URLRouter([*websocket_urlpatterns, re_path(r"", nowhere)])}
    )
)
