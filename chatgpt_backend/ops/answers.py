"""Errors outside DRF, in the shape that the path's API speaks: never HTML under /api and /v1."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.views import defaults

HTTP_SERVER_ERROR = 500


def speaks_json(path: str) -> bool:
    """Say whether `path` is a program's, not a person's."""
    return path.startswith(("/api/", "/v1/", "/health", "/info", "/metrics")) or path in ("/api", "/v1")


def error_answer(request: HttpRequest, *, status: int, code: str, detail: str) -> JsonResponse:
    """Return an error as `/v1` (OpenAI's object) or as the REST API shows it."""
    is_ours = status >= HTTP_SERVER_ERROR
    if request.path.startswith("/v1/") or request.path == "/v1":
        kind = "server_error" if is_ours else "invalid_request_error"
        return JsonResponse({"error": {"message": detail, "type": kind, "param": None, "code": code}}, status=status)
    kind = "server_error" if is_ours else "client_error"
    errors = [{"code": code, "detail": detail, "attr": None}]
    return JsonResponse({"type": kind, "errors": errors}, status=status)


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponseBase:
    """404."""
    if speaks_json(request.path):
        return error_answer(request, status=404, code="not_found", detail="There is nothing at this address.")
    return defaults.page_not_found(request, exception or Exception())


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponseBase:
    """400."""
    if speaks_json(request.path):
        return error_answer(request, status=400, code="bad_request", detail="The request is malformed.")
    return defaults.bad_request(request, exception or Exception())


def forbidden(request: HttpRequest, exception: Exception | None = None) -> HttpResponseBase:
    """403."""
    if speaks_json(request.path):
        return error_answer(request, status=403, code="permission_denied", detail="This is not allowed.")
    return defaults.permission_denied(request, exception or Exception())


def server_error(request: HttpRequest) -> HttpResponse:
    """500."""
    if speaks_json(request.path):
        return error_answer(request, status=500, code="error", detail="The server failed. It is in its log.")
    return defaults.server_error(request)
