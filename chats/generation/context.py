"""What the model is told: the system prompt, as much of the branch as its window holds, the newest message."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from rest_framework import status

from chatgpt_backend.lib.errors import ClientError
from chats.llm.catalogue import Target
from chats.llm.tokens import TOKENS_PER_MESSAGE, count_tokens
from chats.models import Conversation, MessageQuerySet

# Messages read in one query; a history that is longer and still fits the window takes another.
BATCH = 200


class ContextLengthExceeded(ClientError):
    """400: the newest message alone does not fit the model's window."""

    def __init__(self, tokens: int, window: int) -> None:
        super().__init__(
            "context_length_exceeded",
            f"The message has {tokens} tokens with its system prompt; the model reads and writes at most {window}.",
            status_code=status.HTTP_400_BAD_REQUEST,
        )


@dataclass(frozen=True)
class Prompt:
    """Messages in OpenAI's form, their size in tokens, and the most that the reply may have beside them."""

    messages: list[dict[str, Any]]
    tokens: int
    completion_tokens: int


def build_prompt(
    *,
    conversation: Conversation,
    branch: MessageQuerySet | None,
    newest: str,
    newest_tokens: int,
    target: Target,
    max_tokens: int | None,
) -> Prompt:
    """Return the prompt for `newest`, said after `branch`: trimmed oldest first to the model's window.

    The system prompt and the newest message are always kept. Raises ContextLengthExceeded where they do not fit.
    One query for a history of up to 200 messages.
    """
    system = conversation.system_prompt
    tokens = newest_tokens + 2 * TOKENS_PER_MESSAGE
    if system:
        tokens += count_tokens(system) + TOKENS_PER_MESSAGE
    # By default a reply may have 4,096 tokens; nobody is refused for what nobody asked for.
    wanted = min(max_tokens or settings.DEFAULT_MAX_TOKENS, target.max_output_tokens)
    room = target.context_window - tokens
    if room < min(wanted, settings.MIN_COMPLETION_TOKENS):
        raise ContextLengthExceeded(tokens, target.context_window)
    completion = min(wanted, room)
    history: list[dict[str, Any]] = []
    for message in _newest_first(branch):
        size = message.tokens + TOKENS_PER_MESSAGE
        if tokens + size + completion > target.context_window:
            break
        content = message.content
        if content:  # a reply that failed before its first word has none
            history.append({"role": message.role, "content": content})
            tokens += size
    first = [{"role": "system", "content": system}] if system else []
    return Prompt([*first, *reversed(history), {"role": "user", "content": newest}], tokens, completion)


def _newest_first(branch: MessageQuerySet | None) -> Any:
    if branch is None:
        return
    below: int | None = None
    while True:
        batch = branch if below is None else branch.filter(depth__lt=below)
        rows = list(
            batch.order_by("-depth").only("id", "owner_id", "role", "content_sealed", "tokens", "depth", "parent_id")[
                :BATCH
            ]
        )
        yield from rows
        if len(rows) < BATCH:
            return
        below = rows[-1].depth
