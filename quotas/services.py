"""Hold before, settle or release after: each exactly once.

No number of concurrent callers passes a limit, because the check and the change are one conditional UPDATE over the
rows of all windows at once. No crash leaks a hold, because holds expire. Nothing is charged twice, because a hold is
closed by a compare-and-set and whoever loses it writes nothing.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import Now
from rest_framework import status

from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError
from quotas.limits import (
    EPOCH,
    LIMITS,
    NANO,
    STORAGE,
    PlanInForce,
    Price,
    Windows,
    plan_in_force,
    window_ends_at,
    windows_at,
)
from quotas.models import Allowance, Counter, Hold, Plan, UsageRecord

__all__ = ["HoldRefused", "QuotaExceeded", "affordable_completion", "hold", "plan_in_force", "release", "settle"]

log = structlog.get_logger(__name__)

DEFAULT_PLANS: dict[str, dict[str, Any]] = {
    "free": {
        "requests_per_minute": 60, "requests_per_day": 1_000, "tokens_per_day": 1_000_000,
        "tokens_per_month": 10_000_000, "concurrent_generations": 10, "storage_bytes": 200 * 1024 * 1024,
    },
    "vip": {
        "requests_per_minute": 120, "requests_per_day": 10_000, "tokens_per_day": 20_000_000,
        "tokens_per_month": 200_000_000, "concurrent_generations": 20, "storage_bytes": 5 * 1024 * 1024 * 1024,
    },
}  # fmt: skip
COUNTED = ("window", "requests_used", "requests_held", "tokens_used", "tokens_held", "cost_used", "cost_held")
# A hold whose generation is stored is closed with it; one past its lease by this much belongs to nothing stored.
ORPHAN_GRACE_SECONDS = 15


class HoldRefused(Exception):
    """A limit, or a window's missing row, stood against a hold. The transaction must be rolled back.

    `affordable_completion` then says which limit it was, or how much would fit.
    """


class QuotaExceeded(ClientError):
    """429: a limit is used up. `limit` names it."""

    def __init__(self, limit: str, retry_after: float) -> None:
        words = limit.replace("_", " ")
        super().__init__(
            LIMITS[limit].code, f"The limit of {words} is used up.",
            status_code=status.HTTP_429_TOO_MANY_REQUESTS, retry_after=retry_after,
        )  # fmt: skip
        self.limit = limit


class Tightest(NamedTuple):
    """The limit of which the smallest part remains: what the RateLimit headers say. `reset` in seconds."""

    limit: int
    remaining: int
    reset: int


@dataclass(frozen=True)
class Usage:
    """What one generation used; `source` is "provider" or "estimated"."""

    prompt_tokens: int
    completion_tokens: int
    source: str

    @property
    def total_tokens(self) -> int:
        """Return prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


def ensure_plans() -> list[str]:
    """Create the default plans that are missing; return their names. Staff's changes of existing ones stay."""
    return [name for name, limits in DEFAULT_PLANS.items() if Plan.objects.get_or_create(name=name, defaults=limits)[1]]


def open_account(user_id: int) -> None:
    """Put a new user on the default plan. Call it in the transaction that makes the user."""
    plan, _ = Plan.objects.get_or_create(
        name=settings.DEFAULT_PLAN, defaults=DEFAULT_PLANS.get(settings.DEFAULT_PLAN, {})
    )
    Allowance.objects.create(user_id=user_id, plan=plan)


def hold(
    *, user_id: int, plan: PlanInForce, prompt_tokens: int, completion_tokens: int, price: Price, now: datetime
) -> tuple[Hold, Tightest | None]:
    """Take the worst case of one generation from every window, or raise HoldRefused.

    Needs a transaction, which the caller rolls back on HoldRefused: some windows may have been updated by then.
    Two statements. Locks the user's counters.
    """
    tokens = prompt_tokens + completion_tokens
    cost = price.cost(prompt_tokens, completion_tokens)
    windows = windows_at(now)
    asked = {"requests": 1, "tokens": tokens, "cost": cost}
    within = Q()
    for window, starts_at in windows._asdict().items():
        fits = Q(window=window, starts_at=starts_at)
        for name, limit in LIMITS.items():
            bound = plan.limits[name]
            if limit.window == window and bound is not None:
                room = Value(bound - asked[limit.metric]) - F(f"{limit.metric}_held")
                # In the window without end only what is held counts, so `used` is left out there.
                fits &= Q(**{f"{limit.metric}_used__lte": room}) if window != "total" else Q(requests_held__lt=bound)
        within |= fits
    rows = db.update_returning(
        Counter.objects.filter(within, user_id=user_id),
        *COUNTED,
        again=_counters(user_id, windows),
        requests_held=F("requests_held") + 1,
        tokens_held=F("tokens_held") + tokens,
        cost_held=F("cost_held") + cost,
    )
    if len(rows) < len(windows):
        raise HoldRefused
    taken = Hold.objects.create(
        user_id=user_id, tokens=tokens, cost=cost, input_price=price.input, output_price=price.output, created_at=now,
        minute_at=windows.minute, day_at=windows.day, month_at=windows.month,
        expires_at=Now() + timedelta(seconds=settings.LEASE_SECONDS),
    )  # fmt: skip
    return taken, _tightest(plan, {row[0]: dict(zip(COUNTED, row, strict=True)) for row in rows}, windows, now)


