"""The socket whole: who may connect, what is asked over it, what it tells, and every way that it ends."""

import asyncio
import json
from datetime import timedelta

import pytest
from django.conf import settings as project
from django.db import OperationalError, connections
from django.utils import timezone

from accounts.models import Session, User
from accounts.tokens import open_session, rotate
from chatgpt_backend.lib import db
from chats import feed
from chats.generation.engine import engine
from chats.generation.live import START
from chats.models import Message
from realtime import consumer
from realtime.outbox import MOST_SUBSCRIPTIONS
from realtime.tests.sockets import Closed, reasoning_of, text_of, types_of

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "汉字 and émoji 👩‍👩‍👧🎉 mixed, 一二三四五。"
HUGE = 10**30


async def new_session(person, *, left=None):
    """Open another session of a person; `left`: how long its access token still lives."""
    ago = project.ACCESS_TOKEN_LIFETIME - left if left is not None else timedelta()
    return await db.run(lambda: open_session(user=person.user, ip=None, user_agent="", now=timezone.now() - ago))


# --- Who may connect --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["path", "path with a slash", "subprotocol", "both"])
async def test_a_token_connects_by_path_or_subprotocol(alice, connect, way):
    path = {"subprotocol": "/api/v1/ws", "path with a slash": f"/api/v1/ws/{alice.access}/"}
    one = await connect(
        path=path.get(way, f"/api/v1/ws/{alice.access}"),
        subprotocols=["bearer", alice.access] if way in ("subprotocol", "both") else None,
    )
    assert one.subprotocol == ("bearer" if way in ("subprotocol", "both") else None)
    assert one.ready == {
        "type": "connection.ready",
        "connection_id": one.ready["connection_id"],
        "user_id": alice.id,
        "heartbeat_interval": 30,
        "feed": 0,
    }
    await alice.converse()
    again = await connect(alice)
    assert again.ready["feed"] == 1
    assert again.ready["connection_id"] != one.ready["connection_id"]


async def tokens_of(person):
    lost = await new_session(person)
    await db.run(Session.objects.filter(id=lost.session.pk).update, revoked_at=timezone.now())
    deleted = await new_session(person)
    await db.run(Session.objects.filter(id=deleted.session.pk).delete)
    expired = await new_session(person, left=timedelta(seconds=-5))
    return {
        "": None,
        "rubbish": "not.a.token",
        "changed": person.access[:-4] + "AAAA",
        "long": "x" * 5000,
        "refresh token": (await new_session(person)).refresh,
        "revoked": lost.access,
        "deleted": deleted.access,
        "expired": expired.access,
    }


async def test_without_a_valid_token_it_is_accepted_and_closed(alice, connect):
    for name, token in (await tokens_of(alice)).items():
        for options in (
            {"path": f"/api/v1/ws/{token}"} if token else {"path": "/api/v1/ws"},
            {"subprotocols": ["bearer", token] if token else ["bearer"]},
            {"subprotocols": ["chat", token or "x"]},
        ):
            one = await connect(**options)
            assert (one.accepted, one.code, one.ready) == (True, 4401, {}), name
            assert one.subprotocol == ("bearer" if "bearer" in options.get("subprotocols", []) else None)


async def test_a_disabled_user_is_told_so(alice, connect):
    await db.run(User.objects.filter(id=alice.id).update, is_active=False)
    assert (await connect(alice)).code == 4403


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:8000", True),
        ("https://app.example", True),
        ("https://app.example:444", False),
        ("https://evil.example", False),
        ("https://localhost.evil.example", False),
        ("null", False),
        ("http://[", False),
        ("http://\xff", False),
    ],
)
async def test_foreign_origins_are_refused_in_the_handshake(alice, connect, settings, origin, allowed):
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
    settings.CORS_ALLOWED_ORIGINS = ["https://app.example"]
    one = await connect(alice, origin=origin)
    assert (one.accepted, bool(one.ready)) == (allowed, allowed)


async def test_an_address_without_a_consumer_is_refused(alice, connect):
    one = await connect(path="/api/v1/elsewhere")
    assert not one.accepted


async def test_the_newest_of_too_many_is_refused(alice, bob, connect, settings):
    settings.WEBSOCKET_MAX_PER_USER = 2
    first, second = await connect(alice), await connect(alice)
    assert (await connect(alice)).code == 4429
    assert (await connect(bob)).ready
    assert (await first.ask("ping"))["type"] == "pong"
    await second.leave()
    assert (await connect(alice)).ready


