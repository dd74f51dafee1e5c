"""Whether a user may have the name and the address it asks for."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db.models import Q
from rest_framework.exceptions import ErrorDetail

from accounts.models import User, fold

Problems = dict[str, list[ErrorDetail]]
# What the columns hold. Folding can lengthen a text: "ß" is "ss", and one sign of Arabic script is 18 letters.
FOLDED_CHARACTERS = 300


def find_name_problems(user: User) -> Problems:
    """Return what is wrong with the name and address of `user`, stored or not, by field. At most one query."""
    problems: Problems = {}
    for attr in ("username", "email"):
        if len(fold(getattr(user, attr))) > FOLDED_CHARACTERS:
            problems[attr] = [ErrorDetail("This value is too long.", "max_length")]
    if _is_address(fold(user.username)) and fold(user.username) != fold(user.email):
        # Else it could be somebody's address, and one sign-in would fit two accounts.
        problems["username"] = [ErrorDetail("A name that is an e-mail address must be your own.", "invalid")]
    return problems or find_taken_names(user)


def find_taken_names(user: User) -> Problems:
    """Return which of name and address another user has, however it is written. One query."""
    username, email = fold(user.username), fold(user.email)
    others = User.objects.exclude(pk=user.pk).filter(Q(username_folded=username) | Q(email_folded=email))
    problems: Problems = {}
    for taken_username, taken_email in others.values_list("username_folded", "email_folded"):
        if taken_username == username:
            problems["username"] = [ErrorDetail("A user with that username already exists.", "unique")]
        if taken_email == email:
            problems["email"] = [ErrorDetail("A user with that e-mail address already exists.", "unique")]
    return problems


def find_domain_problems(email: str) -> Problems:
    """Return what is wrong with the address where REGISTRATION_DOMAINS admits only some."""
    allowed = {fold(domain).lstrip("@") for domain in settings.REGISTRATION_DOMAINS}
    if not allowed or fold(email).rpartition("@")[2] in allowed:
        return {}
    return {"email": [ErrorDetail("Addresses of this domain cannot register here.", "domain_not_allowed")]}


def _is_address(text: str) -> bool:
    try:
        validate_email(text)
    except ValidationError:
        return False
    return True
