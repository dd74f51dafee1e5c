"""POST /auth/logout and /auth/logout-all."""

from typing import Any

import pytest

from accounts import tokens
from accounts.models import Session, User
from accounts.tests.conftest import Api, errors


def test_it_ends_the_sessions_access_tokens_at_once(alice: User, open_session: Any) -> None:
    pair, other = open_session(alice), open_session(alice)
    api = Api(pair.access)
    assert api.get("/users/me").status_code == 200

    response = Api().post("/auth/logout", {"refresh": pair.refresh})

    assert (response.status_code, response.content) == (204, b"")
    refused = api.get("/users/me")
    assert refused.status_code == 401
    assert errors(refused) == [("token_not_valid", None)]
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert Api().post("/auth/refresh", {"refresh": pair.refresh}).status_code == 401
    assert Api(other.access).get("/users/me").status_code == 200


def test_twice_is_harmless(anonymous: Any, alice: User, open_session: Any) -> None:
    pair = open_session(alice)
    anonymous.post("/auth/logout", {"refresh": pair.refresh})
    ended_at = Session.objects.get().revoked_at

    assert anonymous.post("/auth/logout", {"refresh": pair.refresh}).status_code == 204
    assert Session.objects.get().revoked_at == ended_at


def test_an_older_rotations_token_signs_out_too(anonymous: Any, alice: User, open_session: Any) -> None:
    pair = open_session(alice)
    tokens.rotate(pair.refresh, now=pair.session.rotated_at)

    assert anonymous.post("/auth/logout", {"refresh": pair.refresh}).status_code == 204
    assert Session.objects.get().revoked_at is not None


def test_queries(anonymous: Any, alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    pair = open_session(alice)

    with django_assert_num_queries(1):
        anonymous.post("/auth/logout", {"refresh": pair.refresh})


@pytest.mark.parametrize(
    ("body", "status"), [({}, 400), ({"refresh": None}, 400), ({"refresh": ["x"]}, 400), ({"refresh": "a.b.c"}, 401)]
)
def test_bad_tokens(anonymous: Any, alice: User, open_session: Any, body: Any, status: int) -> None:
    open_session(alice)

    assert anonymous.post("/auth/logout", body).status_code == status
    assert Session.objects.get().revoked_at is None


def test_an_access_token_does_not_sign_out(anonymous: Any, alice: User, open_session: Any) -> None:
    pair = open_session(alice)

    assert anonymous.post("/auth/logout", {"refresh": pair.access}).status_code == 401
    assert Session.objects.get().revoked_at is None


def test_by_cookie(alice: User) -> None:
    browser = Api()
    browser.post("/auth/login", {"username": "alice", "password": "Kr1stall-alice", "cookie": True})

    assert browser.post("/auth/logout", sec_fetch_site="cross-site").status_code == 403
    assert Session.objects.get().revoked_at is None
    response = browser.post("/auth/logout", sec_fetch_site="same-origin")

    assert response.status_code == 204
    assert response.cookies["refresh_token"].value == ""
    assert response.cookies["refresh_token"]["path"] == "/api/v1/auth"
    assert Session.objects.get().revoked_at is not None


def test_everywhere(alice: User, bob: User, open_session: Any) -> None:
    here, there, strangers = open_session(alice), open_session(alice), open_session(bob)

    response = Api(here.access).post("/auth/logout-all")

    assert response.status_code == 204
    for pair in (here, there):
        assert Api(pair.access).get("/users/me").status_code == 401
        assert Api().post("/auth/refresh", {"refresh": pair.refresh}).status_code == 401
    assert Api(strangers.access).get("/users/me").status_code == 200


def test_everywhere_needs_a_user(anonymous: Any, alice: User, open_session: Any) -> None:
    open_session(alice)

    response = anonymous.post("/auth/logout-all")

    assert response.status_code == 401
    assert Session.objects.get().revoked_at is None


def test_everywhere_queries(alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    api = Api(open_session(alice).access)

    # Session and user; the update.
    with django_assert_num_queries(2):
        assert api.post("/auth/logout-all").status_code == 204
