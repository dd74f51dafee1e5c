"""The parser, fed the same bytes in every way that a network may cut them."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chats.llm.wire import ChatParser, EventSplitter, Piece, Usage


def event(delta: dict[str, Any], *, ascii_only: bool, newline: str, finish_reason: str | None = None) -> bytes:
    chunk = {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": None}
    return f"data: {json.dumps(chunk, ensure_ascii=ascii_only)}{newline}{newline}".encode()


def parse(stream: bytes, cuts: list[int]) -> tuple[Piece, ChatParser]:
    parser = ChatParser()
    pieces = []
    edges = [0, *sorted(cuts), len(stream)]
    for start, end in pairwise(edges):
        if start == end:
            continue
        pieces.append(parser.feed(stream[start:end]))
        if parser.done or parser.error:
            break
    else:
        pieces.append(parser.finish())
    found = [piece for piece in pieces if piece]
    whole = Piece(
        "".join(piece.text for piece in found),
        "".join(piece.reasoning for piece in found),
        next((piece.finish_reason for piece in found if piece.finish_reason), None),
        next((piece.usage for piece in found if piece.usage), None),
    )
    return whole, parser


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(
    parts=st.lists(st.tuples(texts, texts), max_size=8),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    ascii_only=st.booleans(),
    done=st.booleans(),
    data=st.data(),
)
def test_any_cut_gives_the_same_text(parts, newline, ascii_only, done, data):
    form = {"ascii_only": ascii_only, "newline": newline}
    stream = b"".join(
        event({"content": text, "reasoning_content": reasoning}, **form) + f": a comment{newline}".encode()
        for text, reasoning in parts
    )
    stream += event({}, finish_reason="stop", **form)
    stream += f'data:{{"choices":[],"usage":{{"prompt_tokens":3,"completion_tokens":4}}}}{newline}{newline}'.encode()
    if done:
        stream += f"data: [DONE]{newline}{newline}".encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=30))

    whole, parser = parse(stream, cuts)

    assert whole == Piece("".join(part[0] for part in parts), "".join(part[1] for part in parts), "stop", Usage(3, 4))
    assert parser.error is None
    assert parser.finished


@given(cut=st.integers(0, 400), data=st.data())
def test_a_stream_that_ends_early_is_an_error_that_keeps_the_start(cut, data):
    words = ["你好", "，", "world", " 🎉"]
    stream = b"".join(event({"content": word}, ascii_only=False, newline="\n") for word in words)[:cut]
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10))

    whole, parser = parse(stream, cuts)

    assert "".join(words).startswith(whole.text)
    assert parser.error is not None
    assert parser.error.code == "upstream_unavailable"


def test_every_byte_alone():
    stream = event({"content": "表情 👩‍👩‍👧 é"}, ascii_only=False, newline="\r\n") + b"data: [DONE]\r\n\r\n"

    whole, parser = parse(stream, list(range(len(stream))))

    assert whole.text == "表情 👩‍👩‍👧 é"
    assert parser.done


def test_lines_of_one_event_are_joined():
    splitter = EventSplitter()

    assert splitter.feed(b"event: x\ndata: {\ndata:1\nid: 7\ndata\n\ndata:  two\n\n") == [b"{\n1", b" two"]
    assert splitter.feed(b"\xef\xbb\xbfdata: marked\r") == []
    assert splitter.feed(b"\ndata: more\r\n\r") == [b"marked\nmore"]
    assert splitter.feed(b"\ndata: unfinished") == []
    assert splitter.finish() == [b"unfinished"]


@pytest.mark.parametrize(
    "garbage",
    [b"[1,2", b"\xff\xfe", b'{"choices": 7}', b'{"choices":[{"delta":{"content":5}}]}', b'{"usage":' + b"[" * 100_000],
)
def test_garbage_is_an_error(garbage):
    _, parser = parse(b"data: " + garbage + b"\n\n", [])

    assert parser.error is not None
    assert parser.error.code == "upstream_unavailable"


@pytest.mark.parametrize("answer", [b"{}", b"{", b'{"choices": []}', b"<html>Welcome</html>", b"", b"\n"])
def test_answers_without_a_reply(answer):
    whole, parser = parse(answer, [])

    assert whole == Piece()
    assert parser.error is not None
    assert parser.error.code == "upstream_unavailable"


def test_errors_have_many_shapes():
    for error, code in [
        ('{"message": "slow down", "type": "rate_limit_error"}', "upstream_rate_limited"),
        ('{"message": "no", "code": 400}', "upstream_rejected"),
        ('"the prompt is too long"', "context_length_exceeded"),
        ('"boom"', "upstream_unavailable"),
        ('{"message": {"odd": 1}, "code": null}', "upstream_unavailable"),
    ]:
        whole, parser = parse(b'data: {"error": ' + error.encode() + b"}\n\n", [])
        assert whole == Piece()
        assert parser.error is not None
        assert parser.error.code == code, error


def test_only_the_first_choice_is_read():
    stream = b'data: {"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}\n\n'

    assert parse(stream, [])[0].text == "a"


def test_azures_first_and_last_chunks():
    stream = (
        b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}\n\n'
        b'data: {"choices":[{"delta":null,"finish_reason":"stop","content_filter_results":{}}],"usage":null}\n\n'
    )

    assert parse(stream, [])[0] == Piece("", "", "stop")


def test_a_long_line_costs_no_square():
    splitter = EventSplitter()
    began = time.perf_counter()
    for _ in range(2000):
        assert splitter.feed(b"x" * 16_384) == []
    assert splitter.feed(b"\n\n") == []

    assert time.perf_counter() - began < 2  # 30 MB: 50 ms; the square would take 30 s


def test_an_event_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr("chats.llm.wire.MAX_EVENT_BYTES", 100_000)

    _, stream = parse(b"data: " + b"x" * 200_000, list(range(0, 200_000, 16_384)))
    _, whole = parse(b"{" + b" " * 200_000, list(range(0, 200_000, 16_384)))
    _, alive = parse(b": still here\n\n" * 20_000 + b"data: [DONE]\n\n", list(range(0, 200_000, 1000)))

    assert stream.error is not None
    assert whole.error is not None
    assert alive.error is None
    assert alive.done
