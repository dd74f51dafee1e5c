"""Bearer tokens on the REST API."""

from typing import Any

from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import tokens
from accounts.models import Session, User


class SignedInRequest(Request):
    """For annotations: what a request is behind `IsAuthenticated`."""

    user: User
    auth: Session


class SessionTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer <access token>`. Sets `request.user`, and the session as `request.auth`.

    One query a request, and once a minute an UPDATE of when the session was last seen.
    """

    def authenticate(self, request: Any) -> tuple[Any, Any] | None:
        """Return user and session, or None without a bearer token. Raises AuthenticationFailed (401)."""
        scheme, _, token = request.headers.get("Authorization", "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            session = tokens.read_access_token(token.strip())
        except tokens.InvalidToken as error:
            raise AuthenticationFailed(str(error), "token_not_valid") from error
        except tokens.AccountDisabled as error:
            raise AuthenticationFailed(str(error), "account_disabled") from error
        tokens.note_seen(session, now=timezone.now())
        return session.user, session

    def authenticate_header(self, request: Any) -> str:
        """Return WWW-Authenticate, without which DRF answers 403."""
        return 'Bearer realm="api"'
