"""How a request's body and an answer's format are chosen.

Apart from `api.py`, since DRF loads it while it loads its own views.
"""

from typing import Any

from rest_framework.negotiation import BaseContentNegotiation


class JSONAlways(BaseContentNegotiation):
    """Answer JSON whatever `Accept` asks for: a client that names `text/event-stream` still wants its errors."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """Return the parser for the body's media type, or None (415)."""
        content_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        """Return the first renderer."""
        return renderers[0], renderers[0].media_type
