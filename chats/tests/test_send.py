"""Sending a message, whole: what is stored, metered and answered, and every way that it fails."""

import asyncio
from decimal import Decimal

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from chatgpt_backend.lib import db
from chats.generation import store
from chats.models import Conversation, Message
from quotas.models import Hold, UsageRecord
from tests.upstream import GREETING

pytestmark = pytest.mark.django_db(transaction=True)


async def test_a_message_is_answered_stored_and_metered(alice, world):
    conversation_id = await alice.converse(title="我的第一个对话", model="gpt-4o")
    answer = await alice.say(
        conversation_id, '你好 !usage={"prompt_tokens":11,"completion_tokens":7}', temperature=0.5, seed=7
    )
    assert answer.status_code == 201, answer.content
    message, reply = answer.json()["message"], answer.json()["reply"]
    assert (message["role"], message["status"], message["parent_id"]) == ("user", "completed", None)
    assert (reply["content"], reply["status"], reply["finish_reason"]) == (GREETING, "completed", "stop")
    assert (reply["parent_id"], reply["model"], reply["provider"]) == (message["id"], "gpt-4o", "openai")
    # 11 tokens at 2.50 and 7 at 10 dollars a million
    assert reply["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 7,
        "total_tokens": 18,
        "cost": 0.0000975,
        "source": "provider",
    }
    body = world.upstream.requests[-1].body
    assert body["messages"][-1]["role"] == "user"
    assert (body["temperature"], body["seed"]) == (0.5, 7)
    assert int(answer.headers["RateLimit-Remaining"]) < int(answer.headers["RateLimit-Limit"])
    conversation = (await alice.get(f"/conversations/{conversation_id}")).json()
    assert (conversation["message_count"], conversation["current_message_id"]) == (2, reply["id"])
    books = await db.run(alice.books)
    assert books["open"] == 0
    assert [(one.prompt_tokens, one.completion_tokens, one.input_price) for one in books["records"]] == [
        (11, 7, Decimal("2.5"))
    ]


async def test_what_is_stored_is_sealed(alice):
    conversation_id = await alice.converse(title="secret title", system_prompt="secret system")
    await alice.say(conversation_id, "secret question !reply=secret answer")

    def raw():
        columns = Message.objects.values_list("content_sealed", flat=True)
        rows = Conversation.objects.values_list("title_sealed", "system_prompt_sealed")
        return b"".join(bytes(one) for one in [*columns, *(cell for row in rows for cell in row)])

    assert b"secret" not in await db.run(raw)
    assert [
        one["content"] for one in (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    ] == [
        "secret question !reply=secret answer",
        "secret answer",
    ]


async def test_the_model_is_told_the_system_prompt_and_the_branch(alice, world):
    conversation_id = await alice.converse(system_prompt="Be brief.")
    await alice.say(conversation_id, "one !reply=first")
    await alice.say(conversation_id, "two !reply=second")
    assert world.upstream.requests[-1].body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one !reply=first"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two !reply=second"},
    ]


async def test_a_parent_elsewhere_in_the_tree_opens_a_branch(alice, world):
    conversation_id = await alice.converse()
    first = (await alice.say(conversation_id, "one !reply=1")).json()
    second = (await alice.say(conversation_id, "two !reply=2")).json()
    other = (await alice.say(conversation_id, "three !reply=3", parent_id=first["reply"]["id"])).json()
    assert other["message"]["sibling_ids"] == [second["message"]["id"], other["message"]["id"]]
    branch = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    assert [one["id"] for one in branch] == [
        first["message"]["id"],
        first["reply"]["id"],
        other["message"]["id"],
        other["reply"]["id"],
    ]
    await alice.say(conversation_id, "back !reply=4", parent_id=second["reply"]["id"])
    assert [one["content"] for one in world.upstream.requests[-1].body["messages"]] == [
        "one !reply=1",
        "1",
        "two !reply=2",
        "2",
        "back !reply=4",
    ]
    branch = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    assert [one["content"] for one in branch][2:] == ["two !reply=2", "2", "back !reply=4", "4"]
    whole = (await alice.get(f"/conversations/{conversation_id}/messages?branch=all")).json()["results"]
    assert len(whole) == 8


@pytest.mark.parametrize("fields", [{"reply": False}, {"role": "system"}, {"role": "assistant"}])
async def test_a_message_may_only_be_stored(alice, world, fields):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "noted", **fields)
    assert (answer.status_code, answer.json()["reply"]) == (201, None)
    assert answer.json()["message"]["role"] == fields.get("role", "user")
    assert not world.upstream.requests
    assert await db.run(Hold.objects.count) == 0


