"""The rows of a reply: its start, what is saved while it grows, its end. Sync; called in the database pool."""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone
from rest_framework import status

from chatgpt_backend.lib import db
from chatgpt_backend.lib.errors import ClientError, missing
from chats import feed, tree
from chats.generation.context import Prompt, build_prompt
from chats.llm.catalogue import Target, UnknownModel, resolve
from chats.llm.tokens import count_tokens
from chats.models import Conversation, Message
from chats.rendering import message_dict, sibling_ids
from quotas import services as quotas
from quotas.limits import PlanInForce, Price
from quotas.models import Hold

# Another message may move the conversation's end between reading it and writing behind it. After so many times the
# next attempt locks first, so that the busiest conversation too lets everybody in.
OPTIMISTIC_ATTEMPTS = 3
ATTEMPTS = 12
# Replies of the dead that one round of the reaper ends.
ABANDONED_BATCH = 100


class EndMoved(Exception):
    """Somebody else wrote to the conversation since its end was read."""


@dataclass(frozen=True)
class Asked:
    """What a client wants said. `options` go to the model as they are (temperature, top_p, stop, seed, …)."""

    user_id: int
    conversation_id: int
    content: str
    role: str = Message.Role.USER
    parent_id: int | None = None
    model: str | None = None
    max_tokens: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    reply: bool = True
    origin: tuple[str, str | None] | None = None


@dataclass(frozen=True)
class Started:
    """A stored message and, unless none was asked for, its reply with all that running it needs."""

    message: Message
    events: list[feed.Event]
    siblings: dict[int, list[int]]
    reply: Message | None = None
    hold: Hold | None = None
    prompt: Prompt | None = None
    target: Target | None = None
    options: dict[str, Any] = field(default_factory=dict)
    tightest: quotas.Tightest | None = None


@dataclass(frozen=True)
class Ending:
    """How a reply ended, and what the provider said that it used, if it did."""

    status: str
    finish_reason: str = ""
    error_code: str = ""
    error_detail: str = ""
    usage: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Place:
    """Where a message goes: behind `parent`, in a conversation as it was when it was read."""

    conversation: Conversation
    parent: Message | None

    @property
    def depth(self) -> int:
        return self.parent.depth + 1 if self.parent else 0

    @property
    def at_end(self) -> bool:
        return (self.parent.pk if self.parent else None) == self.conversation.current_message_id


def start(asked: Asked, *, lease_owner: str, now: datetime | None = None) -> Started:
    """Store a message and its empty reply under a lease, the reply's worst case held; nothing, where that is refused.

    Raises a validation error for ids that are not the caller's, QuotaExceeded, ContextLengthExceeded. At most 10
    queries where nobody else writes to the conversation and its windows have begun.
    """
    now = now or timezone.now()
    plan = quotas.plan_in_force(asked.user_id, now=now) if asked.reply else None
    completion: int | None = None
    for attempt in range(ATTEMPTS):
        locked = attempt >= OPTIMISTIC_ATTEMPTS
        try:
            if locked:
                return db.in_transaction(_start_locked, asked, plan, completion, lease_owner, now)
            return _start_once(asked, plan, completion, lease_owner, now)
        except EndMoved:
            continue
        except _NeedsRoom as short:
            completion = quotas.affordable_completion(
                user_id=asked.user_id, plan=short.plan, prompt_tokens=short.prompt.tokens,
                wanted=short.prompt.completion_tokens, price=short.price, now=now,
            )  # fmt: skip
    raise ClientError(
        "conversation_busy", "The conversation is being written to by many requests at once. Try again.",
        status_code=status.HTTP_409_CONFLICT, retry_after=1,
    )  # fmt: skip


class _NeedsRoom(Exception):
    """The hold did not fit: the caller finds out what does, outside the transaction."""

    def __init__(self, plan: PlanInForce, prompt: Prompt, price: Price) -> None:
        self.plan, self.prompt, self.price = plan, prompt, price


