"""How the parts that a request needs are doing. Each check has a time limit and says one word."""

import asyncio
import secrets
from collections.abc import Awaitable

from channels.layers import get_channel_layer
from django.core.cache import cache
from django.db import DatabaseError, InterfaceError, connection

from chatgpt_backend.lib import db
from chatgpt_backend.ops.migrations_state import missing_migrations
from chats.llm import client

CHECK_SECONDS = 3.0
OK, FAILING = "ok", "failing"


async def run_checks() -> dict[str, str]:
    """Return how the database, the cache, the channel layer and the upstream are. Asks no upstream."""
    database, cached, layer = await asyncio.gather(
        _say(db.run(_query)), _say(db.run(_remember)), _say(_send_and_receive())
    )
    return {
        "database": database,
        "cache": cached,
        "channel_layer": layer,
        "upstream": str(client.last_outcome()["status"]),
    }


async def _say(check: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check
    except (DatabaseError, InterfaceError, OSError):  # a time-out is an OSError
        return FAILING
    return OK


def _query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchone()


def _remember() -> None:
    key = f"health:{secrets.token_hex(8)}"
    cache.set(key, "1", timeout=5)
    cache.delete(key)


async def _send_and_receive() -> None:
    layer = get_channel_layer()
    channel = await layer.new_channel("health")
    await layer.send(channel, {"type": "health"})
    await layer.receive(channel)


class Migrations:
    """Whether all migrations are applied; asked of the database until they are, since they stay so."""

    def __init__(self) -> None:
        self.complete = False

    async def are_complete(self) -> bool:
        """Return it. Raises django.db's errors when the database is away."""
        if not self.complete:
            self.complete = not await db.run(missing_migrations)
        return self.complete


migrations = Migrations()