@pytest.mark.parametrize(
    ("directive", "status", "code"),
    [
        ("!429", 502, "upstream_rate_limited"),
        ("!401", 502, "upstream_auth"),
        ("!403", 502, "upstream_auth"),
        ("!500", 502, "upstream_unavailable"),
        ("!503", 502, "upstream_unavailable"),
        ("!404", 502, "upstream_rejected"),
        ("!policy", 502, "upstream_rejected"),
        ("!context", 400, "context_length_exceeded"),
        ("!silence", 504, "upstream_timeout"),
        ("!stall=3", 504, "upstream_timeout"),
        ("!cut=3", 502, "upstream_unavailable"),
        ("!eof=3", 502, "upstream_unavailable"),
        ("!badjson=3", 502, "upstream_unavailable"),
        ("!midstream=rate_limit_exceeded", 502, "upstream_rate_limited"),
    ],
)
async def test_an_upstream_that_fails_loses_no_message(alice, directive, status, code):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, f"please {directive}")
    assert answer.status_code == status, answer.content
    assert [one["code"] for one in answer.json()["errors"]] == [code]
    assert "sk-" not in answer.content.decode()
    message, reply = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    assert message["content"] == f"please {directive}"
    assert (reply["status"], reply["error"]["code"]) == ("failed", code)
    books = await db.run(alice.books)
    assert books["open"] == 0
    if reply["content"]:
        assert reply["usage"]["source"] == "estimated"
        assert [one.source for one in books["records"]] == ["estimated"]
    else:
        assert (reply["usage"], books["records"]) == (None, [])


async def test_an_upstream_that_fails_once_is_asked_again(alice, world):
    answer = await alice.say(await alice.converse(), "!500x1")
    assert (answer.status_code, len(world.upstream.requests)) == (201, 2)


async def test_no_usage_reported_is_estimated(alice):
    reply = (await alice.say(await alice.converse(), "hi !nousage !reply=one two three")).json()["reply"]
    assert reply["usage"]["source"] == "estimated"
    assert reply["usage"]["completion_tokens"] == 3


async def test_a_message_that_alone_does_not_fit_is_refused_and_nothing_stored(alice, world):
    conversation_id = await alice.converse(model="gpt-3.5-turbo")
    answer = await alice.say(conversation_id, "word " * 20_000)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "context_length_exceeded")
    assert await db.run(Message.objects.count) == 0
    assert not world.upstream.requests


async def test_a_long_history_is_trimmed_oldest_first(alice, world):
    conversation_id = await alice.converse(model="gpt-3.5-turbo", system_prompt="Stay.")
    for number in range(3):
        await alice.say(conversation_id, f"{number} " + "word " * 5_500, reply=False)
    assert (await alice.say(conversation_id, "newest !reply=ok", max_tokens=100)).status_code == 201
    told = [one["content"].split()[0] for one in world.upstream.requests[-1].body["messages"]]
    assert told == ["Stay.", "1", "2", "newest"]


@pytest.mark.parametrize(
    ("fields", "attr", "code"),
    [
        ({"content": ""}, "content", "blank"),
        ({"content": " \n"}, "content", "blank"),
        ({"content": None}, "content", "null"),
        ({"content": 5}, "content", "parts"),
        ({"content": []}, "content", "parts"),
        ({"content": [{"type": "video"}]}, "content", "part_type"),
        ({"content": [{"type": "text", "text": 5}]}, "content", "parts"),
        ({"content": "a\x00b"}, "content", "null_characters_not_allowed"),
        ({"content": "\ud800"}, "content", "surrogate_characters_not_allowed"),
        ({"content": "x" * 1_000_001}, "content", "max_length"),
        ({"conversation_id": 999_999}, "conversation_id", "does_not_exist"),
        ({"conversation_id": "x"}, "conversation_id", "invalid"),
        ({"conversation_id": 2**70}, "conversation_id", "max_value"),
        ({"parent_id": 999_999}, "parent_id", "does_not_exist"),
        ({"role": "root"}, "role", "invalid_choice"),
        ({"model": "no-such-model"}, "model", "does_not_exist"),
        ({"temperature": 3}, "temperature", "max_value"),
        ({"temperature": "NaN"}, "temperature", "invalid"),
        ({"max_tokens": 0}, "max_tokens", "min_value"),
        ({"stop": [1]}, "stop", "invalid"),
        ({"attachments": [1]}, "attachments", "does_not_exist"),
        ({"stream": "perhaps"}, "stream", "invalid"),
    ],
)
async def test_bad_input_is_told_and_nothing_stored(alice, fields, attr, code):
    conversation_id = await alice.converse()
    answer = await alice.post("/messages", {"conversation_id": conversation_id, "content": "hi", **fields})
    assert answer.status_code == 400, answer.content
    assert answer.json()["type"] == "validation_error"
    assert [(one["attr"], one["code"]) for one in answer.json()["errors"]] == [(attr, code)]
    assert await db.run(Message.objects.count) == 0
    assert await db.run(Hold.objects.count) == 0


