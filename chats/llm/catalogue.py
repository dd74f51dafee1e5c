"""The models that can be asked for: rows that staff may edit, read through a cache of the process."""

import threading
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from django.conf import settings

from chats.models import CatalogueModel

OFFLINE_PROVIDER = "offline"
OFFLINE_MODEL = "eliza"
CACHE_SECONDS = 30.0


class UnknownModel(Exception):
    """No available model has this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"There is no model {name!r}.")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request for the model `requested` goes, and at what price (US dollars per million tokens)."""

    requested: str
    model: str
    provider: str
    context_window: int
    max_output_tokens: int
    vision: bool
    input_price: Decimal
    output_price: Decimal
    takes_temperature: bool
    wants_max_completion_tokens: bool

    @property
    def is_offline(self) -> bool:
        """Say whether the embedded model answers."""
        return self.provider == OFFLINE_PROVIDER


def _chat(
    name: str, window: int, output: int, prices: tuple[str, str], *, vision: bool = True, reasons: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "context_window": window,
        "max_output_tokens": output,
        "input_price": Decimal(prices[0]),
        "output_price": Decimal(prices[1]),
        "vision": vision,
        # Models that think before they write refuse `temperature` and the old name `max_tokens`.
        "takes_temperature": not reasons,
        "wants_max_completion_tokens": reasons,
    }


# From https://platform.openai.com/docs/models and /docs/pricing: what speaks Chat Completions. Prices change: the rows
# are staff's to edit, and `sync_builtin_models` leaves them alone.
BUILTIN_MODELS = [
    _chat("gpt-3.5-turbo", 16_385, 4_096, ("0.50", "1.50"), vision=False),
    _chat("gpt-4", 8_192, 8_192, ("30", "60"), vision=False),
    _chat("gpt-4-turbo", 128_000, 4_096, ("10", "30")),
    _chat("gpt-4o", 128_000, 16_384, ("2.50", "10")),
    _chat("gpt-4o-mini", 128_000, 16_384, ("0.15", "0.60")),
    _chat("chatgpt-4o-latest", 128_000, 16_384, ("5", "15")),
    _chat("gpt-4.1", 1_047_576, 32_768, ("2", "8")),
    _chat("gpt-4.1-mini", 1_047_576, 32_768, ("0.40", "1.60")),
    _chat("gpt-4.1-nano", 1_047_576, 32_768, ("0.10", "0.40")),
    _chat("o1", 200_000, 100_000, ("15", "60"), reasons=True),
    _chat("o3", 200_000, 100_000, ("2", "8"), reasons=True),
    _chat("o3-mini", 200_000, 100_000, ("1.10", "4.40"), vision=False, reasons=True),
    _chat("o4-mini", 200_000, 100_000, ("1.10", "4.40"), reasons=True),
    _chat("gpt-5", 400_000, 128_000, ("1.25", "10"), reasons=True),
    _chat("gpt-5-mini", 400_000, 128_000, ("0.25", "2"), reasons=True),
    _chat("gpt-5-nano", 400_000, 128_000, ("0.05", "0.40"), reasons=True),
    _chat("gpt-5-chat-latest", 128_000, 16_384, ("1.25", "10")),
    _chat("gpt-5.1", 400_000, 128_000, ("1.25", "10"), reasons=True),
    _chat("gpt-5.2", 400_000, 128_000, ("1.75", "14"), reasons=True),
    {**_chat(OFFLINE_MODEL, 128_000, 4_096, ("0", "0"), vision=False), "provider": OFFLINE_PROVIDER},
]


def sync_builtin_models() -> list[str]:
    """Insert the built-in models that the catalogue does not have, and return their names.

    Rows that exist stay as they are, whatever staff made of them. Safe to run in several processes at once.
    """
    existing = set(CatalogueModel.objects.values_list("name", flat=True))
    missing = [CatalogueModel(**fields) for fields in BUILTIN_MODELS if fields["name"] not in existing]
    CatalogueModel.objects.bulk_create(missing, ignore_conflicts=True)
    clear_cache()
    return [row.name for row in missing]


# (until when on the monotonic clock, name → (target, available)), replaced as a whole: readers take no lock.
_Cache = tuple[float, dict[str, tuple[Target, bool]]]
_EMPTY: _Cache = (0.0, {})
_cache: _Cache = _EMPTY
_loading = threading.Lock()


def clear_cache() -> None:
    """Make this process read the catalogue anew at its next use. Other processes see a change within 30 s."""
    global _cache
    with _loading:
        _cache = _EMPTY


def _entries() -> dict[str, tuple[Target, bool]]:
    global _cache
    until, entries = _cache
    if time.monotonic() < until:
        return entries
    with _loading:  # one thread reads for all that wait here
        until, entries = _cache
        if time.monotonic() < until:
            return entries
        entries = {
            row.name: (
                Target(
                    requested=row.name,
                    model=row.name,
                    provider=row.provider,
                    context_window=row.context_window,
                    max_output_tokens=row.max_output_tokens,
                    vision=row.vision,
                    input_price=row.input_price,
                    output_price=row.output_price,
                    takes_temperature=row.takes_temperature,
                    wants_max_completion_tokens=row.wants_max_completion_tokens,
                ),
                row.available,
            )
            for row in CatalogueModel.objects.all()
        }
        _cache = (time.monotonic() + CACHE_SECONDS, entries)
        return entries


def answers_offline() -> bool:
    """Say whether the embedded model answers for all: there is no key for any other."""
    return not settings.OPENAI_API_KEY


def resolve(name: str) -> Target:
    """Return where a request for the model `name` goes. Costs a query at most every 30 s.

    Raises `UnknownModel` for a name that is not in the catalogue, or that staff switched off, also where the embedded
    model would answer.
    """
    target, available = _entries().get(name, (None, False))
    if target is None or not available:
        raise UnknownModel(name)
    if target.is_offline or not answers_offline():
        return target
    return replace(
        target,
        model=OFFLINE_MODEL,
        provider=OFFLINE_PROVIDER,
        input_price=Decimal(0),
        output_price=Decimal(0),
        takes_temperature=True,
        wants_max_completion_tokens=False,
    )


def list_models() -> list[dict[str, Any]]:
    """Return the catalogue, by name, as clients see it; `provider` and prices are the model's own, key or no key."""
    return [
        {
            "id": name,
            "provider": target.provider,
            "context_window": target.context_window,
            "max_output_tokens": target.max_output_tokens,
            "vision": target.vision,
            "input_price": target.input_price,
            "output_price": target.output_price,
            "available": available,
        }
        for name, (target, available) in sorted(_entries().items())
    ]
