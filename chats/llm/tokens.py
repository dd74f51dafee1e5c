"""Counting tokens without asking anybody (o200k, the encoding of OpenAI's models since gpt-4o)."""

from functools import lru_cache
from typing import Any

# What the chat format costs around each message (its role and separators) and to open the reply, as OpenAI's
# cookbook counts it for current models.
TOKENS_PER_MESSAGE = 4
TOKENS_PER_REPLY = 3
# 16k characters take about 1 ms, so that whoever counts on the event loop can stop between two slices.
SLICE_CHARACTERS = 16_000


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    # Imported at the first count: it takes 0.7 s. The binding and not `get_encoding`, which also builds the whole
    # vocabulary as Python objects: one more second, and 80 MB.
    from bpe_openai._bindings import tokenizer_for_encoding

    return tokenizer_for_encoding("o200k_base")


def count_tokens(text: str) -> int:
    """Return how many tokens `text` is.

    Other vendors' models, and OpenAI's older ones, cut text otherwise: for them it is an estimate. A text of more than
    16,000 characters is counted in slices, and a word or a run of blanks that a cut divides may count for a few more
    tokens: under 0.1 % in all.
    """
    count = _tokenizer().count
    total = 0
    for start in range(0, len(text), SLICE_CHARACTERS):
        piece = text[start : start + SLICE_CHARACTERS]
        try:
            total += count(piece)
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can carry and UTF-8 cannot
            total += count(piece.encode("utf-8", "replace").decode())
    return total
