"""Targets for tests that need no catalogue."""

from decimal import Decimal
from typing import Any

from chats.llm.catalogue import Target
from chats.llm.client import Piece, stream_chat


def make_target(**changes: Any) -> Target:
    fields: dict[str, Any] = {
        "requested": "gpt-4o",
        "model": "gpt-4o",
        "provider": "openai",
        "context_window": 128_000,
        "max_output_tokens": 16_384,
        "vision": True,
        "input_price": Decimal("2.5"),
        "output_price": Decimal(10),
        "takes_temperature": True,
        "wants_max_completion_tokens": False,
    }
    return Target(**{**fields, **changes})


OFFLINE = make_target(model="eliza", provider="offline", input_price=Decimal(0), output_price=Decimal(0))


def ask(content: str, *, target: Target | None = None, max_tokens: int = 4096, **options: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    return stream_chat(target or make_target(), messages, max_tokens=max_tokens, options=options)


async def collect(stream: Any) -> Piece:
    """Return the whole reply as one piece."""
    pieces = [piece async for piece in stream]
    return Piece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None),
        next((piece.usage for piece in reversed(pieces) if piece.usage), None),
    )
