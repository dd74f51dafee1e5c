"""Users and sessions, for staff."""

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from accounts.models import Session, User
from accounts.names import find_name_problems
from quotas.services import open_account

admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):
    """Django's groups, in this admin's clothes."""


class NamesMixin:
    """Refuse a name or address that another user has, in whatever spelling: the form knows the exact ones alone."""

    def clean(self) -> dict[str, Any]:
        """Check the names where both passed their own checks."""
        data: dict[str, Any] = super().clean() or self.cleaned_data  # type: ignore[misc, attr-defined]
        if data.get("username") and data.get("email"):
            wanted = User(pk=self.instance.pk, username=data["username"], email=data["email"])  # type: ignore[attr-defined]
            for attr, problems in find_name_problems(wanted).items():
                self.add_error(attr, [str(problem) for problem in problems])  # type: ignore[attr-defined]
        return data


class NewUserForm(NamesMixin, UserCreationForm):
    """A new user."""

    class Meta:
        model = User
        fields = ("username", "email")


class UserForm(NamesMixin, UserChangeForm):
    """A user's fields."""

    class Meta:
        model = User
        fields = "__all__"


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):
    """Users."""

    form = UserForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "role", "is_active", "is_staff", "date_joined")
    list_filter = ("role", "is_active", "is_staff")
    search_fields = ("username", "email")
    ordering = ("-id",)
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("username", "email", "password")}),
        ("Permissions", {"fields": ("role", "is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("Preferences", {"fields": ("default_model", "language", "theme")}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("username", "email", "usable_password", "password1", "password2")}),
    )

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Save; a new user gets the default plan."""
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            if not change:
                open_account(obj.pk)


@admin.register(Session)
class SessionAdmin(ModelAdmin):
    """Signed-in devices: to look at, and to end."""

    list_display = ("id", "user", "ip", "user_agent", "created_at", "last_seen_at", "expires_at", "revoked_at")
    list_filter = ("created_at", "revoked_at")
    list_select_related = ("user",)
    search_fields = ("user__username", "user__email", "ip")
    ordering = ("-id",)
    actions = ("revoke",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: sessions begin with a sign-in."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: nothing of a session is to be edited."""
        return False

    @admin.action(description="End the selected sessions", permissions=["delete"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        """Sign the devices out at once."""
        ended = queryset.filter(revoked_at=None).update(revoked_at=timezone.now())
        self.message_user(request, f"{ended} sessions ended.")
