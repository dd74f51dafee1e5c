"""Reading frames: whatever comes is a frame or a BadFrame."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.exceptions import ValidationError

from chats.api.messages import MessageInput
from realtime.protocol import (
    TYPES,
    Authenticate,
    BadFrame,
    ChatMessage,
    Ping,
    Stop,
    Subscribe,
    Unsubscribe,
    read_frame,
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**4200), max_value=10**4200)
    | st.floats()
    | st.text()
    | st.sampled_from(["", "0-0", "\ud800", "\x00", "1" * 5000, 2**63, -(2**63) - 1, 10**30, 1e308])
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
names = st.sampled_from(["id", "message_id", "cursor", "token", "ts", *ChatMessage.__struct_fields__]) | st.text()
frames = st.builds(
    lambda kind, rest: {"type": kind, **rest}, st.sampled_from(sorted(map(str, TYPES))) | values,
    st.dictionaries(names, values),
)  # fmt: skip


def dumped(value):
    """JSON as Python writes it, NaN and half surrogate pairs included."""
    return json.dumps(value)


def read(text):
    try:
        return read_frame(text)
    except BadFrame as error:
        error.detail.encode()
        assert error.request_id is None or len(error.request_id) <= 255
        return error


@given(st.text(st.characters()) | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_text_is_read_or_refused(text):
    read(text)


@given(values | frames)
def test_any_json_is_read_or_refused(value):
    read(dumped(value))


@given(values | frames, st.data())
def test_json_that_breaks_off_or_is_spoiled_is_read_or_refused(value, data):
    text = dumped(value)
    at = data.draw(st.integers(0, len(text)))
    read(text[:at])
    read(text[:at] + data.draw(st.text(max_size=3)) + text[at:])


@given(st.dictionaries(st.sampled_from(ChatMessage.__struct_fields__), values))
def test_any_field_of_a_message_is_taken_or_refused_as_in_rest(fields):
    frame = read(dumped({**fields, "type": "chat_message", "id": "1"}))
    if isinstance(frame, ChatMessage):
        try:
            MessageInput(data=frame.fields()).is_valid(raise_exception=True)
        except ValidationError as error:
            assert error.detail


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{"type":"ping"}', Ping()),
        ('{"type":"ping","ts":1.5,"id":"a"}', Ping(id="a", ts=1.5)),
        ('{"type":"ping","ts":"now","more":[1]}', Ping(ts="now")),
        ('{"type":"stop","message_id":7}', Stop(message_id=7)),
        (f'{{"type":"stop","message_id":{10**30}}}', Stop(message_id=10**30)),
        ('{"type":"subscribe","message_id":7,"cursor":"3-0"}', Subscribe(message_id=7, cursor="3-0")),
        ('{"type":"subscribe","message_id":7,"cursor":null,"id":null}', Subscribe(message_id=7)),
        ('{"type":"unsubscribe","message_id":7}', Unsubscribe(message_id=7)),
        ('{"type":"authenticate","token":"t"}', Authenticate(token="t")),
        ('{"message_id":1,"type":"stop"}', Stop(message_id=1)),
    ],
)
def test_frames(text, frame):
    assert read_frame(text) == frame


def test_a_message_has_the_fields_that_were_given():
    frame = read_frame('{"type":"chat_message","conversation_id":"1","content":"你好","model":null,"id":"x"}')
    assert (frame.id, frame.fields()) == ("x", {"conversation_id": "1", "content": "你好", "model": None})


@pytest.mark.parametrize(
    ("text", "code", "request_id"),
    [
        ("", "invalid_json", None),
        ("{", "invalid_json", None),
        ('{"type":"ping"} x', "invalid_json", None),
        ('{"type":"ping","id":"\\ud800"}', "invalid_json", None),
        ('{"type":"ping","ts":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json", None),
        # The first wrong type comes before what is no JSON, nested too deeply, or out of every range.
        ('{"type":5, x', "invalid_json", None),
        ('{"type":5,"a":' + "[" * 100_000 + "]" * 100_000 + "}", "invalid_json", None),
        ('{"type":"ping","ts":1e999}', "invalid_json", None),
        ('{"type":"ping","ts":%s}' % ("9" * 5000), "invalid_json", None),
        ("[]", "invalid_frame", None),
        ("null", "invalid_frame", None),
        ("{}", "unknown_type", None),
        ('{"type":"nonsense","id":"7"}', "unknown_type", "7"),
        ('{"type":["ping"],"id":"7"}', "unknown_type", "7"),
        ('{"type":"stop","id":"7"}', "invalid_frame", "7"),
        ('{"type":"stop","message_id":"1","id":"7"}', "invalid_frame", "7"),
        ('{"type":"stop","message_id":true}', "invalid_frame", None),
        ('{"type":"stop","message_id":1.5}', "invalid_frame", None),
        ('{"type":"subscribe","message_id":1,"cursor":5,"id":"7"}', "invalid_frame", "7"),
        ('{"type":"authenticate","token":null}', "invalid_frame", None),
        ('{"type":"ping","id":7}', "invalid_frame", None),
        ('{"type":"ping","ts":[]}', "invalid_frame", None),
        ('{"type":"ping","id":"%s"}' % ("x" * 256), "invalid_frame", None),
        ('{"type":"ping","ts":"%s"}' % ("x" * 256), "invalid_frame", None),
    ],
)
def test_what_is_no_frame_is_told(text, code, request_id):
    with pytest.raises(BadFrame) as caught:
        read_frame(text)
    assert (caught.value.code, caught.value.request_id) == (code, request_id)
