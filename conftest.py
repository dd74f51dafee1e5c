"""Fixtures for every app's tests."""

from typing import Any

import pytest

pytest_plugins = ["tests.fixtures"]


@pytest.fixture
def make_user(transactional_db: Any) -> Any:
    """Return a factory of users: `make_user("alice")`. The password is the name twice and a digit."""
    from accounts.models import User

    def make(name: str = "alice", **fields: Any) -> Any:
        return User.objects.create_user(name, f"{name}@example.com", f"{name}-{name}-1", **fields)

    return make
