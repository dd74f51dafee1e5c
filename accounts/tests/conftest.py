"""Fixtures for the tests of accounts."""

import json
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts import tokens
from accounts.models import User
from quotas.services import open_account


class Api:
    """A client that speaks JSON, as a user or as nobody."""

    def __init__(self, access: str | None = None) -> None:
        self.client = Client()
        self.headers = {"authorization": f"Bearer {access}"} if access else {}

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        all_headers = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.client.generic(
            method, f"/api/v1{path}", data, content_type="application/json", headers=all_headers
        )  # fmt: skip

    def get(self, path: str, **headers: str) -> Any:
        return self.client.get(f"/api/v1{path}", headers={**self.headers, **headers})

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.request("POST", path, body, **headers)

    def patch(self, path: str, body: Any = None) -> Any:
        return self.request("PATCH", path, body)

    def delete(self, path: str, body: Any = None) -> Any:
        return self.request("DELETE", path, body)


@pytest.fixture
def anonymous(db: Any) -> Api:
    return Api()


@pytest.fixture
def make_account(db: Any) -> Any:
    """Return a factory of users on the default plan. The password is `Kr1stall-<name>`."""

    def make(name: str = "alice", **fields: Any) -> User:
        user = User.objects.create_user(name, f"{name}@example.com", f"Kr1stall-{name}", **fields)
        open_account(user.pk)
        return user

    return make


@pytest.fixture
def alice(make_account: Any) -> User:
    return make_account("alice")


@pytest.fixture
def bob(make_account: Any) -> User:
    return make_account("bob")


@pytest.fixture
def open_session() -> Any:
    """Return a function that opens a session of a user, now or at another time."""

    def start(user: User, **fields: Any) -> tokens.TokenPair:
        given = {"ip": "192.0.2.1", "user_agent": "a browser", "now": timezone.now(), **fields}
        return tokens.open_session(user=user, **given)

    return start


@pytest.fixture
def api_of(open_session: Any) -> Any:
    """Return a function that makes a signed-in client of a user."""
    return lambda user: Api(open_session(user).access)


def errors(response: Any) -> list[tuple[str, str | None]]:
    """Return code and attr of each error in an answer."""
    return [(error["code"], error["attr"]) for error in response.json()["errors"]]
