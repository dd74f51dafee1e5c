"""JSON bodies, with a limit to their size and depth."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from django.conf import settings
from rest_framework import status
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import JSONParser


class RequestTooLarge(APIException):
    """413: the body is longer than its parser reads."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "request_too_large"


class BoundedJSONParser(JSONParser):
    """JSON of at most `limit` bytes: DRF's own reads any size, and answers 500 to brackets nested by the thousand."""

    limit: int = settings.DATA_UPLOAD_MAX_MEMORY_SIZE

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return what the body says. Raises RequestTooLarge, ParseError."""
        data = stream.read(self.limit + 1)
        if len(data) > self.limit:
            raise RequestTooLarge(f"The body may have {self.limit} bytes.")
        try:
            return super().parse(BytesIO(data), media_type, dict(parser_context or {}))
        except RecursionError as error:
            raise ParseError("JSON parse error - nested too deeply") from error


class SmallJSONParser(BoundedJSONParser):
    """JSON of forms, where nothing long is ever meant."""

    limit = 128 * 1024
