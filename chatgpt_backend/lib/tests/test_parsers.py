"""JSON bodies: what is refused before it costs anything."""

import time
from io import BytesIO

import pytest
from rest_framework.exceptions import ParseError, ValidationError

from chatgpt_backend.lib.parsers import MOST_VALUES, BoundedJSONParser

MEGABYTES = 1024 * 1024


def parse(body: bytes):
    return BoundedJSONParser().parse(BytesIO(body))


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": [1, 2.5, null, "x"]}', {"a": [1, 2.5, None, "x"]}),
        (rb'"\ud83c\udf89"', "🎉"),
        ('"你好 🎉"'.encode(), "你好 🎉"),
        (rb'"\\ud800"', "\\ud800"),  # a backslash, not an escape
        (b'"' + b"[,{" * MOST_VALUES + b'"', "[,{" * MOST_VALUES),
        (b"[" + b"1," * (MOST_VALUES - 2) + b"1]", [1] * (MOST_VALUES - 1)),
    ],
)
def test_what_is_json_is_read(body, value):
    assert parse(body) == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"NaN",
        b"[-Infinity]",
        b"\xff",
        b'"\xed\xa0\x80"',
        "[]".encode("utf-16"),
        b"[" * 5000 + b"]" * 5000,
        b"1" * 5000,
        b"[" + b"1," * MOST_VALUES + b"1]",
        b'["",' + b'"",' * MOST_VALUES + b'""]',
    ],
)
def test_what_is_none_or_too_much_is_refused(body):
    with pytest.raises(ParseError):
        parse(body)


@pytest.mark.parametrize(
    ("body", "detail_at"),
    [
        (rb'"\ud800"', ["non_field_errors"]),
        (rb'{"a": "\ud83c\u0041"}', ["a"]),
        (rb'{"a": {"b": {"c": ["x", "\uDFFF"]}}}', ["a", "b"]),
        (rb'{"a": [{"\uDFFF": 1}]}', ["a", "0"]),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_where_it_is(body, detail_at):
    with pytest.raises(ValidationError) as refused:
        parse(body)
    detail = refused.value.detail
    for name in detail_at:
        detail = detail[name]
    assert [one.code for one in detail] == ["surrogate_characters_not_allowed"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * (5 * MEGABYTES) + b"1]",
        b"[" + b'"",' * (5 * MEGABYTES) + b"1]",
        b"[" * (16 * MEGABYTES),
        b'["' + rb"\"" * (8 * MEGABYTES),
        b'["' + rb",\"" * (5 * MEGABYTES),
        b'["' + b"\\" * (16 * MEGABYTES - 1),
        b"[," + b'"' * (16 * MEGABYTES - 1),
    ],
)
def test_what_is_made_to_take_long_takes_no_time(body):
    # given what took the interpreter up to six seconds to read, with every other client waiting
    began = time.process_time()
    with pytest.raises(ParseError):
        parse(body)
    assert time.process_time() - began < 1
