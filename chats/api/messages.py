"""Messages: sending one, its reply, reading both."""

from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.utils import OpenApiParameter, OpenApiTypes, extend_schema, extend_schema_field
from rest_framework import serializers, status
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib.api import AsyncAPIView, caller_id
from chatgpt_backend.lib.errors import ClientError, invalid
from chatgpt_backend.lib.pages import KeysetPages
from chats.api.conversations import PAGE_PARAMETERS, MessagePage, refuse_unsupported, time_filters
from chats.api.fields import ContentField, ExchangeSchema, MessageSchema, ShortListField
from chats.api.sse import stream_response
from chats.generation.engine import engine
from chats.generation.live import START, parse_cursor
from chats.generation.reading import check_cursor, open_reply
from chats.generation.store import Asked, Started
from chats.llm.errors import STATUS_CODES
from chats.models import Message
from chats.rendering import message_dict, sibling_ids

LARGEST_ID = 2**63 - 1
OPTIONS = ("temperature", "top_p", "stop", "seed", "reasoning_effort")


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 4}]})
class StopField(serializers.Field[Any, Any, Any, Any]):
    """One text or up to four at which the model is to stop."""

    def to_internal_value(self, data: Any) -> list[str]:
        """Return a list."""
        texts = [data] if isinstance(data, str) else data
        if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(one, str) and one for one in texts):
            raise serializers.ValidationError("Give a text, or a list of up to four.", "invalid")
        return texts


class MessageInput(serializers.Serializer[Any]):
    """What is said, and how it is to be answered."""

    conversation_id = serializers.IntegerField(max_value=LARGEST_ID)
    content = ContentField()
    role = serializers.ChoiceField(choices=Message.Role.choices, default=Message.Role.USER)
    parent_id = serializers.IntegerField(allow_null=True, required=False, max_value=LARGEST_ID)
    model = serializers.CharField(max_length=200, allow_null=True, required=False)
    temperature = serializers.FloatField(min_value=0, max_value=2, allow_null=True, required=False)
    top_p = serializers.FloatField(min_value=0, max_value=1, allow_null=True, required=False)
    max_tokens = serializers.IntegerField(min_value=1, max_value=10_000_000, allow_null=True, required=False)
    stop = StopField(allow_null=True, required=False)
    seed = serializers.IntegerField(min_value=-(2**63), max_value=LARGEST_ID, allow_null=True, required=False)
    reasoning_effort = serializers.CharField(max_length=20, allow_null=True, required=False)
    attachments = ShortListField(child=serializers.IntegerField(), max_length=20, required=False)
    stream = serializers.BooleanField(default=False)
    reply = serializers.BooleanField(default=True)

    def validate_attachments(self, value: list[int]) -> list[int]:
        """Refuse files: there are none of the caller's."""
        if value:
            raise serializers.ValidationError("There is no such attachment.", "does_not_exist")
        return value


def asked_of(user_id: int, fields: dict[str, Any], *, origin: tuple[str, str | None] | None = None) -> Asked:
    """Return what validated `fields` of MessageInput ask for."""
    return Asked(
        user_id=user_id,
        conversation_id=fields["conversation_id"],
        content=fields["content"],
        role=fields["role"],
        parent_id=fields.get("parent_id"),
        model=fields.get("model"),
        max_tokens=fields.get("max_tokens"),
        options={name: fields[name] for name in OPTIONS if fields.get(name) is not None},
        reply=fields["reply"] and fields["role"] == Message.Role.USER,
        origin=origin,
    )


