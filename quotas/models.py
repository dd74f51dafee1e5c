"""Plans, each user's allowance, counters of windows, holds, and records of what was used.

Money is an integer of nano-dollars (10⁻⁹ US$) wherever it is added up, so that sums are exact on every database;
`Decimal` at the edges.
"""

import uuid
from typing import Any, ClassVar

from django.conf import settings
from django.db import models

WINDOWS = ("total", "minute", "day", "month")


class Plan(models.Model):
    """Limits that users share. An empty limit is none."""

    name = models.SlugField(unique=True)
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    requests_per_day = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_per_month = models.PositiveBigIntegerField(null=True, blank=True)
    cost_per_day = models.DecimalField(max_digits=12, decimal_places=4, null=True, blank=True, help_text="US dollars")
    cost_per_month = models.DecimalField(max_digits=12, decimal_places=4, null=True, blank=True, help_text="US dollars")
    concurrent_generations = models.PositiveIntegerField(null=True, blank=True)
    storage_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    allowed_models = models.JSONField(null=True, blank=True, help_text="ids of the models it may use; empty: all")

    class Meta:
        ordering = ("id",)

    def __str__(self) -> str:
        return self.name


class Allowance(models.Model):
    """A user's plan, and the limits of the user's own that override it."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="allowance"
    )
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="+")
    vip_until = models.DateTimeField(null=True, blank=True, help_text="past it, the default plan is in force")
    overrides = models.JSONField(default=dict, blank=True, help_text="{limit: number}")

    def __str__(self) -> str:
        return f"{self.user_id}: {self.plan_id}"


class Counter(models.Model):
    """What one user has used and holds in one window.

    Every window counts everything; which of it is limited is the plan's matter. `total` is a window without end: its
    `requests_held` are the generations that run now.
    """

    id: Any
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    window = models.CharField(max_length=8, choices=[(name, name) for name in WINDOWS])
    starts_at = models.DateTimeField()
    requests_used = models.BigIntegerField(default=0)
    requests_held = models.BigIntegerField(default=0)
    tokens_used = models.BigIntegerField(default=0)
    tokens_held = models.BigIntegerField(default=0)
    cost_used = models.BigIntegerField(default=0, help_text="nano-dollars")
    cost_held = models.BigIntegerField(default=0, help_text="nano-dollars")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "window", "starts_at"], name="counter_of_window"),
            models.CheckConstraint(
                name="counter_not_negative",
                condition=models.Q(
                    requests_used__gte=0, requests_held__gte=0, tokens_used__gte=0, tokens_held__gte=0,
                    cost_used__gte=0, cost_held__gte=0,
                ),
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.user_id} {self.window} {self.starts_at:%Y-%m-%d %H:%M}"


class Hold(models.Model):
    """The worst case of one generation, taken before it and closed exactly once after it.

    Open → settled (used) or released (nothing was): the one compare-and-set on which the accounting hangs.
    """

    class Status(models.TextChoices):
        OPEN = "open"
        SETTLED = "settled"
        RELEASED = "released"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    tokens = models.BigIntegerField()
    cost = models.BigIntegerField(help_text="nano-dollars")
    input_price = models.DecimalField(max_digits=12, decimal_places=6, help_text="US dollars per million tokens")
    output_price = models.DecimalField(max_digits=12, decimal_places=6, help_text="US dollars per million tokens")
    minute_at = models.DateTimeField()
    day_at = models.DateTimeField()
    month_at = models.DateTimeField()
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(help_text="by the database's clock; renewed while its process lives")

    class Meta:
        indexes: ClassVar = [models.Index(fields=["status", "expires_at"], name="hold_expiry")]

    def __str__(self) -> str:
        return f"{self.id} {self.status}"


class UsageRecord(models.Model):
    """What one generation used, at the price of its day. Stays, without a name, when its user goes."""

    class Source(models.TextChoices):
        PROVIDER = "provider"
        ESTIMATED = "estimated"

    id: Any
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    hold_id = models.UUIDField(unique=True)
    created_at = models.DateTimeField()
    day = models.DateField(help_text="in TIME_ZONE, of the hold")
    model = models.CharField(max_length=200)
    provider = models.CharField(max_length=50)
    requests = models.PositiveSmallIntegerField(default=1)
    prompt_tokens = models.BigIntegerField()
    completion_tokens = models.BigIntegerField()
    cost = models.BigIntegerField(help_text="nano-dollars")
    input_price = models.DecimalField(max_digits=12, decimal_places=6, help_text="US dollars per million tokens")
    output_price = models.DecimalField(max_digits=12, decimal_places=6, help_text="US dollars per million tokens")
    source = models.CharField(max_length=10, choices=Source.choices)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["user", "day"], name="usage_of_user"),
            models.Index(fields=["user", "-created_at", "-id"], name="usage_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.day} {self.model}"
