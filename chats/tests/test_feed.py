"""The feed: numbers without gaps whoever writes at once, events rendered as things stand, and listeners told."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, transaction
from django.utils import timezone

from chatgpt_backend.lib import db
from chats import feed
from chats.models import Conversation, FeedCounter, FeedEvent, Message
from chats.tests.counting import statements_of_requests
from tests.world import events_of

pytestmark = pytest.mark.django_db(transaction=True)


def append(user_id, type="conversation.updated", **named):
    return db.in_transaction(feed.append, user_id, type, now=timezone.now(), **named)


def numbers(user_id):
    return list(FeedEvent.objects.filter(user_id=user_id).order_by("number").values_list("number", flat=True))


class Told(list):
    """What a listener heard, and waiting for it."""

    def __init__(self):
        super().__init__()
        self.changed = asyncio.Event()

    def __call__(self, event):
        self.append(event)
        self.changed.set()

    async def until(self, number):
        async with asyncio.timeout(5):
            while len(self) < number:
                self.changed.clear()
                await self.changed.wait()
        return list(self)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_each_user_counts_from_one(make_user):
    alice, bob = make_user("alice"), make_user("bob")
    assert feed.last_number(alice.pk) == 0
    assert [append(alice.pk) for _ in range(3)] == [1, 2, 3]
    assert append(bob.pk) == 1
    assert (feed.last_number(alice.pk), feed.last_number(bob.pk)) == (3, 1)


def test_writers_at_once_leave_no_gap_and_no_number_twice(make_user):
    alice, bob = make_user("alice"), make_user("bob")
    together = threading.Barrier(16)

    def write(place):
        try:
            together.wait(timeout=10)  # also to make the counter's row
            return [append((alice, bob)[place % 2].pk) for _ in range(10)]
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(write, range(16)))

    for place, user in enumerate((alice, bob)):
        assert numbers(user.pk) == list(range(1, 81))
        mine = given[place::2]
        assert sorted(number for one in mine for number in one) == list(range(1, 81))
        assert all(one == sorted(one) for one in mine)


def test_a_write_that_is_undone_leaves_no_gap(make_user):
    alice = make_user("alice")
    append(alice.pk)

    class Undo(Exception):
        pass

    with pytest.raises(Undo), transaction.atomic():
        assert feed.append(alice.pk, "conversation.updated", now=timezone.now()) == 2
        raise Undo
    assert append(alice.pk) == 2
    assert numbers(alice.pk) == [1, 2]


def test_whoever_reads_a_number_sees_all_before_it(make_user):
    """A number is given only when the one before is committed, so a reader never skips one that comes later."""
    alice = make_user("alice")
    done = threading.Event()
    holes = []

    def write(_):
        try:
            for _ in range(25):
                append(alice.pk)
        finally:
            connection.close()

    def watch():
        try:
            while not done.is_set():
                seen = numbers(alice.pk)
                if seen != list(range(1, len(seen) + 1)):
                    holes.append(seen)
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        watching = pool.submit(watch)
        list(pool.map(write, range(4)))
        done.set()
        watching.result()
    assert holes == []
    assert len(numbers(alice.pk)) == 100


def test_an_event_is_two_statements(make_user, django_assert_num_queries):
    alice = make_user("alice")
    append(alice.pk)
    with transaction.atomic(), django_assert_num_queries(2 if connection.vendor != "mysql" else 3):
        feed.append(alice.pk, "conversation.updated", now=timezone.now())


async def test_everything_a_user_does_at_once_is_in_the_feed_without_gaps(alice):
    conversation_ids = [await alice.converse() for _ in range(3)]
    await asyncio.gather(
        *(alice.say(one, f"{n} !reply=ok") for one in conversation_ids for n in range(4)),
        *(alice.patch(f"/conversations/{one}", {"title": f"{n}"}) for one in conversation_ids for n in range(4)),
    )
    events = await db.run(feed.read, alice.id, since=0)
    assert [one.number for one in events] == list(range(1, 3 + 12 * 2 + 12 + 1))
    begun = {one.reply_id: one.number for one in events if one.type == "message.created"}
    ended = {one.ends: one.number for one in events if one.ends}
    assert begun.keys() == ended.keys()
    assert all(begun[one] < ended[one] for one in begun)


# --- Reading ----------------------------------------------------------------------------------------------------------


async def test_events_are_read_in_order_from_any_number(alice, bob):
    await bob.converse()
    for _ in range(5):
        await alice.converse()

    def read(since, **options):
        return [one.number for one in feed.read(alice.id, since=since, **options)]

    assert await db.run(read, 0) == [1, 2, 3, 4, 5]
    assert await db.run(read, 3) == [4, 5]
    assert await db.run(read, 1, limit=2) == [2, 3]
    assert await db.run(read, 5) == await db.run(read, 99) == []


async def test_a_page_has_an_end(alice):
    def write():
        now = timezone.now()
        for _ in range(feed.PAGE + 5):
            feed.append(alice.id, "conversation.deleted", now=now, conversation_id=1)

    await db.run(db.in_transaction, write)
    first = await db.run(feed.read, alice.id, since=0)
    assert len(first) == feed.PAGE
    assert len(await db.run(feed.read, alice.id, since=first[-1].number)) == 5


async def test_events_say_what_rest_says(alice):
    conversation_id = await alice.converse(title="first")
    exchange = (await alice.say(conversation_id, "one !reply=1")).json()
    await alice.say(conversation_id, "stored", reply=False, parent_id=exchange["reply"]["id"])
    other = (await alice.say(conversation_id, "two !cut=2", parent_id=exchange["reply"]["id"])).json()
    assert other["errors"][0]["code"] == "upstream_unavailable"
    await alice.patch(f"/conversations/{conversation_id}", {"title": "second"})
    gone = await alice.converse()
    await alice.delete(f"/conversations/{gone}")

    events = await db.run(feed.read, alice.id, since=0)

    messages = {
        one["id"]: one
        for one in (await alice.get(f"/conversations/{conversation_id}/messages?branch=all")).json()["results"]
    }
    conversation = (await alice.get(f"/conversations/{conversation_id}")).json()
    asked, answered, stored, again, failed = sorted(messages)
    here = {"conversation_id": conversation_id}
    assert len(messages[stored]["sibling_ids"]) == 2
    assert [(one.type, one.rendered()) for one in events] == [
        ("conversation.created", {**here, "conversation": conversation}),  # as it stands now
        ("message.created", {**here, "message": messages[asked], "reply": messages[answered]}),
        ("message.completed", {**here, "message_id": answered, "message": messages[answered]}),
        ("message.created", {**here, "message": messages[stored], "reply": None}),
        ("message.created", {**here, "message": messages[again], "reply": messages[failed]}),
        ("message.failed",
         {**here, "message_id": failed, "message": messages[failed], "error": messages[failed]["error"]}),
        ("conversation.updated", {**here, "conversation": conversation}),
        ("conversation.created", {"conversation_id": gone}),
        ("conversation.deleted", {"conversation_id": gone}),
    ]  # fmt: skip
    assert [one.ends for one in events] == [None, None, answered, None, None, failed, None, None, None]


async def test_what_is_gone_is_told_as_gone(alice):
    conversation_id = await alice.converse()
    exchange = (await alice.say(conversation_id, "one !reply=1")).json()
    await alice.delete(f"/conversations/{conversation_id}")
    events = await db.run(feed.read, alice.id, since=0)
    here = {"conversation_id": conversation_id}
    assert [(one.type, one.rendered()) for one in events] == [
        ("conversation.created", here),
        ("message.created", {**here, "message": None, "reply": None}),
        ("message.completed", {**here, "message_id": exchange["reply"]["id"], "message": None}),
        ("conversation.deleted", here),
    ]


async def test_another_users_ids_in_an_event_show_nothing(alice, bob):
    conversation_id = await bob.converse(title="theirs")
    message_id = (await bob.say(conversation_id, "theirs", reply=False)).json()["message"]["id"]
    await db.run(append, alice.id, "message.created", conversation_id=conversation_id, message_id=message_id)
    await db.run(append, alice.id, "conversation.updated", conversation_id=conversation_id)
    created, updated = await db.run(feed.read, alice.id, since=0)
    assert created.rendered() == {"conversation_id": conversation_id, "message": None, "reply": None}
    assert updated.rendered() == {"conversation_id": conversation_id}


async def test_reading_is_four_queries_however_many_events(alice):
    for _ in range(3):
        conversation_id = await alice.converse()
        for number in range(3):
            await alice.say(conversation_id, f"{number} !reply=ok")
    with statements_of_requests() as statements:
        events = await db.run(feed.read, alice.id, since=0)
    assert (len(events), len(statements)) == (21, 4), "\n".join(statements)


# --- Listening --------------------------------------------------------------------------------------------------------


async def test_listeners_hear_their_users_events_until_they_end(alice, bob):
    first, second, theirs = Told(), Told(), Told()
    forget = [feed.listen(alice.id, first), feed.listen(alice.id, second), feed.listen(bob.id, theirs)]
    assert feed.has_listeners(alice.id)
    event = feed.Event(alice.id, "conversation.updated", 1)
    # From a thread of the pool, as services do.
    await db.run(feed.publish, event)
    assert await first.until(1) == await second.until(1) == [event]

    forget[0]()
    forget[0]()  # once more does no harm
    await db.run(feed.publish, feed.Event(alice.id, "conversation.updated", 2))
    await db.run(feed.publish, feed.Event(bob.id, "conversation.updated", 1))
    await second.until(2)
    await theirs.until(1)
    assert (len(first), len(second), len(theirs)) == (1, 2, 1)

    forget[1]()
    forget[2]()
    assert not feed.has_listeners(alice.id)
    assert feed._listeners == {}
    feed.publish(event)  # to nobody


async def test_the_same_function_may_listen_twice(alice):
    told = Told()
    forget = [feed.listen(alice.id, told), feed.listen(alice.id, told)]
    feed.publish(feed.Event(alice.id, "conversation.updated", 1))
    await told.until(2)
    forget[0]()
    feed.publish(feed.Event(alice.id, "conversation.updated", 2))
    assert [one.number for one in await told.until(3)] == [1, 1, 2]
    forget[1]()


async def test_a_listener_that_ends_while_told_disturbs_nobody(alice):
    told, forget = Told(), {}

    def once(event):
        forget["once"]()

    forget["once"] = feed.listen(alice.id, once)
    forget["told"] = feed.listen(alice.id, told)
    feed.publish(feed.Event(alice.id, "conversation.updated", 1))
    await told.until(1)
    forget["told"]()
    assert not feed.has_listeners(alice.id)


async def test_listeners_are_told_what_the_rows_say_after_the_commit(alice):
    told = Told()
    seen = []

    def hear(event):
        seen.append(asyncio.ensure_future(db.run(feed.last_number, alice.id)))
        told(event)

    forget = feed.listen(alice.id, hear)
    conversation_id = await alice.converse(title="first")
    exchange = (await alice.say(conversation_id, "one !reply=1")).json()
    await alice.patch(f"/conversations/{conversation_id}", {"title": "second"})
    await alice.say(conversation_id, "stored", reply=False)
    await alice.delete(f"/conversations/{conversation_id}")
    heard = await told.until(6)
    forget()
    # Each was in the table by the time it was heard of.
    assert all(committed >= event.number for committed, event in zip(await asyncio.gather(*seen), heard, strict=True))
    assert [(one.type, one.number) for one in heard] == [
        ("conversation.created", 1),
        ("message.created", 2),
        ("message.completed", 3),
        ("conversation.updated", 4),
        ("message.created", 5),
        ("conversation.deleted", 6),
    ]
    assert heard[2].rendered()["message"] == exchange["reply"]
    assert heard[3].rendered()["conversation"]["title"] == "second"
    assert heard[5].rendered() == {"conversation_id": conversation_id}


async def test_what_is_told_is_what_is_read_later(alice):
    told = Told()
    forget = feed.listen(alice.id, told)
    conversation_id = await alice.converse()
    stream = events_of(await alice.say(conversation_id, "!never !slow=0.02 !reasoning=1", stream=True))
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    await alice.post(f"/messages/{reply_id}/stop")
    heard = await told.until(3)
    forget()
    read = await db.run(feed.read, alice.id, since=0)
    # The equality of events leaves their data out.
    assert heard == read
    assert heard[2].rendered() == read[2].rendered()


def test_an_events_rows_go_with_their_user(make_user):
    alice = make_user("alice")
    append(alice.pk)
    alice.delete()
    assert not FeedEvent.objects.exists()
    assert not FeedCounter.objects.exists()
    assert not Conversation.objects.exists()
    assert not Message.objects.exists()
