"""`manage.py serve`: Daphne on uvloop, with what Daphne lacks (see `ops/server.py`)."""

import errno
import os
import resource
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, connection
from django.utils.module_loading import import_string

from chatgpt_backend import __version__
from chatgpt_backend.ops.canary import KeysDoNotFit, verify_keys
from chatgpt_backend.ops.checks import SERVING
from chatgpt_backend.ops.migrations_state import missing_migrations

OPEN_FILES = 65_536


class Command(BaseCommand):
    help = "Serve HTTP and WebSocket until SIGTERM or Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
        parser.add_argument("--port", type=int, default=os.environ.get("PORT") or "8000", help="default: $PORT or 8000")

    def handle(self, *args: Any, host: str, port: int, **options: Any) -> None:
        self.refuse_unsafe_settings()
        self.refuse_unready_database()
        # Only now: these bring Twisted's reactor along, which manage.py has put on uvloop.
        from twisted.internet.error import CannotListenError

        from chatgpt_backend.ops.server import Server
        from chats.generation.engine import engine

        allow_many_files()
        application = import_string(settings.ASGI_APPLICATION)
        server = Server(
            application,
            host=host,
            port=port,
            max_frame_bytes=settings.WEBSOCKET_MAX_FRAME_BYTES,
            max_body_bytes=settings.MAX_REQUEST_BYTES,
            on_start=application.start,
            on_drain=lambda: engine.drain(settings.SHUTDOWN_GRACE_SECONDS),
        )
        try:
            server.listen()
        except CannotListenError as error:
            raise CommandError(cannot_listen(error, host, port)) from error
        self.greet(host, port)
        server.run()

    def refuse_unsafe_settings(self) -> None:
        for message in checks.run_checks(tags=[SERVING], include_deployment_checks=True):
            if message.is_serious():
                raise CommandError(f"{message.id}: {message.msg} {message.hint or ''}".rstrip())
            self.stderr.write(f"{message.id}: {message.msg} {message.hint or ''}".rstrip())

    def refuse_unready_database(self) -> None:
        try:
            if missing_migrations():
                raise CommandError("The database is not up to date. Run `python manage.py init` first.")
            verify_keys()
        except KeysDoNotFit as error:
            raise CommandError(str(error)) from error
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database does not answer: {str(error).strip().splitlines()[0]}") from error
        finally:
            # The server's own threads have theirs.
            connection.close()

    def greet(self, host: str, port: int) -> None:
        shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host  # noqa: S104 - shown, not bound
        base = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
        self.stdout.write(
            f"ChatGPT Backend {__version__} listens on {host}:{port}\n"
            f"  chat           {base}/\n"
            f"  documentation  {base}/docs\n"
            f"  administration {base}/admin/\n"
            "Ctrl-C stops it."
        )
        self.stdout.flush()


def allow_many_files() -> None:
    """Let the process open as many files as it may: each client, upstream request and connection is one.

    Most systems let 1,024 be open by default, and any process raise that far beyond.
    """
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def cannot_listen(error: Any, host: str, port: int) -> str:
    """Say in one line why the port is not ours, and what to do."""
    reason = getattr(error.socketError, "errno", None)
    if reason == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use. Stop what listens there, or choose another: PORT={port + 1} make run"
    if reason == errno.EACCES:
        return f"Port {port} needs more rights than this user has. Choose one above 1023."
    return f"Cannot listen on {host}:{port}: {error.socketError}"
