"""What the tests of the socket share."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from chats import feed
from realtime import consumer
from realtime.tests.sockets import Socket
from tests.world import Person, World


@pytest_asyncio.fixture
async def alice(world: World) -> Person:
    """A signed-in user with a client of her own."""
    return await world.meet("alice")


@pytest_asyncio.fixture
async def bob(world: World) -> Person:
    """A stranger to alice."""
    return await world.meet("bob")


@pytest_asyncio.fixture
async def connect(world: World) -> AsyncIterator[Any]:
    """Return an opener of sockets: `await connect(alice)`. Afterwards nothing of them may be left."""
    opened: list[Socket] = []

    async def open_one(person: Person | None = None, **options: Any) -> Socket:
        if person is not None:
            options.setdefault("path", f"/api/v1/ws/{person.access}")
        one = Socket(**options)
        opened.append(one)
        await one.open()
        return one

    yield open_one
    for one in opened:
        await one.leave()
    assert not consumer._connections
    assert not feed._listeners


@pytest.fixture
def quick_heart(settings: Any) -> None:
    """Beat often."""
    settings.WEBSOCKET_HEARTBEAT_SECONDS = 0.05
