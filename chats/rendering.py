"""Rows as clients see them: one rendering for REST, events and sockets."""

from datetime import UTC, datetime
from typing import Any

from django.db.models import Q

from chats.models import Conversation, Message

NANO = 1_000_000_000


def time_string(moment: datetime | None) -> str | None:
    """Return ISO-8601 UTC ending in Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z") if moment else None


def conversation_dict(conversation: Conversation) -> dict[str, Any]:
    """Return a `conversation`."""
    return {
        "id": conversation.pk,
        "title": conversation.title,
        "model": conversation.model,
        "system_prompt": conversation.system_prompt,
        "temperature": conversation.temperature,
        "max_tokens": conversation.max_tokens,
        "tags": conversation.tags,
        "pinned": conversation.pinned,
        "archived": conversation.archived,
        "temporary": conversation.temporary,
        "message_count": conversation.message_count,
        "current_message_id": conversation.current_message_id,
        "forked_from": conversation.forked_from_id,
        "version": conversation.version,
        "created_at": time_string(conversation.created_at),
        "updated_at": time_string(conversation.updated_at),
    }


def message_dict(message: Message, sibling_ids: list[int] | None = None) -> dict[str, Any]:
    """Return a `message`. Without `sibling_ids` it is taken to be an only child."""
    return {
        "id": message.pk,
        "conversation_id": message.conversation_id,
        "parent_id": message.parent_id,
        "role": message.role,
        "content": message.content,
        "attachments": [],
        "status": message.status,
        "finish_reason": message.finish_reason or None,
        "model": message.model or None,
        "provider": message.provider or None,
        "reasoning": message.reasoning or None,
        "usage": _usage(message),
        "error": {"code": message.error_code, "detail": message.error_detail} if message.error_code else None,
        "feedback": _feedback(message),
        "sibling_ids": sibling_ids or [message.pk],
        "created_at": time_string(message.created_at),
        "completed_at": time_string(message.completed_at),
    }


def _usage(message: Message) -> dict[str, Any] | None:
    if not message.usage_source:
        return None
    prompt, completion = message.prompt_tokens or 0, message.completion_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "cost": (message.cost or 0) / NANO,
        "source": message.usage_source,
    }


def _feedback(message: Message) -> dict[str, Any] | None:
    if message.feedback_rating is None:
        return None
    return {"rating": message.feedback_rating, "comment": message.feedback_comment or None}


def sibling_ids(messages: list[Message]) -> dict[int, list[int]]:
    """Return, for each message, the ids that share its parent, oldest first; roots, their conversation. One query."""
    if not messages:
        return {}
    parents = {message.parent_id for message in messages if message.parent_id}
    rootless = {message.conversation_id for message in messages if not message.parent_id}
    # Roots by what the index of branches starts with: by `parent_id IS NULL` it would be everybody's roots.
    roots = Q(conversation_id__in=rootless, on_active_branch__in=(True, False), depth=0)
    known = Message.objects.filter(Q(parent_id__in=parents) | roots)
    grouped: dict[tuple[int, int | None], list[int]] = {}
    for message_id, conversation_id, parent_id in known.order_by("id").values_list(
        "id", "conversation_id", "parent_id"
    ):
        grouped.setdefault((conversation_id, parent_id), []).append(message_id)
    # One that was deleted since it was read is its own sibling.
    return {message.pk: grouped.get((message.conversation_id, message.parent_id), [message.pk]) for message in messages}
