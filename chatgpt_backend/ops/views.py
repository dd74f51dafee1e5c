"""The web page, health and `/info`."""

import asyncio
from functools import cache
from threading import Lock

from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer

from chatgpt_backend import __version__
from chatgpt_backend.ops import health
from chats.generation.engine import engine
from chats.llm import client


async def index(request: HttpRequest) -> HttpResponse:
    """Show the web client."""
    return render(request, "index.html")


async def show_health(request: HttpRequest) -> JsonResponse:
    """Tell how the parts are: 503 when the database is gone, 200 otherwise, though something else may be degraded."""
    checks = await health.run_checks()
    is_well = health.FAILING not in checks.values()
    return JsonResponse(
        {"status": "ok" if is_well else "degraded", "checks": checks, "version": __version__},
        status=200 if checks["database"] == health.OK else 503,
    )


async def show_live(request: HttpRequest) -> JsonResponse:
    """Tell that the process answers."""
    return JsonResponse({"status": "ok"})


async def show_ready(request: HttpRequest) -> JsonResponse:
    """Tell whether the process wants requests: not while it drains, nor before the database is migrated."""
    if engine.draining:
        return JsonResponse({"status": "draining"}, status=503)
    try:
        complete = await health.migrations.are_complete()
    except (DatabaseError, InterfaceError):
        return JsonResponse({"status": "database_unavailable"}, status=503)
    if not complete:
        return JsonResponse({"status": "migrations_missing"}, status=503)
    return JsonResponse({"status": "ok"})


@require_safe
async def show_schema(request: HttpRequest) -> HttpResponse:
    """Tell the API's OpenAPI document."""
    return HttpResponse(await asyncio.to_thread(make_schema), content_type="application/vnd.oai.openapi+json")


def make_schema() -> bytes:
    """Return the document, made once a process: it takes a fifth of a second of CPU, and anybody may ask for it."""
    with _making:
        return _make_schema()


@cache
def _make_schema() -> bytes:
    document: bytes = OpenApiJsonRenderer().render(SchemaGenerator().get_schema(public=True), renderer_context={})
    return document


_making = Lock()


async def show_info(request: HttpRequest) -> JsonResponse:
    """Tell what runs here, without secrets."""
    return JsonResponse(
        {
            "name": settings.SPECTACULAR_SETTINGS["TITLE"],
            "version": __version__,
            "features": {
                "registration": settings.REGISTRATION,
                "default_model": settings.DEFAULT_MODEL,
                "offline_model": client.answers_offline(),
                "streaming": ["sse", "websocket"],
            },
        }
    )
