"""What a socket still has to send: its order, and how little of it is kept for a client that does not read."""

import asyncio

import pytest
import pytest_asyncio
from django.utils import timezone

from chatgpt_backend.lib import db
from chats import feed
from chats.generation.engine import engine
from chats.generation.live import START, LiveReply
from chats.generation.reading import open_reply
from chats.models import Message
from realtime.outbox import MOST_PENDING, MOST_UNREAD, Outbox
from realtime.tests.sockets import text_of, types_of
from tests.world import events_of

pytestmark = pytest.mark.django_db(transaction=True)


class Wire:
    """A transport that takes frames while its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.frames = []
        self._changed = asyncio.Event()

    async def send(self, frame):
        await self.gate.wait()
        self.frames.append(frame)
        self._changed.set()

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not any(condition(frame) for frame in self.frames):
                self._changed.clear()
                await self._changed.wait()
        return self.frames

    async def until_feed(self, number):
        return await self.until(lambda frame: frame.get("feed") == number)


@pytest_asyncio.fixture
async def wire():
    return Wire()


@pytest_asyncio.fixture
async def outbox(alice, wire):
    """The running outbox of a socket of alice's called `me`."""
    one = Outbox(alice.id, "me", wire.send)
    await one.open()
    running = asyncio.ensure_future(one.run())
    yield one
    one.close()
    assert not running.done()
    running.cancel()
    await asyncio.wait({running})


def write(alice, count=1):
    """Commit events that nobody publishes; return their numbers."""

    def append():
        return [feed.append(alice.id, "message.deleted", now=timezone.now(), message_id=at) for at in range(count)]

    return db.run(lambda: db.in_transaction(append))


def event(alice, number, **fields):
    return feed.Event(alice.id, "message.deleted", number, data={"from": "memory"}, **fields)


def numbers(frames):
    return [frame["feed"] for frame in frames if "feed" in frame]


def end(live, alice, number, status="completed"):
    """End a live reply as the engine does."""
    live.end(Message(id=live.message_id, owner_id=alice.id, conversation_id=1, status=status), is_whole=True)
    feed.publish(feed.Event(alice.id, f"message.{status}", number, 1, live.message_id, data={"message": {}}))


async def test_a_reader_that_stalls_gets_fewer_and_longer_deltas_and_grows_no_queue(alice, outbox, wire):
    live = LiveReply(7, 1, alice.id)
    outbox.follow(live, START, request_id="r")
    live.append("一")
    await wire.until(lambda frame: frame.get("delta") == "一")
    wire.gate.clear()
    for number in range(10_000):
        live.append(f"{number}🎉", "思")
        if number % 100 == 0:
            await asyncio.sleep(0)
    # A frame that was on its way, and nothing else.
    assert not outbox._direct and not outbox._pending
    await write(alice)
    end(live, alice, 1)
    wire.gate.set()
    frames = await wire.until_feed(1)
    assert text_of(frames) == live.text.decode()
    assert "".join(frame.get("reasoning", "") for frame in frames) == live.reasoning.decode()
    # 10,000 pieces, of which the buffer is cut at MAX_DELTA_BYTES.
    assert len(frames) <= 6
    assert (frames[-1]["type"], frames[-1]["request_id"]) == ("message.completed", "r")
    assert not live._watchers


async def test_events_for_a_reader_that_stalls_are_left_in_their_rows(alice, outbox, wire):
    wire.gate.clear()
    for first in range(0, 500, 100):
        for number in await write(alice, 100):
            feed.publish(event(alice, number))
        await asyncio.sleep(0)
        assert len(outbox._pending) + len(outbox._early) <= MOST_PENDING, first
    wire.gate.set()
    assert numbers(await wire.until_feed(500)) == list(range(1, 501))


async def test_answers_to_a_client_that_does_not_read_have_an_end(outbox, wire):
    wire.gate.clear()
    assert all(outbox.put({"type": "pong", "ts": number}) for number in range(MOST_UNREAD))
    await asyncio.sleep(0)  # one is on its way
    assert outbox.put({"type": "pong", "ts": -1})
    assert not outbox.put({"type": "pong", "ts": -2})


async def test_events_published_out_of_order_are_put_in_order_without_a_look_at_the_rows(alice, outbox, wire):
    one, two, three = await write(alice, 3)
    for number in (three, one, two):
        feed.publish(event(alice, number))
    frames = await wire.until_feed(three)
    assert numbers(frames) == [one, two, three]
    assert {frame["from"] for frame in frames} == {"memory"}


async def test_a_gap_is_read_from_the_rows(alice, outbox, wire):
    lost, other, heard = await write(alice, 3)
    feed.publish(event(alice, heard, origin=("me", "r")))
    frames = await wire.until_feed(heard)
    assert numbers(frames) == [lost, other, heard]
    assert ["from" in frame for frame in frames] == [False, False, True]
    assert [frame.get("request_id") for frame in frames] == [None, None, "r"]
    # What comes too late is not told twice.
    feed.publish(event(alice, lost))
    [last] = await write(alice)
    feed.publish(event(alice, last))
    assert numbers(await wire.until_feed(last)) == [lost, other, heard, last]


async def test_a_gap_longer_than_a_page_is_read_in_pages(alice, outbox, wire):
    written = await write(alice, 3 * MOST_PENDING + 7)
    feed.publish(event(alice, written[-1], origin=("me", "r")))
    frames = await wire.until_feed(written[-1])
    assert numbers(frames) == written
    assert frames[-1]["request_id"] == "r"


