"""The caller's quota."""

from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib.api import AsyncAPIView, caller_id
from quotas.services import quota_report


class LimitSchema(serializers.Serializer[Any]):
    """One limit's state; costs in US dollars."""

    limit = serializers.FloatField(allow_null=True)
    used = serializers.FloatField()
    held = serializers.FloatField()
    remaining = serializers.FloatField(allow_null=True)
    resets_at = serializers.DateTimeField(allow_null=True)


class QuotaSchema(serializers.Serializer[Any]):
    """The answer, for the schema."""

    plan = serializers.CharField()
    is_vip = serializers.BooleanField()
    vip_until = serializers.DateTimeField(allow_null=True)
    limits = serializers.DictField(child=LimitSchema())


@extend_schema(tags=["quota"])
class QuotaView(AsyncAPIView):
    """What the caller may use and has used."""

    @extend_schema(operation_id="quota_retrieve", responses=QuotaSchema)
    def get(self, request: Request) -> Response:
        """Return the plan in force and the state of each limit."""
        return Response(quota_report(caller_id(request), now=timezone.now()))
