"""Reading a reply while it grows and afterwards: from any cursor, by any number of readers, to the byte."""

import asyncio
from datetime import timedelta

import pytest
from django.utils import timezone

from chatgpt_backend.lib import db
from chats.generation import live as live_module
from chats.generation.engine import engine
from chats.models import Message
from tests.world import events_of

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = "汉字 and émoji 👩‍👩‍👧🎉 mixed, 一二三四五。"


async def collect(answer):
    return [event async for event in events_of(answer)]


def text_of(events):
    return "".join(one.data["delta"] for one in events if one.type == "message.delta")


def reasoning_of(events):
    return "".join(one.data.get("reasoning", "") for one in events if one.type == "message.delta")


async def test_a_streamed_reply_is_its_stored_text_byte_for_byte(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!reasoning=4 !reply={TEXT}", stream=True)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-cache", "no")
    events = await collect(answer)
    created, ended = events[0], events[-1]
    assert (created.type, created.data["reply"]["status"], created.cursor) == ("message.created", "streaming", "0-0")
    assert ended.type == "message.completed"
    stored = (await alice.get(f"/messages/{created.data['reply']['id']}")).json()
    assert stored["content"] == TEXT == text_of(events) == ended.data["message"]["content"]
    assert stored["reasoning"] == reasoning_of(events) != ""
    assert ended.data["message"] == stored
    assert all(one.data["cursor"] == one.cursor for one in events if one.type == "message.delta")


async def test_a_reply_may_be_read_from_any_cursor_running_or_done(alice, settings):
    settings.MAX_DELTA_BYTES = 7  # so that there are many places
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!slow=0.02 !reasoning=5 !reply={TEXT}", stream=True)
    events, attached, reply_id = [], [], 0
    async for event in events_of(answer):
        events.append(event)
        reply_id = reply_id or event.data["reply"]["id"]
        if event.type == "message.delta" and len(attached) < 5:
            reader = await alice.get(f"/messages/{reply_id}/stream", headers={"Last-Event-ID": event.cursor})
            attached.append((len(events), asyncio.ensure_future(collect(reader))))
    for had, task in attached:
        later = await task
        assert text_of(events[:had]) + text_of(later) == TEXT
        assert reasoning_of(events[:had]) + reasoning_of(later) == reasoning_of(events)
        assert later[-1].type == "message.completed"
    deltas = [one for one in events if one.type == "message.delta"]
    assert len(deltas) > 10
    for number, event in enumerate(deltas, start=1):
        rest = await collect(await alice.get(f"/messages/{reply_id}/stream?cursor={event.cursor}"))
        assert text_of(deltas[:number]) + text_of(rest) == TEXT
        assert rest[-1].data == events[-1].data
    assert text_of(await collect(await alice.get(f"/messages/{reply_id}/stream"))) == TEXT


async def test_two_readers_at_once_get_the_same(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!slow=0.01 !reply={TEXT}", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    first, second = await asyncio.gather(
        collect(await alice.get(f"/messages/{reply_id}/stream")),
        collect(await alice.get(f"/messages/{reply_id}/stream")),
    )
    rest = [event async for event in stream]
    assert text_of(first) == text_of(second) == text_of(rest) == TEXT


@pytest.mark.parametrize("cursor", ["x", "1", "1-", "-1-0", "1-2-3", "9" * 13 + "-0", "０-０", "1-0"])
async def test_a_cursor_that_is_none_is_refused(alice, cursor):
    reply = (await alice.say(await alice.converse(), f"!reply={TEXT}")).json()["reply"]
    answer = await alice.get(f"/messages/{reply['id']}/stream?cursor={cursor}")
    # "1-0" lies inside the first character.
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "invalid_cursor")


async def test_the_header_wins_over_the_query(alice):
    reply = (await alice.say(await alice.converse(), "!reply=abc")).json()["reply"]
    answer = await alice.get(f"/messages/{reply['id']}/stream?cursor=bad", headers={"Last-Event-ID": "2-0"})
    assert text_of(await collect(answer)) == "c"