def affordable_completion(
    *, user_id: int, plan: PlanInForce, prompt_tokens: int, wanted: int, price: Price, now: datetime
) -> int:
    """Return how many tokens a reply may have now, at most `wanted`, after a hold was refused.

    Makes the rows of windows that have begun since. Raises QuotaExceeded where nothing useful (16 tokens) is left.
    """
    windows = windows_at(now)
    known = {counter.window: counter for counter in _counters(user_id, windows)}
    Counter.objects.bulk_create(
        [
            Counter(user_id=user_id, window=window, starts_at=starts_at)
            for window, starts_at in windows._asdict().items()
            if window not in known
        ],
        ignore_conflicts=True,
    )
    granted = wanted
    for name, limit in LIMITS.items():
        bound = plan.limits[name]
        if bound is None:
            continue
        counter = known.get(limit.window) or Counter()
        left = bound - _taken(counter, limit.window, limit.metric)
        if limit.metric == "requests":
            fits = wanted if left >= 1 else 0
        elif limit.metric == "tokens":
            fits = left - prompt_tokens
        else:
            fits = _tokens_for(left, prompt_tokens, wanted, price)
        if fits < min(wanted, settings.MIN_COMPLETION_TOKENS):
            ends_at = window_ends_at(limit.window, getattr(windows, limit.window))
            raise QuotaExceeded(name, (ends_at - now).total_seconds() if ends_at else 1.0)
        granted = min(granted, fits)
    return granted


def settle(taken: Hold, *, usage: Usage, model: str, provider: str, now: datetime) -> int | None:
    """Close a hold with what was used, and record it at the hold's price; return the cost in nano-dollars.

    Returns None, having written nothing, if it was closed before. Needs a transaction. Counts in the windows that the
    hold was taken in, however late it is.
    """
    if not _close(taken, Hold.Status.SETTLED):
        return None
    cost = Price(taken.input_price, taken.output_price).cost(usage.prompt_tokens, usage.completion_tokens)
    _free(
        taken,
        requests_used=F("requests_used") + 1,
        tokens_used=F("tokens_used") + usage.total_tokens,
        cost_used=F("cost_used") + cost,
    )
    UsageRecord.objects.create(
        user_id=taken.user_id, hold_id=taken.id, created_at=now,
        day=taken.day_at.astimezone(ZoneInfo(settings.TIME_ZONE)).date(),
        model=model, provider=provider, prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens, cost=cost,
        input_price=taken.input_price, output_price=taken.output_price, source=usage.source,
    )  # fmt: skip
    return cost


def release(taken: Hold) -> bool:
    """Close a hold of which nothing was used; return False, having written nothing, if it was closed before."""
    if not _close(taken, Hold.Status.RELEASED):
        return False
    _free(taken)
    return True


def lock_counters(user_id: int) -> None:
    """Lock a user's counters until the transaction's end: what they guard then waits for it."""
    list(Counter.objects.filter(user_id=user_id).select_for_update().order_by("id").values_list("id"))


def renew_holds(ids: Iterable[uuid.UUID]) -> None:
    """Move the expiry of open holds one lease ahead of the database's clock."""
    Hold.objects.filter(id__in=list(ids), status=Hold.Status.OPEN).update(
        expires_at=Now() + timedelta(seconds=settings.LEASE_SECONDS)
    )