async def test_content_may_come_in_openais_parts(alice):
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two !reply=ok"}]
    answer = await alice.say(await alice.converse(), content)
    assert answer.json()["message"]["content"] == "one\ntwo !reply=ok"


async def test_nobody_writes_into_a_strangers_conversation(alice, bob, client):
    conversation_id = await alice.converse()
    answer = await bob.say(conversation_id, "let me in")
    assert answer.status_code == 400
    assert answer.json()["errors"][0] == {
        "code": "does_not_exist",
        "detail": "There is no such conversation.",
        "attr": "conversation_id",
    }
    mine = (await alice.say(conversation_id, "mine", reply=False)).json()["message"]
    theirs = await bob.converse()
    assert (await bob.say(theirs, "hi", parent_id=mine["id"])).json()["errors"][0]["attr"] == "parent_id"
    alice.access = ""
    assert (await alice.say(conversation_id, "anonymous")).status_code == 401
    assert await db.run(Message.objects.count) == 1


async def test_a_hundred_at_once_against_a_limit_of_five(alice, world):
    await alice.limit(requests_per_day=5)
    conversation_id = await alice.converse()
    answers = await asyncio.gather(*(alice.say(conversation_id, f"{n} !reply=ok") for n in range(100)))
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [429] * 95
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["errors"][0]["code"] == "quota_exceeded"
    assert 0 < int(refused.headers["Retry-After"]) <= 86400
    books = await db.run(alice.books)
    assert (len(books["records"]), books["open"]) == (5, 0)
    assert len(world.upstream.requests) == 5
    branch = (await alice.get(f"/conversations/{conversation_id}/messages")).json()["results"]
    assert [one["parent_id"] for one in branch] == [None, *(one["id"] for one in branch[:-1])]
    assert len(branch) == 10


async def test_the_reply_may_be_as_long_as_what_is_left(alice, world):
    await alice.limit(tokens_per_day=60)
    answer = await alice.say(await alice.converse(), "!reply=ok")
    assert answer.status_code == 201
    prompt = world.upstream.requests[-1].body
    assert 16 <= prompt["max_tokens"] < 60
    await alice.limit(tokens_per_day=20)
    refused = await alice.say(await alice.converse(), "again")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (429, "quota_exceeded")


async def test_a_turn_costs_at_most_22_statements_none_of_them_per_token(alice, monkeypatch):
    conversation_id = await alice.converse()
    await alice.say(conversation_id, "warm up !reply=ok")
    counted = {}
    for tokens in (5, 200):
        statements: list[str] = []

        def note(execute, sql, params, many, context, statements=statements):
            statements.append(sql)
            return execute(sql, params, many, context)

        def watched(function):
            def call():
                with connections["default"].execute_wrapper(note):
                    return function()

            return call

        original = db._call
        with monkeypatch.context() as patched:
            # Not a mock: the pool's own call, with Django's own instrumentation around it.
            patched.setattr(db, "_call", lambda function, call=original: call(watched(function)))
            assert (await alice.say(conversation_id, f"!tokens={tokens}")).status_code == 201
        counted[tokens] = [one for one in statements if not one.startswith(("BEGIN", "COMMIT"))]
    # The keeper may come by once in between: it costs a second, not a token.
    assert len(counted[200]) <= 22, "\n".join(counted[200])
    assert len(counted[200]) - len(counted[5]) <= 6


async def test_a_start_is_at_most_ten_statements(alice):
    conversation_id = await alice.converse()
    await alice.say(conversation_id, "warm up !reply=ok")
    asked = store.Asked(user_id=alice.id, conversation_id=conversation_id, content="hi")

    def count():
        with CaptureQueriesContext(connections["default"]) as captured:
            store.start(asked, lease_owner="test")
        return [one["sql"] for one in captured if not one["sql"].startswith(("BEGIN", "COMMIT"))]

    statements = await db.run(count)
    assert len(statements) == 10, "\n".join(statements)


async def test_what_the_provider_reports_is_charged_even_beyond_the_hold(alice):
    await alice.limit(tokens_per_day=10_000)
    conversation_id = await alice.converse()
    await alice.say(conversation_id, '!usage={"prompt_tokens":9000,"completion_tokens":9000}')
    assert (await db.run(UsageRecord.objects.get)).completion_tokens == 9000
    assert (await alice.say(conversation_id, "again")).status_code == 429