async def test_a_process_that_goes_away_sends_sockets_elsewhere(alice, connect):
    one = await connect(alice)
    engine.draining = True
    try:
        assert (await connect(alice)).code == 4503
        refused = await one.ask("chat_message", id="1", conversation_id=1, content="hi")
        assert (refused["type"], refused["code"], refused["request_id"]) == ("error", "shutting_down", "1")
    finally:
        engine.draining = False


# --- Talking ----------------------------------------------------------------------------------------------------


async def test_a_reply_is_streamed_to_the_asker_and_told_to_all(alice, bob, connect):
    conversation_id = await alice.converse()
    asker, other, stranger = await connect(alice), await connect(alice), await connect(bob)
    start = asker.ready["feed"]
    await asker.send("chat_message", id="req", conversation_id=conversation_id, content=f"!reasoning=4 !reply={TEXT}")
    frames, heard = await asker.until_end(), await other.until_end()
    assert types_of(frames) == ["message.created", "message.delta", "message.completed"]
    assert types_of(heard) == ["message.created", "message.completed"]
    created, ended = frames[0], frames[-1]
    assert (created["message"]["content"], created["reply"]["status"]) == (f"!reasoning=4 !reply={TEXT}", "streaming")
    assert (created["feed"], ended["feed"]) == (start + 1, start + 2)
    # What it caused carries the request's id on the socket that asked, and nowhere else.
    assert {one["request_id"] for one in frames} == {"req"}
    assert heard == [{key: one[key] for key in one if key != "request_id"} for one in (created, ended)]
    reply_id = created["reply"]["id"]
    deltas = frames[1:-1]
    assert all((one["conversation_id"], one["message_id"]) == (conversation_id, reply_id) for one in deltas)
    assert all("feed" not in one for one in deltas)
    stored = (await alice.get(f"/messages/{reply_id}")).json()
    assert text_of(frames) == TEXT == stored["content"]
    assert reasoning_of(frames) == stored["reasoning"] != ""
    assert ended["message"] == stored
    assert (ended["conversation_id"], ended["message_id"]) == (conversation_id, reply_id)
    assert await asker.is_silent() and await stranger.is_silent()


async def test_without_an_id_nothing_is_echoed(alice, connect):
    one = await connect(alice)
    await one.send("chat_message", conversation_id=await alice.converse(), content="!reply=ok")
    frames = await one.until_end()
    assert not any("request_id" in frame for frame in frames)


async def test_two_requests_at_once_are_told_apart(alice, connect):
    one = await connect(alice)
    texts = {f"r{number}": f"{number} {TEXT}" for number in range(5)}
    for request_id, text in texts.items():
        conversation_id = await alice.converse()
        await one.send("chat_message", id=request_id, conversation_id=conversation_id, content=f"!reply={text}")
    frames, ends = [], 0
    while ends < len(texts):
        frames.append(await one.next())
        ends += frames[-1]["type"] == "message.completed"
    for request_id, text in texts.items():
        mine = [frame for frame in frames if frame.get("request_id") == request_id]
        assert types_of(mine) == ["message.created", "message.delta", "message.completed"]
        assert text_of(mine) == text == mine[-1]["message"]["content"]
    numbers = [frame["feed"] for frame in frames if "feed" in frame]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_what_rest_says_is_told_to_sockets_without_deltas(alice, connect):
    one = await connect(alice)
    conversation_id = await alice.converse(title="早")
    await alice.say(conversation_id, f"!reply={TEXT}")
    await alice.patch(f"/conversations/{conversation_id}", {"title": "晚"})
    await alice.delete(f"/conversations/{conversation_id}")
    frames = await one.until("conversation.deleted")
    assert [frame["type"] for frame in frames] == [
        "conversation.created",
        "message.created",
        "message.completed",
        "conversation.updated",
        "conversation.deleted",
    ]
    assert [frame["feed"] for frame in frames] == [1, 2, 3, 4, 5]
    assert {frame["conversation_id"] for frame in frames} == {conversation_id}
    assert (frames[0]["conversation"]["title"], frames[3]["conversation"]["title"]) == ("早", "晚")
    assert frames[2]["message"]["content"] == TEXT
    assert set(frames[4]) == {"type", "conversation_id", "feed"}


