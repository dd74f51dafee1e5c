"""POST /auth/login."""

import time
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import Session, User
from accounts.tests.conftest import errors

ALICE = {"username": "alice", "password": "Kr1stall-alice"}


@pytest.mark.parametrize("name", ["alice", "ALICE", "ａｌｉｃｅ", "alice@example.com", "Alice@Example.COM"])
def test_it_takes_name_or_address(anonymous: Any, alice: User, name: str) -> None:
    before = timezone.now()

    response = anonymous.post("/auth/login", {**ALICE, "username": name})

    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"user", "access", "refresh", "expires_in"}
    assert body["expires_in"] == 3600
    assert body["user"]["id"] == alice.pk
    assert "refresh_token" not in response.cookies
    alice.refresh_from_db()
    assert alice.last_login >= before
    me = anonymous.get("/users/me", authorization=f"Bearer {body['access']}")
    assert me.status_code == 200


def test_queries(anonymous: Any, alice: User, django_assert_num_queries: Any) -> None:
    # User; savepoint; last login; session; release; plan in force.
    with django_assert_num_queries(6):
        assert anonymous.post("/auth/login", ALICE).status_code == 200


def test_a_wrong_password_and_an_unknown_name_answer_alike(anonymous: Any, alice: User) -> None:
    wrong = anonymous.post("/auth/login", {**ALICE, "password": "wrong"})
    unknown = anonymous.post("/auth/login", {**ALICE, "username": "nobody"})

    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()
    assert errors(wrong) == [("invalid_credentials", None)]
    assert not Session.objects.exists()


def test_a_disabled_user_answers_alike(anonymous: Any, alice: User) -> None:
    unknown = anonymous.post("/auth/login", {**ALICE, "username": "nobody"})
    User.objects.update(is_active=False)

    response = anonymous.post("/auth/login", ALICE)

    assert response.status_code == 401
    assert response.json() == unknown.json()
    assert not Session.objects.exists()


def test_an_unknown_name_costs_a_hash_too(anonymous: Any, alice: User) -> None:
    def fastest(name: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            anonymous.post("/auth/login", {"username": name, "password": "wrong"})
            times.append(time.perf_counter() - started)
        return min(times)

    known, unknown = fastest("alice"), fastest("nobody")

    # A hash takes over 10 ms, all else some 3: without one the answer would come in a fraction of the time.
    assert 0.5 < unknown / known < 2


def test_the_refresh_token_in_a_cookie_is_nowhere_else(anonymous: Any, alice: User, settings: Any) -> None:
    settings.PUBLIC_URL = "https://chat.example.com"

    response = anonymous.post("/auth/login", {**ALICE, "cookie": True})

    assert set(response.json()) == {"user", "access", "expires_in"}
    cookie = response.cookies["refresh_token"]
    assert cookie.value.count(".") == 2
    assert (cookie["path"], cookie["samesite"]) == ("/api/v1/auth", "Strict")
    assert cookie["httponly"] is True and cookie["secure"] is True
    assert 29 * 86400 < int(cookie["max-age"]) <= 30 * 86400


def test_without_https_the_cookie_is_not_secure(anonymous: Any, alice: User) -> None:
    response = anonymous.post("/auth/login", {**ALICE, "cookie": True})

    assert not response.cookies["refresh_token"]["secure"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", None), ("username", ""), ("username", "nul\x00"), ("username", []), ("username", "x" * 255),
        ("username", "\ud800"), ("password", None), ("password", ""), ("password", "nul\x00"), ("password", {}),
        ("password", "x" * 1001), ("cookie", "perhaps"), ("cookie", None),
    ],
)  # fmt: skip
def test_bad_fields(anonymous: Any, alice: User, field: str, value: Any) -> None:
    response = anonymous.post("/auth/login", {**ALICE, field: value})

    assert response.status_code == 400
    assert {attr for _, attr in errors(response)} == {field}
    assert not Session.objects.exists()


def test_a_huge_body_is_413(anonymous: Any, alice: User) -> None:
    assert anonymous.post("/auth/login", {**ALICE, "password": "x" * 10_000_000}).status_code == 413


def test_a_long_or_strange_user_agent_is_kept_in_part(anonymous: Any, alice: User) -> None:
    anonymous.post("/auth/login", ALICE, user_agent="né\x00" + "x" * 1000)

    assert Session.objects.get().user_agent == "né" + "x" * 298
