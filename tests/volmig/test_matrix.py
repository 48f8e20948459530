"""Every address and live connection, for every role, method and team: nothing is allowed that is not listed here."""

import asyncio
import contextlib
import datetime as dt
import html
import json
import time
import uuid
from types import SimpleNamespace

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.routing import URLRouter
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.messages import get_messages
from django.contrib.sessions.backends.db import SessionStore
from django.db import transaction
from django.test import Client
from django.urls import get_resolver, resolve, reverse
from django.utils import timezone

from hosts.models import Cloud
from jobs.models import Policy
from jobs.web import live
from tests.factories import an_instance
from tests.fleet.beats import a_process
from tests.pages import scenes
from volmig.accounts.models import Login, Team, Token
from volmig.accounts.roles import ALLOWS, OF_MEMBERS, SEE_ALL
from volmig.models import CausedCall, QueuedTask
from volmig.record.models import Event

ANYBODY = "anybody"  # no login is needed
KNOWN = "known"  # whoever is logged in, whatever their roles
# address -> method -> the verb that a role has to allow; methods that are not here are answered with 405; but
# a GET of what is only posted, as from a bookmark, leads to the page that it belongs to.
MATRIX = {
    "login": {"GET": ANYBODY, "POST": ANYBODY},
    "login_code": {"GET": ANYBODY, "POST": ANYBODY},
    "factor": {"GET": KNOWN, "POST": KNOWN},
    "change_factor": {"GET": KNOWN, "POST": KNOWN},
    "health": {"GET": ANYBODY},
    "health_live": {"GET": ANYBODY},
    "health_ready": {"GET": ANYBODY},
    "metrics": {"GET": ANYBODY},  # for those who send the token; see tests/fleet
    "processes": {"GET": "administer"},
    "logout": {"POST": KNOWN},
    "account": {"GET": KNOWN, "POST": KNOWN},
    "confirm": {"GET": KNOWN, "POST": KNOWN},
    "add_token": {"GET": "view", "POST": "view"},
    "revoke_token": {"POST": KNOWN},
    "api_reference": {"GET": KNOWN},
    "client": {"GET": ANYBODY},
    "end_session": {"POST": KNOWN},
    "overview": {"GET": "view"},
    "accounts": {"GET": "administer"},
    "person": {"GET": "administer"},
    "change_person": {"POST": "administer"},
    "teams": {"GET": "administer"},
    "add_team": {"GET": "administer", "POST": "administer"},
    "team": {"GET": "administer", "POST": "administer"},
    "remove_team": {"POST": "administer"},
    "add_policy": {"GET": "administer", "POST": "administer"},
    "policy": {"GET": "administer", "POST": "administer"},
    "remove_policy": {"POST": "administer"},
    "adopt": {"GET": "administer"},
    "adopt_verb": {"POST": "administer"},
    "audit": {"GET": "audit"},
    "audit_export": {"GET": "audit"},
    "evidence": {"GET": "view"},
    "evidence_keys": {"GET": ANYBODY},
    "evidence_verifier": {"GET": ANYBODY},
    "evidence_heads": {"GET": "audit"},
    "hosts:list": {"GET": "view"},
    "hosts:bundle": {"GET": "view"},
    "hosts:register": {"GET": "administer", "POST": "administer"},
    "hosts:clouds": {"GET": "administer"},
    "hosts:add_cloud": {"GET": "administer", "POST": "administer"},
    "hosts:cloud": {"GET": "administer", "POST": "administer"},
    "hosts:nova": {"GET": "administer"},
    "hosts:check_cloud": {"POST": "administer"},
    "hosts:refresh_cloud": {"POST": "administer"},
    "instances": {"GET": "view"},
    "instance": {"GET": "view"},
    "checks": {"GET": "view"},
    "hosts:hypervisor": {"GET": "view"},
    "hosts:edit": {"GET": "administer", "POST": "administer"},
    "hosts:pin": {"GET": "administer", "POST": "administer"},
    "hosts:offer": {"POST": "administer"},
    "hosts:refresh": {"POST": "view"},
    "hosts:policy": {"POST": "administer"},
    "hosts:seal_key": {"POST": "administer"},
    "hosts:retire": {"POST": "administer"},
    "jobs:list": {"GET": "view"},
    "jobs:new": {"GET": "submit", "POST": "submit"},
    "jobs:job": {"GET": "view"},
    "jobs:plan": {"GET": "view"},
    "jobs:evidence": {"GET": "view"},
    "jobs:export": {"GET": "view"},
    "jobs:extend": {"GET": "submit", "POST": "submit"},
    "jobs:verb": {"POST": "submit"},
    "jobs:leftovers": {"GET": "view"},
    "jobs:scan": {"POST": "view"},
    "jobs:leftover": {"POST": "submit"},
    "jobs:backups": {"GET": "view"},
    "jobs:approvals": {"GET": "view"},
    "jobs:count": {"GET": "view"},
    "jobs:attention": {"GET": "view"},
    "jobs:approval": {"GET": "view", "POST": "approve"},
}


