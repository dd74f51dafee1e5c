import pytest

from chats.llm.tokens import SLICE_CHARACTERS, _tokenizer, count_tokens


@pytest.mark.parametrize(
    ("text", "count"), [("", 0), ("hello world", 2), ("你好，世界", 3), ("tiktoken is great!", 6), ("\ud800", 1)]
)
def test_counts(text, count):
    assert count_tokens(text) == count


@pytest.mark.parametrize(
    "text", ["The quick brown fox. ", "你好，世界。今天天气很好！", "x = {'a': [1, 2, 3]}\n    ", "🎉👩‍👩‍👧 "]
)
def test_slices_change_the_count_by_less_than_a_thousandth(text):
    long = text * (10 * SLICE_CHARACTERS // len(text))

    exact = _tokenizer().count(long)

    assert exact <= count_tokens(long) <= exact * 1.001
