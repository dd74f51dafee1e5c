"""Routes, below /api/v1/."""

from django.urls import path

from accounts.api import (
    auth,
    schema,  # noqa: F401 - registers itself
    users,
)

urlpatterns = [
    path("auth/register", auth.RegisterView.as_view()),
    path("auth/login", auth.LoginView.as_view()),
    path("auth/refresh", auth.RefreshView.as_view()),
    path("auth/logout", auth.LogoutView.as_view()),
    path("auth/logout-all", auth.LogoutAllView.as_view()),
    path("auth/sessions", auth.SessionsView.as_view()),
    path("auth/sessions/<int:session_id>", auth.SessionView.as_view()),
    path("users/me", users.MeView.as_view()),
]