@pytest.mark.parametrize(
    ("directive", "code"),
    [("!500", "upstream_unavailable"), ("!cut=4", "upstream_unavailable"), ("!stall=2", "upstream_timeout")],
)
async def test_an_upstream_that_fails_is_an_event_with_its_error(alice, connect, directive, code):
    one = await connect(alice)
    await one.send("chat_message", id="1", conversation_id=await alice.converse(), content=directive)
    frames = await one.until_end()
    ended = frames[-1]
    assert (ended["type"], ended["error"]["code"], ended["request_id"]) == ("message.failed", code, "1")
    assert (ended["message"]["status"], ended["message"]["error"]) == ("failed", ended["error"])
    assert ended["message"]["content"] == text_of(frames)


@pytest.mark.parametrize(
    ("fields", "code", "attr"),
    [
        ({"conversation_id": 999_999}, "does_not_exist", "conversation_id"),
        ({"conversation_id": HUGE}, "max_value", "conversation_id"),
        ({"conversation_id": -HUGE}, "does_not_exist", "conversation_id"),
        ({"conversation_id": None}, "null", "conversation_id"),
        ({"conversation_id": 1.5}, "invalid", "conversation_id"),
        ({"parent_id": 999_999}, "does_not_exist", "parent_id"),
        ({"parent_id": -HUGE}, "does_not_exist", "parent_id"),
        ({"content": " "}, "blank", "content"),
        ({"content": None}, "null", "content"),
        ({"content": 5}, "parts", "content"),
        ({"content": "a\x00b"}, "null_characters_not_allowed", "content"),
        ({"model": "no-such-model"}, "does_not_exist", "model"),
        ({"model": {"a": 1}}, "invalid", "model"),
        ({"temperature": 10**400}, "overflow", "temperature"),
        ({"attachments": [1]}, "does_not_exist", "attachments"),
    ],
)
async def test_bad_input_is_told_and_nothing_stored(alice, connect, fields, code, attr):
    one = await connect(alice)
    conversation_id = await alice.converse()
    await one.until("conversation.created")
    asked = {"conversation_id": conversation_id, "content": "hi", **fields}
    error = await one.ask("chat_message", id="1", **asked)
    assert (error["type"], error["code"], error["attr"], error["request_id"]) == ("error", code, attr, "1")
    assert error["detail"]
    assert await db.run(Message.objects.count) == 0


async def test_brackets_nested_by_the_hundred_are_told(alice, connect):
    one = await connect(alice)
    # Somewhere on the way to 1,000 lies what can just be read.
    for depth in [*range(500, 1000, 4), 5_000, 400_000]:
        await one.send_raw('{"type":"chat_message","content":"x","conversation_id":' + "[" * depth + "]" * depth + "}")
        assert (await one.next())["code"] in ("invalid", "invalid_json")


async def test_a_quota_that_is_used_up_is_told(alice, connect):
    await alice.limit(requests_per_day=0)
    one = await connect(alice)
    conversation_id = await alice.converse()
    await one.until("conversation.created")
    error = await one.ask("chat_message", id="1", conversation_id=conversation_id, content="hi")
    assert (error["type"], error["code"], error["request_id"]) == ("error", "quota_exceeded", "1")
    assert 0 < error["retry_after"] <= 86_400


async def test_strangers_get_nothing_and_change_nothing(alice, bob, connect):
    conversation_id = await alice.converse()
    hers, his = await connect(alice), await connect(bob)
    await hers.send("chat_message", conversation_id=conversation_id, content="!never")
    created = (await hers.until("message.delta"))[0]
    reply_id = created["reply"]["id"]
    for type in ("subscribe", "stop"):
        refused = await his.ask(type, id="1", message_id=reply_id)
        unknown = await his.ask(type, id="1", message_id=999_999)
        assert refused == unknown
        assert (refused["type"], refused["code"]) == ("error", "not_found")
    refused = await his.ask("chat_message", id="1", conversation_id=conversation_id, content="hi")
    assert (refused["code"], refused["attr"]) == ("does_not_exist", "conversation_id")
    his_own = await bob.converse()
    await his.until("conversation.created")
    refused = await his.ask("chat_message", conversation_id=his_own, content="hi", parent_id=created["message"]["id"])
    assert (refused["code"], refused["attr"]) == ("does_not_exist", "parent_id")
    await his.send("unsubscribe", message_id=reply_id)
    assert await his.is_silent()
    assert (await hers.next())["type"] == "message.delta"
    assert engine.replies[reply_id].ended is None
    assert await db.run(Message.objects.count) == 2


