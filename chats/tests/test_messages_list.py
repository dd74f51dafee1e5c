"""Reading messages across conversations: the list with its filters and pages, and one by its id."""

from datetime import timedelta
from urllib.parse import quote, urlsplit

import pytest
from django.test import AsyncClient
from django.utils import timezone

from chatgpt_backend.lib import db
from chats.models import Message
from chats.tests.counting import statements_of_requests
from tests.world import events_of

pytestmark = pytest.mark.django_db(transaction=True)
BAD_TIMES = ["yesterday", "2026-01-31", "2026-01-31T09:30:00", "2026-02-31T09:30:00Z", "0001-01-01T00:00:00+14:00",
             "9999-12-31T23:59:59-14:00", "\x00"]  # fmt: skip


async def listed(person, query=""):
    answer = await person.get(f"/messages?{query}")
    assert answer.status_code == 200, answer.content
    return [one["content"] for one in answer.json()["results"]]


async def write(person, conversation_id, number, **columns):
    """Store that many messages without the API, each behind the one before and a minute later; return their ids."""
    start = timezone.now() - timedelta(days=1)

    def rows():
        made, parent = [], None
        for depth in range(number):
            parent = Message.objects.create(
                owner_id=person.id, conversation_id=conversation_id, parent=parent, depth=depth,
                **{"role": "user", "content": f"number {depth}", "created_at": start + timedelta(minutes=depth),
                   **columns},
            )  # fmt: skip
            made.append(parent.pk)
        return made

    return await db.run(rows)


def errors_of(answer):
    return [(one["attr"], one["code"]) for one in answer.json()["errors"]]


async def test_the_list_holds_the_callers_messages_newest_first(alice, bob):
    first, second = await alice.converse(), await alice.converse()
    await alice.say(first, "one !reply=1")
    await alice.say(second, "two !reply=2")
    await alice.say(first, "three", reply=False)
    await bob.say(await bob.converse(), "theirs", reply=False)
    assert await listed(alice) == ["three", "2", "two !reply=2", "1", "one !reply=1"]
    assert await listed(bob) == ["theirs"]


async def test_each_message_is_listed_as_it_is_read(alice):
    """Across conversations each has siblings of its own, roots too."""
    for _ in range(2):
        conversation_id = await alice.converse()
        root = (await alice.say(conversation_id, "root !reasoning=2 !reply=r")).json()
        await alice.say(conversation_id, "left !reply=l", parent_id=root["reply"]["id"])
        await alice.say(conversation_id, "right !cut=2", parent_id=root["reply"]["id"])
    found = (await alice.get("/messages")).json()["results"]
    assert len(found) == 12
    for message in found:
        assert (await alice.get(f"/messages/{message['id']}")).json() == message
    siblings = {one["id"]: one["sibling_ids"] for one in found}
    conversation_of = {one["id"]: one["conversation_id"] for one in found}
    for message in found:
        assert message["id"] in message["sibling_ids"]
        assert all(siblings[one] == message["sibling_ids"] for one in message["sibling_ids"])
        assert {conversation_of[one] for one in message["sibling_ids"]} == {message["conversation_id"]}
        assert len(message["sibling_ids"]) == (2 if message["content"].startswith(("left", "right")) else 1)


async def test_a_message_shows_all_that_it_has(alice):
    conversation_id = await alice.converse(model="gpt-4o")
    exchange = (await alice.say(conversation_id, "hi !reasoning=1 !reply=你好")).json()
    message, reply = [(await alice.get(f"/messages/{exchange[name]['id']}")).json() for name in ("message", "reply")]
    assert (message, reply) == (exchange["message"], exchange["reply"])
    assert list(message) == list(reply) == [
        "id", "conversation_id", "parent_id", "role", "content", "attachments", "status", "finish_reason", "model",
        "provider", "reasoning", "usage", "error", "feedback", "sibling_ids", "created_at", "completed_at",
    ]  # fmt: skip
    assert {name: message[name] for name in message if name not in ("id", "created_at", "completed_at")} == {
        "conversation_id": conversation_id, "parent_id": None, "role": "user",
        "content": "hi !reasoning=1 !reply=你好", "attachments": [], "status": "completed", "finish_reason": None,
        "model": None, "provider": None, "reasoning": None, "usage": None, "error": None, "feedback": None,
        "sibling_ids": [message["id"]],
    }  # fmt: skip
    assert (reply["model"], reply["provider"], reply["parent_id"]) == ("gpt-4o", "openai", message["id"])
    assert reply["reasoning"]
    assert reply["created_at"] <= reply["completed_at"]
    assert reply["completed_at"].endswith("Z")


