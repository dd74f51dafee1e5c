"""Every door of a conversation: what it does, whom it refuses, and that what it refuses changes nothing."""

import asyncio
import json
from datetime import timedelta
from urllib.parse import quote, urlsplit

import pytest
from django.test import AsyncClient
from django.utils import timezone

from chatgpt_backend.lib import db
from chats import services
from chats.generation.engine import engine
from chats.models import Conversation, FeedEvent, Message
from chats.tests.counting import statements_of_requests
from quotas.models import Hold, UsageRecord
from tests.world import events_of

pytestmark = pytest.mark.django_db(transaction=True)


def conversations():
    """Return all there is of conversations, to compare."""
    return list(Conversation.objects.order_by("id").values()), list(Message.objects.order_by("id").values())


async def make(person, number, **columns):
    """Make that many conversations without the API, a minute apart; return their ids, oldest first."""
    start = timezone.now() - timedelta(days=1)

    def rows():
        made = []
        for place in range(number):
            at = start + timedelta(minutes=place)
            fields = {"owner_id": person.id, "model": "gpt-4o", "created_at": at, "updated_at": at, **columns}
            made.append(Conversation.objects.create(title=f"number {place}", **fields).pk)
        return made

    return await db.run(rows)


async def listed(person, query=""):
    answer = await person.get(f"/conversations?{query}")
    assert answer.status_code == 200, answer.content
    return [one["id"] for one in answer.json()["results"]]


def path_of(address):
    parts = urlsplit(address)
    assert parts.path.startswith("/api/v1/")
    return f"{parts.path.removeprefix('/api/v1')}?{parts.query}"


def errors_of(answer):
    return [(one["attr"], one["code"]) for one in answer.json()["errors"]]


# --- Creating ---------------------------------------------------------------------------------------------------------


async def test_a_conversation_is_created_as_asked_and_read_back(alice):
    asked = {
        "title": "我的第一个对话 🎉",
        "model": "gpt-4o",
        "system_prompt": "  Be brief.\n",
        "temperature": 0.5,
        "max_tokens": 100,
        "tags": ["work", "工作"],
    }
    answer = await alice.post("/conversations", asked)
    made = answer.json()
    assert answer.status_code == 201
    assert {name: made[name] for name in asked} == asked
    assert list(made) == [
        "id", "title", "model", "system_prompt", "temperature", "max_tokens", "tags", "pinned", "archived",
        "temporary", "message_count", "current_message_id", "forked_from", "version", "created_at", "updated_at",
    ]  # fmt: skip
    assert made["created_at"] == made["updated_at"]
    assert made["created_at"].endswith("Z")
    assert (await alice.get(f"/conversations/{made['id']}")).json() == made
    event = await db.run(FeedEvent.objects.get)
    assert (event.type, event.conversation_id, event.number) == ("conversation.created", made["id"], 1)


@pytest.mark.parametrize("body", [{}, {"temperature": None, "max_tokens": None}])
async def test_what_is_not_said_has_its_default(alice, settings, body):
    made = (await alice.post("/conversations", body)).json()
    assert {name: made[name] for name in made if name not in ("id", "created_at", "updated_at")} == {
        "title": "", "model": settings.DEFAULT_MODEL, "system_prompt": "", "temperature": None, "max_tokens": None,
        "tags": [], "pinned": False, "archived": False, "temporary": False, "message_count": 0,
        "current_message_id": None, "forked_from": None, "version": 1,
    }  # fmt: skip


async def test_what_a_client_may_not_set_is_left_alone(alice, bob):
    body = {"id": 7, "owner": bob.id, "owner_id": bob.id, "version": 9, "message_count": 5, "forked_from": 1}
    made = (await alice.post("/conversations", {**body, "title": "mine"})).json()
    assert (made["version"], made["message_count"], made["forked_from"]) == (1, 0, None)
    assert (await db.run(Conversation.objects.get)).owner_id == alice.id
    changed = (await alice.patch(f"/conversations/{made['id']}", body)).json()
    assert (changed["id"], changed["version"], changed["message_count"]) == (made["id"], 2, 0)
    assert (await db.run(Conversation.objects.get)).owner_id == alice.id


