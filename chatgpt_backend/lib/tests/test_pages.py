"""Keyset pages: every row once and in order, whatever the rows, and a 400 for whatever is no cursor of ours."""

import base64
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from django.contrib.auth import get_user_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from chatgpt_backend.lib.pages import DEFAULT_SIZE, LARGEST_SIZE, KeysetPages

pytestmark = pytest.mark.django_db
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# A flag, a time and the unique id: as lists here are ordered.
ORDERINGS = [
    ("-is_staff", "-date_joined", "-id"),
    ("-is_staff", "date_joined", "id"),
    ("date_joined", "id"),
    ("-date_joined", "-id"),
    ("id",),
]


def make_rows(values):
    """Make a row for each (flag, minute), and return them."""
    users = get_user_model().objects
    return users.bulk_create(
        users.model(
            username=f"user{number}", username_folded=f"user{number}", email=f"{number}@example.com",
            email_folded=f"{number}@example.com", is_staff=flag, date_joined=EPOCH + timedelta(minutes=minute),
        )
        for number, (flag, minute) in enumerate(values)
    )  # fmt: skip


def page(query, ordering=("-date_joined", "-id"), queryset=None):
    """Return the ids of one page, and its next and previous addresses."""
    pages = KeysetPages()
    request = Request(APIRequestFactory().get(f"/list?{query}"))
    rows = pages.paginate(get_user_model().objects.all() if queryset is None else queryset, request, ordering=ordering)
    body = pages.response([row.pk for row in rows]).data
    return body["results"], body["next"], body["previous"]


def follow(address, ordering):
    return page(urlsplit(address).query, ordering)


def cursor_of(address):
    return dict(parse_qsl(urlsplit(address).query))["cursor"]


def forge(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).decode()


def sorted_ids(rows, ordering):
    for name in reversed(ordering):
        rows = sorted(rows, key=lambda row: getattr(row, name.lstrip("-")), reverse=name.startswith("-"))
    return [row.pk for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=25),
    size=st.integers(1, 12),
    ordering=st.sampled_from(ORDERINGS),
)
def test_walking_there_and_back_gives_the_list_whatever_it_holds(db, values, size, ordering):
    get_user_model().objects.all().delete()
    expected = sorted_ids(make_rows(values), ordering)
    cuts = [expected[at : at + size] for at in range(0, len(expected), size)] or [[]]

    forth = [page(f"page_size={size}", ordering)]
    while forth[-1][1] is not None and len(forth) <= len(cuts):
        forth.append(follow(forth[-1][1], ordering))
    back = [forth[-1]]
    while back[-1][2] is not None and len(back) <= len(cuts):
        back.append(follow(back[-1][2], ordering))

    assert [ids for ids, _, _ in forth] == cuts
    assert [ids for ids, _, _ in reversed(back)] == cuts
    assert [following is None for _, following, _ in forth] == [False] * (len(cuts) - 1) + [True]
    assert [preceding is None for _, _, preceding in forth] == [True] + [False] * (len(cuts) - 1)
    assert [following is None for _, following, _ in back] == [True] + [False] * (len(cuts) - 1)
    assert [preceding is None for _, _, preceding in back] == [False] * (len(cuts) - 1) + [True]


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_rows_that_share_all_but_their_id_are_not_lost_between_pages(ordering):
    expected = sorted_ids(make_rows([(True, 0)] * 7), ordering)
    first, following, preceding = page("page_size=3", ordering)
    assert (first, preceding) == (expected[:3], None)
    second, following, preceding = follow(following, ordering)
    assert second == expected[3:6]
    assert follow(preceding, ordering)[0] == first
    third, last, preceding = follow(following, ordering)
    assert (third, last) == (expected[6:], None)
    assert follow(preceding, ordering)[0] == second


def test_rows_that_come_and_go_shift_nothing():
    rows = make_rows([(False, minute) for minute in range(6)])
    first, following, _ = page("page_size=2")
    assert first == [rows[5].pk, rows[4].pk]
    rows[4].delete()
    get_user_model().objects.create(username="newest", email="n@example.com", date_joined=EPOCH + timedelta(days=1))
    assert follow(following, ("-date_joined", "-id"))[0] == [rows[3].pk, rows[2].pk]


def test_a_page_is_one_query(django_assert_num_queries):
    make_rows([(False, 0)] * 30)
    with django_assert_num_queries(1):
        _, following, _ = page("page_size=10")
    with django_assert_num_queries(1):
        follow(following, ("-date_joined", "-id"))


def test_links_keep_the_other_parameters():
    make_rows([(False, 0)] * 3)
    _, following, _ = page("page_size=1&title=a%26b%3D%E6%B1%89")
    parts = urlsplit(following)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", "testserver", "/list")
    assert [one for one in parse_qsl(parts.query) if one[0] != "cursor"] == [("page_size", "1"), ("title", "a&b=汉")]
    again = follow(following, ("-date_joined", "-id"))[1]
    assert len(parse_qsl(urlsplit(again).query)) == 3


@pytest.mark.parametrize(
    ("given_size", "got"),
    [(None, DEFAULT_SIZE), ("1", 1), ("100", LARGEST_SIZE), ("101", LARGEST_SIZE), ("9" * 400, LARGEST_SIZE)],
)
def test_page_sizes(given_size, got):
    make_rows([(False, 0)] * (LARGEST_SIZE + 5))
    assert len(page(f"page_size={given_size}" if given_size else "")[0]) == got


@pytest.mark.parametrize("size", ["", "0", "-1", "+1", "1.0", "1e2", "x", "٣", "1_0", " 5", "0x5", "\x00", "null"])
def test_a_page_size_that_is_none_is_refused(size):
    with pytest.raises(ValidationError) as refused:
        page(f"page_size={quote(size)}")
    assert refused.value.get_codes() == {"page_size": ["invalid"]}