@extend_schema(tags=["messages"])
class MessagesView(AsyncAPIView):
    """The caller's messages."""

    @extend_schema(
        operation_id="messages_list",
        parameters=[
            *PAGE_PARAMETERS,
            OpenApiParameter("conversation_id", int),
            OpenApiParameter("role", str, enum=Message.Role.values),
            OpenApiParameter("status", str, enum=Message.Status.values),
            OpenApiParameter("created_after", str),
            OpenApiParameter("created_before", str),
        ],
        responses=MessagePage,
    )
    def get(self, request: Request) -> Response:
        """Return a page, newest first; those of a temporary conversation only where it is named."""
        refuse_unsupported(request.query_params, "search")
        messages = Message.objects.visible_to(request.user).filter(**_message_filters(request))
        pages = KeysetPages()
        rows = pages.paginate(messages, request, ordering=("-created_at", "-id"))
        siblings = sibling_ids(rows)
        return pages.response([message_dict(row, siblings[row.pk]) for row in rows])

    @extend_schema(
        operation_id="messages_create",
        request=MessageInput,
        responses={201: ExchangeSchema, (200, "text/event-stream"): OpenApiTypes.STR},
    )
    async def post(self, request: Request) -> HttpResponseBase:
        """Say something, and get the reply: whole when it is done, or with `stream` as events while it grows."""
        body = MessageInput(data=request.data)
        body.is_valid(raise_exception=True)
        started, live = await engine.send(asked_of(caller_id(request), body.validated_data))
        message = message_dict(started.message, started.siblings[started.message.pk])
        if started.reply is None or live is None:
            return Response({"message": message, "reply": None}, status=status.HTTP_201_CREATED)
        headers = _limit_headers(started)
        if body.validated_data["stream"]:
            first = {
                "type": "message.created",
                "conversation_id": live.conversation_id,
                "message": message,
                "reply": message_dict(started.reply),
            }
            return stream_response(live, START, first=first, headers=headers)
        reply = await live.wait_ended()
        if reply.status == Message.Status.FAILED:
            raise ClientError(reply.error_code, reply.error_detail, status_code=STATUS_CODES.get(reply.error_code, 500))
        return Response({"message": message, "reply": live.rendered()}, status=201, headers=headers)


@extend_schema(tags=["messages"])
class MessageView(AsyncAPIView):
    """One message."""

    @extend_schema(operation_id="messages_retrieve", responses=MessageSchema)
    def get(self, request: Request, message_id: int) -> Response:
        """Return it as it stands."""
        message = Message.objects.visible_to(request.user).filter(id=message_id).first()
        if message is None:
            raise NotFound
        return Response(message_dict(message, sibling_ids([message])[message.pk]))


@extend_schema(tags=["messages"])
class MessageStopView(AsyncAPIView):
    """Stopping a reply."""

    @extend_schema(operation_id="messages_stop", request=None, responses=MessageSchema)
    async def post(self, request: Request, message_id: int) -> Response:
        """Stop it and return it as it then stands; a finished one is returned as it is."""
        return Response(await engine.stop(user_id=caller_id(request), message_id=message_id))


@extend_schema(tags=["messages"])
class MessageStreamView(AsyncAPIView):
    """Attaching to a reply."""

    @extend_schema(
        operation_id="messages_stream",
        parameters=[
            OpenApiParameter("cursor", str, description="a place that an event named"),
            OpenApiParameter("Last-Event-ID", str, OpenApiParameter.HEADER, description="the same; it wins"),
        ],
        responses={(200, "text/event-stream"): OpenApiTypes.STR},
    )
    async def get(self, request: Request, message_id: int) -> HttpResponseBase:
        """Follow a reply, running or done, from a cursor to its end."""
        cursor = parse_cursor(request.headers.get("Last-Event-ID") or request.query_params.get("cursor"))
        reply = await open_reply(user_id=caller_id(request), message_id=message_id)
        check_cursor(reply, cursor)
        return stream_response(reply, cursor)


def _limit_headers(started: Started) -> dict[str, str]:
    if started.tightest is None:
        return {}
    limit, remaining, reset = started.tightest
    return {"RateLimit-Limit": str(limit), "RateLimit-Remaining": str(remaining), "RateLimit-Reset": str(reset)}


def _message_filters(request: Request) -> dict[str, Any]:
    given = request.query_params
    filters: dict[str, Any] = {}
    for name, choices in (("role", Message.Role.values), ("status", Message.Status.values)):
        if given.get(name):
            if given[name] not in choices:
                raise invalid(name, f"Give one of {', '.join(choices)}.", "invalid_choice")
            filters[name] = given[name]
    if "conversation_id" in given:
        value = given["conversation_id"]
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise invalid("conversation_id", "Give the id of a conversation.")
        filters["conversation_id"] = int(value)
    else:
        filters["conversation__temporary"] = False
    return filters | time_filters(given, "created")