def alike(names, **what):
    return dict.fromkeys(names.split(), what)


# The operations of the REST API by their addresses; several stand at one address, each for methods of its own.
VERBS = {
    **alike("start cancel resume try_again confirm rate rollback purge rehearse extend", POST="submit"),
    **alike("approve reject withdraw", POST="approve"),
}
OPERATIONS = {
    "me": {"GET": KNOWN},
    "openapi-json": {"GET": ANYBODY},
    "nothing": dict.fromkeys(("GET", "POST", "PUT", "DELETE"), ANYBODY),
    **alike("hypervisors register", GET="view", POST="administer"),
    "hypervisor": {"GET": "view"},
    **alike("registration change", GET="administer", PUT="administer"),
    **alike("pin offer retire", POST="administer"),
    "refresh": {"POST": "view"},
    **alike("volumes find_volumes shares servers", GET="view"),
    "clouds": {"GET": "administer"},
    **alike("check_cloud refresh_cloud", POST="administer"),
    **alike("jobs submit", GET="view", POST="submit"),
    "preflight": {"POST": "submit"},
    **alike("job progress plan events evidence its_approvals", GET="view"),
    **VERBS,
    **alike("inbox approval backups leftovers", GET="view"),
    "scan": {"POST": "view"},
    "leftover": {"POST": "submit"},
    "the_record": {"GET": "audit"},
    "evidence_keys": {"GET": "view"},
    "evidence_heads": {"GET": "audit"},
}
MATRIX |= {f"api:{name}": methods for name, methods in OPERATIONS.items()}
WISH = {"source": "a", "volume": "a/b", "instance": str(uuid.UUID(int=1)), "relay": "c", "relay_vg": "d"}
SENT = {
    **alike("hypervisors register", name="new", address="192.0.2.99"),
    **alike("registration change", address="192.0.2.99"),
    **alike("jobs submit preflight", **WISH),
    "pin": {"fingerprint": "SHA256:x"},
    "retire": {"name": "x"},
    "rate": {"rate_mib": None},
    "rollback": {},
    "extend": {"day": "2030-01-01", "reason": "x"},
    "approve": {"digest": "x", "instance": "x", "reason": "x"},
    **alike("reject withdraw", reason="x"),
    "leftover": {"kind": "lv", "name": "x", "job": "x", "identity": "x"},
}
OF_TEAMS = {"hosts:hypervisor", "hosts:edit", "hosts:pin", "hosts:offer", "hosts:refresh", "hosts:retire"} | {
    "hosts:policy", "hosts:seal_key",
    "jobs:job", "jobs:plan", "jobs:evidence", "jobs:extend", "jobs:verb", "jobs:approval", "jobs:leftover", "instance",
}  # fmt: skip
OF_HYPERVISORS = {"hypervisor", "registration", "change", "pin", "offer", "refresh", "retire", "volumes", "leftover"}
OF_JOBS = {"job", "progress", "plan", "events", "evidence", "its_approvals", *VERBS}
OF_TEAMS |= {f"api:{name}" for name in (*OF_HYPERVISORS, *OF_JOBS, "approval")}
CONSUMERS = {
    "live/migrations/": False,
    "live/migrations/<int:number>/": True,
    "live/inbox/": False,
}  # whether it is of a team
METHODS = ("GET", "POST", "PUT", "DELETE")
PEOPLE = (*ALLOWS, "anonymous", "disabled", "without a role")