@pytest.mark.parametrize("message_id", [HUGE, -HUGE, 2**63, 0])
async def test_ids_beyond_every_range_are_not_found(alice, connect, message_id):
    one = await connect(alice)
    for type in ("subscribe", "stop"):
        assert (await one.ask(type, message_id=message_id))["code"] == "not_found"
    await one.send("unsubscribe", message_id=message_id)
    assert (await one.ask("ping"))["type"] == "pong"


# --- Following --------------------------------------------------------------------------------------------------


async def follow(one, message_id, cursor=None):
    """Subscribe, and return the frames up to the end, the acknowledgement left out."""
    acknowledged = await one.ask("subscribe", id="f", message_id=message_id, cursor=cursor)
    assert acknowledged == {"type": "subscribed", "message_id": message_id, "request_id": "f"}
    frames = await one.until_end()
    assert all(frame["request_id"] == "f" for frame in frames)
    return frames


async def test_a_reply_may_be_followed_from_any_cursor_running_or_done(alice, connect, settings):
    settings.MAX_DELTA_BYTES = 7  # so that there are many places
    asker = await connect(alice)
    await asker.send(
        "chat_message", conversation_id=await alice.converse(), content=f"!slow=0.02 !reasoning=5 !reply={TEXT}"
    )
    frames, attached = [], []
    while not frames or frames[-1]["type"] != "message.completed":
        frames.append(await asker.next())
        if frames[-1]["type"] == "message.delta" and len(attached) < 5:
            reader = await connect(alice)
            following = asyncio.ensure_future(follow(reader, frames[-1]["message_id"], frames[-1]["cursor"]))
            attached.append((len(frames), following))
    for had, following in attached:
        later = await following
        assert text_of(frames[:had]) + text_of(later) == TEXT
        assert reasoning_of(frames[:had]) + reasoning_of(later) == reasoning_of(frames)
        assert (later[-1]["message"], later[-1]["feed"]) == (frames[-1]["message"], frames[-1]["feed"])
    deltas = [frame for frame in frames if frame["type"] == "message.delta"]
    assert len(deltas) > 10
    for number, delta in enumerate(deltas, start=1):
        rest = await follow(asker, delta["message_id"], delta["cursor"])
        assert text_of(deltas[:number]) + text_of(rest) == TEXT
        assert reasoning_of(deltas[:number]) + reasoning_of(rest) == reasoning_of(frames)
        # It is history by now: the same end, without a number.
        assert rest[-1]["message"] == frames[-1]["message"]
        assert "feed" not in rest[-1]


async def test_every_place_is_one_of_its_own_or_refused(alice, connect):
    reply = (await alice.say(await alice.converse(), f"!reply={TEXT}")).json()["reply"]
    one = await connect(alice)
    raw = TEXT.encode()
    for place in range(len(raw) + 3):
        if place < len(raw) and raw[place] & 0xC0 == 0x80:
            error = await one.ask("subscribe", id="1", message_id=reply["id"], cursor=f"{place}-0")
            assert (error["code"], error["request_id"]) == ("invalid_cursor", "1")
        else:
            assert text_of(await follow(one, reply["id"], f"{place}-0")).encode() == raw[place:]


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1-0", "1-2-3", "9" * 13 + "-0", "０-０", "1-0"])
async def test_a_cursor_that_is_none_is_refused(alice, connect, cursor):
    reply = (await alice.say(await alice.converse(), f"!reply={TEXT}")).json()["reply"]
    one = await connect(alice)
    error = await one.ask("subscribe", id="1", message_id=reply["id"], cursor=cursor)
    assert (error["type"], error["code"], error["request_id"]) == ("error", "invalid_cursor", "1")
    assert await one.is_silent()