BAD_FIELDS = [
    ({"title": None}, "title", "null"),
    ({"title": []}, "title", "invalid"),
    ({"title": {}}, "title", "invalid"),
    ({"title": True}, "title", "invalid"),
    ({"title": "x" * 201}, "title", "max_length"),
    ({"title": "a\x00b"}, "title", "null_characters_not_allowed"),
    ({"title": "\ud800"}, "title", "surrogate_characters_not_allowed"),
    ({"system_prompt": None}, "system_prompt", "null"),
    ({"system_prompt": ["x"]}, "system_prompt", "invalid"),
    ({"system_prompt": "x" * 100_001}, "system_prompt", "max_length"),
    ({"system_prompt": "a\x00b"}, "system_prompt", "null_characters_not_allowed"),
    ({"system_prompt": "\udfff"}, "system_prompt", "surrogate_characters_not_allowed"),
    ({"model": "no-such-model"}, "model", "does_not_exist"),
    ({"model": ""}, "model", "blank"),
    ({"model": None}, "model", "null"),
    ({"model": "x" * 201}, "model", "max_length"),
    ({"model": "gpt-4o\x00"}, "model", "null_characters_not_allowed"),
    ({"model": {"id": "gpt-4o"}}, "model", "invalid"),
    ({"temperature": "warm"}, "temperature", "invalid"),
    ({"temperature": "NaN"}, "temperature", "invalid"),
    ({"temperature": float("nan")}, None, "parse_error"),
    ({"temperature": float("inf")}, None, "parse_error"),
    ({"temperature": "Infinity"}, "temperature", "invalid"),
    ({"temperature": -0.1}, "temperature", "min_value"),
    ({"temperature": 2.1}, "temperature", "max_value"),
    ({"temperature": []}, "temperature", "invalid"),
    ({"max_tokens": 0}, "max_tokens", "min_value"),
    ({"max_tokens": -1}, "max_tokens", "min_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid"),
    ({"max_tokens": 2**70}, "max_tokens", "max_value"),
    ({"max_tokens": "9" * 2000}, "max_tokens", "max_string_length"),
    ({"max_tokens": "many"}, "max_tokens", "invalid"),
    ({"tags": "work"}, "tags", "not_a_list"),
    ({"tags": {"a": 1}}, "tags", "not_a_list"),
    ({"tags": None}, "tags", "null"),
    ({"tags": [None]}, "tags.0", "null"),
    ({"tags": ["ok", ""]}, "tags.1", "blank"),
    ({"tags": [["x"]]}, "tags.0", "invalid"),
    ({"tags": ["x" * 51]}, "tags.0", "max_length"),
    ({"tags": ["a\x00"]}, "tags.0", "null_characters_not_allowed"),
    ({"tags": ["\ud800"]}, "tags.0", "surrogate_characters_not_allowed"),
    ({"tags": ["x"] * 21}, "tags", "max_length"),
]


@pytest.mark.parametrize(("body", "attr", "code"), [*BAD_FIELDS, ({"temporary": "perhaps"}, "temporary", "invalid")])
async def test_bad_fields_create_nothing(alice, body, attr, code):
    answer = await alice.post("/conversations", body)
    assert answer.status_code == 400, answer.content
    assert errors_of(answer) == [(attr, code)]
    assert await db.run(Conversation.objects.count) == 0
    assert await db.run(FeedEvent.objects.count) == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [("[]", "invalid"), ('"x"', "invalid"), ("5", "invalid"), ("null", "null"), ("{", "parse_error"),
     ('{"a":' * 100_000, "parse_error"), (b"\xff\xfe", "parse_error")],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_body_that_is_no_object_is_refused(alice, method, body, code):
    path = "/conversations" if method == "POST" else f"/conversations/{await alice.converse(title='kept')}"
    before = await db.run(conversations)
    answer = await alice.client.generic(
        method, f"/api/v1{path}", body, content_type="application/json",
        headers={"Authorization": f"Bearer {alice.access}"},
    )  # fmt: skip
    assert answer.status_code == 400, answer.content
    assert [one for _, one in errors_of(answer)] == [code]
    assert await db.run(conversations) == before


async def test_several_bad_fields_are_all_told(alice):
    answer = await alice.post("/conversations", {"title": None, "temperature": 9, "tags": [""]})
    assert sorted(errors_of(answer)) == [("tags.0", "blank"), ("temperature", "max_value"), ("title", "null")]
    assert answer.json()["type"] == "validation_error"


