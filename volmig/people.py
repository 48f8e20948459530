"""Making people from the command line; the first one is asked for when volmig starts on an empty database."""

import getpass
import os
import sys
from collections.abc import Iterable

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from volmig.accounts.roles import ALLOWS
from volmig.record.models import Event


def make_person(name: str, password: str, roles: Iterable[str] = ()) -> None:
    """Makes a person, or changes one's password and roles; no roles means all of them."""
    validate_password(password)
    chosen = set(roles)
    if unknown := chosen - set(ALLOWS):
        raise ValidationError(f"No such role: {', '.join(sorted(unknown))}.")
    person, _ = get_user_model().objects.get_or_create(username=name)
    person.is_superuser = not chosen
    person.set_password(password)
    person.full_clean()
    person.save()
    person.groups.set(Group.objects.filter(name__in=chosen))
    Event.append("person.make", object=name, data={"roles": sorted(chosen) or ["superuser"]})


def ask_password(name: str) -> str:
    """Asks twice on the terminal, until both are the same and good enough."""
    while True:
        password = getpass.getpass(f"Password for {name}: ")
        if password != getpass.getpass("Again: "):
            sys.stderr.write("These are not the same.\n")
            continue
        try:
            validate_password(password)
        except ValidationError as error:
            sys.stderr.write(" ".join(error.messages) + "\n")
        else:
            return password


def first_administrator() -> str:
    """Makes the first person when there is none; returns a sentence about what is still to do, or nothing."""
    if get_user_model().objects.filter(is_active=True).exists():
        return ""
    name, password = os.environ.get("VOLMIG_ADMIN_USER", ""), os.environ.get("VOLMIG_ADMIN_PASSWORD", "")
    if not (name and password):
        if not sys.stdin.isatty():
            return "Nobody can log in yet: run  manage.py admin NAME"
        sys.stdout.write("This volmig is new. Who is its first administrator?\n")
        name = input("Name: ").strip()
        password = ask_password(name)
    make_person(name, password)
    return ""
