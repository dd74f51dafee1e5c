"""All routes."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/v1/", include("accounts.api.urls")),
    path("api/v1/", include("quotas.api.urls")),
    path("api/v1/", include("chats.api.urls")),
]
