"""GET /quota: what the caller may use, has used and holds, as clients are told it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from django.db import transaction
from django.test import AsyncClient
from django.utils import timezone

from chatgpt_backend.lib import db
from quotas import services
from quotas.limits import FREE_OF_CHARGE, Price, plan_in_force, windows_at
from quotas.models import Allowance, Counter, Hold, Plan
from quotas.services import HoldRefused, Usage

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = ["requests_per_minute", "requests_per_day", "tokens_per_day", "tokens_per_month", "cost_per_day",
         "cost_per_month", "concurrent_generations", "storage_bytes"]  # fmt: skip


class Caller:
    """A signed-in user with a client, reached as any client reaches the server."""

    def __init__(self, user_id, access):
        self.id, self.access, self.client = user_id, access, AsyncClient(raise_request_exception=False)

    async def quota(self, **headers):
        answer = await self.client.get("/api/v1/quota", headers={"Authorization": f"Bearer {self.access}", **headers})
        assert answer.status_code == 200, answer.content
        return answer.json()


async def sign_up(name):
    body = {"username": name, "email": f"{name}@example.com", "password": "correct-horse-1"}
    answer = await AsyncClient().post("/api/v1/auth/register", body, content_type="application/json")
    assert answer.status_code == 201, answer.content
    return Caller(answer.json()["user"]["id"], answer.json()["access"])


@pytest.fixture
async def alice(transactional_db):
    await db.run(services.ensure_plans)
    return await sign_up("alice")


async def allow(caller, **fields):
    await db.run(Allowance.objects.filter(user_id=caller.id).update, **fields)


async def take(caller, *, prompt=10, completion=90, price=FREE_OF_CHARGE, now=None):
    """Hold a generation's worst case as the callers do."""
    now = now or timezone.now()

    def hold():
        asked = {
            "user_id": caller.id, "plan": plan_in_force(caller.id), "prompt_tokens": prompt, "price": price, "now": now,
        }  # fmt: skip
        try:
            return db.in_transaction(services.hold, completion_tokens=completion, **asked)[0]
        except HoldRefused:
            fits = services.affordable_completion(wanted=completion, **asked)
            return db.in_transaction(services.hold, completion_tokens=fits, **asked)[0]

    return await db.run(hold)


async def settle(hold, prompt, completion):
    await db.run(
        db.in_transaction, services.settle, hold, usage=Usage(prompt, completion, "provider"), model="m", provider="p",
        now=timezone.now(),
    )  # fmt: skip


def moment(text):
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


async def test_a_new_user_has_used_nothing_of_the_default_plan(alice):
    quota = await alice.quota()
    assert {name: quota[name] for name in quota if name != "limits"} == {
        "plan": "free",
        "is_vip": False,
        "vip_until": None,
    }
    assert list(quota) == ["plan", "is_vip", "vip_until", "limits"]
    assert list(quota["limits"]) == NAMES
    for name, state in quota["limits"].items():
        limit = services.DEFAULT_PLANS["free"].get(name)
        assert {**state, "resets_at": None} == {
            "limit": limit, "used": 0, "held": 0, "remaining": limit, "resets_at": None,
        }  # fmt: skip


async def test_each_window_ends_where_the_next_begins(alice):
    before = timezone.now()
    limits = (await alice.quota())["limits"]
    after = timezone.now()
    for name, state in limits.items():
        window = name.rpartition("_")[2]
        if window not in ("minute", "day", "month"):
            assert state["resets_at"] is None
            continue
        resets_at = moment(state["resets_at"])
        # The end of the window that it was in, even if that has ended since.
        assert resets_at > before
        assert getattr(windows_at(resets_at), window) == resets_at
        assert getattr(windows_at(resets_at - timedelta(microseconds=1)), window) <= after


async def test_days_and_months_end_in_the_servers_zone(alice, settings):
    settings.TIME_ZONE = "Asia/Shanghai"
    limits = (await alice.quota())["limits"]
    assert moment(limits["requests_per_day"]["resets_at"]).astimezone(UTC).hour == 16
    assert moment(limits["tokens_per_month"]["resets_at"]).astimezone(UTC).hour == 16


async def test_what_runs_is_held_and_what_is_done_is_used(alice):
    await allow(
        alice,
        overrides={
            "requests_per_minute": 5, "requests_per_day": 10, "tokens_per_day": 1000, "tokens_per_month": 5000,
            "cost_per_day": "0.5", "cost_per_month": 2, "concurrent_generations": 3,
        },
    )  # fmt: skip
    now = timezone.now()
    price = Price(Decimal("2.5"), Decimal(10))
    first = await take(alice, prompt=20, completion=80, price=price, now=now)
    await take(alice, prompt=10, completion=40, price=price, now=now)
    await settle(first, 20, 30)

    def states(limits):
        return {
            name: (state["limit"], state["used"], state["held"], state["remaining"])
            for name, state in limits.items()
            if name not in ("requests_per_minute", "storage_bytes")  # the minute may have passed
        }

    # Used: 20 tokens at 2.50 and 30 at 10 dollars a million; held: 10 and 40.
    assert states((await alice.quota())["limits"]) == {
        "requests_per_day": (10, 1, 1, 8),
        "tokens_per_day": (1000, 50, 50, 900),
        "tokens_per_month": (5000, 50, 50, 4900),
        "cost_per_day": (0.5, 0.00035, 0.000425, 0.499225),
        "cost_per_month": (2.0, 0.00035, 0.000425, 1.999225),
        # Nobody is charged for what once ran.
        "concurrent_generations": (3, 0, 1, 2),
    }


