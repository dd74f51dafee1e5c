"""Fields and shapes that several resources share."""

from typing import Any

from django.conf import settings
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.validators import ProhibitSurrogateCharactersValidator


@extend_schema_field(
    {
        "oneOf": [
            {"type": "string"},
            {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"type": {"type": "string", "enum": ["text"]}, "text": {"type": "string"}},
                    "required": ["type", "text"],
                },
            },
        ]
    }
)
class ContentField(serializers.CharField):
    """What a message says: a string, or OpenAI's list of parts, of which the text is taken."""

    default_error_messages = {  # noqa: RUF012 - DRF's own way
        "parts": 'Give a string, or a list of parts like {{"type": "text", "text": "…"}}.',
        "surrogates": "Half of a surrogate pair is no character.",
        "part_type": "A part of type {type} cannot be taken here; text can.",
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(trim_whitespace=False, max_length=settings.MAX_CONTENT_CHARACTERS, **kwargs)
        # DRF's own looks at each character in Python: 60 ms for a million, on the event loop.
        self.validators = [one for one in self.validators if not isinstance(one, ProhibitSurrogateCharactersValidator)]

    def to_internal_value(self, data: Any) -> str:
        """Return the text."""
        if isinstance(data, str):
            return self._whole(data)
        if not isinstance(data, list) or not data:
            self.fail("parts")
        texts = []
        for part in data:
            if not isinstance(part, dict):
                self.fail("parts")
            if part.get("type") != "text":
                self.fail("part_type", type=str(part.get("type"))[:40])
            if not isinstance(part.get("text"), str):
                self.fail("parts")
            texts.append(part["text"])
        return self._whole("\n".join(texts))

    def _whole(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("surrogates")
        return text

    def run_validation(self, data: Any = serializers.empty) -> Any:
        """Refuse blank text in every form of it, and say so as `blank`."""
        value = super().run_validation(data)
        if isinstance(value, str) and not value.strip():
            self.fail("blank")
        return value


class ShortListField(serializers.ListField):
    """A list whose length is looked at before its items: a million of those take two seconds."""

    def __init__(self, *, max_length: int, **kwargs: Any) -> None:
        self.most = max_length
        super().__init__(max_length=max_length, **kwargs)

    def to_internal_value(self, data: Any) -> list[Any]:
        """Return the items."""
        if isinstance(data, list) and len(data) > self.most:
            message = f"Ensure this field has no more than {self.most} elements."
            raise serializers.ValidationError(message, "max_length")
        return super().to_internal_value(data)


class UsageSchema(serializers.Serializer[Any]):
    """`usage`, for the schema."""

    prompt_tokens = serializers.IntegerField()
    completion_tokens = serializers.IntegerField()
    total_tokens = serializers.IntegerField()
    cost = serializers.FloatField(help_text="US dollars")
    source = serializers.ChoiceField(choices=["provider", "estimated"])  # type: ignore[assignment]  # DRF's own attribute


class ReplyErrorSchema(serializers.Serializer[Any]):
    """`error`, for the schema."""

    code = serializers.CharField()
    detail = serializers.CharField()


class FeedbackSchema(serializers.Serializer[Any]):
    """`feedback`, for the schema."""

    rating = serializers.ChoiceField(choices=[1, -1])
    comment = serializers.CharField(allow_null=True)


class MessageSchema(serializers.Serializer[Any]):
    """`message`, for the schema; `chats.rendering` makes it."""

    id = serializers.IntegerField()
    conversation_id = serializers.IntegerField()
    parent_id = serializers.IntegerField(allow_null=True)
    role = serializers.ChoiceField(choices=["user", "assistant", "system"])
    content = serializers.CharField()
    attachments = serializers.ListField(child=serializers.DictField())
    status = serializers.ChoiceField(choices=["streaming", "completed", "stopped", "failed", "interrupted"])
    finish_reason = serializers.CharField(allow_null=True)
    model = serializers.CharField(allow_null=True)
    provider = serializers.CharField(allow_null=True)
    reasoning = serializers.CharField(allow_null=True)
    usage = UsageSchema(allow_null=True)
    error = ReplyErrorSchema(allow_null=True)
    feedback = FeedbackSchema(allow_null=True)
    sibling_ids = serializers.ListField(child=serializers.IntegerField())
    created_at = serializers.DateTimeField()
    completed_at = serializers.DateTimeField(allow_null=True)


class ExchangeSchema(serializers.Serializer[Any]):
    """A message and its reply, for the schema."""

    message = MessageSchema()
    reply = MessageSchema(allow_null=True)
