"""Conversations, their tree of messages, the catalogue of models, and the per-user feed of events."""

from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models

from chatgpt_backend.lib.crypto import sealed_text


class CatalogueModel(models.Model):
    """A language model that can be asked for. Prices in US dollars per million tokens."""

    id: Any
    name = models.CharField(max_length=200, unique=True)
    provider = models.CharField(max_length=50, default="openai")
    context_window = models.PositiveIntegerField(default=128_000)
    max_output_tokens = models.PositiveIntegerField(default=16_384)
    vision = models.BooleanField(default=False)
    input_price = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    output_price = models.DecimalField(max_digits=12, decimal_places=6, default=0)
    takes_temperature = models.BooleanField(default=True)
    wants_max_completion_tokens = models.BooleanField(default=False)
    available = models.BooleanField(default=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class ConversationQuerySet(models.QuerySet["Conversation"]):
    """Filters."""

    def visible_to(self, user: Any) -> Self:
        """Keep what `user` may see: the user's own."""
        return self.filter(owner=user)


class Conversation(models.Model):
    """A tree of messages, of which one branch is active: the one that `current_message` ends."""

    id: Any
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    title_sealed = models.BinaryField(default=b"", blank=True)
    system_prompt_sealed = models.BinaryField(default=b"", blank=True)
    model = models.CharField(max_length=200)
    temperature = models.FloatField(null=True, blank=True)
    max_tokens = models.PositiveIntegerField(null=True, blank=True)
    tags = models.JSONField(default=list, blank=True)
    pinned = models.BooleanField(default=False)
    archived = models.BooleanField(default=False)
    temporary = models.BooleanField(default=False)
    message_count = models.PositiveIntegerField(default=0)
    current_message = models.ForeignKey(
        "Message", on_delete=models.SET_NULL, null=True, blank=True, related_name="+", db_index=False
    )
    forked_from = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    title = sealed_text("title_sealed")
    system_prompt = sealed_text("system_prompt_sealed")

    objects = ConversationQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["owner", "temporary", "archived", "-pinned", "-updated_at", "-id"], name="conversation_list"
            ),
        ]

    def __str__(self) -> str:
        return f"conversation {self.pk}"


class MessageQuerySet(models.QuerySet["Message"]):
    """Filters."""

    def visible_to(self, user: Any) -> Self:
        """Keep what `user` may see: the user's own."""
        return self.filter(owner=user)

    def active_branch(self, conversation_id: int) -> Self:
        """Keep the active branch of a conversation, oldest first: one range of an index."""
        return self.filter(conversation_id=conversation_id, on_active_branch=True).order_by("depth", "id")

    def streaming(self) -> Self:
        """Keep replies that are not finished."""
        return self.filter(status=Message.Status.STREAMING)


class Message(models.Model):
    """One node of a conversation's tree.

    A reply is `streaming` under a lease (`lease_owner`, a process; `lease_expires_at`, by the database's clock) until
    the transaction that closes its hold gives it its end.
    """

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"
        SYSTEM = "system"

    class Status(models.TextChoices):
        STREAMING = "streaming"
        COMPLETED = "completed"
        STOPPED = "stopped"
        FAILED = "failed"
        INTERRUPTED = "interrupted"

    id: Any
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages", db_index=False)
    parent = models.ForeignKey("self", on_delete=models.CASCADE, null=True, blank=True, related_name="children")
    depth = models.PositiveIntegerField()
    on_active_branch = models.BooleanField(default=True)
    role = models.CharField(max_length=10, choices=Role.choices)
    content_sealed = models.BinaryField(default=b"", blank=True)
    reasoning_sealed = models.BinaryField(default=b"", blank=True)
    # Tokens of the content alone, counted once, so that a prompt is cut to size without counting the history again.
    tokens = models.PositiveIntegerField(default=0)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.COMPLETED)
    finish_reason = models.CharField(max_length=30, blank=True)
    model = models.CharField(max_length=200, blank=True)
    provider = models.CharField(max_length=50, blank=True)
    prompt_tokens = models.BigIntegerField(null=True, blank=True)
    completion_tokens = models.BigIntegerField(null=True, blank=True)
    cost = models.BigIntegerField(null=True, blank=True, help_text="nano-dollars")
    usage_source = models.CharField(max_length=10, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    error_detail = models.CharField(max_length=500, blank=True)
    feedback_rating = models.SmallIntegerField(null=True, blank=True)
    feedback_comment_sealed = models.BinaryField(default=b"", blank=True)
    hold_id = models.UUIDField(null=True, blank=True)
    lease_owner = models.CharField(max_length=64, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True, blank=True)

    content = sealed_text("content_sealed")
    reasoning = sealed_text("reasoning_sealed")
    feedback_comment = sealed_text("feedback_comment_sealed")

    objects = MessageQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["conversation", "on_active_branch", "depth"], name="message_branch"),
            models.Index(fields=["owner", "-created_at", "-id"], name="message_newest"),
            models.Index(fields=["status", "lease_expires_at"], name="message_lease"),
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.pk}"


class FeedCounter(models.Model):
    """The number of a user's last event. Bumped in the transaction that writes, so numbers have no gaps."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="+")
    number = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.user_id}: {self.number}"


class FeedEvent(models.Model):
    """One thing that happened to a user's data. Holds ids; what they name is looked up when the event is read."""

    id: Any
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    number = models.PositiveBigIntegerField()
    type = models.CharField(max_length=30)
    conversation_id = models.BigIntegerField(null=True)
    message_id = models.BigIntegerField(null=True)
    reply_id = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "number"], name="feed_number")]

    def __str__(self) -> str:
        return f"{self.user_id} #{self.number} {self.type}"
