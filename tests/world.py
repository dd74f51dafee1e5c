"""A small world for tests: people with clients of their own, before a fake upstream, with the engine running."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from django.test import AsyncClient
from django.utils import timezone

from accounts.models import User
from accounts.tokens import open_session
from chatgpt_backend.lib import db
from chats.generation.engine import engine
from chats.llm import catalogue
from quotas import services as quotas
from quotas.limits import LIMITS
from quotas.models import Allowance, Counter, Hold, UsageRecord
from tests.upstream import Upstream


@dataclass
class Event:
    """One server-sent event."""

    type: str
    cursor: str
    data: dict[str, Any]


class Person:
    """A user with a session and a client."""

    def __init__(self, user: User, access: str) -> None:
        self.user, self.id, self.access = user, user.pk, access
        self.client = AsyncClient(raise_request_exception=False)

    async def call(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
        """Call `/api/v1<path>` signed in; `body` goes as JSON."""
        sent = {"Authorization": f"Bearer {self.access}", **(headers or {})}
        if method == "GET":
            return await self.client.get(f"/api/v1{path}", headers=sent)
        return await self.client.generic(
            method, f"/api/v1{path}", json.dumps(body or {}), content_type="application/json", headers=sent
        )

    async def get(self, path: str, **options: Any) -> Any:
        return await self.call("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self.call("POST", path, body, **options)

    async def patch(self, path: str, body: Any = None, **options: Any) -> Any:
        return await self.call("PATCH", path, body, **options)

    async def delete(self, path: str, **options: Any) -> Any:
        return await self.call("DELETE", path, **options)

    async def converse(self, **fields: Any) -> int:
        """Start a conversation and return its id."""
        answer = await self.post("/conversations", fields)
        assert answer.status_code == 201, answer.content
        return int(answer.json()["id"])

    async def say(self, conversation_id: int, content: str, **fields: Any) -> Any:
        """Post a message and return the answer."""
        return await self.post("/messages", {"conversation_id": conversation_id, "content": content, **fields})

    async def limit(self, **limits: int) -> None:
        """Set these limits for the user and lift all others."""
        overrides = {**dict.fromkeys(LIMITS), **limits}
        await db.run(Allowance.objects.filter(user_id=self.id).update, overrides=overrides)

    def books(self) -> dict[str, Any]:
        """Return what the accounts say, having checked that they agree with each other."""
        records = list(UsageRecord.objects.filter(user_id=self.id))
        held = list(Hold.objects.filter(user_id=self.id, status="open"))
        for counter in Counter.objects.filter(user_id=self.id).exclude(window="minute"):
            assert counter.requests_used == len(records)
            assert counter.tokens_used == sum(one.prompt_tokens + one.completion_tokens for one in records)
            assert counter.cost_used == sum(one.cost for one in records)
            assert counter.requests_held == len(held)
            assert counter.tokens_held == sum(one.tokens for one in held)
            assert counter.cost_held == sum(one.cost for one in held)
        return {"records": records, "open": len(held)}


async def events_of(answer: Any) -> AsyncIterator[Event]:
    """Yield the events of a streamed answer as they come, comments left out."""
    buffer = b""
    async for chunk in answer.streaming_content:
        buffer += chunk
        while b"\n\n" in buffer:
            frame, buffer = buffer.split(b"\n\n", 1)
            if frame.startswith(b":"):
                continue
            fields = dict(line.split(": ", 1) for line in frame.decode().split("\n"))
            yield Event(fields["event"], fields["id"], json.loads(fields["data"]))


class World:
    """Everybody, and what they share."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    async def open(self) -> None:
        await db.run(quotas.ensure_plans)
        await db.run(catalogue.sync_builtin_models)
        catalogue.clear_cache()
        await engine.start()

    async def close(self) -> None:
        await engine.drain(0)
        engine.draining = False

    async def meet(self, name: str) -> Person:
        """Make a user and sign them in. The password costs nothing here: nobody types it."""

        def make() -> Person:
            user = User(username=name, email=f"{name}@example.com")
            user.set_unusable_password()
            user.save()
            quotas.open_account(user.pk)
            return Person(user, open_session(user=user, ip=None, user_agent="", now=timezone.now()).access)

        return await db.run(make)
