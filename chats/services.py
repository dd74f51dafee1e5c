"""Writes to conversations. Each is one transaction with its event in the feed."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import F
from django.utils import timezone
from rest_framework import status
from rest_framework.exceptions import NotFound

from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError, missing
from chats import feed
from chats.llm.catalogue import UnknownModel, resolve
from chats.models import Conversation, Message
from chats.rendering import conversation_dict


class VersionConflict(ClientError):
    """412: somebody else has changed the conversation since the caller read it."""

    def __init__(self) -> None:
        super().__init__(
            "version_conflict", "The conversation has changed since. Read it again.",
            status_code=status.HTTP_412_PRECONDITION_FAILED,
        )  # fmt: skip


def create_conversation(*, user_id: int, fields: dict[str, Any]) -> Conversation:
    """Create a conversation with `fields` as the API names them."""
    now = timezone.now()
    fields = {"model": settings.DEFAULT_MODEL, **{name: value for name, value in fields.items() if value is not None}}
    check_model(fields["model"])
    conversation, number = db.in_transaction(_create, user_id, fields, now)
    _publish(user_id, "conversation.created", number, conversation)
    return conversation


def change_conversation(
    *, user_id: int, conversation_id: int, fields: dict[str, Any], version: int | None
) -> Conversation:
    """Change `fields` of a conversation; with `version`, only if that is the current one.

    Raises NotFound, VersionConflict.
    """
    if "model" in fields:
        check_model(fields["model"])
    conversation, number = db.in_transaction(_change, user_id, conversation_id, fields, version, timezone.now())
    _publish(user_id, "conversation.updated", number, conversation)
    return conversation


def delete_conversation(*, user_id: int, conversation_id: int) -> bool:
    """Delete a conversation with its messages; return False, deleting nothing, while a reply in it is running.

    The caller stops such replies first (`streaming_ids`), so that each is settled. Raises NotFound.
    """
    number = db.in_transaction(_delete, user_id, conversation_id, timezone.now())
    if number is None:
        return False
    feed.publish(
        feed.Event(user_id, "conversation.deleted", number, conversation_id, data={"conversation_id": conversation_id})
    )
    return True


def streaming_ids(*, user_id: int, conversation_id: int) -> list[int]:
    """Return the ids of the replies that run in a conversation. Raises NotFound."""
    if not Conversation.objects.filter(owner_id=user_id, id=conversation_id).exists():
        raise NotFound
    return list(Message.objects.streaming().filter(conversation_id=conversation_id).values_list("id", flat=True))


def check_model(name: str) -> None:
    """Raise the 400 for a model that the catalogue does not have."""
    try:
        resolve(name)
    except UnknownModel:
        raise missing("model", "model") from None


def _create(user_id: int, fields: dict[str, Any], now: datetime) -> tuple[Conversation, int]:
    conversation = Conversation.objects.create(owner_id=user_id, created_at=now, updated_at=now, **fields)
    return conversation, feed.append(user_id, "conversation.created", now=now, conversation_id=conversation.pk)


def _change(
    user_id: int, conversation_id: int, fields: dict[str, Any], version: int | None, now: datetime
) -> tuple[Conversation, int]:
    mine = Conversation.objects.filter(owner_id=user_id, id=conversation_id)
    conversation = mine.select_for_update().first()
    if conversation is None:
        raise NotFound
    if version is not None and conversation.version != version:
        raise VersionConflict
    for name, value in fields.items():
        setattr(conversation, name, value)
    columns = [f"{name}_sealed" if name in ("title", "system_prompt") else name for name in fields]
    conversation.version = conversation.version + 1
    conversation.updated_at = now
    conversation.save(update_fields=[*columns, "version", "updated_at"])
    return conversation, feed.append(user_id, "conversation.updated", now=now, conversation_id=conversation_id)


def _delete(user_id: int, conversation_id: int, now: datetime) -> int | None:
    conversation = Conversation.objects.select_for_update().filter(owner_id=user_id, id=conversation_id).first()
    if conversation is None:
        raise NotFound
    if Message.objects.streaming().filter(conversation_id=conversation_id).exists():
        return None
    Conversation.objects.filter(id=conversation_id).update(current_message=None, version=F("version") + 1)
    conversation.delete()
    return feed.append(user_id, "conversation.deleted", now=now, conversation_id=conversation_id)


def _publish(user_id: int, type: str, number: int, conversation: Conversation) -> None:
    data = None
    if feed.has_listeners(user_id):
        data = {"conversation_id": conversation.pk, "conversation": conversation_dict(conversation)}
    feed.publish(feed.Event(user_id, type, number, conversation.pk, data=data))
