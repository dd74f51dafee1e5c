"""Middleware, all of it async: none holds a thread while a reply streams."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, cast

import structlog
from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import Resolver404, resolve

from chatgpt_backend.ops.answers import error_answer

log = structlog.get_logger("access")
Answer = Callable[[HttpRequest], Awaitable[HttpResponseBase]]
SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
ONE_SLASH_LESS = re.compile(r"/(?:api|v1|health|info|docs|redoc)(?:/.*[^/])?/")


class AsyncMiddleware:
    """The frame of a middleware that is only ever async (Django adapts it where a test client is not)."""

    async_capable = True
    sync_capable = False

    def __init__(self, get_response: Answer) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(cast(Any, self))


class RequestMiddleware(AsyncMiddleware):
    """Give each request its id, on its answer and on every log line; take off one trailing slash of API paths."""

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        given = request.headers.get("X-Request-ID", "")
        request_id = given if SAFE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        if ONE_SLASH_LESS.fullmatch(request.path_info):
            request.path_info = request.path_info[:-1]
        started = perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            response = refuse_host(request) or await self.get_response(request)
            # The path alone: a query may hold a ticket.
            log.info(
                "request", method=request.method, path=request.path_info, status=response.status_code,
                milliseconds=round((perf_counter() - started) * 1000, 1),
            )  # fmt: skip
        response.headers["X-Request-ID"] = request_id
        return response


class SyncViewsMiddleware(AsyncMiddleware):
    """Let only so many requests at a time into views that are not async.

    Each of those takes a thread, and most a database connection of its own, and nothing else bounds either: 450
    sign-ins at once took every file that a process may open by default, and no other request was answered any more.
    """

    def __init__(self, get_response: Answer) -> None:
        super().__init__(get_response)
        self.places = asyncio.Semaphore(settings.DATABASE_THREADS)

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request, perhaps after others."""
        if is_async(request.path_info):
            return await self.get_response(request)
        async with self.places:
            return await self.get_response(request)


def is_async(path: str) -> bool:
    """Say whether no thread is needed for the view at `path`, or there is none."""
    try:
        return bool(iscoroutinefunction(resolve(path).func))
    except Resolver404:
        return True


def refuse_host(request: HttpRequest) -> HttpResponseBase | None:
    """Return a 400 for a `Host` that is not ours; probes come by bare addresses, and may."""
    if request.path_info.startswith("/health"):
        return None
    try:
        request.get_host()
    except DisallowedHost:
        return error_answer(request, status=400, code="invalid_host", detail="ALLOWED_HOSTS does not name this host.")
    return None


class SecurityHeadersMiddleware(AsyncMiddleware):
    """The headers that every answer carries. A policy that a view has set itself stays."""

    STRICT = (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    # The admin's Alpine evaluates expressions; Swagger UI and ReDoc style and start themselves inline.
    RELAXED = (
        STRICT.replace("script-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'").replace(
            "style-src 'self'", "style-src 'self' 'unsafe-inline'"
        )
        + "; worker-src 'self' blob:"
    )
    OWN_POLICY = ("/admin", "/docs", "/redoc")

    async def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        if not request.path_info.startswith("/health"):  # which is asked by address
            request.get_host()  # raises DisallowedHost, a 400, before anything is done
        response = await self.get_response(request)
        policy = self.RELAXED if request.path_info.startswith(self.OWN_POLICY) else self.STRICT
        for name, value in (
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ):
            response.headers.setdefault(name, value)
        return response


class AdminOnly:
    """Let a Django middleware run under /admin alone: it would cost the API two thread hops a request."""

    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        """Answer one request."""
        if request.path_info.startswith("/admin"):
            return super().__call__(request)  # type: ignore[misc]  # the mixin's other base has it
        return self.get_response(request)


class AdminSessionMiddleware(AdminOnly, SessionMiddleware):
    """Sessions, for the admin."""


class AdminCsrfMiddleware(AdminOnly, CsrfViewMiddleware):
    """CSRF checks, for the admin: the API takes no cookie as proof."""

    async def process_view(  # type: ignore[override]  # Django takes async hooks; its stubs do not
        self, request: HttpRequest, callback: Any, args: Any, kwargs: Any
    ) -> Any:
        """Check a request to the admin. Async, since Django would send a sync hook of every request to a thread."""
        if not request.path_info.startswith("/admin"):
            return None
        return await sync_to_async(super().process_view)(request, callback, args, kwargs)


class AdminAuthenticationMiddleware(AdminOnly, AuthenticationMiddleware):
    """Signed-in staff, for the admin."""


class AdminMessagesMiddleware(AdminOnly, MessageMiddleware):
    """Flash messages, for the admin."""
