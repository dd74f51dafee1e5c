"""What the keeper does for the dead, and what it survives: nothing that one row has may end it for all."""

import asyncio
import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from chatgpt_backend.lib import db
from chats.generation import store
from chats.generation.engine import engine
from chats.models import Message
from quotas.models import Hold
from tests.world import Person

pytestmark = pytest.mark.django_db(transaction=True)


def die(person: Person, conversation_id: int, count: int, *, ago: float) -> list[int]:
    """Leave `count` replies behind as a process does that was killed `ago` seconds since."""
    ids = []
    for _ in range(count):
        asked = store.Asked(user_id=person.id, conversation_id=conversation_id, content="你好")
        started = store.start(asked, lease_owner=f"dead:{uuid.uuid4().hex}")
        ids.append(started.reply.pk)
    past = timezone.now() - timedelta(seconds=ago)
    Message.objects.filter(id__in=ids).update(lease_expires_at=past)
    Hold.objects.filter(status="open").update(expires_at=past)
    return ids


async def until_ended(ids: list[int], *, within: float = 15.0) -> None:
    left = Message.objects.streaming().filter(id__in=ids)
    async with asyncio.timeout(within):
        while await db.run(left.exists):  # noqa: ASYNC110 - what is waited for is a row
            await asyncio.sleep(0.05)


async def test_more_replies_than_one_round_takes_are_all_settled(alice, monkeypatch):
    # given more than the reaper takes at once, of a process that died longer ago than any hold may be orphaned
    monkeypatch.setattr(store, "ABANDONED_BATCH", 5)
    await alice.limit()
    conversation_id = await alice.converse()
    ids = await db.run(die, alice, conversation_id, 17, ago=600)
    # then each is interrupted, and none of their holds was taken for an orphan and released before
    await until_ended(ids)
    holds = await db.run(lambda: list(Hold.objects.values_list("status", flat=True)))
    assert holds == ["settled"] * 17
    assert (await db.run(alice.books))["open"] == 0


async def test_a_hold_that_belongs_to_nothing_stored_is_released(alice):
    await alice.limit()
    conversation_id = await alice.converse()
    ids = await db.run(die, alice, conversation_id, 1, ago=600)
    await db.run(lambda: Message.objects.filter(id__in=ids).delete())
    async with asyncio.timeout(10):
        while await db.run(Hold.objects.filter(status="open").exists):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await db.run(alice.books))["records"] == []


async def test_a_row_that_cannot_be_read_stops_nobody_else(alice):
    # given two replies of a dead process, the text of the older one damaged
    await alice.limit()
    conversation_id = await alice.converse()
    damaged, sound = await db.run(die, alice, conversation_id, 2, ago=1)
    await db.run(lambda: Message.objects.filter(id=damaged).update(content_sealed=b"\x01damaged"))
    # then the other one ends, and the keeper goes on
    await until_ended([sound])
    third = await db.run(die, alice, await alice.converse(), 1, ago=1)
    await until_ended(third)
    assert await db.run(lambda: Message.objects.get(id=damaged).status) == "streaming"


async def test_a_keeper_that_ends_is_replaced_under_the_same_name(alice):
    conversation_id = await alice.converse()
    owner, keeper = engine.lease_owner, engine._keeper
    running = asyncio.create_task(alice.say(conversation_id, "!tokens=30 !slow=0.1"))
    while not engine.replies:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    keeper.cancel()
    await asyncio.wait({keeper})
    # when the next message finds it gone
    other = await alice.converse()
    await alice.say(other, "!reply=ok")
    # then what runs is not lost
    assert engine.lease_owner == owner
    assert engine._keeper is not keeper
    assert (await running).json()["reply"]["status"] == "completed"


async def test_a_message_that_is_being_stored_when_the_process_drains_is_interrupted(alice):
    conversation_id = await alice.converse()
    asked = store.Asked(user_id=alice.id, conversation_id=conversation_id, content="!never")
    sending = asyncio.create_task(engine.send(asked))
    for _ in range(3):
        await asyncio.sleep(0)
    # when
    await engine.drain(0)
    # then it is neither forgotten nor left to whoever finds it later
    started, live = await sending
    assert live.ended.status == "interrupted"
    row = await db.run(lambda: Message.objects.get(id=started.reply.pk))
    assert row.status == "interrupted"
    assert (await db.run(alice.books))["open"] == 0