def _start_locked(
    asked: Asked, plan: PlanInForce | None, completion: int | None, lease_owner: str, now: datetime
) -> Started:
    # Counters first, as everywhere; whoever else writes for this user then waits, so the end cannot move.
    quotas.lock_counters(asked.user_id)
    Conversation.objects.select_for_update().filter(id=asked.conversation_id, owner_id=asked.user_id).first()
    return _start_once(asked, plan, completion, lease_owner, now)


def _start_once(
    asked: Asked, plan: PlanInForce | None, completion: int | None, lease_owner: str, now: datetime
) -> Started:
    place = _find_place(asked)
    tokens = count_tokens(asked.content)
    if plan is None:
        return db.in_transaction(_write_message, asked, place, tokens, now)
    target = _target(asked, place.conversation, plan)
    prompt = build_prompt(
        conversation=place.conversation,
        branch=tree.branch_ending_at(place.parent) if place.parent else None,
        newest=asked.content, newest_tokens=tokens,
        target=target, max_tokens=asked.max_tokens or place.conversation.max_tokens,
    )  # fmt: skip
    if completion is not None:
        prompt = Prompt(prompt.messages, prompt.tokens, min(completion, prompt.completion_tokens))
    price = Price(target.input_price, target.output_price)
    options = dict(asked.options)
    if place.conversation.temperature is not None:
        options.setdefault("temperature", place.conversation.temperature)
    try:
        return db.in_transaction(
            _write_message_and_reply, asked, place, tokens, prompt, target, plan, price, options, lease_owner, now
        )
    except quotas.HoldRefused:
        raise _NeedsRoom(plan, prompt, price) from None


def _find_place(asked: Asked) -> _Place:
    conversation = (
        Conversation.objects.filter(owner_id=asked.user_id, id=asked.conversation_id)
        .select_related("current_message")
        .defer(
            *(f"current_message__{name}" for name in ("content_sealed", "reasoning_sealed", "feedback_comment_sealed"))
        )
        .first()
    )
    if conversation is None:
        raise missing("conversation_id", "conversation")
    parent = conversation.current_message
    if asked.parent_id is not None and asked.parent_id != conversation.current_message_id:
        parent = Message.objects.filter(conversation_id=conversation.pk, id=asked.parent_id).first()
        if parent is None:
            raise missing("parent_id", "message in this conversation")
    return _Place(conversation, parent)


def _target(asked: Asked, conversation: Conversation, plan: PlanInForce) -> Target:
    name = asked.model or conversation.model or settings.DEFAULT_MODEL
    try:
        target = resolve(name)
    except UnknownModel:
        raise missing("model", "model") from None
    if not plan.allows_model(name):
        raise ClientError(
            "model_not_allowed", f"The plan {plan.name} does not include the model {name}.",
            status_code=status.HTTP_403_FORBIDDEN,
        )  # fmt: skip
    return target


def _write_message(asked: Asked, place: _Place, tokens: int, now: datetime) -> Started:
    message = _create_message(asked, place, tokens, now)
    _move_end(place, message, 1, now)
    number = feed.append(
        asked.user_id, "message.created", now=now, conversation_id=asked.conversation_id, message_id=message.pk
    )
    return _started(asked, place, message, None, number)


