"""Making people, the first one when volmig starts on an empty database, and what is changed of people and teams."""

import getpass
import sys
from collections.abc import Iterable
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.shortcuts import get_object_or_404

from volmig import environment
from volmig.accounts import factors
from volmig.accounts.models import Login, Token
from volmig.accounts.roles import ALLOWS
from volmig.record.models import Event
from volmig.record.origin import shortened


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
    Login.objects.filter(person=person).end()
    Token.objects.filter(person=person).revoke()
    factors.remove(person)  # who has the server's command line helps people who lost their telephone
    person.groups.set(Group.objects.filter(name__in=chosen))
    Event.append("person.make", object=name, data={"roles": sorted(chosen) or ["superuser"]})


def why_not_change(person: Any, by: Any) -> str:
    """Why `by` may not change this account, as a sentence; empty when they may."""
    if person.pk == by.pk:
        return "Another administrator has to change your account."  # so one is always left who can
    if person.is_superuser and not by.is_superuser:
        return "Only another superuser can change a superuser's account."
    return ""


def theirs(pk: int, by: Any) -> Any:
    """Locks somebody else's account for a change; raises PermissionDenied with the reason when it is not theirs."""
    person = get_object_or_404(get_user_model().objects.select_for_update(), pk=pk)
    if why := why_not_change(person, by):
        raise PermissionDenied(why)
    return person


def shut_out(person: Any) -> dict[str, int]:
    """Ends all sessions and tokens of somebody; returns how many of each, for the audit log."""
    return {"sessions_ended": person.logins.end(), "tokens_revoked": person.tokens.revoke()}


@transaction.atomic
def set_active(pk: int, active: bool, by: Any) -> None:
    """Disables or enables somebody; who is disabled is logged out everywhere."""
    person = theirs(pk, by)
    if person.is_active == active:
        return
    person.is_active = active
    person.save(update_fields=["is_active"])
    change = {"before": {"active": not active}, "after": {"active": active}, **(shut_out(person) if not active else {})}
    Event.append("person.enable" if active else "person.disable", actor=by, object=person.get_username(), data=change)


@transaction.atomic
def set_roles(pk: int, roles: Iterable[str], by: Any) -> None:
    """Gives somebody exactly these roles; groups that are no roles stay. Raises ValidationError for unknown ones."""
    person, wanted = theirs(pk, by), sorted(set(roles))
    if unknown := set(wanted) - set(ALLOWS):
        raise ValidationError(f"No such role: {', '.join(sorted(unknown))}.")
    had = sorted(person.groups.filter(name__in=ALLOWS).values_list("name", flat=True))
    if had == wanted:
        return
    person.groups.remove(*Group.objects.filter(name__in=ALLOWS))
    person.groups.add(*Group.objects.filter(name__in=wanted))
    change = {"before": {"roles": had}, "after": {"roles": wanted}}
    Event.append("person.roles", actor=by, object=person.get_username(), data=change)


@transaction.atomic
def end_sessions(pk: int, by: Any) -> int:
    """Logs somebody out everywhere, their programs too; returns how many sessions that were."""
    person = theirs(pk, by)
    ended = shut_out(person)
    Event.append("person.sessions_end", actor=by, object=person.get_username(), data=ended)
    return ended["sessions_ended"]


@transaction.atomic
def remove_factor(pk: int, by: Any) -> None:
    """Takes somebody's second factor away, who lost it; they are logged out everywhere."""
    person = theirs(pk, by)
    if factors.remove(person):
        Event.append("person.factor_remove", actor=by, object=person.get_username(), data=shut_out(person))


@transaction.atomic
def make_token(person: Any, name: str, verbs: Iterable[str], days: int) -> str:
    """Makes a token of one's own; returns its letters, which nobody can be shown again."""
    token, letters = Token.objects.make(person, name, verbs, days)
    Event.append("token.make", actor=person, object=person.get_username(), data=token.told())
    return letters


@transaction.atomic
def revoke_token(token: Token, by: Any) -> None:
    """Ends a token, if it still counts."""
    if Token.objects.filter(pk=token.pk).revoke():
        Event.append("token.revoke", actor=by, object=token.person.get_username(), data=token.told())


def end_session(login: Login) -> None:
    """Ends one of somebody's own sessions."""
    data = {"ended": shortened(login.session_key), "address": login.address, "since": login.since}
    Event.append("person.session_end", actor=login.person, object=login.person.get_username(), data=data)
    Login.objects.filter(pk=login.pk).end()


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
            sys.stderr.write("The passwords do not match.\n")
            continue
        try:
            validate_password(password, get_user_model()(username=name))
        except ValidationError as error:
            say(error)
        else:
            return password


def say(error: ValidationError) -> None:
    """Writes what is wrong with a password to the terminal."""
    sys.stderr.write(" ".join(error.messages) + "\n")


def first_administrator() -> str:
    """Makes the first person when there is none; returns a sentence about what is still to do, or nothing."""
    name, password = environment.text("ADMIN_USER"), environment.text("ADMIN_PASSWORD")
    if get_user_model().objects.filter(is_active=True).exists():
        return f"VOLMIG_ADMIN_USER={name} is ignored: there are accounts already." if name else ""
    if not (name and password):
        if not sys.stdin.isatty():
            return "No account exists yet: run manage.py admin NAME"
        sys.stdout.write("This volmig is new. Create its first administrator.\n")
        name = ask_name()
        password = ask_password(name)
    make_person(name, password)
    return ""
