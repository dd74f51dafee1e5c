"""System checks of what an operator may have set unsafely.

They carry the tag `serving`: `manage.py serve` runs them and refuses to start on an error; `check --deploy` shows them.
"""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

SERVING = "serving"
MIN_SECRET_CHARACTERS = 32


@register(SERVING, deploy=True)
def check_secret_key(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Refuse a public or short SECRET_KEY: with it anybody signs tokens."""
    if settings.SECRET_KEY == settings.INSECURE_SECRET_KEY:
        return [
            Error(
                "SECRET_KEY is not set.",
                hint="Run `python manage.py init`, which writes one to .env, or set it in the environment.",
                id="ops.E001",
            )
        ]
    if len(settings.SECRET_KEY) < MIN_SECRET_CHARACTERS:
        return [
            Error(
                f"SECRET_KEY has fewer than {MIN_SECRET_CHARACTERS} characters.",
                hint="Set a longer one; everybody is signed out by the change.",
                id="ops.E002",
            )
        ]
    return []


@register(SERVING, deploy=True)
def check_public_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Warn of development's settings on an address that is not this machine's own."""
    found: list[CheckMessage] = []
    if urlsplit(settings.PUBLIC_URL).hostname in ("localhost", "127.0.0.1", "::1"):
        return found
    if settings.DEBUG:
        found.append(Warning("DEBUG is on while PUBLIC_URL is public.", hint="Set DEBUG=false.", id="ops.W001"))
    if urlsplit(settings.PUBLIC_URL).scheme != "https":
        found.append(Warning("PUBLIC_URL is not https: tokens travel readable.", id="ops.W002"))
    if "*" in settings.ALLOWED_HOSTS:
        found.append(Warning("ALLOWED_HOSTS admits any host.", hint="Name the hosts.", id="ops.W003"))
    if not settings.ENCRYPTION_KEYS:
        found.append(
            Warning(
                "ENCRYPTION_KEYS is not set: what users write is sealed under a key derived from SECRET_KEY.",
                hint="Set it before there is data, so that each can be changed alone.",
                id="ops.W004",
            )
        )
    return found
