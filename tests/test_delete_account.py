"""Deleting an account takes along what other apps keep for it."""

from typing import Any

from django.test import Client
from django.utils import timezone

from accounts import tokens
from chats.models import Conversation, FeedCounter, FeedEvent, Message


def test_conversations_go_with_their_owner_and_nobody_elses(make_user: Any) -> None:
    now = timezone.now()
    alice, bob = make_user("alice"), make_user("bob")
    for owner in (alice, bob):
        conversation = Conversation.objects.create(owner=owner, model="m", created_at=now, updated_at=now)
        question = Message.objects.create(owner=owner, conversation=conversation, depth=0, role="user", created_at=now)
        reply = Message.objects.create(
            owner=owner, conversation=conversation, parent=question, depth=1, role="assistant", created_at=now
        )
        Conversation.objects.filter(pk=conversation.pk).update(current_message=reply)
        FeedCounter.objects.update_or_create(user=owner, defaults={"number": 1})
        FeedEvent.objects.create(user=owner, number=1, type="message.completed", created_at=now)
    access = tokens.open_session(user=alice, ip=None, user_agent="", now=now).access

    response = Client().delete(
        "/api/v1/users/me",
        {"password": "alice-alice-1"},
        content_type="application/json",
        headers={"authorization": f"Bearer {access}"},
    )

    assert response.status_code == 204
    assert [row.owner_id for row in Conversation.objects.all()] == [bob.pk]
    assert [row.owner_id for row in Message.objects.all()] == [bob.pk, bob.pk]
    assert [row.user_id for row in FeedCounter.objects.all()] == [bob.pk]
    assert [row.user_id for row in FeedEvent.objects.all()] == [bob.pk]
