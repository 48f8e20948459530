"""Refused logins in the audit log: counts, once a minute; no request without a login takes the lock of the chain."""

from collections import Counter
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from volmig.accounts.throttle import LIMITS, QUIET, Tries
from volmig.notify import announce
from volmig.record.models import Event

ACTIONS = {"code": "person.code_refused", "token": "token.refused"}  # by how a kind begins
NAMED = 20  # accounts with an event of their own; more are counted together in one
PLACES = 10
KINDS = {action: [kind for kind in LIMITS if kind.startswith(begins)] for begins, action in ACTIONS.items()}
KINDS["person.login_refused"] = [kind for kind in LIMITS if not kind.startswith(tuple(ACTIONS))]


def record() -> None:
    """Task, once a minute: writes what was refused since the last one, at most NAMED + 2 events for each of KINDS."""
    for action, kinds in KINDS.items():
        for people in groups(pending(kinds)):
            record_group(action, pending(kinds).filter(people))
    notify()
    Tries.objects.filter(last_at__lt=timezone.now() - QUIET, wrong=0, refused=0).delete()


def pending(kinds: list[str]) -> QuerySet[Tries]:
    """Rows of wrong or refused tries that are not in the audit log yet."""
    return Tries.objects.filter(kind__in=kinds).filter(Q(wrong__gt=0) | Q(refused__gt=0))


def groups(rows: QuerySet[Tries]) -> list[Q]:
    """Which rows make one event: each of the accounts tried most, the other accounts together, names of nobody."""
    tried: Counter[int | None] = Counter()
    for person, wrong, refused in rows.values_list("person", "wrong", "refused"):
        tried[person] += wrong + refused
    nobody = [Q(person=None)] if tried.pop(None, 0) else []
    alone = [person for person, _ in tried.most_common(NAMED)]
    others = [Q(person__in=set(tried) - set(alone))] if len(tried) > NAMED else []
    return [*(Q(person=person) for person in alone), *others, *nobody]


@transaction.atomic
def record_group(action: str, rows: QuerySet[Tries]) -> None:
    """One event. A row that is just being counted in is passed over, and recorded the next time."""
    found = list(rows.select_for_update(skip_locked=True))
    if not found:
        return
    Tries.objects.filter(pk__in=[row.pk for row in found]).update(wrong=0, refused=0)
    places: Counter[str] = Counter()
    for row in found:
        places[row.place] += row.wrong + row.refused
    del places[""]
    people = {row.person_id for row in found} - {None}
    data: dict[str, Any] = {
        "wrong": sum(row.wrong for row in found),
        "refused": sum(row.refused for row in found),
        "addresses": dict(places.most_common(PLACES)),
        "of_addresses": len(places),
    }
    if len(people) > 1:
        data["accounts"] = len(people)
    Event.append(action, object=names_of(people)[0] if len(people) == 1 else "", data=data)  # last: it locks the chain


def names_of(people: set[Any]) -> list[str]:
    """Usernames in order, of people by their keys."""
    known = get_user_model().objects.filter(pk__in=people).order_by("username")
    return list(known.values_list("username", flat=True))


def notify() -> None:
    """One notice for all accounts whose limit was reached since the last one; each account once per attack."""
    now = timezone.now()
    reached = Q(pk__in=())
    for kind in ("all", "codename", "loginname"):
        reached |= Q(kind=kind, count__gte=LIMITS[kind].tries)
    rows = list(Tries.objects.filter(reached, noticed_at=None, last_at__gt=now - QUIET).filter(REAL))
    if not rows:
        return
    sentences = []
    for kind, sentence in SENTENCES.items():
        if reached_here := [row for row in rows if row.kind == kind]:
            sentences.append(sentence.format(listed(names_of({row.person_id for row in reached_here}))))
    with transaction.atomic():
        Tries.objects.filter(pk__in=[row.pk for row in rows]).update(noticed_at=now)
        announce("guessing", subject="Passwords are being guessed", text="\n\n".join(sentences), url_path="/audit/")


def listed(names: list[str]) -> str:
    """The first names of a list and how many follow."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


REAL = Q(kind="all") | Q(person__isnull=False)  # a name that nobody has concerns nobody
SENTENCES = {
    "loginname": (
        "Many wrong passwords were typed for: {}. A browser in which they have not logged in before now waits longer "
        "after every try. The audit log has the addresses."
    ),
    "codename": "Many wrong codes were typed, each after the right password, for: {}. Have these passwords changed.",
    "all": "More wrong passwords arrived in ten minutes than volmig checks: unknown browsers cannot log in for now.{}",
}
