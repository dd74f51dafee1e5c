"""Input that nothing can be made of: a 400 that names it, and nothing stored."""

import json

import pytest

from chatgpt_backend.lib import db
from chats.models import Message
from quotas.models import Hold

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("role", "\ud800", "surrogate_characters_not_allowed"),
        ("content", "\ud800", "surrogate_characters_not_allowed"),
        ("stop", ["\ud800"], "surrogate_characters_not_allowed"),
        ("attachments", list(range(10_000)), "max_length"),
        ("content", "x" * 1_000_001, "max_length"),
    ],
)
async def test_a_message_of_it(alice, world, field, value, code):
    conversation_id = await alice.converse()
    before = await db.run(Message.objects.count)
    body = {"conversation_id": conversation_id, "content": "你好", field: value}
    answer = await alice.post("/messages", body)
    assert answer.status_code == 400, answer.content[:300]
    error = answer.json()["errors"][0]
    assert (error["code"], error["attr"].partition(".")[0]) == (code, field)
    assert await db.run(Message.objects.count) == before
    assert not await db.run(Hold.objects.filter(status="open").exists)


async def test_a_body_of_more_values_than_anybody_needs(alice):
    answer = await alice.post("/conversations", {"tags": ["x"] * 30_000})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "parse_error")


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59"])
@pytest.mark.parametrize("path", ["/conversations?updated_before=", "/messages?created_after="])
async def test_a_time_that_is_in_no_year_in_utc(alice, path, when):
    answer = await alice.get(path + when)
    assert answer.status_code == 400, answer.content
    assert answer.json()["errors"][0]["attr"] in path


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/api/schema"])
async def test_options_of_the_documentation(alice, path):
    assert (await alice.client.options(path)).status_code == 405


async def test_text_of_a_million_characters_is_stored_as_it_is(alice):
    text = "你好，🎉 " * 200_000
    conversation_id = await alice.converse()
    answer = await alice.client.generic(
        "POST",
        "/api/v1/messages",
        json.dumps({"conversation_id": conversation_id, "content": text, "reply": False}),
        content_type="application/json",
        headers={"Authorization": f"Bearer {alice.access}"},
    )
    assert answer.status_code == 201
    assert answer.json()["message"]["content"] == text
