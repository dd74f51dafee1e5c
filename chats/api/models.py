"""The catalogue of models."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib.api import AsyncAPIView
from chats.llm.catalogue import list_models


class ModelSchema(serializers.Serializer[Any]):
    """A model, for the schema. Prices in US dollars per million tokens."""

    id = serializers.CharField()
    provider = serializers.CharField()
    context_window = serializers.IntegerField()
    max_output_tokens = serializers.IntegerField()
    vision = serializers.BooleanField()
    input_price = serializers.FloatField()
    output_price = serializers.FloatField()
    available = serializers.BooleanField()


@extend_schema(tags=["models"])
class ModelsView(AsyncAPIView):
    """The models that can be asked for."""

    @extend_schema(operation_id="models_list", responses=ModelSchema(many=True))
    def get(self, request: Request) -> Response:
        """Return all of them."""
        return Response(list_models())