async def test_events_that_were_deleted_since_hold_nothing_up(alice, outbox, wire):
    feed.publish(event(alice, 5))  # no row of that number or below
    live = LiveReply(7, 1, alice.id)
    outbox.follow(live, START, request_id=None)
    live.append("on")
    await wire.until(lambda frame: frame.get("delta") == "on")
    async with asyncio.timeout(5):
        while outbox._known > outbox._seen:  # noqa: ASYNC110 - what is waited for is that nothing happens
            await asyncio.sleep(0.02)
    feed.publish(event(alice, 6))
    assert numbers(await wire.until_feed(6))[-1] == 6


async def test_what_is_heard_while_the_feed_is_opened_is_neither_lost_nor_told_twice(alice, wire):
    one, two = await write(alice, 2)
    box = Outbox(alice.id, "me", wire.send)
    opening = asyncio.ensure_future(box.open())
    await asyncio.sleep(0)
    feed.publish(event(alice, one))
    feed.publish(event(alice, two))
    assert await opening == two
    [three] = await write(alice)
    feed.publish(event(alice, three))
    running = asyncio.ensure_future(box.run())
    assert numbers(await wire.until_feed(three)) == [three]
    box.close()
    running.cancel()
    await asyncio.wait({running})


async def test_the_first_event_ever_is_told_if_it_comes_while_the_feed_is_opened(alice, wire):
    box = Outbox(alice.id, "me", wire.send)
    box._forget = feed.listen(alice.id, box._hear)
    box._hear(event(alice, 1))
    box._seen = box._sent = 0  # the number that was read just before it was committed
    box._take_early()
    running = asyncio.ensure_future(box.run())
    assert numbers(await wire.until_feed(1)) == [1]
    box.close()
    running.cancel()
    await asyncio.wait({running})


async def test_deltas_wait_for_the_event_that_creates_their_reply_and_the_end_for_the_deltas(alice, outbox, wire):
    created, ended = await write(alice, 2)
    live = LiveReply(7, 1, alice.id)
    live.append("文" * 50_000)
    outbox.follow(live, START, request_id=None, after=created)
    end(live, alice, ended)
    await asyncio.sleep(0.01)
    assert wire.frames == []
    feed.publish(feed.Event(alice.id, "message.created", created, data={}))
    frames = await wire.until_feed(ended)
    assert types_of(frames) == ["message.created", "message.delta", "message.completed"]
    assert text_of(frames) == "文" * 50_000


async def test_other_events_wait_behind_an_end_but_deltas_and_answers_do_not(alice, outbox, wire):
    ended, later = await write(alice, 2)
    done, going = LiveReply(7, 1, alice.id), LiveReply(8, 1, alice.id)
    wire.gate.clear()
    outbox.put({"type": "pong"})
    outbox.follow(done, START, request_id=None)
    outbox.follow(going, START, request_id=None)
    done.append("x" * 200_000)
    going.append("y")
    end(done, alice, ended)
    feed.publish(event(alice, later))
    await asyncio.sleep(0)
    outbox.put({"type": "pong"})
    wire.gate.set()
    frames = await wire.until_feed(later)
    order = [(frame["type"], frame.get("message_id")) for frame in frames]
    assert order[:2] == [("pong", None), ("pong", None)]
    assert order.index(("message.delta", 8)) < order.index(("message.completed", None))
    assert numbers(frames) == [ended, later]
    assert text_of([frame for frame in frames if frame.get("message_id") == 7]) == "x" * 200_000


async def test_unfollowing_lets_a_held_end_go(alice, outbox, wire):
    created, ended = await write(alice, 2)
    live = LiveReply(7, 1, alice.id)
    outbox.follow(live, START, request_id=None)
    feed.publish(feed.Event(alice.id, "message.created", created, data={}))
    feed.publish(feed.Event(alice.id, "message.stopped", ended, 1, 7, data={}))
    await wire.until_feed(created)
    await asyncio.sleep(0.01)
    assert numbers(wire.frames) == [created]
    outbox.unfollow(7)
    assert numbers(await wire.until_feed(ended)) == [created, ended]
    assert not live._watchers


async def test_an_end_that_was_told_before_its_deltas_were_asked_for_is_told_again(alice, outbox, wire):
    created = await anext(events_of(await alice.say(await alice.converse(), "!never", stream=True)))
    live = engine.replies[created.data["reply"]["id"]]
    await live.wait_beyond(START)
    await engine._save()
    # Another process's look at the row, just before the end.
    del engine.replies[live.message_id]
    reply = await open_reply(user_id=alice.id, message_id=live.message_id)
    engine.replies[live.message_id] = live
    live.stop()
    await wire.until(lambda frame: frame["type"] == "message.stopped")
    told = len(wire.frames)
    outbox.follow(reply, START, request_id="r")
    await wire.until(lambda frame: frame["type"] == "message.stopped" and "feed" not in frame)
    again = wire.frames[told:]
    assert types_of(again) == ["message.delta", "message.stopped"]
    assert text_of(again) == live.text.decode() == again[-1]["message"]["content"]
    assert again[-1]["request_id"] == "r"


async def test_a_closed_outbox_follows_nothing(alice, wire):
    box = Outbox(alice.id, "me", wire.send)
    await box.open()
    live = LiveReply(7, 1, alice.id)
    box.close()
    box.follow(live, START, request_id=None)
    assert not live._watchers
    assert not feed.has_listeners(alice.id)