def release_orphans(*, besides: QuerySet[Any, Any] | None = None) -> int:
    """Release holds past their lease that nothing has closed; return how many.

    `besides` selects the ids of those that something stored still stands on, however late: whoever ends that closes its
    hold, and could end it no more if the hold were gone.
    """
    expired = Hold.objects.filter(
        status=Hold.Status.OPEN, expires_at__lt=Now() - timedelta(seconds=ORPHAN_GRACE_SECONDS)
    ).order_by("id")
    if besides is not None:
        expired = expired.exclude(id__in=besides)
    released = 0
    for orphan in expired[:100]:
        with transaction.atomic():
            released += release(orphan)
    if released:
        log.warning("orphaned_holds_released", count=released)
    return released


def quota_report(user_id: int, *, now: datetime) -> dict[str, Any]:
    """Return the plan in force and each limit's state: `{limit, used, held, remaining, resets_at}`. Up to 3 queries."""
    plan = plan_in_force(user_id, now=now)
    windows = windows_at(now)
    known = {counter.window: counter for counter in _counters(user_id, windows)}
    limits = {}
    for name, limit in LIMITS.items():
        counter = known.get(limit.window) or Counter()
        used = 0 if limit.window == "total" else getattr(counter, f"{limit.metric}_used")
        ends_at = window_ends_at(limit.window, getattr(windows, limit.window))
        limits[name] = _state(name, plan.limits[name], used, getattr(counter, f"{limit.metric}_held"), ends_at)
    limits[STORAGE] = _state(STORAGE, plan.limits[STORAGE], 0, 0, None)
    return {"plan": plan.name, "is_vip": plan.is_vip, "vip_until": plan.vip_until, "limits": limits}


def _state(name: str, bound: int | None, used: int, held: int, resets_at: datetime | None) -> dict[str, Any]:
    def shown(value: int | None) -> int | float | None:
        return value / NANO if value is not None and name.startswith("cost_") else value

    remaining = None if bound is None else max(0, bound - used - held)
    return {
        "limit": shown(bound), "used": shown(used), "held": shown(held), "remaining": shown(remaining),
        "resets_at": resets_at.astimezone(ZoneInfo("UTC")) if resets_at else None,
    }  # fmt: skip


def _counters(user_id: int, windows: Windows) -> Any:
    these = Q()
    for window, starts_at in windows._asdict().items():
        these |= Q(window=window, starts_at=starts_at)
    return Counter.objects.filter(these, user_id=user_id)


def _taken(counter: Counter, window: str, metric: str) -> int:
    held: int = getattr(counter, f"{metric}_held")
    return held if window == "total" else held + getattr(counter, f"{metric}_used")


def _tokens_for(left: int, prompt_tokens: int, wanted: int, price: Price) -> int:
    """Return how many completion tokens `left` nano-dollars pay for beyond the prompt, at most `wanted`."""
    if price.cost(prompt_tokens, wanted) <= left:
        return wanted
    if not price.output:
        return 0
    fits = int((left - price.cost(prompt_tokens, 0)) / (price.output * 1000))
    # Two roundings may have gone the other way by one nano-dollar.
    return fits if fits <= 0 or price.cost(prompt_tokens, fits) <= left else fits - 1


def _close(taken: Hold, to: Hold.Status) -> bool:
    return Hold.objects.filter(id=taken.id, status=Hold.Status.OPEN).update(status=to) == 1


def _free(taken: Hold, **used: Any) -> None:
    windows = Windows(EPOCH, taken.minute_at, taken.day_at, taken.month_at)
    _counters(taken.user_id, windows).update(
        requests_held=F("requests_held") - 1,
        tokens_held=F("tokens_held") - taken.tokens,
        cost_held=F("cost_held") - taken.cost,
        **used,
    )


def _tightest(plan: PlanInForce, rows: dict[str, dict[str, int]], windows: Windows, now: datetime) -> Tightest | None:
    found: list[Tightest] = []
    for name, limit in LIMITS.items():
        bound = plan.limits[name]
        if not bound or limit.metric == "cost":  # headers are whole numbers
            continue
        row = rows[limit.window]
        used = 0 if limit.window == "total" else row[f"{limit.metric}_used"]
        ends_at = window_ends_at(limit.window, getattr(windows, limit.window))
        reset = max(1, round((ends_at - now).total_seconds())) if ends_at else 1
        found.append(Tightest(bound, max(0, bound - used - row[f"{limit.metric}_held"]), reset))
    return min(found, key=lambda one: one.remaining / one.limit, default=None)