def _write_message_and_reply(
    asked: Asked,
    place: _Place,
    tokens: int,
    prompt: Prompt,
    target: Target,
    plan: PlanInForce,
    price: Price,
    options: dict[str, Any],
    lease_owner: str,
    now: datetime,
) -> Started:
    hold, tightest = quotas.hold(
        user_id=asked.user_id, plan=plan, prompt_tokens=prompt.tokens, completion_tokens=prompt.completion_tokens,
        price=price, now=now,
    )  # fmt: skip
    message = _create_message(asked, place, tokens, now)
    reply = Message.objects.create(
        owner_id=asked.user_id,
        conversation_id=asked.conversation_id,
        parent=message,
        depth=message.depth + 1,
        role=Message.Role.ASSISTANT,
        status=Message.Status.STREAMING,
        model=target.model,
        provider=target.provider,
        prompt_tokens=prompt.tokens,
        hold_id=hold.pk,
        lease_owner=lease_owner,
        lease_expires_at=Now() + timedelta(seconds=settings.LEASE_SECONDS),
        created_at=now,
    )
    _move_end(place, reply, 2, now)
    number = feed.append(
        asked.user_id, "message.created", now=now, conversation_id=asked.conversation_id, message_id=message.pk,
        reply_id=reply.pk,
    )  # fmt: skip
    started = _started(asked, place, message, reply, number)
    return replace(started, hold=hold, prompt=prompt, target=target, options=options, tightest=tightest)


def _create_message(asked: Asked, place: _Place, tokens: int, now: datetime) -> Message:
    if not place.at_end:
        tree.activate_branch(place.parent, asked.conversation_id)
    return Message.objects.create(
        owner_id=asked.user_id, conversation_id=asked.conversation_id, parent=place.parent, depth=place.depth,
        role=asked.role, content_sealed=Message.content.seal(asked.content, owner_id=asked.user_id), tokens=tokens,
        created_at=now, completed_at=now,
    )  # fmt: skip


def _move_end(place: _Place, end: Message, added: int, now: datetime) -> None:
    """Make `end` the conversation's, if its end is still the one that was read; else raise EndMoved."""
    moved = Conversation.objects.filter(
        Q(current_message_id=place.conversation.current_message_id)
        if place.conversation.current_message_id
        else Q(current_message=None),
        id=place.conversation.pk,
    ).update(
        current_message_id=end.pk, message_count=F("message_count") + added, version=F("version") + 1, updated_at=now
    )
    if not moved:
        raise EndMoved


def _started(asked: Asked, place: _Place, message: Message, reply: Message | None, number: int) -> Started:
    # At the conversation's end there is nothing beside them; elsewhere the children of the parent are asked for.
    siblings = {message.pk: [message.pk]} if place.at_end else sibling_ids([message])
    data = None
    if feed.has_listeners(asked.user_id):
        data = {
            "conversation_id": asked.conversation_id,
            "message": message_dict(message, siblings[message.pk]),
            "reply": message_dict(reply) if reply else None,
        }
    event = feed.Event(
        asked.user_id, "message.created", number, asked.conversation_id, message.pk, reply.pk if reply else None,
        data=data, origin=asked.origin,
    )  # fmt: skip
    return Started(message, [event], siblings, reply)


def save_progress(lease_owner: str, texts: dict[int, tuple[int, bytes, bytes]], held: dict[int, uuid.UUID]) -> set[int]:
    """Renew the leases and holds of `held` and save the texts so far; return the ids that are still the owner's.

    One transaction, four statements and one more for each 100 texts. `texts`: message id → (owner's id, text,
    reasoning), UTF-8.
    """
    rows = []
    for message_id, (owner_id, text, reasoning) in sorted(texts.items()):
        row = Message(id=message_id, owner_id=owner_id)
        row.content_sealed = Message.content.seal(text, owner_id=owner_id)
        row.reasoning_sealed = Message.reasoning.seal(reasoning, owner_id=owner_id)
        rows.append(row)
    still_mine = db.in_transaction(_save_progress, lease_owner, rows, held)
    db.let_go_of_large(max((len(row.content_sealed) for row in rows), default=0))
    return still_mine


def _save_progress(lease_owner: str, rows: list[Message], held: dict[int, uuid.UUID]) -> set[int]:
    mine = Message.objects.streaming().filter(id__in=list(held), lease_owner=lease_owner)
    quotas.renew_holds(held.values())
    mine.update(lease_expires_at=Now() + timedelta(seconds=settings.LEASE_SECONDS))
    if rows:
        mine.bulk_update(rows, ["content_sealed", "reasoning_sealed"], batch_size=100)
    return set(mine.values_list("id", flat=True))