async def test_following_again_starts_anew_and_unsubscribing_ends_it(alice, connect):
    asker, other = await connect(alice), await connect(alice)
    await asker.send("chat_message", conversation_id=await alice.converse(), content="!never")
    reply_id = (await asker.until("message.delta"))[-1]["message_id"]
    await other.send("subscribe", message_id=reply_id)
    await other.until("message.delta")
    await other.send("subscribe", id="again", message_id=reply_id)
    await other.until("subscribed")
    assert (await other.next())["delta"].startswith("Hel")
    await other.send("unsubscribe", message_id=reply_id)
    await other.send("ping")
    await other.until("pong")
    assert await other.is_silent()
    await asker.until("message.delta")
    await asker.send("stop", message_id=reply_id)
    await asker.until_end()
    assert (await other.next())["type"] == "message.stopped"


async def test_a_socket_follows_so_many_and_no_more(alice, connect):
    one = await connect(alice)
    [live] = await running(alice, one)
    for number in range(MOST_SUBSCRIPTIONS - 1):
        # Not replies that anybody stored: room is what counts.
        consumer_outbox(one).follow(type(live)(10**9 + number, 1, alice.id), START, request_id=None)
    await one.send("subscribe", id="more", message_id=live.message_id)
    error = (await one.until("error"))[-1]
    assert (error["code"], error["request_id"]) == ("too_many_subscriptions", "more")


# --- Stopping ---------------------------------------------------------------------------------------------------


async def test_stopping_keeps_the_text_and_says_who_asked(alice, world, connect):
    asker, other = await connect(alice), await connect(alice)
    await asker.send("chat_message", id="ask", conversation_id=await alice.converse(), content="!never")
    frames = await asker.until("message.delta")
    reply_id = frames[-1]["message_id"]
    await other.send("stop", id="halt", message_id=reply_id)
    frames += await asker.until_end()
    ended, heard = frames[-1], (await other.until_end())[-1]
    assert (ended["type"], ended["request_id"], heard["request_id"]) == ("message.stopped", "ask", "halt")
    assert {**ended, "request_id": "halt"} == heard
    assert (
        text_of(frames) == ended["message"]["content"] == (await alice.get(f"/messages/{reply_id}")).json()["content"]
    )
    await world.upstream.until(lambda: world.upstream.open_streams == 0, within=1.0)
    # Twice is harmless.
    await other.send("stop", id="again", message_id=reply_id)
    assert await other.is_silent()
    assert (await db.run(alice.books))["open"] == 0


# --- Small talk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ts", [None, 0, 1.5, -3, 10**30, "noon", 1_700_000_000_123])
async def test_ping_is_answered(alice, connect, ts):
    one = await connect(alice)
    assert await one.ask("ping", id="p", ts=ts) == {"type": "pong", "ts": ts, "request_id": "p"}
    assert await one.ask("ping") == {"type": "pong", "ts": None}


async def test_the_heart_beats(alice, connect, quick_heart):
    one = await connect(alice)
    first, second = await one.next(), await one.next()
    assert [set(first), first["type"], second["type"]] == [{"type", "ts"}, "heartbeat", "heartbeat"]
    assert first["ts"] < second["ts"]


async def test_what_cannot_be_read_is_told(alice, connect):
    one = await connect(alice)
    for text, code in (
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ("[1]", "invalid_frame"),
        ('{"type":"nonsense","id":"1"}', "unknown_type"),
        ('{"type":"stop","message_id":"1","id":"1"}', "invalid_frame"),
        ('{"type":7, x', "invalid_json"),
    ):
        await one.send_raw(text)
        error = await one.next()
        assert (error["type"], error["code"]) == ("error", code)
        assert error.get("request_id") == ("1" if '"id":"1"' in text else None)
    await one.communicator.send_to(bytes_data=b'{"type":"ping"}')
    assert (await one.next())["code"] == "invalid_frame"
    assert (await one.ask("ping"))["type"] == "pong"


async def test_too_much_that_cannot_be_read_closes(alice, connect):
    one = await connect(alice)
    for _ in range(20):
        await one.send_raw("?")
        assert (await one.next())["type"] == "error"
    await one.send_raw("?")
    with pytest.raises(Closed) as closed:
        await one.next()
    assert closed.value.code == 4400
    # What it still says is not heard.
    await one.send("ping")
    assert await one.is_silent()


async def test_too_many_frames_close(alice, connect):
    one = await connect(alice)
    for _ in range(consumer.MOST_FRAMES):
        assert (await one.ask("ping"))["type"] == "pong"
    await one.send("ping")
    assert await one.closed() == 4429