def addresses(patterns=None, space=""):
    """The name of every address that volmig answers."""
    for each in get_resolver().url_patterns if patterns is None else patterns:
        if hasattr(each, "url_patterns"):
            yield from addresses(each.url_patterns, f"{each.namespace}:" if each.namespace else space)
        else:
            yield f"{space}{each.name}"


def test_every_address_is_in_the_matrix():
    assert set(addresses()) == set(MATRIX), "a new address needs a row that says who may do what there"


def test_every_live_connection_is_in_the_matrix():
    assert {str(route.pattern) for route in live.routes} == set(CONSUMERS)


@pytest.fixture
def people(person):
    """One person of each kind, all members of the team red, none of the team blue."""
    made = {role: person(role, role) for role in ALLOWS}
    made["disabled"] = person("disabled", *ALLOWS, is_active=False)
    made["without a role"] = person("none")
    red, _ = (Team.objects.create(name=name) for name in ("red", "blue"))
    red.members.set(made.values())
    return made


@pytest.fixture
def things(people, person):
    """A hypervisor, a migration and an open approval of each team, as arguments of the addresses."""
    hosts, by = scenes.hypervisors(), person("somebody", "operator")
    made = {}
    for name in ("red", "blue"):
        team = Team.objects.get(name=name)
        copies = {}
        for host in hosts.values():
            host.pk, host.name = None, f"{name}-{host.name.removeprefix('red-')}"
            host.team, host._state.adding = team, True
            host.save()
            copies[host.name] = host
        source, relay, destination = (copies[f"{name}-{each}"] for each in ("cmp-lvm-07", "jump-02", "cmp-nfs-03"))
        job = scenes.job(by, "checking", source=source, relay=relay, destination=destination)
        scenes.plan_for(job)
        job.put(status="awaiting_approval")
        instance = an_instance(destination, str(uuid.uuid4())).uuid
        made[name] = {"hosts": source.pk, "job": job.pk, "approval": scenes.approval(job).pk, "instance": instance}
    return made


def somebodys_session():
    """A session that is alive, and of none of those who ask."""
    SessionStore(session_key="theirs").save(must_create=True)
    now = timezone.now()
    somebody = User.objects.get(username="somebody")
    return Login.objects.create(session_key="theirs", person=somebody, since=now, seen_at=now).pk


def with_nova():
    return Cloud.objects.get_or_create(name="eu-2", control="openstack")[0]


def arguments(name, thing):
    """What goes into an address: the object of a team where it names one."""
    if name.startswith("api:"):
        return of_operation(name.removeprefix("api:"), thing)
    if name in OF_TEAMS:
        own = {"jobs:approval": "approval", "jobs:leftover": "hosts", "instance": "instance"}
        kind = "hosts" if name.startswith("hosts") else own.get(name, "job")
        verbs = {"jobs:verb": ["cancel"], "jobs:leftover": ["remove"]}
        return [thing[kind], *verbs.get(name, [])]
    somebody, blue = User.objects.get(username="somebody").pk, Team.objects.get(name="blue").pk
    makers = {
        "hosts:cloud": lambda: [Cloud.objects.get_or_create(name="eu-1")[0].pk],
        **dict.fromkeys(("hosts:nova", "hosts:check_cloud", "hosts:refresh_cloud"), lambda: [with_nova().pk]),
        "team": lambda: [blue],
        "remove_team": lambda: [blue],
        "add_policy": lambda: [blue],
        "policy": lambda: [blue, Policy.objects.get_or_create(team_id=blue)[0].pk],
        "remove_policy": lambda: [blue, Policy.objects.get_or_create(team_id=blue)[0].pk],
        "person": lambda: [somebody],
        "change_person": lambda: [somebody, "end-sessions"],
        "change_factor": lambda: ["remove"],
        "end_session": lambda: [somebodys_session()],
        "revoke_token": lambda: [somebodys_token()],
        "audit_export": lambda: ["csv"],
        "adopt_verb": lambda: ["compare"],
    }
    return makers[name]() if name in makers else []


def of_operation(name, thing):
    """The same for an operation of the API."""
    if name in OF_HYPERVISORS:
        return [thing["hosts"], *(["remove"] if name == "leftover" else [])]
    if name in OF_JOBS:
        return [thing["job"]]
    makers = {
        "approval": lambda: [thing["approval"]],
        "nothing": lambda: ["nothing/of/the/kind"],
        **dict.fromkeys(("check_cloud", "refresh_cloud"), lambda: [with_nova().pk]),
    }
    return makers[name]() if name in makers else []


