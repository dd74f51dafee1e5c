"""All routes."""

from typing import Any

from django.contrib import admin
from django.urls import include, path, re_path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularRedocView, SpectacularSwaggerView

from chatgpt_backend.ops import answers, views

# The documentation is public, and looks at no token: a stale one must not hide it.
# Asked for OPTIONS, DRF would describe the view by a template that it does not have.
PUBLIC: dict[str, Any] = {"authentication_classes": [], "permission_classes": [], "http_method_names": ["get", "head"]}

urlpatterns = [
    path("", views.index),
    path("health", views.show_health),
    path("health/live", views.show_live),
    path("health/ready", views.show_ready),
    path("info", views.show_info),
    path("api/schema", views.show_schema, name="schema"),
    path("docs", SpectacularSwaggerView.as_view(url_name="schema", **PUBLIC)),
    path("redoc", SpectacularRedocView.as_view(url_name="schema", template_name="ops/redoc.html", **PUBLIC)),
    path("admin", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
    path("api/v1/", include("accounts.api.urls")),
    path("api/v1/", include("quotas.api.urls")),
    path("api/v1/", include("chats.api.urls")),
    # Also in DEBUG, where Django would show its own page.
    re_path(r"^(?:api|v1)(?:/.*)?$", answers.not_found),
]

handler400 = "chatgpt_backend.ops.answers.bad_request"
handler403 = "chatgpt_backend.ops.answers.forbidden"
handler404 = "chatgpt_backend.ops.answers.not_found"
handler500 = "chatgpt_backend.ops.answers.server_error"