async def test_too_much_at_once_is_told(alice, connect, monkeypatch):
    monkeypatch.setattr(consumer, "MOST_AT_ONCE", 4)  # two of them are its own
    one = await connect(alice)
    conversation_id = await alice.converse()
    await one.until("conversation.created")
    for number in range(5):
        await one.send("chat_message", id=str(number), conversation_id=conversation_id, content="!reply=ok")
    frames = await one.until("error")
    assert (frames[-1]["code"], frames[-1]["request_id"]) == ("rate_limited", "2")


# --- Tokens -----------------------------------------------------------------------------------------------------


async def test_a_socket_lives_as_long_as_its_token(alice, connect):
    pair = await new_session(alice, left=timedelta(seconds=2))
    one = await connect(path=f"/api/v1/ws/{pair.access}")
    assert one.ready
    assert await one.closed() == 4401
    await one.send("ping")
    assert await one.is_silent()


async def test_a_fresh_token_prolongs_it(alice, connect):
    pair = await new_session(alice, left=timedelta(seconds=2))
    one = await connect(path=f"/api/v1/ws/{pair.access}")
    fresh = await db.run(lambda: rotate(pair.refresh, now=timezone.now()))
    answer = await one.ask("authenticate", id="a", token=fresh.access)
    assert (answer["type"], answer["request_id"]) == ("authenticated", "a")
    lifetime = project.ACCESS_TOKEN_LIFETIME.total_seconds()
    left = (timezone.datetime.fromisoformat(answer["expires_at"]) - timezone.now()).total_seconds()
    assert lifetime - 10 < left <= lifetime
    await asyncio.sleep(2.1)  # beyond the old one's end
    assert (await one.ask("ping"))["type"] == "pong"


async def test_a_token_of_somebody_else_or_of_nobody_closes(alice, bob, connect):
    for token in (bob.access, "nonsense", "é"):
        one = await connect(alice)
        await one.send("authenticate", id="a", token=token)
        assert await one.closed() == 4401


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda person: Session.objects.filter(user_id=person.id).update(revoked_at=timezone.now()), 4401),
        (lambda person: Session.objects.filter(user_id=person.id).delete(), 4401),
        (lambda person: User.objects.filter(id=person.id).update(is_active=False), 4403),
    ],
)
async def test_a_session_that_is_over_closes_its_sockets_within_a_heartbeat(
    alice, bob, connect, quick_heart, change, code
):
    hers, his = await connect(alice), await connect(bob)
    await hers.until("heartbeat")
    await db.run(change, alice)
    assert await hers.closed() == code
    await his.until("heartbeat")
    assert his.code is None


async def test_a_renewed_socket_is_judged_by_its_new_session(alice, connect, quick_heart):
    one = await connect(alice)
    old = await db.run(Session.objects.get)
    fresh = await new_session(alice)
    await one.send("authenticate", token=fresh.access)
    await one.until("authenticated")
    await db.run(Session.objects.filter(id=old.pk).update, revoked_at=timezone.now())
    await one.until("heartbeat")
    await one.until("heartbeat")
    await db.run(Session.objects.filter(id=fresh.session.pk).update, revoked_at=timezone.now())
    assert await one.closed() == 4401


# --- Leaving, and what gets lost --------------------------------------------------------------------------------


async def running(person, one, content="!never"):
    """Have a reply running that `one` asked for, and return it in a list."""
    await one.send("chat_message", conversation_id=await person.converse(), content=content)
    frames = await one.until("message.delta")
    return [engine.replies[frames[-1]["message_id"]]]


def consumer_outbox(one):
    """Return the outbox of a socket's consumer, found by who listens to the feed."""
    connection_id = one.ready["connection_id"]
    for listeners in feed._listeners.values():
        for _, listener in listeners.values():
            if listener.__self__.connection_id == connection_id:
                return listener.__self__
    raise AssertionError("it does not listen")


async def test_a_socket_may_leave_in_mid_reply(alice, connect):
    one = await connect(alice)
    [live] = await running(alice, one, f"!slow=0.02 !reply={TEXT}")
    await one.leave()
    assert not live._watchers
    reply = await live.wait_ended()
    assert (await db.run(lambda: Message.objects.get(id=reply.pk).content), reply.status) == (TEXT, "completed")
    assert (await db.run(alice.books))["open"] == 0