# --- Changing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("title", "新的标题"),
        ("title", ""),
        ("model", "gpt-4o-mini"),
        ("system_prompt", "  spaces stay  "),
        ("system_prompt", ""),
        ("temperature", 0),
        ("temperature", None),
        ("max_tokens", 50),
        ("max_tokens", None),
        ("tags", ["a", "b"]),
        ("tags", []),
        ("pinned", True),
        ("archived", True),
    ],
)
async def test_each_field_is_changed_alone(alice, name, value):
    conversation_id = await alice.converse(
        title="old", model="gpt-4o", system_prompt="old", temperature=1, max_tokens=9, tags=["old"]
    )
    before = (await alice.get(f"/conversations/{conversation_id}")).json()
    answer = await alice.patch(f"/conversations/{conversation_id}", {name: value})
    after = answer.json()
    assert answer.status_code == 200
    assert after.pop("updated_at") > before.pop("updated_at")
    assert after == {**before, name: value, "version": 2}
    stored = (await alice.get(f"/conversations/{conversation_id}")).json()
    assert {name: one for name, one in stored.items() if name != "updated_at"} == after
    event = await db.run(FeedEvent.objects.order_by("number").last)
    assert (event.type, event.conversation_id, event.number) == ("conversation.updated", conversation_id, 2)


@pytest.mark.parametrize(
    ("body", "attr", "code"),
    [*BAD_FIELDS, ({"pinned": None}, "pinned", "null"), ({"archived": "perhaps"}, "archived", "invalid"),
     ({"pinned": [True]}, "pinned", "invalid")],
)  # fmt: skip
async def test_bad_fields_change_nothing(alice, body, attr, code):
    conversation_id = await alice.converse(title="kept")
    before = await db.run(conversations)
    answer = await alice.patch(f"/conversations/{conversation_id}", {"title": "changed", **body})
    assert answer.status_code == 400, answer.content
    assert errors_of(answer) == [(attr, code)]
    assert await db.run(conversations) == before


@pytest.mark.parametrize("given", ['"2"', 'W/"2"', "2", "*", ' "2" '])
async def test_a_change_of_the_current_version(alice, given):
    conversation_id = await alice.converse(title="first")
    await alice.patch(f"/conversations/{conversation_id}", {"title": "second"})
    answer = await alice.patch(f"/conversations/{conversation_id}", {"title": "third"}, headers={"If-Match": given})
    assert (answer.status_code, answer.json()["version"], answer.json()["title"]) == (200, 3, "third")


@pytest.mark.parametrize(
    "given", ['"1"', '"3"', '"0"', '"-2"', '"x"', '""', "", '"2.0"', '"²"', '"' + "2" * 5000 + '"']
)
async def test_a_change_of_another_version_is_refused(alice, given):
    conversation_id = await alice.converse(title="first")
    await alice.patch(f"/conversations/{conversation_id}", {"title": "second"})
    before = await db.run(conversations)
    answer = await alice.patch(f"/conversations/{conversation_id}", {"title": "third"}, headers={"If-Match": given})
    assert (answer.status_code, errors_of(answer)) == (412, [(None, "version_conflict")])
    assert await db.run(conversations) == before