async def test_a_running_reply_is_read_as_it_stands(alice):
    conversation_id = await alice.converse()
    stream = events_of(await alice.say(conversation_id, "!never !slow=0.02", stream=True))
    reply_id = (await anext(stream)).data["reply"]["id"]
    running = (await alice.get(f"/messages/{reply_id}")).json()
    assert (running["status"], running["completed_at"], running["usage"]) == ("streaming", None, None)
    assert [one["id"] for one in (await alice.get("/messages?status=streaming")).json()["results"]] == [reply_id]
    await alice.post(f"/messages/{reply_id}/stop")
    assert (await alice.get(f"/messages/{reply_id}")).json()["status"] == "stopped"
    assert await listed(alice, "status=streaming") == []


async def test_filters(alice):
    first, second = await alice.converse(), await alice.converse()
    await alice.say(first, "one !reply=1")
    await alice.say(second, "two !401")
    await alice.say(second, "be brief", role="system")
    assert await listed(alice, f"conversation_id={first}") == ["1", "one !reply=1"]
    assert await listed(alice, "role=assistant") == ["", "1"]
    assert await listed(alice, "role=system") == ["be brief"]
    assert await listed(alice, "status=failed") == [""]
    assert await listed(alice, "status=interrupted") == []
    assert await listed(alice, f"conversation_id={second}&role=user&status=completed") == ["two !401"]
    assert await listed(alice, "role=&status=&created_after=&search=&cursor=&unknown=x&role=user") == [
        "two !401",
        "one !reply=1",
    ]


async def test_conversations_of_others_and_of_nobody_have_no_messages(alice, bob):
    conversation_id = await alice.converse()
    await alice.say(conversation_id, "mine", reply=False)
    answers = [await bob.get(f"/messages?conversation_id={one}") for one in (conversation_id, 999_999, "9" * 18, 0)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.json()["results"] for answer in answers] == [[]] * 4


async def test_a_temporary_conversation_is_listed_only_by_its_name(alice):
    temporary = await alice.converse(temporary=True)
    await alice.say(temporary, "hidden", reply=False)
    await alice.say(await alice.converse(), "shown", reply=False)
    assert await listed(alice) == ["shown"]
    assert await listed(alice, "role=user") == ["shown"]
    assert await listed(alice, f"conversation_id={temporary}") == ["hidden"]


