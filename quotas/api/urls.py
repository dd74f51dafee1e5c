"""Routes under /api/v1."""

from django.urls import path

from quotas.api.quota import QuotaView

urlpatterns = [path("quota", QuotaView.as_view())]
