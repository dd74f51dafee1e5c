"""The tree of a conversation's messages: the way from its root to a message, and which branch is the active one."""

from django.db.models import Q

from chats.models import Message, MessageQuerySet


def branch_ending_at(message: Message) -> MessageQuerySet:
    """Return the messages from the root to `message`.

    One range of an index where the message is on the active branch, else one more query for the way up to it.
    """
    messages = Message.objects.filter(conversation_id=message.conversation_id)
    if message.on_active_branch:
        return messages.filter(on_active_branch=True, depth__lte=message.depth)
    aside = dict(messages.filter(on_active_branch=False, depth__lte=message.depth).values_list("id", "parent_id"))
    path, above = [], message.pk
    while above in aside:
        path.append(above)
        above = aside[above]
    active = Q(on_active_branch=True, depth__lte=message.depth - len(path))
    return messages.filter(Q(id__in=path) | active)


def activate_branch(parent: Message | None, conversation_id: int) -> None:
    """Make the way to `parent` the active branch and nothing below it. Needs a transaction and the conversation's lock.

    What is appended below `parent` in the same transaction is then the active branch's new end.
    """
    messages = Message.objects.filter(conversation_id=conversation_id)
    if parent is None:
        messages.filter(on_active_branch=True).update(on_active_branch=False)
        return
    way = set(branch_ending_at(parent).values_list("id", flat=True)) if not parent.on_active_branch else None
    if way is None:
        messages.filter(on_active_branch=True, depth__gt=parent.depth).update(on_active_branch=False)
        return
    messages.filter(on_active_branch=True).exclude(id__in=way).update(on_active_branch=False)
    messages.filter(id__in=way, on_active_branch=False).update(on_active_branch=True)
