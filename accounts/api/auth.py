"""`/auth`: register, sign in and out, refresh, signed-in devices.

Whoever registers, signs in, refreshes or signs out proves it by the body (or the refresh cookie), so these views look
at no bearer token: a stale one must not stand in the way of a new one.
"""

from collections.abc import Callable
from datetime import UTC
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import services, tokens
from accounts.api.users import PasswordField, UsernameField, UserSerializer
from accounts.authentication import SignedInRequest
from accounts.models import Session
from accounts.tokens import TokenPair
from chatgpt_backend.lib.addresses import client_address
from chatgpt_backend.lib.errors import ClientError, invalid
from chatgpt_backend.lib.parsers import FormJSONParser

COOKIE = "refresh_token"
COOKIE_PATH = "/api/v1/auth"


class PublicView(APIView):
    """A view that asks for no access token."""

    parser_classes = (FormJSONParser,)
    authentication_classes = ()
    permission_classes = (AllowAny,)


class RegisterSerializer(serializers.Serializer[Any]):
    """A new account."""

    username = UsernameField()
    email = serializers.EmailField(max_length=254)
    password = PasswordField()


class LoginSerializer(serializers.Serializer[Any]):
    """Name or e-mail address, and password."""

    username = serializers.CharField(max_length=254)
    password = PasswordField()
    cookie = serializers.BooleanField(
        default=False, help_text="put the refresh token into an HttpOnly cookie, and there alone"
    )


class RefreshSerializer(serializers.Serializer[Any]):
    """A refresh token, unless it is in the cookie."""

    refresh = serializers.CharField(required=False)


class RegisteredSerializer(serializers.Serializer[Any]):
    """The user and the first tokens."""

    user = UserSerializer()
    access = serializers.CharField()
    refresh = serializers.CharField()


class SignedInSerializer(serializers.Serializer[Any]):
    """The user and new tokens. `expires_in` is the access token's life in seconds."""

    user = UserSerializer()
    access = serializers.CharField()
    refresh = serializers.CharField(required=False, help_text="absent where it is in the cookie")
    expires_in = serializers.IntegerField()


class RefreshedSerializer(serializers.Serializer[Any]):
    """The next tokens."""

    access = serializers.CharField()
    refresh = serializers.CharField(required=False, help_text="absent where it is in the cookie")


class SessionSerializer(serializers.ModelSerializer[Session]):
    """A signed-in device."""

    created_at = serializers.DateTimeField(default_timezone=UTC)
    last_seen_at = serializers.DateTimeField(default_timezone=UTC)
    current = serializers.SerializerMethodField(help_text="whether this is the one that asks")

    class Meta:
        model = Session
        fields = ("id", "ip", "user_agent", "created_at", "last_seen_at", "current")

    def get_current(self, session: Session) -> bool:
        """Say whether it is the session of this request."""
        return session.pk == self.context["current_id"]


@extend_schema(tags=["auth"], auth=[])
class RegisterView(PublicView):
    """New accounts."""

    @extend_schema(operation_id="auth_register", request=RegisterSerializer, responses={201: RegisteredSerializer})
    def post(self, request: Request) -> Response:
        """Make an account and sign in."""
        body = RegisterSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        pair = services.register_user(**body.validated_data, **device(request), now=timezone.now())
        user = UserSerializer(pair.session.user).data
        return Response({"user": user, "access": pair.access, "refresh": pair.refresh}, status=status.HTTP_201_CREATED)


@extend_schema(tags=["auth"], auth=[])
class LoginView(PublicView):
    """Sessions' beginning."""

    @extend_schema(operation_id="auth_login", request=LoginSerializer, responses=SignedInSerializer)
    def post(self, request: Request) -> Response:
        """Sign in by name or e-mail address."""
        body = LoginSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        in_cookie = body.validated_data.pop("cookie")
        pair = services.sign_in(**body.validated_data, **device(request), now=timezone.now())
        answer = {"user": UserSerializer(pair.session.user).data, "access": pair.access, "expires_in": pair.expires_in}
        return with_refresh(answer, pair, in_cookie=in_cookie)


@extend_schema(tags=["auth"], auth=[])
class RefreshView(PublicView):
    """The next tokens of a session."""

    @extend_schema(operation_id="auth_refresh", request=RefreshSerializer, responses=RefreshedSerializer)
    def post(self, request: Request) -> Response:
        """Exchange a refresh token for the next pair. Each is good once; two tabs within 10 s get the same pair."""
        refresh, in_cookie = read_refresh(request)
        pair = or_unauthorized(tokens.rotate, refresh)
        return with_refresh({"access": pair.access}, pair, in_cookie=in_cookie)