async def test_a_cursor_beyond_the_end_gets_the_end(alice):
    reply = (await alice.say(await alice.converse(), "!reply=abc")).json()["reply"]
    events = await collect(await alice.get(f"/messages/{reply['id']}/stream?cursor=500-0"))
    assert [one.type for one in events] == ["message.completed"]


async def test_strangers_cannot_attach_or_stop(alice, bob):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.05", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    for refused in (
        await bob.get(f"/messages/{reply_id}/stream"),
        await bob.get(f"/messages/{reply_id}"),
        await bob.post(f"/messages/{reply_id}/stop"),
    ):
        assert refused.status_code == 404, refused.content
        assert refused.json()["errors"][0]["code"] == "not_found"
    assert engine.replies[reply_id].ended is None
    assert (await alice.post(f"/messages/{reply_id}/stop")).status_code == 200


async def test_the_client_that_started_it_may_vanish(alice, world):
    conversation_id = await alice.converse()
    sending = asyncio.ensure_future(alice.say(conversation_id, f"!slow=0.02 !reply={TEXT}"))
    await world.upstream.until(lambda: world.upstream.open_streams == 1)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    _, reply = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    events = await collect(await alice.get(f"/messages/{reply['id']}/stream"))
    assert (text_of(events), events[-1].type) == (TEXT, "message.completed")


