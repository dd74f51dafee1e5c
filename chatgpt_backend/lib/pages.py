"""Keyset pages: `{next, previous, results}`, cut by the whole ordering tuple.

DRF's cursor pagination compares the first column alone and counts offsets among equals; this one stays right and
fast however many rows share a value.
"""

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import BooleanField, DateTimeField, Field, IntegerField, Q, QuerySet
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib.errors import invalid

DEFAULT_SIZE = 20
LARGEST_SIZE = 100
LARGEST_INTEGER = 2**63 - 1


class KeysetPages(BasePagination):
    """Pages of a queryset in an ordering whose last column is unique. `?page_size=` 1–100, `?cursor=` opaque.

    The ordering's columns are flags, times and whole numbers, none of them null.
    """

    def paginate(self, queryset: QuerySet[Any], request: Request, *, ordering: tuple[str, ...]) -> list[Any]:
        """Return the rows of the page that the request asks for. One query."""
        self.request = request
        size = self._size()
        backwards, values = self._read_cursor(queryset, ordering)
        order = tuple(_flip(name) for name in ordering) if backwards else ordering
        rows = queryset.order_by(*order)
        if values is not None:
            rows = rows.filter(_beyond(order, values))
        found = list(rows[: size + 1])
        more, found = len(found) > size, found[:size]
        if backwards:
            found.reverse()
        has_next = bool(found) and (backwards or more)
        has_previous = bool(found) and (more if backwards else values is not None)
        self.next = self._link(False, found[-1], ordering) if has_next else None
        self.previous = self._link(True, found[0], ordering) if has_previous else None
        return found

    def response(self, results: list[Any]) -> Response:
        """Return the page with its links."""
        return Response({"next": self.next, "previous": self.previous, "results": results})

    def _size(self) -> int:
        given = self.request.query_params.get("page_size")
        if given is None:
            return DEFAULT_SIZE
        if not given.isascii() or not given.isdigit() or int(given[:9]) < 1:
            raise invalid("page_size", f"Give a whole number from 1 to {LARGEST_SIZE}.")
        return min(int(given[:9]), LARGEST_SIZE)

    def _read_cursor(self, queryset: QuerySet[Any], ordering: tuple[str, ...]) -> tuple[bool, list[Any] | None]:
        given = self.request.query_params.get("cursor")
        if not given:
            return False, None
        try:
            backwards, names, values = json.loads(base64.urlsafe_b64decode(given.encode()))
        except (binascii.Error, ValueError, TypeError, RecursionError) as error:
            raise _invalid_cursor() from error
        if names != list(ordering) or not isinstance(backwards, bool):
            raise invalid("cursor", "The cursor is of a list in another order.", "invalid_cursor")
        if not isinstance(values, list) or len(values) != len(ordering):
            raise _invalid_cursor()
        fields = [queryset.model._meta.get_field(name.lstrip("-")) for name in ordering]
        return backwards, [_load(field, value) for field, value in zip(fields, values, strict=True)]

    def _link(self, backwards: bool, row: Any, ordering: tuple[str, ...]) -> str:
        values = [_dump(getattr(row, name.lstrip("-"))) for name in ordering]
        cursor = base64.urlsafe_b64encode(json.dumps([backwards, ordering, values]).encode()).decode()
        query = {name: value for name, value in self.request.query_params.items() if name != "cursor"}
        return self.request.build_absolute_uri(f"{self.request.path}?{urlencode({**query, 'cursor': cursor})}")


def _flip(name: str) -> str:
    return name[1:] if name.startswith("-") else f"-{name}"


def _dump(value: Any) -> Any:
    return {"at": value.isoformat()} if isinstance(value, datetime) else value


def _load(field: "Field[Any, Any]", value: Any) -> Any:
    """Return a value of a cursor as the column has it. Anybody may write a cursor, so nothing is taken on trust."""
    if isinstance(field, DateTimeField) and isinstance(value, dict):
        return _load_moment(value.get("at"))
    if isinstance(field, BooleanField) and isinstance(value, bool):
        return value
    if isinstance(field, IntegerField) and type(value) is int and abs(value) <= LARGEST_INTEGER:
        return value
    raise _invalid_cursor()


def _load_moment(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("no zone")
        return moment.astimezone(UTC)
    except (ValueError, TypeError, OverflowError) as error:
        raise _invalid_cursor() from error


def _invalid_cursor() -> ValidationError:
    return invalid("cursor", "The cursor is not one that this list hands out.", "invalid_cursor")


def _beyond(order: tuple[str, ...], values: list[Any]) -> Q:
    """Return the rows after `values` in `order`: the first column beyond, or equal and the next beyond, and so on."""
    condition = Q()
    for place, name in enumerate(order):
        equal = dict(zip((one.lstrip("-") for one in order[:place]), values[:place], strict=True))
        comparison = "lt" if name.startswith("-") else "gt"
        condition |= Q(**equal, **{f"{name.lstrip('-')}__{comparison}": values[place]})
    first = order[0]
    # Said again by itself, so that the index is entered at the right place.
    return condition & Q(**{f"{first.lstrip('-')}__{'lte' if first.startswith('-') else 'gte'}": values[0]})