async def test_a_socket_may_leave_before_its_message_is_stored(alice, connect, world):
    one = await connect(alice)
    conversation_id = await alice.converse()
    await one.send("chat_message", conversation_id=conversation_id, content="!reply=ok")
    await one.leave()
    await world.upstream.until(lambda: bool(world.upstream.requests))
    reply = next(iter(engine.replies.values()), None)
    if reply is not None:
        await reply.wait_ended()
    rows = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    assert [row["content"] for row in rows] == ["!reply=ok", "ok"]


async def test_sockets_that_break_off_anywhere_leave_nothing(alice, connect, settings):
    settings.WEBSOCKET_MAX_PER_USER = 1
    for frames in ([], ["?"], [json.dumps({"type": "subscribe", "message_id": 1})] * 3):
        one = await connect(alice)
        assert one.ready
        for frame in frames:
            await one.send_raw(frame)
        one.communicator.future.cancel()  # a server that is killed tells the application nothing
        await asyncio.wait({one.communicator.future})
        assert not consumer._connections


async def test_events_that_are_not_published_are_read_from_their_rows(alice, connect):
    one = await connect(alice)
    first = await alice.converse(title="一")
    # As another process would: its event is committed and nobody here is told.
    lost = await db.run(
        lambda: db.in_transaction(
            feed.append, alice.id, "conversation.updated", now=timezone.now(), conversation_id=first
        )
    )
    await one.send("chat_message", id="1", conversation_id=first, content=f"!reply={TEXT}")
    frames = await one.until_end()
    assert [frame["feed"] for frame in frames if "feed" in frame] == [1, lost, lost + 1, lost + 2]
    assert types_of(frames) == [
        "conversation.created",
        "conversation.updated",
        "message.created",
        "message.delta",
        "message.completed",
    ]
    assert frames[1]["conversation"]["title"] == "一"
    # The request's id outlives the way round by the rows.
    assert {frame["request_id"] for frame in frames[2:]} == {"1"}


async def test_a_reply_of_another_process_is_followed_to_its_end(alice, connect):
    asker, other = await connect(alice), await connect(alice)
    [live] = await running(alice, asker)
    await other.until("message.created")
    # As if another process owned it: only its row, as that is saved, and its events, unpublished, are seen.
    await engine._save()
    row = engine.replies.pop(live.message_id)
    await other.send("subscribe", id="f", message_id=live.message_id)
    frames = await other.until("message.delta")
    engine.replies[live.message_id] = row
    published = feed._listeners.pop(alice.id)
    live.stop()
    await live.wait_ended()
    feed._listeners[alice.id] = published
    frames += await other.until_end()
    assert types_of(frames) == ["subscribed", "message.delta", "message.stopped"]
    assert text_of(frames) == frames[-1]["message"]["content"] == live.text.decode()
    assert (frames[-1]["request_id"], "feed" in frames[-1]) == ("f", True)


async def test_a_database_that_is_away_is_told_and_events_come_when_it_is_back(alice, connect, monkeypatch):
    one = await connect(alice)
    [live] = await running(alice, one)
    away = True

    def fail(execute, sql, params, many, context):
        if away:
            raise OperationalError("it is away")
        return execute(sql, params, many, context)

    def watched(function):
        def call():
            with connections["default"].execute_wrapper(fail):
                return function()

        return call

    original = db._call
    # Not a mock: the pool's own call, with Django's own instrumentation around it.
    monkeypatch.setattr(db, "_call", lambda function: original(watched(function)))
    await one.send("subscribe", id="s", message_id=1)
    error = (await one.until("error"))[-1]
    assert (error["code"], error["request_id"]) == ("database_unavailable", "s")
    await one.send("authenticate", id="a", token=alice.access)
    error = (await one.until("error"))[-1]
    assert (error["code"], error["request_id"]) == ("database_unavailable", "a")
    assert (await connect(alice)).code == 4503
    # An event is lost meanwhile; the deltas go on.
    feed.publish(feed.Event(alice.id, "conversation.updated", 10_000))
    for _ in range(3):
        await one.until("message.delta")
    away = False
    live.stop()
    assert (await one.until_end())[-1]["type"] == "message.stopped"


async def test_a_defect_closes_the_socket(alice, connect):
    one = await connect(alice)
    feed.publish(feed.Event(alice.id, "conversation.updated", 1, data={"conversation": object()}))
    assert await one.closed() == 1011
