"""Errors as the REST API shows them: `{"type", "errors": [{"code", "detail", "attr"}]}` (drf-standardized-errors)."""

import math

import structlog
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from drf_standardized_errors import handler
from rest_framework import status
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.response import Response

log = structlog.get_logger(__name__)


class ClientError(APIException):
    """An expected failure with a status, a stable code, and words that help.

    Services raise it for what any door shows alike: REST as its error object, the socket as an `error` event.
    `retry_after`, in seconds, becomes the header of that name.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status_code: int = status.HTTP_400_BAD_REQUEST,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail, code)
        self.code = code
        self.status_code = status_code
        if retry_after is not None:
            self.wait = max(1, math.ceil(retry_after))  # DRF's name for what becomes Retry-After


def invalid(attr: str, detail: str, code: str = "invalid") -> ValidationError:
    """Return the 400 that names one field of the body."""
    return ValidationError({attr: [ErrorDetail(detail, code)]})


def missing(attr: str, what: str) -> ValidationError:
    """Return the 400 for an id in a body that names nothing of the caller's."""
    return invalid(attr, f"There is no such {what}.", "does_not_exist")


class ExceptionHandler(handler.ExceptionHandler):
    """A database that is away is a 503; everything unforeseen is a 500 without its trace, in DEBUG too."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        """Make a database's absence a 503 with Retry-After."""
        if isinstance(exc, OperationalError):
            log.warning("database_unavailable", error=type(exc).__name__)
            return ClientError(
                "database_unavailable", "The database does not answer. Try again shortly.",
                status_code=status.HTTP_503_SERVICE_UNAVAILABLE, retry_after=2,
            )  # fmt: skip
        if isinstance(exc, RequestDataTooBig):
            return ClientError(
                "request_too_large", "The body is too large.", status_code=status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
            )
        if isinstance(exc, SuspiciousOperation):
            return ClientError("bad_request", "The request is malformed.")
        return super().convert_known_exceptions(exc)

    def should_not_handle(self, exc: Exception) -> bool:
        """Handle everything."""
        return False

    def report_exception(self, exc: APIException, response: Response) -> None:
        """Report defects alone: a provider that failed, or a database that is away, is expected."""
        if not isinstance(exc, ClientError):
            super().report_exception(exc, response)
