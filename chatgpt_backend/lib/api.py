"""What the REST API's views share."""

from inspect import iscoroutinefunction
from typing import Any

from adrf.views import APIView as AdrfView
from rest_framework.request import Request

from chatgpt_backend.lib import db


def caller_id(request: Request) -> int:
    """Return the id of the signed-in user who sent a request."""
    user_id: int | None = request.user.pk
    assert user_id is not None, "the view lets nobody in who is not signed in"
    return user_id


class AsyncAPIView(AdrfView):
    """A view whose handlers may be async or sync; sync ones, and authentication, run in the database pool.

    adrf would run them in the request's own thread, whose connection would stay open as long as a response streams.
    """

    view_is_async = True

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
        except Exception as error:  # noqa: BLE001 - as in DRF's own dispatch, its handler turns each into an answer
            response = self.handle_exception(error)
        self.response = self.finalize_response(request, response, *args, **kwargs)
        return self.response
