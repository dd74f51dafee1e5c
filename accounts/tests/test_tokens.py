"""Access tokens, on the API and read by others."""

import base64
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.conf import settings
from django.utils import timezone

from accounts import tokens
from accounts.models import Session, User
from accounts.tests.conftest import Api, errors

KEY = settings.SIMPLE_JWT["SIGNING_KEY"]


def unsigned(claims: dict[str, Any], **header: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'typ': 'JWT', **header})}.{part(claims)}."


def test_its_claims(alice: User, open_session: Any) -> None:
    now = timezone.now()
    pair = open_session(alice, now=now)

    access = jwt.decode(pair.access, KEY, ["HS256"])
    refresh = jwt.decode(pair.refresh, KEY, ["HS256"])

    assert jwt.get_unverified_header(pair.access) == {"alg": "HS256", "typ": "JWT"}
    assert access.pop("jti") != refresh.pop("jti")
    issued = int(now.timestamp())
    common = {"sub": str(alice.pk), "sid": pair.session.pk, "iat": issued}
    assert access == {**common, "token_type": "access", "exp": issued + 3600}
    assert refresh == {**common, "token_type": "refresh", "exp": issued + 30 * 86400, "rotation": 0}


def test_reading_one_is_one_query(alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    pair = open_session(alice)

    with django_assert_num_queries(1):
        session = tokens.read_access_token(pair.access)
        assert session.user == alice

    assert session == pair.session
    assert session.token_expires_at == pair.session.rotated_at.replace(microsecond=0) + timedelta(hours=1)


def test_an_expired_one(alice: User, open_session: Any) -> None:
    pair = open_session(alice, now=timezone.now() - timedelta(hours=1, seconds=1))

    response = Api(pair.access).get("/users/me")

    assert response.status_code == 401
    assert errors(response) == [("token_not_valid", None)]
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'


def test_a_session_past_its_end(alice: User, open_session: Any) -> None:
    pair = open_session(alice)
    Session.objects.update(expires_at=timezone.now())

    with pytest.raises(tokens.InvalidToken):
        tokens.read_access_token(pair.access)


def test_forgeries(alice: User, bob: User, open_session: Any) -> None:
    pair = open_session(alice)
    claims = jwt.decode(pair.access, KEY, ["HS256"])
    forgeries = {
        "alg none": unsigned(claims, alg="none"),
        "alg None": unsigned(claims, alg="None"),
        "no alg": unsigned(claims),
        "HS512 with our key": jwt.encode(claims, KEY, "HS512"),
        "HS256 with the bare secret": jwt.encode(claims, settings.SECRET_KEY, "HS256"),
        "signature cut": pair.access.rpartition(".")[0] + ".",
        "refresh as access": pair.refresh,
        "another user's session": jwt.encode({**claims, "sub": str(bob.pk)}, KEY, "HS256"),
        "no session": jwt.encode({name: value for name, value in claims.items() if name != "sid"}, KEY, "HS256"),
        "no type": jwt.encode({name: value for name, value in claims.items() if name != "token_type"}, KEY, "HS256"),
        "no end": jwt.encode({name: value for name, value in claims.items() if name != "exp"}, KEY, "HS256"),
        "nested header": base64.urlsafe_b64encode(b"[" * 30_000).decode() + ".e30.x",
        "not ascii": "ｅｙ.ｅｙ.ｅｙ",
        "half a pair": "\ud800.\ud800.\ud800",
        "empty": "",
    }
    for name, token in forgeries.items():
        with pytest.raises(tokens.InvalidToken):
            tokens.read_access_token(token)
            pytest.fail(name)
    assert tokens.read_access_token(pair.access).user == alice


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "not_authenticated"), ("Basic YTpi", "not_authenticated"), ("Bearer", "token_not_valid"),
        ("Bearer ", "token_not_valid"), ("Bearer a b", "token_not_valid"), ("bearer nonsense", "token_not_valid"),
        ("Bearer é", "token_not_valid"), ("Bearer " + "x" * 5000, "token_not_valid"),
    ],
)  # fmt: skip
def test_bad_headers(anonymous: Any, header: str, code: str) -> None:
    response = anonymous.get("/users/me", authorization=header)

    assert response.status_code == 401
    assert errors(response) == [(code, None)]


def test_the_scheme_is_written_in_any_case(alice: User, open_session: Any) -> None:
    assert Api().get("/users/me", authorization=f"bEARER  {open_session(alice).access} ").status_code == 200


def test_a_disabled_account(alice: User, open_session: Any) -> None:
    pair = open_session(alice)
    User.objects.update(is_active=False)

    with pytest.raises(tokens.AccountDisabled):
        tokens.read_access_token(pair.access)
    response = Api(pair.access).get("/users/me")
    assert response.status_code == 401
    assert errors(response) == [("account_disabled", None)]


def test_seen_is_written_once_a_minute(alice: User, open_session: Any, django_assert_num_queries: Any) -> None:
    api = Api(open_session(alice).access)
    Session.objects.update(last_seen_at=timezone.now() - timedelta(seconds=61))

    # Session and user; when it was seen; plan in force.
    with django_assert_num_queries(3):
        api.get("/users/me")
    with django_assert_num_queries(2):
        api.get("/users/me")

    assert timezone.now() - Session.objects.get().last_seen_at < timedelta(seconds=10)
