"""Keyset pages: `{next, previous, results}`, cut by the whole ordering tuple.

DRF's cursor pagination compares the first column alone and counts offsets among equals; this one stays right and
fast however many rows share a value.
"""

import base64
import binascii
import json
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from chatgpt_backend.lib.errors import invalid

DEFAULT_SIZE = 20
LARGEST_SIZE = 100


class KeysetPages(BasePagination):
    """Pages of a queryset in an ordering whose last column is unique. `?page_size=` 1–100, `?cursor=` opaque."""

    def paginate(self, queryset: QuerySet[Any], request: Request, *, ordering: tuple[str, ...]) -> list[Any]:
        """Return the rows of the page that the request asks for. One query."""
        self.request = request
        size = self._size()
        backwards, values = self._read_cursor(ordering)
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

    def _read_cursor(self, ordering: tuple[str, ...]) -> tuple[bool, list[Any] | None]:
        given = self.request.query_params.get("cursor")
        if not given:
            return False, None
        try:
            backwards, names, values = json.loads(base64.urlsafe_b64decode(given.encode()))
            values = [_load(value) for value in values]
        except (binascii.Error, ValueError, TypeError) as error:
            raise invalid("cursor", "The cursor is not one that this list hands out.", "invalid_cursor") from error
        if names != list(ordering) or len(values) != len(ordering) or not isinstance(backwards, bool):
            raise invalid("cursor", "The cursor is of a list in another order.", "invalid_cursor")
        return backwards, values

    def _link(self, backwards: bool, row: Any, ordering: tuple[str, ...]) -> str:
        values = [_dump(getattr(row, name.lstrip("-"))) for name in ordering]
        cursor = base64.urlsafe_b64encode(json.dumps([backwards, ordering, values]).encode()).decode()
        query = {name: value for name, value in self.request.query_params.items() if name != "cursor"}
        return self.request.build_absolute_uri(f"{self.request.path}?{urlencode({**query, 'cursor': cursor})}")


def _flip(name: str) -> str:
    return name[1:] if name.startswith("-") else f"-{name}"


def _dump(value: Any) -> Any:
    return {"at": value.isoformat()} if isinstance(value, datetime) else value


def _load(value: Any) -> Any:
    if isinstance(value, dict):
        return datetime.fromisoformat(value["at"])
    if not isinstance(value, (int, str, bool)):
        raise TypeError
    return value


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
