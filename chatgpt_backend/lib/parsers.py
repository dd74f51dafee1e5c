"""JSON bodies, with a limit to their depth and, for forms, to their size."""

from collections.abc import Mapping
from typing import Any

from rest_framework import status
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import JSONParser

FORM_BYTES = 128 * 1024


class RequestTooLarge(APIException):
    """413: the body is longer than its view has use for."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "request_too_large"
    default_detail = "The body is too large."


class DepthSafeJSONParser(JSONParser):
    """JSON in which brackets nested by the thousand are a 400: DRF's own parser lets them exhaust the stack."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return what the body says. Raises ParseError."""
        try:
            return super().parse(stream, media_type, dict(parser_context or {}))
        except RecursionError as error:
            raise ParseError("JSON parse error - nested too deeply") from error


class FormJSONParser(DepthSafeJSONParser):
    """JSON of forms, where nothing long is ever meant."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return what the body says. Raises RequestTooLarge (over 128 KiB), ParseError."""
        # DRF hands JSON over as what it has read, at most DATA_UPLOAD_MAX_MEMORY_SIZE.
        if stream.getbuffer().nbytes > FORM_BYTES:
            raise RequestTooLarge
        return super().parse(stream, media_type, parser_context)
