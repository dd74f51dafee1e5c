"""GET /auth/sessions and DELETE /auth/sessions/{id}."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Session, User
from accounts.tests.conftest import Api, errors


def test_it_lists_live_devices_the_last_seen_first(alice: User, bob: User, open_session: Any) -> None:
    now = timezone.now()
    phone = open_session(alice, now=now - timedelta(seconds=30), ip="2001:db8::7", user_agent="phone")
    here = open_session(alice, now=now)
    open_session(alice, now=now - timedelta(days=31))
    Session.objects.filter(pk=open_session(alice).session.pk).update(revoked_at=now)
    open_session(bob)

    response = Api(here.access).get("/auth/sessions")

    assert response.status_code == 200
    first, second = response.json()
    assert (first["id"], first["current"]) == (here.session.pk, True)
    assert datetime.fromisoformat(second["created_at"]) == now - timedelta(seconds=30)
    assert second["created_at"].endswith("Z")
    assert second == {
        "id": phone.session.pk, "ip": "2001:db8::7", "user_agent": "phone", "created_at": second["created_at"],
        "last_seen_at": second["created_at"], "current": False,
    }  # fmt: skip


def test_times_are_utc_wherever_the_server_is(alice: User, open_session: Any, settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Shanghai"
    pair = open_session(alice)

    (row,) = Api(pair.access).get("/auth/sessions").json()

    assert datetime.fromisoformat(row["created_at"]) == pair.session.created_at


def test_queries(alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    pairs = [open_session(alice) for _ in range(5)]
    api = Api(pairs[0].access)

    with django_assert_num_queries(2):
        assert len(api.get("/auth/sessions").json()) == 5


def test_it_ends_one(alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    here, phone = open_session(alice), open_session(alice)

    with django_assert_num_queries(2):
        assert Api(here.access).delete(f"/auth/sessions/{phone.session.pk}").status_code == 204

    assert Api(phone.access).get("/users/me").status_code == 401
    assert Api(here.access).get("/users/me").status_code == 200
    assert Api(here.access).delete(f"/auth/sessions/{phone.session.pk}").status_code == 404


def test_a_strangers_session_does_not_exist(alice: User, bob: User, open_session: Any) -> None:
    of_alice, of_bob = open_session(alice), open_session(bob)

    response = Api(of_bob.access).delete(f"/auth/sessions/{of_alice.session.pk}")

    assert response.status_code == 404
    assert response.json() == Api(of_bob.access).delete("/auth/sessions/999999").json()
    assert Session.objects.get(pk=of_alice.session.pk).revoked_at is None


@pytest.mark.parametrize(("method", "path"), [("GET", "/auth/sessions"), ("DELETE", "/auth/sessions/1")])
def test_anonymous(anonymous: Any, method: str, path: str) -> None:
    response = anonymous.request(method, path)

    assert response.status_code == 401
    assert errors(response) == [("not_authenticated", None)]


def test_a_number_no_database_has_is_404(alice: User, open_session: Any) -> None:
    assert Api(open_session(alice).access).delete(f"/auth/sessions/{'9' * 30}").status_code == 404
