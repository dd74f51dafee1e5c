"""`manage.py init`: everything that must be there before the first request. Safe to repeat."""

import os
import secrets
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, InterfaceError, transaction

from accounts.backends import find_user
from accounts.models import User
from chatgpt_backend.ops.canary import KeysDoNotFit, verify_keys
from chatgpt_backend.ops.migrations_state import missing_migrations
from chats.llm import catalogue
from quotas import services as quotas


class Command(BaseCommand):
    help = "Migrate, check the keys, create plans, models and an administrator. Safe to repeat."
    requires_system_checks = []  # noqa: RUF012 - as Django declares it

    def add_arguments(self, parser: ArgumentParser) -> None:
        for name in ("username", "email", "password"):
            variable = f"DJANGO_SUPERUSER_{name.upper()}"
            parser.add_argument(f"--admin-{name}", default=os.environ.get(variable, ""), help=f"default: ${variable}")

    def handle(self, *args: Any, admin_username: str, admin_email: str, admin_password: str, **options: Any) -> None:
        try:
            if missing := missing_migrations():
                call_command("migrate", interactive=False, verbosity=0)
                self.stdout.write(f"Database: {len(missing)} migrations applied.")
            verify_keys()
            if plans := quotas.ensure_plans():
                self.stdout.write(f"Plans: {', '.join(plans)}.")
            if models := catalogue.sync_builtin_models():
                self.stdout.write(f"Models: {', '.join(models)}.")
            self.ensure_admin(admin_username, admin_email, admin_password)
        except KeysDoNotFit as error:
            raise CommandError(str(error)) from error
        except (DatabaseError, InterfaceError) as error:
            raise CommandError(f"The database does not answer: {str(error).strip().splitlines()[0]}") from error

    def ensure_admin(self, username: str, email: str, password: str) -> None:
        """Create the administrator that was named, or, where there is none at all, one with a password of its own."""
        is_named = bool(username or password)
        if not is_named and User.objects.filter(is_superuser=True).exists():
            return
        username = username or "admin"
        email = email or f"{username}@localhost.localdomain"
        existing = find_user(username)
        if existing is not None:
            self.stdout.write(f"Administrator: there is a user {existing.username} already, left as it is.")
            return
        # Its end makes sure of more than one kind of characters, which the rules ask for.
        made = "" if password else f"{secrets.token_urlsafe(12)}-{secrets.randbelow(10)}"
        password = password or made
        user = User(username=username, email=email)
        try:
            validate_password(password, user)
            user.full_clean(exclude=["password"])
        except ValidationError as error:
            raise CommandError(f"The administrator: {' '.join(error.messages)}") from error
        with transaction.atomic():
            user = User.objects.create_superuser(username, email, password, role=User.Role.ADMIN)
            quotas.open_account(user.pk)
        self.stdout.write(
            f"Administrator: {username}" + (f", password {made}. It is shown this once." if made else ".")
        )
