"""Access and refresh tokens of sessions.

Both are functions of the session's row alone: the number of its rotation and the time of it decide every claim. So two
tabs that refresh at once get the same pair, though nothing but the row is stored, and whichever process they reach.
A rotation is one conditional UPDATE on that number; of any number of callers exactly one makes it.
"""

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import structlog
from django.conf import settings
from django.utils import timezone
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken, Token

from accounts.models import Session, User
from chatgpt_backend.lib import db

log = structlog.get_logger(__name__)

# Ours have some 300: what is longer is not worth decoding.
MAX_TOKEN_CHARACTERS = 600
SEEN_EVERY = timedelta(minutes=1)
USER_AGENT_CHARACTERS = 300


class InvalidToken(Exception):
    """The token is malformed, not ours, of the other kind, expired, or its session is over."""


class AccountDisabled(Exception):
    """The token is good, but its user may not sign in."""


class TokenPair(NamedTuple):
    """An access and a refresh token, the session they belong to, and the access token's life in seconds."""

    access: str
    refresh: str
    session: Session
    expires_in: int


def make_pair(session: Session) -> TokenPair:
    """Return the tokens of the session as its row stands: the same each time until it rotates."""
    access, refresh = AccessToken(), RefreshToken()
    _fill(access, session, settings.ACCESS_TOKEN_LIFETIME)
    _fill(refresh, session, settings.REFRESH_TOKEN_LIFETIME)
    refresh["rotation"] = session.rotation
    return TokenPair(str(access), str(refresh), session, int(settings.ACCESS_TOKEN_LIFETIME.total_seconds()))


def _fill(token: Token, session: Session, lifetime: timedelta) -> None:
    token.set_iat(at_time=session.rotated_at)
    token.set_exp(from_time=session.rotated_at, lifetime=lifetime)
    unique = f"{session.pk}:{session.rotation}:{token.token_type}".encode()
    key = str(settings.SIMPLE_JWT["SIGNING_KEY"]).encode()
    token["jti"] = hmac.new(key, unique, hashlib.sha256).hexdigest()[:32]
    token["sub"] = str(session.user_id)
    token["sid"] = session.pk


def _read(kind: type[Token], text: str) -> dict[str, Any]:
    """Return the claims of a token of that kind. Raises InvalidToken."""
    # PyJWT encodes before it looks, and half a surrogate pair cannot be.
    if len(text) > MAX_TOKEN_CHARACTERS or not text.isascii():
        raise InvalidToken("The token is not valid.")
    try:
        payload = kind(text).payload  # type: ignore[arg-type]  # simplejwt annotates a Token and takes text
    except TokenError as error:
        raise InvalidToken("The token is not valid or has expired.") from error
    if "sid" not in payload or "sub" not in payload:
        raise InvalidToken("The token is not valid.")
    return payload


def open_session(*, user: User, ip: str | None, user_agent: str, now: datetime) -> TokenPair:
    """Insert a session of `user` and return its first tokens. One query, in the caller's transaction."""
    session = Session.objects.create(
        user=user,
        created_at=now,
        last_seen_at=now,
        rotated_at=now,
        expires_at=now + settings.REFRESH_TOKEN_LIFETIME,
        ip=ip,
        # PostgreSQL stores no NUL.
        user_agent=user_agent.replace("\x00", "")[:USER_AGENT_CHARACTERS],
    )
    return make_pair(session)


def rotate(refresh: str, *, now: datetime) -> TokenPair:
    """Return the session's next tokens in exchange for its refresh token.

    The same token again within REFRESH_REUSE_SECONDS gives the same pair, since only the order of two tabs differs.
    Later it is a stolen copy, the thief's or the owner's, and the session is revoked. (A token used in the same seconds
    in which the next one was used too counts as later: of an older rotation no time is kept.)

    Raises InvalidToken, AccountDisabled. Must not run inside a transaction: the revocation has to outlive the error.
    """
    claims = _read(RefreshToken, refresh)
    session = db.in_transaction(_advance, claims, now)
    if session is None:
        raise InvalidToken("The session is over.")
    if not session.user.is_active:
        raise AccountDisabled("The account is disabled.")
    return make_pair(session)


def _advance(claims: dict[str, Any], now: datetime) -> Session | None:
    """Rotate the session if the token is its current one; return it if the token has a right to its pair."""
    rotation = claims.get("rotation", -1)
    rows = Session.objects.filter(pk=claims["sid"], user_id=claims["sub"], revoked_at=None)
    rows.filter(rotation=rotation).update(
        rotation=rotation + 1,
        rotated_at=now,
        last_seen_at=now,
        expires_at=now + settings.REFRESH_TOKEN_LIFETIME,
    )
    # After the UPDATE, so that the row is ours, or is as whoever came first left it.
    session = rows.select_related("user").first()
    if session is None:
        return None
    reused_after = (now - session.rotated_at).total_seconds()
    if session.rotation == rotation + 1 and reused_after <= settings.REFRESH_REUSE_SECONDS:
        return session
    rows.update(revoked_at=now)
    log.warning("refresh_token_reused", user_id=session.user_id, session_id=session.pk)
    return None


def revoke(refresh: str, *, now: datetime) -> None:
    """End the session that the refresh token belongs to, whichever rotation it is of. Doing so twice is harmless.

    Raises InvalidToken.
    """
    claims = _read(RefreshToken, refresh)
    Session.objects.filter(pk=claims["sid"], user_id=claims["sub"], revoked_at=None).update(revoked_at=now)


def read_access_token(token: str) -> Session:
    """Return the live session that an access token names, with its user, in one query.

    The token's own end is set on it as `token_expires_at`. Raises InvalidToken, AccountDisabled.
    """
    claims = _read(AccessToken, token)
    session = (
        Session.objects.select_related("user")
        .filter(pk=claims["sid"], user_id=claims["sub"], revoked_at=None, expires_at__gt=timezone.now())
        .first()
    )
    if session is None:
        raise InvalidToken("The session is over.")
    if not session.user.is_active:
        raise AccountDisabled("The account is disabled.")
    session.token_expires_at = datetime.fromtimestamp(claims["exp"], tz=UTC)
    return session


def note_seen(session: Session, *, now: datetime) -> None:
    """Write that the session is in use, at most once a minute."""
    if now - session.last_seen_at >= SEEN_EVERY:
        # Conditional, so that of the requests of one moment only the first writes.
        Session.objects.filter(pk=session.pk, last_seen_at=session.last_seen_at).update(last_seen_at=now)
