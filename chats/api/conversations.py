"""Conversations and the messages of one."""

from datetime import UTC, datetime
from typing import Any

from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers, status
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib import db
from chatgpt_backend.lib.api import AsyncAPIView, caller_id
from chatgpt_backend.lib.errors import invalid
from chatgpt_backend.lib.pages import KeysetPages
from chats import services
from chats.api.fields import MessageSchema, ShortListField
from chats.generation.engine import engine
from chats.models import Conversation, Message
from chats.rendering import conversation_dict, message_dict, sibling_ids

ORDERINGS = {
    None: ("-pinned", "-updated_at", "-id"),
    "-updated_at": ("-pinned", "-updated_at", "-id"),
    "updated_at": ("-pinned", "updated_at", "id"),
    "-created_at": ("-pinned", "-created_at", "-id"),
    "created_at": ("-pinned", "created_at", "id"),
}
PAGE_PARAMETERS = [
    OpenApiParameter("page_size", int, description="1 to 100, by default 20"),
    OpenApiParameter("cursor", str, description="from `next` or `previous`"),
]


class ConversationInput(serializers.Serializer[Any]):
    """What a client may set."""

    title = serializers.CharField(max_length=200, allow_blank=True, required=False)
    model = serializers.CharField(max_length=200, required=False)
    system_prompt = serializers.CharField(max_length=100_000, allow_blank=True, trim_whitespace=False, required=False)
    temperature = serializers.FloatField(min_value=0, max_value=2, allow_null=True, required=False)
    max_tokens = serializers.IntegerField(min_value=1, max_value=10_000_000, allow_null=True, required=False)
    tags = ShortListField(child=serializers.CharField(max_length=50), max_length=20, required=False)


class NewConversationInput(ConversationInput):
    """What a client may set once."""

    temporary = serializers.BooleanField(required=False)


class ConversationChanges(ConversationInput):
    """What a client may change."""

    pinned = serializers.BooleanField(required=False)
    archived = serializers.BooleanField(required=False)


class ConversationSchema(serializers.Serializer[Any]):
    """`conversation`, for the schema; `chats.rendering` makes it."""

    id = serializers.IntegerField()
    title = serializers.CharField()
    model = serializers.CharField()
    system_prompt = serializers.CharField()
    temperature = serializers.FloatField(allow_null=True)
    max_tokens = serializers.IntegerField(allow_null=True)
    tags = serializers.ListField(child=serializers.CharField())
    pinned = serializers.BooleanField()
    archived = serializers.BooleanField()
    temporary = serializers.BooleanField()
    message_count = serializers.IntegerField()
    current_message_id = serializers.IntegerField(allow_null=True)
    forked_from = serializers.IntegerField(allow_null=True)
    version = serializers.IntegerField()
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class ConversationPage(serializers.Serializer[Any]):
    """A page, for the schema."""

    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = ConversationSchema(many=True)


class MessagePage(serializers.Serializer[Any]):
    """A page, for the schema."""

    next = serializers.CharField(allow_null=True)
    previous = serializers.CharField(allow_null=True)
    results = MessageSchema(many=True)


@extend_schema(tags=["conversations"])
class ConversationsView(AsyncAPIView):
    """The caller's conversations."""

    @extend_schema(
        operation_id="conversations_list",
        parameters=[
            *PAGE_PARAMETERS,
            OpenApiParameter("archived", str, enum=["true", "false", "all"]),
            OpenApiParameter("pinned", bool),
            OpenApiParameter("model", str),
            *(OpenApiParameter(name, str, description="ISO-8601") for name in (
                "created_after", "created_before", "updated_after", "updated_before")),
            OpenApiParameter("ordering", str, enum=[name for name in ORDERINGS if name]),
        ],
        responses=ConversationPage,
    )  # fmt: skip
    def get(self, request: Request) -> Response:
        """Return a page, newest activity first, pinned ahead, archived left out."""
        ordering = request.query_params.get("ordering") or None
        if ordering not in ORDERINGS:
            raise invalid("ordering", f"Give one of {', '.join(name for name in ORDERINGS if name)}.", "invalid_choice")
        refuse_unsupported(request.query_params, "search", "tag")
        conversations = Conversation.objects.visible_to(request.user).filter(temporary=False)
        conversations = conversations.filter(**_conversation_filters(request))
        pages = KeysetPages()
        rows = pages.paginate(conversations, request, ordering=ORDERINGS[ordering])
        return pages.response([conversation_dict(row) for row in rows])

    @extend_schema(
        operation_id="conversations_create", request=NewConversationInput, responses={201: ConversationSchema}
    )
    def post(self, request: Request) -> Response:
        """Start a conversation."""
        body = NewConversationInput(data=request.data)
        body.is_valid(raise_exception=True)
        conversation = services.create_conversation(user_id=caller_id(request), fields=body.validated_data)
        return Response(conversation_dict(conversation), status=status.HTTP_201_CREATED)


