"""Fixtures that need a server."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from chats.llm import client
from tests.upstream import Upstream
from tests.world import World


@pytest.fixture(scope="session")
def upstream_server() -> Iterator[Upstream]:
    """Run one fake upstream for all tests of this process."""
    with Upstream() as server:
        yield server


@pytest_asyncio.fixture
async def upstream(
    upstream_server: Upstream, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Upstream]:
    """Point the server at a fake upstream with small time-outs, and return it: see `tests.upstream` for its tricks."""
    upstream_server.reset()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.OPENAI_API_KEY = "sk-test-0123456789"
    settings.OPENAI_API_BASE = upstream_server.url
    settings.OPENAI_TIMEOUT = 1.0
    settings.OPENAI_MAX_RETRIES = 1
    await client.close()
    yield upstream_server
    await client.close()


@pytest_asyncio.fixture
async def world(transactional_db: Any, upstream: Upstream) -> AsyncIterator[World]:
    """Plans, models and a running engine before a fake upstream; afterwards the engine is stopped."""
    world = World(upstream)
    await world.open()
    yield world
    await world.close()