async def test_a_streams_reader_may_vanish(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!slow=0.02 !reply={TEXT}", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    await stream.aclose()
    answer.close()
    reply = await engine.replies[reply_id].wait_ended()
    assert (await db.run(lambda: Message.objects.get(id=reply.pk).content), reply.status) == (TEXT, "completed")


async def test_a_failure_after_the_start_is_an_event(alice):
    events = await collect(await alice.say(await alice.converse(), "!cut=4", stream=True))
    assert events[-1].type == "message.failed"
    assert events[-1].data["error"]["code"] == "upstream_unavailable"
    assert events[-1].data["message"]["content"] == text_of(events) != ""


async def test_refusals_come_before_the_stream(alice):
    await alice.limit(requests_per_day=0)
    answer = await alice.say(await alice.converse(), "hi", stream=True)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (429, "quota_exceeded")


async def test_stopping_keeps_the_text_and_closes_the_upstream(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    stopped = (await alice.post(f"/messages/{reply_id}/stop")).json()
    assert (stopped["status"], stopped["usage"]["source"]) == ("stopped", "estimated")
    await world.upstream.until(lambda: world.upstream.open_streams == 0, within=1.0)
    events = [event async for event in stream]
    assert (events[-1].type, events[-1].data["message"]) == ("message.stopped", stopped)
    again = await alice.post(f"/messages/{reply_id}/stop")
    assert (again.status_code, again.json()) == (200, stopped)
    books = await db.run(alice.books)
    assert (len(books["records"]), books["open"]) == (1, 0)


async def test_stopping_before_the_first_token(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!silence", stream=True)
    reply_id = (await anext(events_of(answer))).data["reply"]["id"]
    stopped = (await alice.post(f"/messages/{reply_id}/stop")).json()
    assert (stopped["status"], stopped["content"]) == ("stopped", "")
    assert (await db.run(alice.books))["open"] == 0


async def test_silence_is_filled_with_comments(alice, settings):
    settings.SSE_KEEPALIVE_SECONDS = 0.05
    answer = await alice.say(await alice.converse(), "!first=0.3 !reply=ok", stream=True)
    chunks = [chunk async for chunk in answer.streaming_content]
    assert chunks.count(b": keep-alive\n\n") >= 2


async def test_a_slow_reader_gets_fewer_and_longer_deltas(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!tokens=300", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    live = engine.replies[reply_id]
    await live.wait_ended()
    events = [event async for event in stream]
    assert [one.type for one in events] == ["message.delta", "message.completed"]
    assert text_of(events) == live.text.decode()


async def test_the_keeper_saves_the_text_and_renews_the_lease(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    before = await db.run(Message.objects.get, id=reply_id)
    await engine._save()
    saved = await db.run(Message.objects.get, id=reply_id)
    assert saved.lease_expires_at >= before.lease_expires_at
    assert saved.content and engine.replies[reply_id].text.decode().startswith(saved.content)
    # Another process follows the row: what it reads is what was saved, and then the end.
    live = engine.replies.pop(reply_id)
    try:
        reader = asyncio.ensure_future(collect(await alice.get(f"/messages/{reply_id}/stream")))
    finally:
        engine.replies[reply_id] = live
    live.stop()
    await live.wait_ended()
    events = await reader
    assert (text_of(events), events[-1].type) == (live.text.decode(), "message.stopped")


async def test_a_reply_whose_lease_ran_out_is_interrupted_with_its_text(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    await engine._save()
    # As if this process had been dead for a while: it does not know the reply, and nobody renews.
    live = engine.replies.pop(reply_id)
    past = timezone.now() - timedelta(seconds=1)
    await db.run(Message.objects.filter(id=reply_id).update, lease_expires_at=past)
    await engine._reap()
    row = await db.run(Message.objects.get, id=reply_id)
    assert (row.status, bool(row.content), row.usage_source) == ("interrupted", True, "estimated")
    assert (await db.run(alice.books))["open"] == 0
    # The run that lost its reply writes nothing, and its readers hear what the row says.
    engine.replies[reply_id] = live
    await engine._save()
    events = [event async for event in stream]
    assert events[-1].type == "message.interrupted"
    assert events[-1].data["message"]["content"] == row.content
    assert len((await db.run(alice.books))["records"]) == 1


async def test_draining_interrupts_what_does_not_finish_in_time(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    await anext(stream)
    await anext(stream)
    await engine.drain(0.05)
    events = [event async for event in stream]
    assert events[-1].type == "message.interrupted"
    assert events[-1].data["message"]["content"] != ""
    refused = await alice.say(conversation_id, "more")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (503, "shutting_down")
    assert (await db.run(alice.books))["open"] == 0


async def test_draining_lets_replies_finish(alice):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!slow=0.01 !reply={TEXT}", stream=True)
    await engine.drain(10)
    events = await collect(answer)
    assert (events[-1].type, text_of(events)) == ("message.completed", TEXT)


def test_deltas_are_cut_between_characters(settings):
    settings.MAX_DELTA_BYTES = 5
    text, cursor, parts = "a汉字🎉b".encode(), live_module.START, []
    while (delta := live_module.delta_after(text, b"", cursor)) is not None:
        parts.append(delta.text)
        cursor = delta.cursor
    assert parts == ["a汉", "字", "🎉b"]


async def test_a_reply_deleted_under_its_run_ends_for_its_readers(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)
    await db.run(Message.objects.filter(id=reply_id).delete)
    await engine._save()
    events = [event async for event in stream]
    assert events[-1].type == "message.stopped"
    await world.upstream.until(lambda: world.upstream.open_streams == 0)


async def test_a_reply_whose_end_cannot_be_written_is_ended_by_the_keeper(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"!slow=0.01 !reply={TEXT}", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    # A defect, as it might be: the end breaks a rule of the database.
    engine._rows[reply_id].reply.provider = None
    engine.replies[reply_id].stop()
    await world.upstream.until(lambda: reply_id not in engine.replies)
    await db.run(Message.objects.filter(id=reply_id).update, lease_expires_at=timezone.now() - timedelta(seconds=1))
    events = [event async for event in stream]
    assert events[-1].type == "message.interrupted"
    assert (await db.run(alice.books))["open"] == 0
