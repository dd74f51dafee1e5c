"""POST /auth/refresh."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from accounts import tokens
from accounts.models import Session, User
from accounts.tests.conftest import Api, errors


def test_it_rotates(anonymous: Any, alice: User, open_session: Any) -> None:
    first = open_session(alice)

    response = anonymous.post("/auth/refresh", {"refresh": first.refresh})

    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"access", "refresh"}
    assert body["refresh"] != first.refresh and body["access"] != first.access
    assert Session.objects.get().rotation == 1
    assert anonymous.get("/users/me", authorization=f"Bearer {body['access']}").status_code == 200
    again = anonymous.post("/auth/refresh", {"refresh": body["refresh"]})
    assert again.status_code == 200
    assert Session.objects.get().rotation == 2


def test_it_moves_the_sessions_end(alice: User, open_session: Any, settings: Any) -> None:
    now = timezone.now()
    first = open_session(alice, now=now - timedelta(days=20))

    tokens.rotate(first.refresh, now=now)

    session = Session.objects.get()
    assert session.expires_at == now + settings.REFRESH_TOKEN_LIFETIME
    assert session.last_seen_at == session.rotated_at == now


def test_queries(anonymous: Any, alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    first = open_session(alice)

    # Savepoint; the conditional update; session and user; release.
    with django_assert_num_queries(4):
        assert anonymous.post("/auth/refresh", {"refresh": first.refresh}).status_code == 200


def test_two_tabs_get_the_same_pair(alice: User, open_session: Any) -> None:
    now = timezone.now()
    first = open_session(alice, now=now - timedelta(hours=1))

    one = tokens.rotate(first.refresh, now=now)
    other = tokens.rotate(first.refresh, now=now + timedelta(seconds=10))

    assert (one.access, one.refresh) == (other.access, other.refresh)
    assert Session.objects.get().rotation == 1


def test_used_again_later_it_revokes_the_whole_session(anonymous: Any, alice: User, open_session: Any) -> None:
    now = timezone.now()
    first = open_session(alice, now=now - timedelta(hours=1))
    second = tokens.rotate(first.refresh, now=now - timedelta(seconds=10, milliseconds=1))

    response = anonymous.post("/auth/refresh", {"refresh": first.refresh})

    assert response.status_code == 401
    assert errors(response) == [("token_not_valid", None)]
    assert Session.objects.get().revoked_at is not None
    assert anonymous.get("/users/me", authorization=f"Bearer {second.access}").status_code == 401
    assert anonymous.post("/auth/refresh", {"refresh": second.refresh}).status_code == 401


def test_an_older_rotations_token_revokes_the_session(anonymous: Any, alice: User, open_session: Any) -> None:
    first = open_session(alice)
    second = anonymous.post("/auth/refresh", {"refresh": first.refresh}).json()
    anonymous.post("/auth/refresh", {"refresh": second["refresh"]})

    assert anonymous.post("/auth/refresh", {"refresh": first.refresh}).status_code == 401
    assert Session.objects.get().revoked_at is not None


def test_other_sessions_live_on(anonymous: Any, alice: User, open_session: Any) -> None:
    now = timezone.now()
    stolen, other = open_session(alice, now=now - timedelta(hours=1)), open_session(alice)
    tokens.rotate(stolen.refresh, now=now - timedelta(minutes=1))

    assert anonymous.post("/auth/refresh", {"refresh": stolen.refresh}).status_code == 401
    assert anonymous.get("/users/me", authorization=f"Bearer {other.access}").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_rotates_and_all_get_its_pair(make_account: Any, open_session: Any) -> None:
    first = open_session(make_account("alice"))
    barrier = threading.Barrier(8)
    answers: list[tuple[int, str]] = []

    def refresh() -> None:
        barrier.wait()
        response = Api().post("/auth/refresh", {"refresh": first.refresh})
        answers.append((response.status_code, response.content.decode()))
        connection.close()

    threads = [threading.Thread(target=refresh) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 8
    assert {status for status, _ in answers} == {200}
    assert len(set(answers)) == 1
    assert Session.objects.get().rotation == 1


def test_an_expired_token(anonymous: Any, alice: User, open_session: Any) -> None:
    pair = open_session(alice, now=timezone.now() - timedelta(days=30, seconds=1))

    assert anonymous.post("/auth/refresh", {"refresh": pair.refresh}).status_code == 401
    assert Session.objects.get().rotation == 0


def test_an_access_token_is_none(anonymous: Any, alice: User, open_session: Any) -> None:
    assert anonymous.post("/auth/refresh", {"refresh": open_session(alice).access}).status_code == 401
    assert Session.objects.get().rotation == 0


def test_a_disabled_user(anonymous: Any, alice: User, open_session: Any) -> None:
    pair = open_session(alice)
    User.objects.update(is_active=False)

    response = anonymous.post("/auth/refresh", {"refresh": pair.refresh})

    assert response.status_code == 401
    assert errors(response) == [("account_disabled", None)]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, 400), ("", 400), ([], 400), ("nul\x00", 400), ("\ud800", 400),
        ("a.b.c", 401), ("no token", 401), ("é.é.é", 401), ("x" * 5000, 401), (5, 401),
    ],
)  # fmt: skip
def test_bad_fields(anonymous: Any, value: Any, status: int) -> None:
    assert anonymous.post("/auth/refresh", {"refresh": value}).status_code == status


def test_no_token_at_all_is_400(anonymous: Any) -> None:
    assert errors(anonymous.post("/auth/refresh")) == [("required", "refresh")]


class TestCookie:
    @pytest.fixture
    def browser(self, alice: User) -> Any:
        api = Api()
        api.post("/auth/login", {"username": "alice", "password": "Kr1stall-alice", "cookie": True})
        return api

    def test_it_stands_for_the_body_and_moves_on(self, browser: Any) -> None:
        old = browser.client.cookies["refresh_token"].value

        response = browser.post("/auth/refresh", sec_fetch_site="same-origin")

        assert response.status_code == 200
        assert set(response.json()) == {"access"}
        assert response.cookies["refresh_token"].value != old
        assert browser.post("/auth/refresh", sec_fetch_site="same-origin").status_code == 200
        assert Session.objects.get().rotation == 2

    @pytest.mark.parametrize(
        "headers",
        [
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"sec_fetch_site": "none"},
            {"sec_fetch_site": "cross-site", "origin": "http://testserver", "host": "testserver"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": "http://testserver.evil.example", "host": "testserver"},
        ],
    )
    def test_a_foreign_page_is_refused(self, browser: Any, headers: dict[str, str]) -> None:
        response = browser.post("/auth/refresh", **headers)

        assert response.status_code == 403
        assert errors(response) == [("cross_origin", None)]
        assert Session.objects.get().rotation == 0

    @pytest.mark.parametrize(
        "headers",
        [{"origin": "http://192.0.2.7:8000", "host": "192.0.2.7:8000"}, {"origin": "http://localhost:8000"}, {}],
    )
    def test_our_own_page_is_taken_without_fetch_metadata(
        self, browser: Any, settings: Any, headers: dict[str, str]
    ) -> None:
        settings.ALLOWED_HOSTS = ["192.0.2.7", "testserver"]

        assert browser.post("/auth/refresh", **headers).status_code == 200

    def test_a_token_in_the_body_comes_first(self, browser: Any, bob: User, open_session: Any) -> None:
        pair = open_session(bob)

        response = browser.post("/auth/refresh", {"refresh": pair.refresh}, sec_fetch_site="cross-site")

        assert response.status_code == 200
        assert set(response.json()) == {"access", "refresh"}
        assert Session.objects.get(user=bob).rotation == 1