ORDER = ["-is_staff", "-date_joined", "-id"]
NOW = {"at": "2026-01-01T00:00:00+00:00"}
BAD_CURSORS = {
    "no base64": "x",
    "half a group": "abcde",
    "not ASCII": "汉字",
    "a surrogate": "%ED%A0%80",
    "NUL": "\x00",
    "base64 of nothing like JSON": forge("nonsense"),
    "base64 of bytes that are no UTF-8": base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
    "a number": forge("5"),
    "null": forge("null"),
    "a text of three": forge('"abc"'),
    "an object of three": forge({"a": 1, "b": 2, "c": 3}),
    "too few": forge([False, ORDER]),
    "too many": forge([False, ORDER, [True, NOW, 1], 1]),
    "brackets by the thousand": forge("[" * 200_000),
    "brackets by the thousand inside": forge('[false, ["-id"], ' + "[" * 50_000 + "]" * 50_000 + "]"),
    "objects by the thousand": forge('{"a":' * 100_000),
    "a number of a million digits": forge(f"[false, [], [{'9' * 1_000_000}]]"),
    "of another order": forge([False, ["-date_joined", "-id"], [NOW, 1]]),
    "of other columns": forge([False, ["-password", "-date_joined", "-id"], ["x", NOW, 1]]),
    "no order": forge([False, None, [True, NOW, 1]]),
    "too few values": forge([False, ORDER, [True, NOW]]),
    "too many values": forge([False, ORDER, [True, NOW, 1, 1]]),
    "no values": forge([False, ORDER, []]),
    "values that are no list": forge([False, ORDER, 5]),
    "values that are a text": forge([False, ORDER, "abc"]),
    "values that are an object": forge([False, ORDER, {"a": 1, "b": 2, "c": 3}]),
    "values that are null": forge([False, ORDER, None]),
    "a direction that is no boolean": forge([1, ORDER, [True, NOW, 1]]),
    "a direction that is a text": forge(["x", ORDER, [True, NOW, 1]]),
    "a flag that is a text": forge([False, ORDER, ["true", NOW, 1]]),
    "a flag that is a number": forge([False, ORDER, [7, NOW, 1]]),
    "a flag that is null": forge([False, ORDER, [None, NOW, 1]]),
    "a flag that is a time": forge([False, ORDER, [NOW, NOW, 1]]),
    "a time that is a number": forge([False, ORDER, [True, 5, 1]]),
    "a time that is a text": forge([False, ORDER, [True, "2026-01-01T00:00:00Z", 1]]),
    "a time that is a flag": forge([False, ORDER, [True, True, 1]]),
    "a time of another key": forge([False, ORDER, [True, {"on": "2026-01-01"}, 1]]),
    "a time that is empty": forge([False, ORDER, [True, {}, 1]]),
    "a time of null": forge([False, ORDER, [True, {"at": None}, 1]]),
    "a time of a number": forge([False, ORDER, [True, {"at": 5}, 1]]),
    "a time of a list": forge([False, ORDER, [True, {"at": [1]}, 1]]),
    "a time that never was": forge([False, ORDER, [True, {"at": "2026-02-31T00:00:00+00:00"}, 1]]),
    "a time without a zone": forge([False, ORDER, [True, {"at": "2026-01-01T00:00:00"}, 1]]),
    "a time before all times": forge([False, ORDER, [True, {"at": "0001-01-01T00:00:00+14:00"}, 1]]),
    "a time after all times": forge([False, ORDER, [True, {"at": "9999-12-31T23:59:59-14:00"}, 1]]),
    "an id that is a text": forge([False, ORDER, [True, NOW, "x"]]),
    "an id that is a flag": forge([False, ORDER, [True, NOW, True]]),
    "an id that is a float": forge([False, ORDER, [True, NOW, 1.5]]),
    "an id that is no number": forge(f"[false, {json.dumps(ORDER)}, [true, {json.dumps(NOW)}, NaN]]"),
    "an id that is a list": forge([False, ORDER, [True, NOW, [1]]]),
    "an id beyond all ids": forge([False, ORDER, [True, NOW, 2**63]]),
    "an id far beyond all ids": forge([False, ORDER, [True, NOW, -(2**200)]]),
}


@pytest.mark.parametrize("cursor", BAD_CURSORS.values(), ids=BAD_CURSORS.keys())
def test_a_cursor_that_is_none_of_ours_is_refused(cursor):
    make_rows([(False, 0)])
    with pytest.raises(ValidationError) as refused:
        page(f"cursor={quote(cursor, safe='%')}", tuple(ORDER))
    assert refused.value.get_codes() == {"cursor": ["invalid_cursor"]}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["at", "x"]), inner, max_size=2),
        max_leaves=6,
    ),
    backwards=st.booleans(),
)
def test_forged_values_are_a_page_or_a_refusal(db, values, backwards):
    try:
        page(f"cursor={forge([backwards, ORDER, values])}", tuple(ORDER))
    except ValidationError as refused:
        assert refused.get_codes() == {"cursor": ["invalid_cursor"]}


def test_the_cursor_of_another_list_in_the_same_order_names_a_place_and_no_row():
    rows = make_rows([(False, 0), (True, 1), (False, 2)])
    _, following, _ = page("page_size=1", ("id",))
    staff = get_user_model().objects.filter(is_staff=True)
    assert page(f"cursor={cursor_of(following)}", ("id",), staff)[0] == [rows[1].pk]


def test_an_empty_list_and_an_empty_cursor():
    assert page("") == ([], None, None)
    make_rows([(False, 0)])
    assert len(page("cursor=")[0]) == 1
