"""What the REST API's views share."""

from inspect import iscoroutinefunction
from typing import Any

from adrf.views import APIView as AdrfView
from rest_framework.negotiation import BaseContentNegotiation

from chatgpt_backend.lib import db


class JSONAlways(BaseContentNegotiation):
    """Answer JSON whatever `Accept` asks for: a client that names `text/event-stream` still wants its errors."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """Return the parser for the body's media type, or None (415)."""
        content_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> Any:
        """Return the first renderer."""
        return renderers[0], renderers[0].media_type


class AsyncViewMixin(AdrfView):
    """Async handlers whose authentication and permission checks run in the database pool.

    adrf runs them in the request's own thread, whose connection would stay open as long as the response streams.
    """

    async def async_dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Dispatch as adrf does, but for the thread."""
        self.args, self.kwargs = args, kwargs
        self.request = request = self.initialize_request(request, *args, **kwargs)
        self.headers = self.default_response_headers
        try:
            await db.run(self.initial, request, *args, **kwargs)
            known = request.method.lower() in self.http_method_names
            handler = getattr(self, request.method.lower(), None) if known else None
            handler = handler or self.http_method_not_allowed
            if iscoroutinefunction(handler):
                response = await handler(request, *args, **kwargs)
            else:
                response = await db.run(handler, request, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - DRF's own dispatch: its handler turns each into an answer
            response = self.handle_exception(error)
        self.response = self.finalize_response(request, response, *args, **kwargs)
        return self.response
