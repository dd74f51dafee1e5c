"""`/users/me`: the caller's own account."""

import unicodedata
from datetime import UTC
from typing import Any

from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.validators import RegexValidator
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import services
from accounts.authentication import SignedInRequest
from accounts.models import User
from chatgpt_backend.lib.parsers import FormJSONParser
from quotas.services import plan_in_force

USERNAME_CHARACTERS = 150
PASSWORD_CHARACTERS = 1000
INSTRUCTIONS_CHARACTERS = 8000
LANGUAGE_TAG = RegexValidator(r"\A[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*\Z", "Name a language like en or zh-Hans.")


class UsernameField(serializers.CharField):
    """A name in its NFKC form, which is what its length and characters are judged by."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(min_length=3, max_length=USERNAME_CHARACTERS, **kwargs)
        self.validators.append(UnicodeUsernameValidator())

    def to_internal_value(self, data: Any) -> str:
        """Return the normalized name."""
        text = super().to_internal_value(data)
        # What is far too long is refused as it is: normalizing megabytes would take seconds.
        return text if len(text) > 10 * USERNAME_CHARACTERS else unicodedata.normalize("NFKC", text)


class PasswordField(serializers.CharField):
    """A password, exactly as it was typed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=PASSWORD_CHARACTERS, trim_whitespace=False, write_only=True, **kwargs)


class PreferencesSerializer(serializers.Serializer[Any]):
    """What the user set. Empty means the server's default."""

    default_model = serializers.CharField(max_length=200, allow_blank=True, required=False)
    custom_instructions = serializers.CharField(
        max_length=INSTRUCTIONS_CHARACTERS, allow_blank=True, required=False, trim_whitespace=False
    )
    language = serializers.CharField(max_length=10, allow_blank=True, required=False, validators=[LANGUAGE_TAG])
    theme = serializers.ChoiceField(["light", "dark", "system"], allow_blank=True, required=False)


class UserSerializer(serializers.Serializer[User]):
    """A user, as everybody who may see it does. One query, for the plan in force."""

    id = serializers.IntegerField(read_only=True)
    username = serializers.CharField(read_only=True)
    email = serializers.EmailField(read_only=True)
    role = serializers.ChoiceField(User.Role.choices, read_only=True)
    plan = serializers.CharField(read_only=True)
    is_vip = serializers.BooleanField(read_only=True)
    mfa_enabled = serializers.BooleanField(read_only=True)
    date_joined = serializers.DateTimeField(read_only=True, default_timezone=UTC)

    def to_representation(self, instance: User) -> dict[str, Any]:
        """Return the fields, with the plan that is in force now."""
        plan = plan_in_force(instance.pk)
        extra = {"plan": plan.name, "is_vip": plan.is_vip, "mfa_enabled": False}
        return {
            name: extra[name] if name in extra else field.to_representation(field.get_attribute(instance))
            for name, field in self.fields.items()
        }


class ProfileSerializer(UserSerializer):
    """A user, as it sees itself."""

    preferences = PreferencesSerializer(read_only=True, source="*")


class ProfileChangeSerializer(serializers.Serializer[Any]):
    """What of it may be changed."""

    username = UsernameField(required=False)
    email = serializers.EmailField(max_length=254, required=False)
    preferences = PreferencesSerializer(required=False)


class AccountDeletionSerializer(serializers.Serializer[Any]):
    """Proof that it is the user who asks."""

    password = PasswordField()


@extend_schema(tags=["users"])
class MeView(APIView):
    """The caller's own account."""

    parser_classes = (FormJSONParser,)

    @extend_schema(operation_id="me_retrieve", responses=ProfileSerializer)
    def get(self, request: SignedInRequest) -> Response:
        """Profile and preferences."""
        return Response(ProfileSerializer(request.user).data)

    @extend_schema(operation_id="me_update", request=ProfileChangeSerializer, responses=ProfileSerializer)
    def patch(self, request: SignedInRequest) -> Response:
        """Change name, address or preferences; what is left out stays."""
        body = ProfileChangeSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        user = services.update_profile(user=request.user, changes=body.validated_data)
        return Response(ProfileSerializer(user).data)

    @extend_schema(operation_id="me_destroy", request=AccountDeletionSerializer, responses={204: None})
    def delete(self, request: SignedInRequest) -> Response:
        """Delete the account with everything in it, at once and for good."""
        body = AccountDeletionSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        services.delete_account(user=request.user, **body.validated_data)
        return Response(status=204)
