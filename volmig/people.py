"""Making people from the command line; the first one is asked for when volmig starts on an empty database."""

import getpass
import os
import sys
from collections.abc import Iterable

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import transaction

from volmig.accounts.roles import ALLOWS
from volmig.record.models import Event


@transaction.atomic
def make_person(name: str, password: str, roles: Iterable[str] = ()) -> None:
    """Makes a person, or changes one's password and roles; no roles means all of them."""
    chosen = set(roles)
    if unknown := chosen - set(ALLOWS):
        raise ValidationError(f"No such role: {', '.join(sorted(unknown))}.")
    people = get_user_model()
    person = people.objects.filter(username=name).first() or people(username=name)
    validate_password(password, person)
    person.is_superuser = not chosen
    person.set_password(password)
    person.full_clean()
    person.save()
    person.groups.set(Group.objects.filter(name__in=chosen))
    Event.append("person.make", object=name, data={"roles": sorted(chosen) or ["superuser"]})


def ask_name() -> str:
    """Asks on the terminal until it is a name that somebody can have."""
    while True:
        name = input("Name: ").strip()
        try:
            get_user_model()._meta.get_field("username").clean(name, None)
        except ValidationError as error:
            say(error)
        else:
            return name


def ask_password(name: str) -> str:
    """Asks twice on the terminal, until both are the same and good enough."""
    while True:
        password = getpass.getpass(f"Password for {name}: ")
        if password != getpass.getpass("Again: "):
            sys.stderr.write("These are not the same.\n")
            continue
        try:
            validate_password(password, get_user_model()(username=name))
        except ValidationError as error:
            say(error)
        else:
            return password


def say(error: ValidationError) -> None:
    sys.stderr.write(" ".join(error.messages) + "\n")


def first_administrator() -> str:
    """Makes the first person when there is none; returns a sentence about what is still to do, or nothing."""
    if get_user_model().objects.filter(is_active=True).exists():
        return ""
    name, password = os.environ.get("VOLMIG_ADMIN_USER", ""), os.environ.get("VOLMIG_ADMIN_PASSWORD", "")
    if not (name and password):
        if not sys.stdin.isatty():
            return "Nobody can log in yet: run  manage.py admin NAME"
        sys.stdout.write("This volmig is new. Who is its first administrator?\n")
        name = ask_name()
        password = ask_password(name)
    make_person(name, password)
    return ""
