"""Holds: admitted up to the limit and no further, closed once, freed when orphaned."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.db.models import Sum

from chatgpt_backend.lib import db
from quotas import services
from quotas.limits import FREE_OF_CHARGE, Price, plan_in_force, window_ends_at, windows_at
from quotas.models import Allowance, Counter, Hold, Plan, UsageRecord
from quotas.services import HoldRefused, QuotaExceeded, Usage

pytestmark = pytest.mark.django_db(transaction=True)
NOW = datetime(2026, 3, 10, 12, 30, 15, tzinfo=UTC)


@pytest.fixture
def alice(make_user):
    user = make_user("alice")
    services.ensure_plans()
    Allowance.objects.filter(user=user).delete()
    services.open_account(user.id)
    return user


def limit(user, **overrides):
    none = dict.fromkeys(services.LIMITS)
    Allowance.objects.filter(user=user).update(overrides={**none, **overrides})
    return plan_in_force(user.id, now=NOW)


def take(user, plan, prompt=10, completion=90, price=FREE_OF_CHARGE, now=NOW):
    """Hold as the callers do: on a refusal make the windows and ask what fits."""
    for _ in range(10):
        try:
            return db.in_transaction(
                services.hold,
                user_id=user.id,
                plan=plan,
                prompt_tokens=prompt,
                completion_tokens=completion,
                price=price,
                now=now,
            )[0]
        except HoldRefused:
            completion = services.affordable_completion(
                user_id=user.id, plan=plan, prompt_tokens=prompt, wanted=completion, price=price, now=now
            )
    raise AssertionError("refused for ever")


def counted(user, window):
    row = Counter.objects.get(user=user, window=window)
    return row.requests_used, row.requests_held, row.tokens_used, row.tokens_held, row.cost_used, row.cost_held


def test_a_hold_is_taken_from_every_window_and_settled_once(alice):
    plan = limit(alice)
    price = Price(Decimal("0.5"), Decimal("1.5"))
    hold = take(alice, plan, price=price)
    for window in ("total", "minute", "day", "month"):
        assert counted(alice, window) == (0, 1, 0, 100, 0, 140_000)
    usage = Usage(10, 20, "provider")
    with transaction.atomic():
        assert services.settle(hold, usage=usage, model="m", provider="p", now=NOW) == 35_000
        assert services.settle(hold, usage=usage, model="m", provider="p", now=NOW) is None
        assert not services.release(hold)
    for window in ("total", "minute", "day", "month"):
        assert counted(alice, window) == (1, 0, 30, 0, 35_000, 0)
    record = UsageRecord.objects.get()
    assert (record.prompt_tokens, record.completion_tokens, record.cost, str(record.day)) == (
        10,
        20,
        35_000,
        "2026-03-10",
    )


def test_a_release_leaves_no_trace(alice):
    hold = take(alice, limit(alice))
    with transaction.atomic():
        assert services.release(hold)
        assert not services.release(hold)
    assert counted(alice, "day") == (0, 0, 0, 0, 0, 0)
    assert not UsageRecord.objects.exists()


def test_settlement_counts_in_the_windows_of_the_hold(alice):
    hold = take(alice, limit(alice))
    later = NOW + timedelta(days=40)
    with transaction.atomic():
        services.settle(hold, usage=Usage(1, 1, "estimated"), model="m", provider="p", now=later)
    assert UsageRecord.objects.get().day.isoformat() == "2026-03-10"
    assert Counter.objects.get(window="month", starts_at=windows_at(NOW).month).tokens_used == 2


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("requests_per_minute", "rate_limited"),
        ("requests_per_day", "quota_exceeded"),
        ("concurrent_generations", "rate_limited"),
    ],
)
def test_limits_of_requests(alice, name, code):
    plan = limit(alice, **{name: 2})
    take(alice, plan)
    take(alice, plan)
    with pytest.raises(QuotaExceeded) as refused:
        take(alice, plan)
    assert (refused.value.limit, refused.value.code) == (name, code)
    assert (
        refused.value.wait == {"requests_per_minute": 45, "requests_per_day": 41385, "concurrent_generations": 1}[name]
    )
    assert counted(alice, "day")[1] == 2


def test_a_closed_generation_makes_room_for_another(alice):
    plan = limit(alice, concurrent_generations=1)
    hold = take(alice, plan)
    with transaction.atomic():
        services.settle(hold, usage=Usage(1, 1, "provider"), model="m", provider="p", now=NOW)
    assert take(alice, plan)


def test_what_is_left_becomes_the_most_that_may_be_written(alice):
    plan = limit(alice, tokens_per_day=150)
    assert take(alice, plan, prompt=10, completion=90).tokens == 100
    assert take(alice, plan, prompt=10, completion=90).tokens == 50
    with pytest.raises(QuotaExceeded):
        take(alice, plan)


def test_fewer_than_sixteen_tokens_left_are_refused_but_a_short_wish_is_not(alice):
    plan = limit(alice, tokens_per_day=25)
    with pytest.raises(QuotaExceeded):
        take(alice, plan, prompt=10, completion=90)
    assert take(alice, plan, prompt=10, completion=5).tokens == 15


def test_cost_limits_are_exact_to_the_nano_dollar(alice):
    price = Price(Decimal("0.5"), Decimal("1.5"))
    plan = limit(alice, cost_per_day="0.00005")  # 50,000 nano-dollars: 10 * 500 + 30 * 1500
    assert take(alice, plan, price=price).cost == 50_000
    with pytest.raises(QuotaExceeded):
        take(alice, plan, price=price)


def test_no_number_of_concurrent_callers_passes_a_limit(alice):
    plan = limit(alice, requests_per_day=5)

    def one(_):
        try:
            take(alice, plan)
        except QuotaExceeded:
            return 0
        else:
            return 1
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(100))) == 5
    assert counted(alice, "day")[:2] == (0, 5)
    assert Hold.objects.filter(status="open").aggregate(Sum("tokens"))["tokens__sum"] == counted(alice, "day")[3]


def test_orphans_are_released_after_their_lease_and_grace(alice):
    hold = take(alice, limit(alice))
    assert services.release_orphans() == 0
    Hold.objects.update(expires_at=datetime.now(UTC) - timedelta(seconds=services.ORPHAN_GRACE_SECONDS + 1))
    services.renew_holds([hold.id])
    assert services.release_orphans() == 0
    Hold.objects.update(expires_at=datetime.now(UTC) - timedelta(seconds=services.ORPHAN_GRACE_SECONDS + 1))
    assert services.release_orphans() == 1
    assert counted(alice, "day") == (0, 0, 0, 0, 0, 0)


def test_vip_ends_at_its_second(alice):
    Allowance.objects.filter(user=alice).update(plan=Plan.objects.get(name="vip"), vip_until=NOW)
    before = plan_in_force(alice.id, now=NOW - timedelta(seconds=1))
    after = plan_in_force(alice.id, now=NOW)
    assert (before.name, before.is_vip, before.vip_until) == ("vip", True, NOW)
    assert (after.name, after.is_vip, after.vip_until) == ("free", False, None)


def test_the_report_shows_each_limit(alice):
    limit(alice, tokens_per_day=1000, cost_per_month=2)
    take(alice, plan_in_force(alice.id, now=NOW), price=Price(Decimal(1), Decimal(1)))
    report = services.quota_report(alice.id, now=NOW)
    assert report["limits"]["tokens_per_day"] == {
        "limit": 1000,
        "used": 0,
        "held": 100,
        "remaining": 900,
        "resets_at": datetime(2026, 3, 11, tzinfo=UTC),
    }
    assert report["limits"]["cost_per_month"]["held"] == 0.0001
    assert report["limits"]["cost_per_month"]["resets_at"] == datetime(2026, 4, 1, tzinfo=UTC)
    assert report["limits"]["requests_per_day"]["limit"] is None


def test_windows_follow_the_time_zone(settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    windows = windows_at(datetime(2026, 1, 31, 17, 0, tzinfo=UTC))
    assert windows.day == datetime(2026, 1, 31, 16, 0, tzinfo=UTC)
    assert windows.month == datetime(2026, 1, 31, 16, 0, tzinfo=UTC)
    assert window_ends_at("month", windows.month) == datetime(2026, 2, 28, 16, 0, tzinfo=UTC)


def test_a_hold_takes_two_statements_and_a_settlement_three(alice, django_assert_num_queries):
    plan = limit(alice)
    take(alice, plan)
    with transaction.atomic():
        with django_assert_num_queries(2):
            hold, _ = services.hold(
                user_id=alice.id, plan=plan, prompt_tokens=1, completion_tokens=1, price=FREE_OF_CHARGE, now=NOW
            )
        with django_assert_num_queries(3):
            services.settle(hold, usage=Usage(1, 1, "provider"), model="m", provider="p", now=NOW)