def somebodys_token():
    return Token.objects.make(User.objects.get(username="somebody"), "theirs", [], 1)[0].pk


def wanted(name, who, method, team):
    """What has to come of it: login, 405, led, 403, 404 or allowed."""
    verb = MATRIX[name].get(method)
    roles = {who} & set(ALLOWS)
    known = who not in ("anonymous", "disabled")
    if verb == ANYBODY or not (known or verb):
        return "allowed" if verb else "login or 405"
    if not known:
        return "login or 405"
    if not verb:
        return "led" if method == "GET" and not name.startswith("api:") else "405"
    if verb == KNOWN:
        return "allowed"
    if not any(verb in ALLOWS[role] for role in roles):
        return "403"
    if name in OF_TEAMS and team == "blue":
        return "404" if not roles & SEE_ALL else "403" if verb in OF_MEMBERS else "allowed"
    return "allowed"


def outcome(response):
    if response.status_code == 401:
        return "login"
    if response.status_code == 302 and response.headers["Location"].startswith("/login/"):
        return "login"
    return str(response.status_code) if response.status_code in (403, 404, 405) else "allowed"


def is_led(name, method, response):
    """Whether it leads from what is only posted to a page."""
    if method != "GET" or "GET" in MATRIX[name] or response.status_code != 302:
        return False
    return "GET" in MATRIX[resolve(response.headers["Location"]).view_name]


def fits(name, got, want):
    if name in ("logout", "login_code") and want == "allowed":
        return got in ("login", "allowed")  # where it leads, without a password that was typed before
    if name == "change_factor" and want == "allowed":
        return got == "404"  # for nobody here has one
    if name == "metrics" and want == "allowed":
        return got == "404"  # without VOLMIG_METRICS_TOKEN the path does not exist
    if name == "api:nothing":
        return got == "404"
    if name in ("end_session", "revoke_token") and want == "allowed":
        return got == "404"  # somebody else's
    return got == want or got in want.split(" or ")


def teams_for(name):
    """The other team's object is asked for where there is one."""
    return ("red", "blue") if name in OF_TEAMS else ("red",)


def entered(who, people, name):
    """A browser of this person that is logged in; for the API, a program that shows a token for everything."""
    client = Client()
    if who == "anonymous":
        return client, {}
    if name.startswith("api:"):
        letters = Token.objects.make(people[who], "all", ["submit", "approve", "administer", "audit"], 1)[1]
        return client, {"headers": {"Authorization": f"Bearer {letters}"}}
    client.force_login(people[who])
    return client, {}


def body(name, method):
    """What makes a request to an operation one that it understands."""
    sent = SENT.get(name.removeprefix("api:")) if method in ("POST", "PUT") and name.startswith("api:") else None
    return {"data": json.dumps(sent), "content_type": "application/json"} if sent is not None else {}


class Undone(Exception):  # noqa: N818
    """Takes back what a request has changed."""


@pytest.mark.parametrize("name", MATRIX)
def test_nothing_is_allowed_that_the_matrix_does_not_allow(name, people, things):
    wrong = []
    addresses = {team: reverse(name, args=arguments(name, things[team])) for team in teams_for(name)}
    for who in PEOPLE:
        client, shown = entered(who, people, name)
        cookies = client.cookies.output()
        for team, address in addresses.items():
            for method in METHODS:
                try:
                    with transaction.atomic():
                        response = client.generic(method, address, **body(name, method), **shown)
                        got = outcome(response)
                        if got == "allowed" and is_led(name, method, response):
                            got = "led"
                        raise Undone
                except Undone:
                    client.cookies.load(cookies.replace("Set-Cookie: ", ""))
                if not fits(name, got, want := wanted(name, who, method, team)):
                    wrong.append(f"{method} {address} of {team} by {who}: {got}, not {want}")
    assert not wrong, "\n".join(wrong)


# What is typed where an empty form requests nothing.
FORMS = {
    "hosts:register": lambda: {
        "name": "cmp-new-01",
        "address": "192.0.2.77",
        "port": "22",
        "user": "volmig",
        "team": Team.objects.get(name="red").pk,
    },
}
POSTED = [name for name, methods in MATRIX.items() if "GET" not in methods and not name.startswith("api:")]