@extend_schema(tags=["conversations"])
class ConversationView(AsyncAPIView):
    """One conversation."""

    @extend_schema(operation_id="conversations_retrieve", responses=ConversationSchema)
    def get(self, request: Request, conversation_id: int) -> Response:
        """Return it."""
        return Response(conversation_dict(_own_conversation(request, conversation_id)))

    @extend_schema(
        operation_id="conversations_change",
        request=ConversationChanges,
        responses=ConversationSchema,
        parameters=[OpenApiParameter("If-Match", str, OpenApiParameter.HEADER, description='`"<version>"`')],
    )
    def patch(self, request: Request, conversation_id: int) -> Response:
        """Change it; with `If-Match` only if the version is the current one (412)."""
        body = ConversationChanges(data=request.data, partial=True)
        body.is_valid(raise_exception=True)
        conversation = services.change_conversation(
            user_id=caller_id(request),
            conversation_id=conversation_id,
            fields=body.validated_data,
            version=_if_match(request),
        )
        return Response(conversation_dict(conversation))

    @extend_schema(operation_id="conversations_delete", responses={204: None})
    async def delete(self, request: Request, conversation_id: int) -> Response:
        """Delete it with its messages; a running reply is stopped and settled first."""
        user_id = caller_id(request)
        while True:
            running = await db.run(services.streaming_ids, user_id=user_id, conversation_id=conversation_id)
            await engine.stop_all(user_id=user_id, message_ids=running)
            if await db.run(services.delete_conversation, user_id=user_id, conversation_id=conversation_id):
                return Response(status=status.HTTP_204_NO_CONTENT)


@extend_schema(tags=["conversations"])
class ConversationMessagesView(AsyncAPIView):
    """The messages of one conversation."""

    @extend_schema(
        operation_id="conversations_messages",
        parameters=[*PAGE_PARAMETERS, OpenApiParameter("branch", str, enum=["active", "all"])],
        responses=MessagePage,
    )
    def get(self, request: Request, conversation_id: int) -> Response:
        """Return a page of the active branch, oldest first; of the whole tree with `branch=all`."""
        branch = request.query_params.get("branch", "active")
        if branch not in ("active", "all"):
            raise invalid("branch", "Give active or all.", "invalid_choice")
        conversation = _own_conversation(request, conversation_id)
        if branch == "active":
            messages = Message.objects.active_branch(conversation.pk)
        else:
            messages = Message.objects.filter(conversation_id=conversation.pk)
        pages = KeysetPages()
        rows = pages.paginate(messages, request, ordering=("depth", "id"))
        siblings = sibling_ids(rows)
        return pages.response([message_dict(row, siblings[row.pk]) for row in rows])


def _own_conversation(request: Request, conversation_id: int) -> Conversation:
    conversation = Conversation.objects.visible_to(request.user).filter(id=conversation_id).first()
    if conversation is None:
        raise NotFound
    return conversation


def _if_match(request: Request) -> int | None:
    given = request.headers.get("If-Match")
    if given is None or given.strip() == "*":
        return None
    version = given.strip().removeprefix("W/").strip('"')
    # What is no version of ours is none that is current.
    return int(version) if version.isascii() and version.isdigit() and len(version) < 10 else 0


def _conversation_filters(request: Request) -> dict[str, Any]:
    given = request.query_params
    archived = given.get("archived", "false")
    filters: dict[str, Any] = {} if archived == "all" else {"archived": _boolean("archived", archived)}
    if "pinned" in given:
        filters["pinned"] = _boolean("pinned", given["pinned"])
    if given.get("model"):
        if "\0" in given["model"]:  # PostgreSQL's drivers refuse it
            raise invalid("model", "Null characters are not allowed.", "null_characters_not_allowed")
        filters["model"] = given["model"]
    return filters | time_filters(given, "created", "updated")


def refuse_unsupported(given: Any, *names: str) -> None:
    """Raise a 400 for a filter that is not there yet: without it the list would be longer than the client asked for."""
    for name in names:
        if given.get(name):
            raise invalid(name, f"Filtering by {name} is not supported yet.", "not_supported")


def time_filters(given: Any, *stems: str) -> dict[str, Any]:
    """Return the filters for `<stem>_after` (inclusive) and `<stem>_before` (exclusive) of a query."""
    filters = {}
    for stem in stems:
        for suffix, comparison in (("after", "gte"), ("before", "lt")):
            name = f"{stem}_{suffix}"
            if given.get(name):
                filters[f"{stem}_at__{comparison}"] = _moment(name, given[name])
    return filters


def _moment(name: str, value: str) -> datetime:
    try:
        # A plus sign in a query arrives as a space.
        moment = parse_datetime(value.replace(" ", "+") if "T" in value else value)
        if moment is None or moment.tzinfo is None:
            raise ValueError("no time with a zone")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # no such day; a zone that leads out of all years
        raise invalid(name, "Give a time in ISO-8601 with its zone, like 2026-01-31T09:30:00Z.") from error


def _boolean(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise invalid(name, "Give true or false.", "invalid_choice")
    return value.lower() in ("true", "1")
