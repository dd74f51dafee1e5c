"""The canaries: one sealed value for each key that the data may be sealed with."""

from typing import Any

from django.db import models


class KeyCanary(models.Model):
    """A known text sealed under one key. If no configured key opens it, the keys do not fit the data."""

    id: Any
    key_id = models.CharField(max_length=8, unique=True)
    sealed = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.key_id