@pytest.mark.parametrize("name", POSTED)
def test_what_is_only_posted_leads_to_a_page_that_says_that_nothing_was_changed(name, people, things):
    client, _ = entered("administrator", people, name)
    before = Event.objects.count()
    address = reverse(name, args=arguments(name, things["red"]))
    assert client.head(address).status_code == 302
    response = client.get(address, follow=True)
    assert "use the button on this page" in html.unescape(response.content.decode())
    assert Event.objects.count() == before


@pytest.mark.parametrize("method", ["get", "post"])
def test_an_address_of_a_button_that_no_page_has_is_none(method, people, things):
    found = {}
    for name in POSTED:
        address = reverse(name, args=arguments(name, things["red"]))
        if "verb" in (named := resolve(address).kwargs):
            client, _ = entered("administrator", people, name)
            found[name] = getattr(client, method)(reverse(name, kwargs={**named, "verb": "plam"})).status_code
    assert "jobs:verb" in found
    assert set(found.values()) == {404}, found


def test_every_page_that_requests_something_of_workers_says_when_none_run(people, person, things):
    """Whatever a form has them do would wait for ever without a word."""
    everybody = {"all": person("all", "administrator", "operator", "approver")}
    Team.objects.get(name="red").members.set(everybody.values())
    a_process("web", started_at=timezone.now() - dt.timedelta(hours=1))
    asked, silent = set(), set()
    for name in [name for name, methods in MATRIX.items() if "POST" in methods and not name.startswith("api:")]:
        client, _ = entered("all", everybody, name)
        session = client.session
        session["password_at"] = time.time()
        session.save()
        address = reverse(name, args=arguments(name, things["red"]))
        with contextlib.suppress(Undone), transaction.atomic():
            CausedCall.objects.all().delete()
            QueuedTask.objects.all().delete()
            response = client.post(address, FORMS.get(name, dict)())
            if QueuedTask.objects.exclude(name="volmig.notify.send").exists():
                asked.add(name)
                if not any("workers are running" in str(said) for said in get_messages(response.wsgi_request)):
                    silent.add(name)
            raise Undone
    assert asked >= {"jobs:scan", "hosts:refresh", "hosts:offer", "hosts:register", "jobs:verb", "hosts:refresh_cloud"}
    assert not silent


@pytest.mark.parametrize("name", MATRIX)
def test_no_answer_is_kept_in_a_cache(name, people, things):
    """Whether it is the page, a redirect, a refusal or no such method."""
    address = reverse(name, args=arguments(name, things["red"]))
    for who in ("administrator", "anonymous"):
        client, shown = entered(who, people, name)
        response = client.get(address, **shown)
        assert response.headers["Cache-Control"] == "no-store", (who, response.status_code)


def test_static_files_may_be_kept(client, db):
    assert "no-store" not in client.get("/static/icon.svg").headers.get("Cache-Control", "")


async def first_answer(user, path):
    """Whether a live connection stays open."""
    session = SimpleNamespace(session_key="any")
    scope = {"type": "websocket", "path": f"/{path}", "user": user, "session": session}
    connection = ApplicationCommunicator(URLRouter(live.routes), scope)
    await connection.send_input({"type": "websocket.connect"})
    assert (await connection.receive_output(60))["type"] == "websocket.accept"  # a busy machine is slow
    stays = await connection.receive_nothing() or (await connection.receive_output(60))["type"] != "websocket.close"
    await connection.send_input({"type": "websocket.disconnect", "code": 1000})
    await connection.wait()
    return stays


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("route", CONSUMERS)
def test_a_live_connection_is_only_for_those_who_may_see_what_it_shows(route, people, things, monkeypatch):
    async def nothing(self):
        pass

    monkeypatch.setattr(live.Tailer, "run", nothing)
    for who in PEOPLE:
        user = AnonymousUser() if who == "anonymous" else people[who]
        for team in ("red", "blue"):
            path = route.replace("<int:number>", str(things[team]["job"]))
            may = bool({who} & set(ALLOWS)) and (not CONSUMERS[route] or team == "red" or bool({who} & SEE_ALL))
            assert asyncio.run(first_answer(user, path)) == may, (who, team)