def finish(
    reply: Message,
    ending: Ending,
    *,
    text: bytes | bytearray | None,
    reasoning: bytes | bytearray | None,
    hold: Hold | None = None,
) -> feed.Event | None:
    """End a reply and close its hold, in one transaction; return None, having written nothing, if somebody else did.

    `text` and `reasoning` in UTF-8; None: what the row has stands. `reply` is brought up to date in place. Seven
    statements.
    """
    if hold is None and reply.hold_id:
        hold = Hold.objects.filter(id=reply.hold_id).first()
    if text is not None:
        reply.content_sealed = Message.content.seal(text, owner_id=reply.owner_id)
        reply.reasoning_sealed = Message.reasoning.seal(reasoning or b"", owner_id=reply.owner_id)
    # What the provider counted serves as the text's size; only a reply that also reasoned must be counted again.
    reply.tokens = ending.usage[1] if ending.usage and not reasoning else count_tokens(reply.content)
    usage = _usage(reply, ending)
    event = db.in_transaction(_finish, reply, ending, usage, hold, timezone.now())
    db.let_go_of_large(len(reply.content_sealed))
    return event


def _usage(reply: Message, ending: Ending) -> quotas.Usage | None:
    if ending.usage is not None:
        return quotas.Usage(*ending.usage, source="provider")
    written = reply.tokens + (count_tokens(reply.reasoning) if reply.reasoning else 0)
    if ending.status == Message.Status.FAILED and not written:
        return None
    return quotas.Usage(reply.prompt_tokens or 0, written, source="estimated")


def _finish(
    reply: Message, ending: Ending, usage: quotas.Usage | None, hold: Hold | None, now: datetime
) -> feed.Event | None:
    if hold is not None and usage is not None:
        cost = quotas.settle(hold, usage=usage, model=reply.model, provider=reply.provider, now=now)
        if cost is None:
            return None
        reply.prompt_tokens, reply.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        reply.cost, reply.usage_source = cost, usage.source
    elif hold is not None and not quotas.release(hold):
        return None
    if usage is None:
        reply.prompt_tokens = None
    reply.status, reply.finish_reason = ending.status, ending.finish_reason[:30]
    reply.error_code, reply.error_detail = ending.error_code, ending.error_detail[:500]
    reply.completed_at, reply.lease_owner, reply.lease_expires_at = now, "", None
    Conversation.objects.filter(id=reply.conversation_id).update(version=F("version") + 1, updated_at=now)
    written = (
        Message.objects.streaming().filter(id=reply.pk).update(**{name: getattr(reply, name) for name in FINISHED})
    )
    if not written:
        return None
    number = feed.append(
        reply.owner_id, f"message.{reply.status}", now=now, conversation_id=reply.conversation_id, message_id=reply.pk
    )
    return feed.Event(reply.owner_id, f"message.{reply.status}", number, reply.conversation_id, reply.pk)


FINISHED = (
    "content_sealed", "reasoning_sealed", "tokens", "status", "finish_reason", "prompt_tokens", "completion_tokens",
    "cost", "usage_source", "error_code", "error_detail", "completed_at", "lease_owner", "lease_expires_at",
)  # fmt: skip


def abandoned(*, besides: Iterable[int]) -> list[Message]:
    """Return replies whose lease has run out: their process is dead, or was cut off for too long."""
    return list(
        Message.objects.streaming()
        .filter(lease_expires_at__lt=Now())
        .exclude(id__in=list(besides))
        .order_by("id")[:ABANDONED_BATCH]
    )


def release_orphaned_holds() -> int:
    """Release the holds of the dead that no stored reply stands on; return how many."""
    standing = Message.objects.streaming().filter(hold_id__isnull=False)
    return quotas.release_orphans(besides=standing.values("hold_id"))


INTERRUPTED = Ending(Message.Status.INTERRUPTED)
