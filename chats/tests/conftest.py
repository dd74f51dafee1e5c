"""What the tests of conversations and replies share."""

import pytest_asyncio

from tests.world import Person, World


@pytest_asyncio.fixture
async def alice(world: World) -> Person:
    """A signed-in user with a client of her own."""
    return await world.meet("alice")


@pytest_asyncio.fixture
async def bob(world: World) -> Person:
    """A stranger to alice."""
    return await world.meet("bob")