async def test_what_is_released_leaves_no_trace(alice):
    before = (await alice.quota())["limits"]
    hold = await take(alice)
    assert (await alice.quota())["limits"]["tokens_per_day"]["held"] == 100
    await db.run(db.in_transaction, services.release, hold)
    after = (await alice.quota())["limits"]
    for name in NAMES:
        assert {**after[name], "resets_at": None} == {**before[name], "resets_at": None}


async def test_windows_that_are_over_count_no_more(alice):
    long_ago = timezone.now() - timedelta(days=40)
    await settle(await take(alice, now=long_ago), 10, 10)
    await take(alice, now=long_ago)
    limits = (await alice.quota())["limits"]
    assert {name: (state["used"], state["held"]) for name, state in limits.items()} == {
        # What runs, runs in whatever window it began.
        **dict.fromkeys(NAMES, (0, 0)), "concurrent_generations": (0, 1),
    }  # fmt: skip


async def test_more_used_than_allowed_leaves_nothing_and_not_less(alice):
    await settle(await take(alice), 900, 900)
    await allow(alice, overrides={"tokens_per_day": 100, "requests_per_day": 0})
    limits = (await alice.quota())["limits"]
    assert (limits["tokens_per_day"]["used"], limits["tokens_per_day"]["remaining"]) == (1800, 0)
    assert (limits["requests_per_day"]["limit"], limits["requests_per_day"]["remaining"]) == (0, 0)


async def test_a_limit_lifted_for_one_user_is_none(alice):
    await allow(alice, overrides={"tokens_per_day": None, "tokens_per_month": 7})
    limits = (await alice.quota())["limits"]
    assert (limits["tokens_per_day"]["limit"], limits["tokens_per_day"]["remaining"]) == (None, None)
    assert limits["tokens_per_day"]["resets_at"] is not None
    assert (limits["tokens_per_month"]["limit"], limits["tokens_per_month"]["remaining"]) == (7, 7)
    assert limits["requests_per_day"]["limit"] == 1000


async def test_vip_with_and_without_an_end_and_past_it(alice):
    vip = await db.run(Plan.objects.get, name="vip")
    await allow(alice, plan=vip)
    quota = await alice.quota()
    assert (quota["plan"], quota["is_vip"], quota["vip_until"]) == ("vip", True, None)
    assert quota["limits"]["requests_per_day"]["limit"] == 10_000

    until = timezone.now() + timedelta(days=3)
    await allow(alice, vip_until=until)
    quota = await alice.quota()
    assert (quota["plan"], quota["is_vip"], moment(quota["vip_until"])) == ("vip", True, until)

    await allow(alice, vip_until=timezone.now())
    quota = await alice.quota()
    assert (quota["plan"], quota["is_vip"], quota["vip_until"]) == ("free", False, None)
    assert quota["limits"]["requests_per_day"]["limit"] == 1000


async def test_a_user_without_an_allowance_is_on_the_default_plan(alice):
    await db.run(Allowance.objects.filter(user_id=alice.id).delete)
    quota = await alice.quota()
    assert (quota["plan"], quota["limits"]["requests_per_day"]["limit"]) == ("free", 1000)


async def test_everybody_sees_their_own(alice):
    bob = await sign_up("bob")
    await settle(await take(alice), 10, 10)
    assert (await alice.quota())["limits"]["requests_per_day"]["used"] == 1
    assert (await bob.quota())["limits"]["requests_per_day"]["used"] == 0


async def test_looking_changes_nothing(alice):
    def rows():
        return list(Counter.objects.values()), list(Hold.objects.values()), list(Allowance.objects.values())

    before = await db.run(rows)
    await alice.quota()
    assert await db.run(rows) == before


@pytest.mark.parametrize("authorization", [None, "Bearer x"])
async def test_nobody_gets_in_unknown(alice, authorization):
    headers = {"Authorization": authorization} if authorization else {}
    answer = await AsyncClient().get("/api/v1/quota", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_it_is_read_alone(alice):
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        answer = await alice.client.generic(
            method, "/api/v1/quota", headers={"Authorization": f"Bearer {alice.access}"}
        )
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (405, "method_not_allowed")


async def test_one_slash_more_and_the_requests_id(alice):
    answer = await alice.client.get(
        "/api/v1/quota/", headers={"Authorization": f"Bearer {alice.access}", "X-Request-ID": "mine"}
    )
    assert (answer.status_code, answer.json()["plan"], answer.headers["X-Request-ID"]) == (200, "free", "mine")


def test_the_report_is_two_queries(make_user, django_assert_num_queries):
    user = make_user("alice")
    services.ensure_plans()
    with transaction.atomic():
        Allowance.objects.filter(user=user).delete()
        services.open_account(user.pk)
    with django_assert_num_queries(2):
        services.quota_report(user.pk, now=timezone.now())
