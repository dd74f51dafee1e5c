"""What can be limited, in which window, and the plan that is in force for a user."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import timezone

from quotas.models import Allowance, Plan

NANO = 1_000_000_000
# Where `total` starts: a window without end.
EPOCH = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))


class Limit(NamedTuple):
    """One limit: the window and the metric that it bounds, and the code of its refusal."""

    window: str
    metric: str
    code: str


LIMITS: dict[str, Limit] = {
    "requests_per_minute": Limit("minute", "requests", "rate_limited"),
    "requests_per_day": Limit("day", "requests", "quota_exceeded"),
    "tokens_per_day": Limit("day", "tokens", "quota_exceeded"),
    "tokens_per_month": Limit("month", "tokens", "quota_exceeded"),
    "cost_per_day": Limit("day", "cost", "quota_exceeded"),
    "cost_per_month": Limit("month", "cost", "quota_exceeded"),
    # Bounds what is held in the window without end, whatever was used in it.
    "concurrent_generations": Limit("total", "requests", "rate_limited"),
}
STORAGE = "storage_bytes"


@dataclass(frozen=True)
class PlanInForce:
    """A user's plan now. `limits` are whole numbers (cost in nano-dollars), None where there is none."""

    name: str
    vip_until: datetime | None
    limits: dict[str, int | None]
    allowed_models: list[str] | None

    @property
    def is_vip(self) -> bool:
        """Say whether the plan is the VIP plan."""
        return self.name == settings.VIP_PLAN

    def allows_model(self, name: str) -> bool:
        """Say whether the plan may use a model."""
        return not self.allowed_models or name in self.allowed_models


class Windows(NamedTuple):
    """When the windows that hold a moment start."""

    total: datetime
    minute: datetime
    day: datetime
    month: datetime


class Price(NamedTuple):
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return the cost in nano-dollars, rounded half up."""
        # A dollar per million tokens is 1,000 nano-dollars a token.
        exact = (self.input * prompt_tokens + self.output * completion_tokens) * 1000
        return int(exact.to_integral_value(ROUND_HALF_UP))


FREE_OF_CHARGE = Price(Decimal(0), Decimal(0))


def windows_at(now: datetime) -> Windows:
    """Return the starts of the windows that hold `now`; days and months begin in TIME_ZONE."""
    local = now.astimezone(ZoneInfo(settings.TIME_ZONE))
    day = local.replace(hour=0, minute=0, second=0, microsecond=0)
    return Windows(EPOCH, now.replace(second=0, microsecond=0), day, day.replace(day=1))


def window_ends_at(window: str, starts_at: datetime) -> datetime | None:
    """Return when a window ends, None for the one that does not."""
    local = starts_at.astimezone(ZoneInfo(settings.TIME_ZONE))
    if window == "minute":
        return starts_at + timedelta(minutes=1)
    if window == "day":
        return local + timedelta(days=1)  # wall time: a day of 23 or 25 hours ends at midnight all the same
    if window == "month":
        return (local.replace(day=28) + timedelta(days=4)).replace(day=1)
    return None


def _whole(name: str, value: Any) -> int | None:
    if value is None:
        return None
    return int(Decimal(str(value)) * NANO) if name.startswith("cost_") else int(value)


def plan_in_force(user_id: int, *, now: datetime | None = None) -> PlanInForce:
    """Return the plan of a user at `now`, the user's own limits laid over it.

    VIP ends at its second by this comparison alone; no job has to run.
    """
    now = now or timezone.now()
    allowance = Allowance.objects.select_related("plan").filter(user_id=user_id).first()
    plan = allowance.plan if allowance else None
    if plan is None or (allowance and plan.name == settings.VIP_PLAN and _is_past(allowance.vip_until, now)):
        plan = Plan.objects.filter(name=settings.DEFAULT_PLAN).first() or Plan(name=settings.DEFAULT_PLAN)
    overrides = allowance.overrides if allowance else {}
    limits = {name: _whole(name, overrides.get(name, getattr(plan, name))) for name in (*LIMITS, STORAGE)}
    vip_until = allowance.vip_until if allowance and plan.name == settings.VIP_PLAN else None
    return PlanInForce(plan.name, vip_until, limits, plan.allowed_models)


def _is_past(moment: datetime | None, now: datetime) -> bool:
    return moment is not None and moment <= now
