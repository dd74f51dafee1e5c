"""The fake upstream is itself relied on: by the official client, by processes, and for its speed."""

import asyncio
import subprocess
import sys
import time

import openai
import pytest

from tests.upstream import GREETING, Behaviour


def test_directives():
    assert Behaviour.of("Hello! What a day!") is None
    assert Behaviour.of("!500x2 !slow=0.5 !reply=你好 !cut=3") == Behaviour(
        fault="500x2", slow=0.5, reply="你好 !cut=3"
    )
    assert Behaviour.of('!never !stall !usage={"a":1}') == Behaviour(never=True, stall=1, usage={"a": 1})


async def test_the_official_client_reads_it(upstream):
    async with openai.AsyncOpenAI(api_key="x", base_url=upstream.url, max_retries=0) as official:
        whole = await official.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        stream = await official.chat.completions.create(
            model="gpt-4o !reply=by its model's name", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        with pytest.raises(openai.RateLimitError):
            await official.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "!429"}])

    assert whole.choices[0].message.content == GREETING
    assert text == "by its model's name"
    assert [received.finished_at is not None for received in upstream.requests] == [True] * 3


@pytest.mark.parametrize("directive", ["!never", "!silence", "!stall=1", "!bytes=200000000"])
async def test_notices_a_client_that_goes_away(upstream, directive):
    body = b'{"stream":true,"messages":[{"role":"user","content":"%s"}]}' % directive.encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    await upstream.until(lambda: upstream.open_streams == 1)

    writer.close()
    gone = time.monotonic()
    await upstream.until(lambda: upstream.open_streams == 0)

    assert upstream.closed_at[0] - gone < 0.1
    del reader


def test_runs_as_a_process():
    command = [sys.executable, "-m", "tests.upstream", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            with openai.OpenAI(api_key="x", base_url=url) as official:
                assert [model.id for model in official.models.list()] == ["gpt-3.5-turbo", "gpt-4o", "gpt-4o-mini"]
        finally:
            process.terminate()