async def test_of_many_changes_to_one_version_one_is_made(alice):
    conversation_id = await alice.converse()
    answers = await asyncio.gather(
        *(
            alice.patch(f"/conversations/{conversation_id}", {"title": f"{n}"}, headers={"If-Match": '"1"'})
            for n in range(10)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    (won,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert (await alice.get(f"/conversations/{conversation_id}")).json() == won
    assert won["version"] == 2


# --- Whose it is ------------------------------------------------------------------------------------------------------

EACH = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("GET", "/messages"),
]


@pytest.mark.parametrize(("method", "rest"), EACH)
async def test_a_strangers_conversation_is_one_that_does_not_exist(alice, bob, method, rest):
    conversation_id = await alice.converse(title="mine")
    await alice.say(conversation_id, "hi !reply=ok")
    before = await db.run(conversations)
    theirs = await bob.call(method, f"/conversations/{conversation_id}{rest}", {"title": "taken"})
    nobodys = await bob.call(method, f"/conversations/{conversation_id + 1}{rest}", {"title": "taken"})
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json() == nobodys.json()
    assert theirs.json()["errors"] == [{"code": "not_found", "detail": "Not found.", "attr": None}]
    assert await db.run(conversations) == before
    assert await db.run(FeedEvent.objects.filter(user_id=bob.id).count) == 0


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.0", "9" * 19, "9" * 30, "9" * 5000, "%00", "１"])
@pytest.mark.parametrize(("method", "rest"), EACH)
async def test_an_id_that_is_none_is_not_found(alice, method, rest, number):
    answer = await alice.call(method, f"/conversations/{number}{rest}", {"title": "x"})
    assert (answer.status_code, errors_of(answer)) == (404, [(None, "not_found")])


@pytest.mark.parametrize(("method", "rest"), [*EACH, ("GET", None), ("POST", None)])
@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer x", "Bearer \xff", "Basic YTpi", "bearer a b"])
async def test_nobody_gets_in_unknown(alice, method, rest, authorization):
    conversation_id = await alice.converse(title="mine")
    before = await db.run(conversations)
    path = "/api/v1/conversations" if rest is None else f"/api/v1/conversations/{conversation_id}{rest}"
    headers = {"Authorization": authorization} if authorization else {}
    answer = await AsyncClient(raise_request_exception=False).generic(
        method, path, json.dumps({"title": "taken"}), content_type="application/json", headers=headers
    )
    assert answer.status_code == 401, answer.content
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert await db.run(conversations) == before


async def test_methods_that_are_not_offered(alice):
    conversation_id = await alice.converse()
    for method, path in [
        ("PUT", f"/conversations/{conversation_id}"),
        ("POST", f"/conversations/{conversation_id}"),
        ("DELETE", "/conversations"),
        ("POST", f"/conversations/{conversation_id}/messages"),
    ]:
        answer = await alice.call(method, path)
        assert (answer.status_code, errors_of(answer)) == (405, [(None, "method_not_allowed")])


# --- Listing ----------------------------------------------------------------------------------------------------------


async def test_the_list_is_newest_activity_first_and_pinned_ahead(alice, bob):
    first, second, third, fourth = await make(alice, 4)
    await make(bob, 2)
    assert await listed(alice) == [fourth, third, second, first]
    await alice.say(second, "hi !reply=ok")
    assert await listed(alice) == [second, fourth, third, first]
    await alice.patch(f"/conversations/{first}", {"pinned": True})
    await alice.patch(f"/conversations/{third}", {"title": "touched"})
    assert await listed(alice) == [first, third, second, fourth]


async def test_each_conversation_is_listed_as_it_is_read(alice):
    conversation_id = await alice.converse(title="标题", system_prompt="Be brief.", tags=["a"])
    await alice.say(conversation_id, "hi !reply=ok")
    (found,) = (await alice.get("/conversations")).json()["results"]
    assert found == (await alice.get(f"/conversations/{conversation_id}")).json()
    assert found["message_count"] == 2


@pytest.mark.parametrize(
    ("ordering", "expected"),
    [
        ("", [3, 0, 2, 1]),
        ("-updated_at", [3, 0, 2, 1]),
        ("updated_at", [3, 1, 2, 0]),
        ("-created_at", [3, 2, 1, 0]),
        ("created_at", [3, 0, 1, 2]),
    ],
)
async def test_orderings_keep_the_pinned_ahead(alice, ordering, expected):
    made = await make(alice, 4)
    await alice.patch(f"/conversations/{made[0]}", {"title": "newest activity"})
    await db.run(Conversation.objects.filter(id=made[3]).update, pinned=True)
    assert await listed(alice, f"ordering={ordering}") == [made[place] for place in expected]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("ordering", ["-updated_at", "created_at"])
async def test_pages_hold_each_conversation_once_there_and_back(alice, ordering, size):
    made = await make(alice, 7)
    # Equal in all but their ids, some pinned.
    at = timezone.now()
    await db.run(Conversation.objects.filter(id__in=made[:5]).update, updated_at=at, created_at=at)
    await db.run(Conversation.objects.filter(id__in=made[1:3]).update, pinned=True)
    whole = await listed(alice, f"ordering={ordering}&page_size=100")
    assert sorted(whole) == made
    pages = [(await alice.get(f"/conversations?ordering={ordering}&page_size={size}")).json()]
    while pages[-1]["next"]:
        assert len(pages) <= 7
        pages.append((await alice.get(path_of(pages[-1]["next"]))).json())
    assert [one["id"] for page in pages for one in page["results"]] == whole
    assert [page["previous"] is None for page in pages] == [True] + [False] * (len(pages) - 1)
    page = pages[-1]
    for before in reversed(pages[:-1]):
        page = (await alice.get(path_of(page["previous"]))).json()
        assert page["results"] == before["results"]
    assert page["previous"] is None


async def test_archived_conversations_are_left_out_unless_asked_for(alice):
    kept, archived = await make(alice, 2)
    await alice.patch(f"/conversations/{archived}", {"archived": True})
    assert await listed(alice) == await listed(alice, "archived=false") == await listed(alice, "archived=0") == [kept]
    assert await listed(alice, "archived=true") == await listed(alice, "archived=1") == [archived]
    assert await listed(alice, "archived=all") == [archived, kept]
    assert (await alice.get(f"/conversations/{archived}")).status_code == 200
    await alice.patch(f"/conversations/{archived}", {"archived": False})
    assert sorted(await listed(alice)) == [kept, archived]


async def test_temporary_conversations_work_but_are_not_listed(alice):
    temporary = await alice.converse(temporary=True)
    assert (await alice.get(f"/conversations/{temporary}")).json()["temporary"] is True
    assert (await alice.say(temporary, "hi !reply=ok")).status_code == 201
    for query in ("", "archived=all", "pinned=false", "ordering=created_at"):
        assert await listed(alice, query) == []
    await alice.patch(f"/conversations/{temporary}", {"temporary": False})
    assert await listed(alice) == []


async def test_filters(alice):
    first, second, third = await make(alice, 3)
    await db.run(Conversation.objects.filter(id=second).update, pinned=True, model="gpt-4o-mini")
    assert await listed(alice, "pinned=true") == [second]
    assert await listed(alice, "pinned=false") == [third, first]
    assert await listed(alice, "model=gpt-4o-mini") == [second]
    assert await listed(alice, "model=gpt-4o&pinned=false") == [third, first]
    assert await listed(alice, "model=no-such-model") == []
    assert await listed(alice, "model=%27%22%25_") == []
    assert await listed(alice, "unknown=whatever") == [second, third, first]


@pytest.mark.parametrize("stem", ["created", "updated"])
async def test_after_is_inclusive_and_before_exclusive(alice, stem):
    first, second, third = await make(alice, 3)
    rows = {one["id"]: one for one in (await alice.get("/conversations")).json()["results"]}
    at = rows[second][f"{stem}_at"]
    assert await listed(alice, f"{stem}_after={at}") == [third, second]
    assert await listed(alice, f"{stem}_before={at}") == [first]
    assert await listed(alice, f"{stem}_after={at}&{stem}_before={at}") == []
    later = rows[third][f"{stem}_at"]
    assert await listed(alice, f"{stem}_after={at}&{stem}_before={later}") == [second]


@pytest.mark.parametrize("moment", ["2026-01-31T17:30:00+08:00", "2026-01-31T17:30:00%2B08:00", "2026-01-31T09:30:00Z",
                                    "2026-01-31T09:30:00.000000Z", "2026-01-31T04:30:00-05:00"])  # fmt: skip
async def test_times_may_be_written_in_any_zone(alice, moment):
    first, second = await make(alice, 2)
    at = timezone.datetime.fromisoformat("2026-01-31T09:30:00+00:00")
    await db.run(Conversation.objects.filter(id=first).update, created_at=at)
    await db.run(Conversation.objects.filter(id=second).update, created_at=at - timedelta(microseconds=1))
    assert await listed(alice, f"created_after={moment}") == [first]
    assert await listed(alice, f"created_before={moment}") == [second]


BAD_TIMES = ["yesterday", "2026-01-31", "2026-01-31T09:30:00", "2026-02-31T09:30:00Z", "1767225600", "2026", "\x00",
             "2026-01-31T25:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "T", "汉字"]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "attr", "code"),
    [
        ("archived=perhaps", "archived", "invalid_choice"),
        ("archived=", "archived", "invalid_choice"),
        ("pinned=2", "pinned", "invalid_choice"),
        ("pinned=", "pinned", "invalid_choice"),
        ("model=gpt%00", "model", "null_characters_not_allowed"),
        ("ordering=title", "ordering", "invalid_choice"),
        ("ordering=-pinned", "ordering", "invalid_choice"),
        ("ordering=owner__password", "ordering", "invalid_choice"),
        ("ordering=--updated_at", "ordering", "invalid_choice"),
        ("page_size=0", "page_size", "invalid"),
        ("page_size=x", "page_size", "invalid"),
        ("cursor=x", "cursor", "invalid_cursor"),
        ("cursor=%ED%A0%80", "cursor", "invalid_cursor"),
        ("search=汉字", "search", "not_supported"),
        ("tag=work", "tag", "not_supported"),
        *((f"{name}={quote(value)}", name, "invalid") for value in BAD_TIMES for name in
          ("created_after", "created_before", "updated_after", "updated_before")),
    ],
)  # fmt: skip
async def test_a_bad_query_is_told(alice, query, attr, code):
    await make(alice, 1)
    answer = await alice.get(f"/conversations?{query}")
    assert answer.status_code == 400, answer.content
    assert errors_of(answer) == [(attr, code)]


async def test_an_empty_search_is_none(alice):
    made = await make(alice, 1)
    assert await listed(alice, "search=&tag=&model=&ordering=&cursor=&created_after=") == made


async def test_a_cursor_of_another_ordering_is_refused(alice):
    await make(alice, 3)
    following = (await alice.get("/conversations?page_size=1")).json()["next"]
    answer = await alice.get(path_of(following) + "&ordering=created_at")
    assert (answer.status_code, errors_of(answer)) == (400, [("cursor", "invalid_cursor")])


async def test_a_strangers_cursor_shows_nothing_of_theirs(alice, bob):
    await make(alice, 3)
    (mine,) = await make(bob, 1)
    following = (await alice.get("/conversations?page_size=1")).json()["next"]
    assert set(await listed(bob, urlsplit(following).query)) <= {mine}


@pytest.mark.parametrize("path", ["/conversations?page_size=100", "/conversations/{}", "/conversations/{}/messages"])
async def test_reading_costs_the_same_for_one_and_for_fifty(alice, path):
    (conversation_id,) = await make(alice, 1)
    await alice.say(conversation_id, "one", reply=False)
    counts = []
    for _ in range(2):
        with statements_of_requests() as statements:
            assert (await alice.get(path.format(conversation_id))).status_code == 200
        counts.append(len(statements))
        await make(alice, 50)
        for number in range(10):
            await alice.say(conversation_id, f"{number}", reply=False)
    # The session, and: the page, the conversation, or the conversation, the page and the siblings.
    expected = {"/conversations?page_size=100": 2, "/conversations/{}": 2, "/conversations/{}/messages": 4}[path]
    assert counts == [expected, expected], "\n".join(statements)


async def test_writing_costs_little(alice):
    conversation_id = await alice.converse()
    with statements_of_requests() as created:
        await alice.converse()
    with statements_of_requests() as changed:
        await alice.patch(f"/conversations/{conversation_id}", {"title": "new"})
    # The session, the row (changed: read and written), the feed's counter and its event.
    assert (len(created), len(changed)) == (4, 5), "\n".join([*created, *changed])


# --- Deleting ---------------------------------------------------------------------------------------------------------


async def test_deleting_removes_the_messages_and_nothing_else(alice):
    gone, kept = await alice.converse(), await alice.converse()
    for conversation_id in (gone, kept):
        first = (await alice.say(conversation_id, "one !reply=1")).json()
        await alice.say(conversation_id, "two !reply=2", parent_id=first["reply"]["id"])
        await alice.say(conversation_id, "three !reply=3", parent_id=first["reply"]["id"])
    books = await db.run(alice.books)
    answer = await alice.delete(f"/conversations/{gone}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await alice.get(f"/conversations/{gone}")).status_code == 404
    assert await listed(alice) == [kept]
    assert await db.run(lambda: set(Message.objects.values_list("conversation_id", flat=True))) == {kept}
    assert await db.run(Message.objects.count) == 6
    assert await db.run(alice.books) == books
    event = await db.run(FeedEvent.objects.order_by("number").last)
    assert (event.type, event.conversation_id) == ("conversation.deleted", gone)
    assert (await alice.delete(f"/conversations/{gone}")).status_code == 404


async def test_a_long_conversation_can_be_deleted(alice):
    conversation_id = await alice.converse()

    def grow():
        parent, now = None, timezone.now()
        for depth in range(1500):  # deeper than Python's stack
            parent = Message.objects.create(
                owner_id=alice.id, conversation_id=conversation_id, parent=parent, depth=depth, role="user",
                created_at=now,
            )  # fmt: skip
        Conversation.objects.filter(id=conversation_id).update(current_message=parent)

    await db.run(db.in_transaction, grow)
    assert (await alice.delete(f"/conversations/{conversation_id}")).status_code == 204
    assert await db.run(Message.objects.count) == 0


async def test_a_running_reply_is_stopped_and_settled_before_its_conversation_goes(alice, world):
    conversation_id = await alice.converse()
    answer = await alice.say(conversation_id, "!never !slow=0.02", stream=True)
    stream = events_of(answer)
    reply_id = (await anext(stream)).data["reply"]["id"]
    await anext(stream)

    assert (await alice.delete(f"/conversations/{conversation_id}")).status_code == 204

    await world.upstream.until(lambda: world.upstream.open_streams == 0, within=1.0)
    assert len(world.upstream.closed_at) == 1
    events = [event async for event in stream]
    assert events[-1].type == "message.stopped"
    assert events[-1].data["message"]["content"] != ""
    assert reply_id not in engine.replies
    books = await db.run(alice.books)
    assert (len(books["records"]), books["open"]) == (1, 0)
    (record,) = books["records"]
    assert (record.source, record.completion_tokens > 0) == ("estimated", True)
    assert await db.run(Message.objects.count) == 0
    types = await db.run(lambda: list(FeedEvent.objects.order_by("number").values_list("type", "number")))
    assert types == [
        ("conversation.created", 1),
        ("message.created", 2),
        ("message.stopped", 3),
        ("conversation.deleted", 4),
    ]


async def test_the_rows_do_not_go_while_a_reply_runs(alice, world):
    """The last word is the transaction's: a reply may have begun since the running ones were stopped."""
    conversation_id = await alice.converse()
    stream = events_of(await alice.say(conversation_id, "!never !slow=0.02", stream=True))
    reply_id = (await anext(stream)).data["reply"]["id"]
    asked = {"user_id": alice.id, "conversation_id": conversation_id}
    assert await db.run(services.streaming_ids, **asked) == [reply_id]
    assert await db.run(services.delete_conversation, **asked) is False
    assert engine.replies[reply_id].ended is None
    assert await db.run(Message.objects.count) == 2
    assert (await alice.post(f"/messages/{reply_id}/stop")).status_code == 200
    assert await db.run(services.delete_conversation, **asked) is True
    assert await db.run(Message.objects.count) == 0


async def test_several_running_replies_are_stopped_with_their_conversation(alice, world):
    conversation_id, other = await alice.converse(), await alice.converse()
    first = (await alice.say(conversation_id, "root !reply=ok")).json()["message"]["id"]
    streams = []
    for number in range(3):
        answer = await alice.say(conversation_id, f"{number} !never !slow=0.02", stream=True, parent_id=first)
        streams.append(events_of(answer))
        await anext(streams[-1])
    kept = events_of(await alice.say(other, "!never !slow=0.02", stream=True))
    kept_id = (await anext(kept)).data["reply"]["id"]
    await world.upstream.until(lambda: world.upstream.open_streams == 4)

    assert (await alice.delete(f"/conversations/{conversation_id}")).status_code == 204

    await world.upstream.until(lambda: world.upstream.open_streams == 1, within=1.0)
    for stream in streams:
        assert [event async for event in stream][-1].type == "message.stopped"
    books = await db.run(alice.books)
    assert (len(books["records"]), books["open"]) == (4, 1)
    assert engine.replies[kept_id].ended is None
    assert (await alice.post(f"/messages/{kept_id}/stop")).status_code == 200


async def test_a_stranger_stops_nothing_by_deleting(alice, bob, world):
    conversation_id = await alice.converse()
    stream = events_of(await alice.say(conversation_id, "!never !slow=0.02", stream=True))
    reply_id = (await anext(stream)).data["reply"]["id"]
    assert (await bob.delete(f"/conversations/{conversation_id}")).status_code == 404
    await anext(stream)
    assert engine.replies[reply_id].ended is None
    assert (await db.run(Hold.objects.get)).status == "open"
    assert (await alice.post(f"/messages/{reply_id}/stop")).status_code == 200


async def test_deleting_while_messages_come_in_leaves_nothing_behind(alice, world):
    conversation_id = await alice.converse()
    sending = [asyncio.ensure_future(alice.say(conversation_id, f"{n} !never !slow=0.02")) for n in range(8)]
    await world.upstream.until(lambda: world.upstream.open_streams >= 2)
    assert (await alice.delete(f"/conversations/{conversation_id}")).status_code == 204
    answers = await asyncio.gather(*sending)
    # Each was stored and stopped, or came too late.
    assert {answer.status_code for answer in answers} <= {201, 400}
    assert {answer.json()["reply"]["status"] for answer in answers if answer.status_code == 201} <= {"stopped"}
    await world.upstream.until(lambda: world.upstream.open_streams == 0, within=1.0)
    assert await db.run(Message.objects.count) == 0
    assert (await db.run(alice.books))["open"] == 0
    assert not engine.replies
    assert await db.run(UsageRecord.objects.count) == sum(answer.status_code == 201 for answer in answers)


# --- The messages of one ----------------------------------------------------------------------------------------------


async def grow_tree(person):
    """Say one, two and, beside two, three; return the conversation and the messages by what they say."""
    conversation_id = await person.converse()
    said = {}
    first = (await person.say(conversation_id, "one !reply=1")).json()
    second = (await person.say(conversation_id, "two !reply=2")).json()
    third = (await person.say(conversation_id, "three !reply=3", parent_id=first["reply"]["id"])).json()
    for exchange in (first, second, third):
        for message in exchange.values():
            said[message["content"].split()[0]] = message["id"]
    return conversation_id, said


async def test_the_active_branch_and_the_whole_tree(alice):
    conversation_id, said = await grow_tree(alice)
    active = (await alice.get(f"/conversations/{conversation_id}/messages")).json()
    assert [one["id"] for one in active["results"]] == [said["one"], said["1"], said["three"], said["3"]]
    assert (active["next"], active["previous"]) == (None, None)
    assert (await alice.get(f"/conversations/{conversation_id}/messages?branch=active")).json() == active
    whole = (await alice.get(f"/conversations/{conversation_id}/messages?branch=all")).json()["results"]
    assert [one["id"] for one in whole] == [said[name] for name in ("one", "1", "two", "three", "2", "3")]
    siblings = {one["id"]: one["sibling_ids"] for one in whole}
    assert siblings[said["two"]] == siblings[said["three"]] == [said["two"], said["three"]]
    assert siblings[said["2"]] == [said["2"]]
    assert siblings[said["one"]] == [said["one"]]
    # Each as it is read alone.
    for message in whole:
        assert (await alice.get(f"/messages/{message['id']}")).json() == message


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("branch", ["active", "all"])
async def test_pages_of_messages_hold_each_once_there_and_back(alice, branch, size):
    conversation_id, _ = await grow_tree(alice)
    path = f"/conversations/{conversation_id}/messages?branch={branch}"
    whole = (await alice.get(path)).json()["results"]
    pages = [(await alice.get(f"{path}&page_size={size}")).json()]
    while pages[-1]["next"]:
        assert len(pages) <= 6
        pages.append((await alice.get(path_of(pages[-1]["next"]))).json())
    assert [one for page in pages for one in page["results"]] == whole
    page = pages[-1]
    for before in reversed(pages[:-1]):
        page = (await alice.get(path_of(page["previous"]))).json()
        assert page["results"] == before["results"]


async def test_a_page_reached_once_stays_while_the_conversation_grows(alice):
    conversation_id, _ = await grow_tree(alice)
    following = (await alice.get(f"/conversations/{conversation_id}/messages?page_size=2")).json()["next"]
    before = (await alice.get(path_of(following))).json()
    newest = (await alice.say(conversation_id, "four", reply=False)).json()["message"]
    after = (await alice.get(path_of(following))).json()
    assert after["results"] == before["results"]
    assert [one["id"] for one in (await alice.get(path_of(after["next"]))).json()["results"]] == [newest["id"]]


async def test_an_empty_conversation_has_an_empty_page(alice):
    for branch in ("active", "all"):
        answer = await alice.get(f"/conversations/{await alice.converse()}/messages?branch={branch}")
        assert answer.json() == {"next": None, "previous": None, "results": []}


@pytest.mark.parametrize(
    ("query", "attr", "code"),
    [
        ("branch=none", "branch", "invalid_choice"),
        ("branch=", "branch", "invalid_choice"),
        ("page_size=-1", "page_size", "invalid"),
        ("cursor=x", "cursor", "invalid_cursor"),
    ],
)
async def test_a_bad_query_of_messages_is_told(alice, query, attr, code):
    answer = await alice.get(f"/conversations/{await alice.converse()}/messages?{query}")
    assert (answer.status_code, errors_of(answer)) == (400, [(attr, code)])


# --- Every answer -----------------------------------------------------------------------------------------------------


async def test_one_slash_more_answers_the_same(alice):
    conversation_id = await alice.converse(title="slash")
    await alice.say(conversation_id, "hi", reply=False)
    for path, query in [
        ("/conversations", "archived=all"),
        (f"/conversations/{conversation_id}", ""),
        (f"/conversations/{conversation_id}/messages", "branch=all"),
    ]:
        without, with_slash = await alice.get(f"{path}?{query}"), await alice.get(f"{path}/?{query}")
        assert (with_slash.status_code, with_slash.json()) == (200, without.json())
    made = await alice.post("/conversations/", {"title": "new"})
    assert made.status_code == 201
    changed = await alice.patch(f"/conversations/{made.json()['id']}/", {"title": "newer"})
    assert (changed.status_code, changed.json()["title"]) == (200, "newer")
    assert (await alice.delete(f"/conversations/{made.json()['id']}/")).status_code == 204
    assert await listed(alice) == [conversation_id]


async def test_each_answer_carries_its_requests_id(alice):
    conversation_id = await alice.converse()
    paths = ["/conversations", f"/conversations/{conversation_id}", "/conversations/0", "/conversations?ordering=x"]
    for path in paths:
        answer = await alice.get(path, headers={"X-Request-ID": "mine-1.2:3_4"})
        assert answer.headers["X-Request-ID"] == "mine-1.2:3_4"
    given = [(await alice.get("/conversations")).headers["X-Request-ID"] for _ in range(3)]
    assert len(set(given)) == 3
    for bad in ("x" * 65, "a b", "é", "a\tb", ""):
        answer = await alice.get("/conversations", headers={"X-Request-ID": bad})
        assert answer.headers["X-Request-ID"] != bad
        assert len(answer.headers["X-Request-ID"]) == 32