async def test_after_is_inclusive_and_before_exclusive(alice):
    await write(alice, await alice.converse(), 3)
    found = (await alice.get("/messages")).json()["results"]
    at, later = quote(found[1]["created_at"]), quote(found[0]["created_at"])
    assert await listed(alice, f"created_after={at}") == ["number 2", "number 1"]
    assert await listed(alice, f"created_before={at}") == ["number 0"]
    assert await listed(alice, f"created_after={at}&created_before={later}") == ["number 1"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_pages_hold_each_message_once_there_and_back(alice, size):
    # Three conversations whose messages share their times.
    at = timezone.now()
    for number in range(3):
        await write(alice, await alice.converse(), 3, created_at=at + timedelta(seconds=number % 2))
    whole = (await alice.get("/messages?page_size=100")).json()["results"]
    assert [(one["created_at"], one["id"]) for one in whole] == sorted(
        ((one["created_at"], one["id"]) for one in whole), reverse=True
    )
    pages = [(await alice.get(f"/messages?role=user&page_size={size}")).json()]
    while pages[-1]["next"]:
        assert len(pages) <= 9
        pages.append((await alice.get(f"/messages?{urlsplit(pages[-1]['next']).query}")).json())
    assert [one for page in pages for one in page["results"]] == whole
    page = pages[-1]
    for before in reversed(pages[:-1]):
        page = (await alice.get(f"/messages?{urlsplit(page['previous']).query}")).json()
        assert page["results"] == before["results"]
    assert page["previous"] is None


async def test_a_page_holds_twenty_unless_asked(alice):
    await write(alice, await alice.converse(), 105)
    assert len(await listed(alice)) == 20
    assert len(await listed(alice, "page_size=1000")) == 100


@pytest.mark.parametrize(
    ("query", "attr", "code"),
    [
        ("role=root", "role", "invalid_choice"),
        ("role=USER", "role", "invalid_choice"),
        ("status=done", "status", "invalid_choice"),
        ("status=%00", "status", "invalid_choice"),
        ("conversation_id=", "conversation_id", "invalid"),
        ("conversation_id=x", "conversation_id", "invalid"),
        ("conversation_id=-1", "conversation_id", "invalid"),
        ("conversation_id=1.0", "conversation_id", "invalid"),
        ("conversation_id=٣", "conversation_id", "invalid"),
        (f"conversation_id={'9' * 19}", "conversation_id", "invalid"),
        (f"conversation_id={'9' * 5000}", "conversation_id", "invalid"),
        ("search=你好", "search", "not_supported"),
        ("page_size=0", "page_size", "invalid"),
        ("cursor=x", "cursor", "invalid_cursor"),
        *((f"{name}={quote(moment)}", name, "invalid") for moment in BAD_TIMES
          for name in ("created_after", "created_before")),
    ],
)  # fmt: skip
async def test_a_bad_query_is_told(alice, query, attr, code):
    await write(alice, await alice.converse(), 1)
    answer = await alice.get(f"/messages?{query}")
    assert answer.status_code == 400, answer.content
    assert errors_of(answer) == [(attr, code)]


async def test_a_cursor_of_conversations_is_none_of_messages(alice):
    for _ in range(2):
        await alice.converse()
    query = urlsplit((await alice.get("/conversations?page_size=1")).json()["next"]).query
    answer = await alice.get(f"/messages?{query}")
    assert (answer.status_code, errors_of(answer)) == (400, [("cursor", "invalid_cursor")])


async def test_reading_costs_the_same_for_one_and_for_a_hundred(alice):
    (only,) = await write(alice, await alice.converse(), 1)
    for path, expected in (("/messages?page_size=100", 3), (f"/messages/{only}", 3)):
        with statements_of_requests() as statements:
            assert (await alice.get(path)).status_code == 200
        # The session, the messages, their siblings.
        assert len(statements) == expected, "\n".join(statements)
    for _ in range(10):
        await write(alice, await alice.converse(), 10)
    with statements_of_requests() as statements:
        assert len(await listed(alice, "page_size=100")) == 100
    assert len(statements) == 3, "\n".join(statements)


async def test_a_strangers_message_is_one_that_does_not_exist(alice, bob):
    message = (await alice.say(await alice.converse(), "mine", reply=False)).json()["message"]
    theirs, nobodys = await bob.get(f"/messages/{message['id']}"), await bob.get("/messages/999999")
    assert (theirs.status_code, theirs.json()) == (nobodys.status_code, nobodys.json())
    assert (theirs.status_code, errors_of(theirs)) == (404, [(None, "not_found")])


@pytest.mark.parametrize("number", ["0", "-1", "x", "9" * 19, "9" * 5000, "%00"])
async def test_an_id_that_is_none_is_not_found(alice, number):
    answer = await alice.get(f"/messages/{number}")
    assert (answer.status_code, errors_of(answer)) == (404, [(None, "not_found")])


async def test_nobody_gets_in_unknown(alice):
    message = (await alice.say(await alice.converse(), "mine", reply=False)).json()["message"]
    for path in ("/messages", f"/messages/{message['id']}"):
        answer = await AsyncClient(raise_request_exception=False).get(f"/api/v1{path}")
        assert answer.status_code == 401
        assert b"mine" not in answer.content


async def test_one_slash_more_answers_the_same(alice):
    message = (await alice.say(await alice.converse(), "mine", reply=False)).json()["message"]
    for path in ("/messages", f"/messages/{message['id']}"):
        assert (await alice.get(f"{path}/")).json() == (await alice.get(path)).json()