@extend_schema(tags=["auth"], auth=[])
class LogoutView(PublicView):
    """A session's end."""

    @extend_schema(operation_id="auth_logout", request=RefreshSerializer, responses={204: None})
    def post(self, request: Request) -> Response:
        """Sign out: the session's access tokens are dead at once."""
        refresh, _ = read_refresh(request)
        or_unauthorized(tokens.revoke, refresh)
        return without_refresh()


@extend_schema(tags=["auth"])
class LogoutAllView(APIView):
    """All sessions' end."""

    @extend_schema(operation_id="auth_logout_all", request=None, responses={204: None})
    def post(self, request: SignedInRequest) -> Response:
        """Sign out everywhere, here too."""
        services.end_all_sessions(user=request.user, now=timezone.now())
        return without_refresh()


@extend_schema(tags=["auth"])
class SessionsView(APIView):
    """Signed-in devices."""

    @extend_schema(operation_id="auth_sessions_list", responses=SessionSerializer(many=True))
    def get(self, request: SignedInRequest) -> Response:
        """List the caller's devices, the one last seen first."""
        live = request.user.sessions.filter(revoked_at=None, expires_at__gt=timezone.now())
        context = {"current_id": request.auth.pk}
        return Response(SessionSerializer(live.order_by("-last_seen_at", "-id"), many=True, context=context).data)


@extend_schema(tags=["auth"])
class SessionView(APIView):
    """One signed-in device."""

    @extend_schema(operation_id="auth_sessions_destroy", responses={204: None})
    def delete(self, request: SignedInRequest, session_id: int) -> Response:
        """Sign the device out."""
        services.end_session(user=request.user, session_id=session_id, now=timezone.now())
        return Response(status=status.HTTP_204_NO_CONTENT)


def device(request: Request) -> dict[str, Any]:
    """Return what a session keeps of where it was opened."""
    return {"ip": client_address(request.META), "user_agent": request.META.get("HTTP_USER_AGENT", "")}


def or_unauthorized(call: Callable[..., Any], refresh: str) -> Any:
    """Call with the refresh token and the time; a token that is none is 401."""
    try:
        return call(refresh, now=timezone.now())
    except tokens.InvalidToken as error:
        raise ClientError("token_not_valid", str(error), status_code=status.HTTP_401_UNAUTHORIZED) from error
    except tokens.AccountDisabled as error:
        raise ClientError("account_disabled", str(error), status_code=status.HTTP_401_UNAUTHORIZED) from error


def read_refresh(request: Request) -> tuple[str, bool]:
    """Return the refresh token, and whether it came in the cookie. The body's comes first."""
    body = RefreshSerializer(data=request.data)
    body.is_valid(raise_exception=True)
    if "refresh" in body.validated_data:
        return body.validated_data["refresh"], False
    cookie = request.COOKIES.get(COOKIE)
    if not cookie:
        raise invalid("refresh", "This field is required.", "required")
    if not is_same_origin(request):
        raise ClientError(
            "cross_origin", "The cookie is taken from pages of this server alone.",
            status_code=status.HTTP_403_FORBIDDEN,
        )  # fmt: skip
    return cookie, True


def is_same_origin(request: Request) -> bool:
    """Say whether a page of this server asks.

    Browsers send `Sec-Fetch-Site` on secure origins, and `Origin` with every POST to another one; whoever sends neither
    is no browser that a foreign page could make use of.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("Origin")
    if origin is None:
        return True
    # The Host that a browser sends is the one it connects to; PUBLIC_URL is for proxies that rewrite it.
    public = urlsplit(settings.PUBLIC_URL)
    return origin.partition("://")[2] == request.headers.get("Host") or origin == f"{public.scheme}://{public.netloc}"


def with_refresh(answer: dict[str, Any], pair: TokenPair, *, in_cookie: bool) -> Response:
    """Return the answer with the refresh token in its body or in the cookie, never in both."""
    if not in_cookie:
        return Response({**answer, "refresh": pair.refresh})
    response = Response(answer)
    response.set_cookie(
        COOKIE,
        pair.refresh,
        expires=pair.session.expires_at,
        path=COOKIE_PATH,
        secure=urlsplit(settings.PUBLIC_URL).scheme == "https",
        httponly=True,
        samesite="Strict",
    )
    return response


def without_refresh() -> Response:
    """Return an empty answer that drops the cookie."""
    response = Response(status=status.HTTP_204_NO_CONTENT)
    response.delete_cookie(COOKIE, path=COOKIE_PATH, samesite="Strict")
    return response
