"""Rules for passwords that Django does not bring."""

from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _


def kind(character: str) -> str:
    """Return which kind a character is of. Letters are those of any script."""
    if character.isalpha():
        return "letter"
    return "digit" if character.isdigit() else "other"


class MixedKindsValidator:
    """Refuse passwords of one kind of character alone."""

    def validate(self, password: str, user: Any = None) -> None:
        """Raise ValidationError for a password of letters alone, of digits alone, or of neither alone."""
        if len({kind(character) for character in password}) == 1:
            raise ValidationError(self.get_error_message(), code="password_of_one_kind")

    def get_error_message(self) -> str:
        """Return what is wrong, in words."""
        return _("This password is of one kind only. Mix letters, digits and other characters.")

    def get_help_text(self) -> str:
        """Return the rule, in words."""
        return _("Your password must mix at least two of letters, digits and other characters.")
