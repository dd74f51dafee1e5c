"""The embedded model, through the official client."""

import re
import time
from contextlib import aclosing

import openai
import pytest

from chats.llm import eliza
from chats.llm.client import stream_chat
from chats.llm.offline import OfflineTransport, split
from chats.llm.tests.targets import OFFLINE, ask, collect
from chats.llm.tokens import count_tokens


@pytest.fixture(autouse=True)
def fast(settings):
    settings.OFFLINE_PIECE_SECONDS = 0.001


async def test_introduces_itself_in_chinese():
    reply = await collect(ask("你好，请介绍一下自己", target=OFFLINE))

    assert reply.text == eliza.INTRODUCTION_ZH
    assert "ELIZA" in reply.text
    assert "离线模型" in reply.text
    assert "OPENAI_API_KEY" in reply.text
    assert len(re.findall("[。？！]", reply.text)) >= 5
    assert reply.finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == count_tokens(reply.text)
    assert reply.usage.prompt_tokens == count_tokens("你好，请介绍一下自己") + 4 + 3


async def test_introduces_itself_in_english():
    reply = await collect(ask("Hi! Who are you?", target=OFFLINE))

    assert reply.text == eliza.INTRODUCTION_EN


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("你好！", [eliza.GREETING_ZH]),
        ("hello", [eliza.GREETING_EN]),
        (
            "我想去看你的海，好吗？",
            ["你为什么想去看我的海？", "想去看我的海的时候，你是什么心情？", "是什么让你现在想去看我的海？"],
        ),
        ("谢谢", ["不客气。还有什么想聊的吗？", "不用谢，能听你说话我也很高兴。接着说吧。"]),
        ("再见", ["再见！和你聊天很愉快。", "再见，随时欢迎你回来。"]),
        (
            "I need 50% of my %1",
            [
                "Why do you need 50% of your %1?",
                "Would it really help you to get 50% of your %1?",
                "Are you sure you need 50% of your %1?",
            ],
        ),
        ("quit", ["Thank you for talking with me.", "Good-bye.", "Thank you, that will be $150.  Have a good day!"]),
        ("   ", [eliza.NO_WORDS]),
    ],
)  # fmt: skip
def test_answers(said, answers):
    assert {eliza.answer(said) for _ in range(40)} == set(answers)


@pytest.mark.parametrize(
    "said", ["İ am Kelvin", "%", "%%1%9", "(((", "我" * 9000, "a " * 9000, "👋", "\ud800", "我想", "?", "\0"]
)
def test_any_words_get_an_answer(said):
    for turn in range(20):
        assert eliza.answer(said, turn=turn)


def test_a_seed_makes_it_repeat_itself():
    assert len({eliza.answer("Tell me something", turn=3, seed=5) for _ in range(20)}) == 1
    assert len({eliza.answer("Tell me something", turn=turn, seed=5) for turn in range(40)}) > 3


async def test_streams_in_pieces_at_a_pace(settings):
    settings.OFFLINE_PIECE_SECONDS = 0.01
    await collect(ask("你好", target=OFFLINE))  # whatever is loaded once, is loaded
    began = time.perf_counter()

    pieces = [piece.text async for piece in ask("你好", target=OFFLINE) if piece.text]

    assert "".join(pieces) == eliza.GREETING_ZH
    assert len(pieces) > 15
    assert max(len(piece) for piece in pieces) <= len("OPENAI_API_KEY ")
    assert time.perf_counter() - began >= 0.01 * len(pieces)


@pytest.mark.parametrize("text", [eliza.INTRODUCTION_ZH, eliza.INTRODUCTION_EN, "a\n\n  b，c。\u3000d 👋🏽"])
def test_pieces_are_the_text(text):
    assert "".join(split(text)) == text


@pytest.mark.parametrize("limit", [1, 16, 50])
async def test_max_tokens(limit):
    reply = await collect(ask("你好，请介绍一下自己", target=OFFLINE, max_tokens=limit))

    assert eliza.INTRODUCTION_ZH.startswith(reply.text)
    assert reply.finish_reason == "length"
    assert reply.usage is not None
    assert limit - 8 < reply.usage.completion_tokens <= limit


async def test_stop_words():
    reply = await collect(ask("hello", target=OFFLINE, stop="embedded"))

    assert reply.text == "Hello! I am ELIZA, the "


async def test_reads_the_text_of_parts():
    content = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    picture = content[1:]

    words = await collect(stream_chat(OFFLINE, [{"role": "user", "content": content}], max_tokens=99, options={}))
    no_words = await collect(stream_chat(OFFLINE, [{"role": "user", "content": picture}], max_tokens=99, options={}))

    assert (words.text, no_words.text) == (eliza.GREETING_EN, eliza.NO_WORDS)


async def test_can_be_left_in_the_middle():
    async with aclosing(ask("你好，请介绍一下自己", target=OFFLINE)) as stream:
        async for piece in stream:
            if "ELIZA" in piece.text:
                break


async def test_the_official_client_likes_it():
    http_client = openai.DefaultAsyncHttpxClient(transport=OfflineTransport())
    async with openai.AsyncOpenAI(
        api_key="x", base_url="http://offline.invalid/v1", http_client=http_client
    ) as official:
        completion = await official.chat.completions.create(
            model="eliza", messages=[{"role": "user", "content": "hello"}]
        )
        stream = await official.chat.completions.create(
            model="eliza", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
        models = [model.id async for model in official.models.list()]
        with pytest.raises(openai.NotFoundError):
            await official.embeddings.create(model="eliza", input="x")
        with pytest.raises(openai.BadRequestError):
            await official.chat.completions.create(model="eliza", messages="hello")  # type: ignore[call-overload]

    assert completion.choices[0].message.content == eliza.GREETING_EN
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == eliza.GREETING_EN
    assert {(chunk.id, chunk.model) for chunk in chunks} == {(chunks[0].id, "eliza")}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert models == ["eliza"]
