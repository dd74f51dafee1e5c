"""JSON bodies, with limits to their depth, to the number of their values and, for forms, to their size."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from rest_framework import status
from rest_framework.exceptions import APIException, ErrorDetail, ParseError, ValidationError
from rest_framework.parsers import JSONParser

FORM_BYTES = 128 * 1024
# No request of ours has more. Five million empty lists fit into 16 MB, took five seconds to make, and 400 MB; all the
# while no other client was served, since the interpreter makes them under one lock.
MOST_VALUES = 20_000
# A string, or the rest of the body where one is never closed: no place is looked at twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class RequestTooLarge(APIException):
    """413: the body is longer than its view has use for."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "request_too_large"
    default_detail = "The body is too large."


class BoundedJSONParser(JSONParser):
    """JSON in UTF-8 that is quickly read: nested by the thousand, or of more than 20,000 values, it is a 400.

    So is half of a surrogate pair, which JSON can carry and nothing behind it can store or say.
    """

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return what the body says. Raises ParseError, and ValidationError that names the field."""
        body: bytes = stream.read()
        if _has_too_many_values(body):
            raise ParseError(f"JSON parse error - more than {MOST_VALUES} values")
        try:
            text = body.decode()
            value = json.loads(text, parse_constant=_refuse_constant)
        except RecursionError as error:
            raise ParseError("JSON parse error - nested too deeply") from error
        except ValueError as error:
            raise ParseError(f"JSON parse error - {error}") from error
        if _SURROGATE.search(text):
            _refuse_lone_surrogates(value)
        return value


def _has_too_many_values(body: bytes) -> bool:
    if _count_values(body) <= MOST_VALUES:
        return False
    # Most of the commas may stand in texts.
    bare, strings = _STRING.subn(b"", body, count=MOST_VALUES + 1)
    return strings > MOST_VALUES or _count_values(bare) > MOST_VALUES


def _count_values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _refuse_lone_surrogates(value: Any) -> None:
    left: list[tuple[Any, tuple[str, ...]]] = [(value, ())]
    while left:
        one, path = left.pop()
        if isinstance(one, str) and not _is_text(one):
            detail: Any = [ErrorDetail("Half of a surrogate pair is no character.", "surrogate_characters_not_allowed")]
            for name in reversed(path or ("non_field_errors",)):
                detail = {name: detail}
            raise ValidationError(detail)
        if isinstance(one, dict):
            left += [(name, path) for name in one]
            # Two names say where it is in every body of ours.
            left += [(item, (*path, name)[:2]) for name, item in one.items() if _is_text(name)]
        elif isinstance(one, list):
            left += [(item, (*path, str(place))[:2]) for place, item in enumerate(one)]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class FormJSONParser(BoundedJSONParser):
    """JSON of forms, where nothing long is ever meant."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return what the body says. Raises RequestTooLarge (over 128 KiB), ParseError."""
        # DRF hands JSON over as what it has read, at most DATA_UPLOAD_MAX_MEMORY_SIZE.
        if stream.getbuffer().nbytes > FORM_BYTES:
            raise RequestTooLarge
        return super().parse(stream, media_type, parser_context)
