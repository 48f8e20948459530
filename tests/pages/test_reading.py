"""Every page in every status: it answers, escapes what people typed, and asks little of the database."""

import json
import re
from collections import Counter

import pytest
from django.conf import settings
from django.contrib.auth.models import Group
from django.db import connection
from django.db.models.sql import compiler
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from jobs.engine.states import STATUSES
from jobs.models import Job, Policy
from jobs.templatetags import ui
from jobs.templatetags.progress import gate
from jobs.web.migrations import TABS
from tests import factories
from tests.pages import scenes
from volmig.accounts.models import Team


def text(response):
    return response.content.decode()


@pytest.mark.parametrize("status", scenes.REACHED)
def test_the_job_page_answers_in_every_status_and_in_every_tab(status, dana, browser_of, hosts):
    job = scenes.job(dana, status)
    if status == "awaiting_approval":
        scenes.approval(job)
    for tab in TABS:
        response = browser_of(dana).get(reverse("jobs:job", args=[job.pk]), {"tab": tab})
        assert response.status_code == 200
        assert job.condition().sentence in text(response)
        for part in ("actions", "facts", "tab"):
            fetched = browser_of(dana).get(
                response.request["PATH_INFO"], {"tab": tab, "part": part}, headers={"HX-Request": "true"}
            )
            assert fetched.status_code == 200
            assert "<html" not in text(fetched)


def test_the_overview_shows_when_swaps_may_run(dana, browser_of, hosts):
    team = Team.objects.get(hypervisors__name="jump-02")
    Policy(team=team, windows=["Mon-Sun 00:00-24:00"], min_bytes=1 << 40).change(dana)
    page = text(browser_of(dana).get("/"))
    assert "Maintenance windows" in page
    assert "1.0 TiB" in page
    assert "<span>open</span>" in page


def test_a_job_that_nobody_planned_yet_says_so(dana, browser_of, hosts):
    job = scenes.job(dana, "checking")
    assert "No plan yet" in text(browser_of(dana).get(reverse("jobs:plan", args=[job.pk])))


def test_the_running_step_shows_its_percentage_where_a_machine_can_read_it(dana, browser_of, hosts):
    job = scenes.job(dana, "preparing")
    page = text(browser_of(dana).get(reverse("jobs:job", args=[job.pk])))
    assert 'data-percent="62.4"' in page
    assert re.search(r"<progress max=\"644245094400\" value=\"\d+\"", page)


def test_the_plan_shows_every_command_of_every_step(dana, browser_of, hosts):
    job = scenes.job(dana, "planned")
    page = text(browser_of(dana).get(reverse("jobs:plan", args=[job.pk])))
    for step in job.plan["steps"]:
        assert step["title"] in page
    assert "qemu-img convert" in page
    assert "lvchange -pr" in page


def test_the_log_shows_what_changed_something_and_on_demand_the_questions(dana, browser_of, hosts):
    job, browser = scenes.job(dana, "preparing"), browser_of(dana)
    address = reverse("jobs:job", args=[job.pk])
    page = text(browser.get(address, {"tab": "log"}))
    assert "lvcreate" in page
    assert "lvs --reportformat" not in page
    link = re.search(r'href="(\?tab=log&amp;questions=1#details)">Show (\d+) read-only', page)
    assert int(link.group(2)) == job.runs.exclude(commands=[]).count()
    page = text(browser.get(address, {"tab": "log", "questions": "1"}))
    assert page.count('<tr class="probe">') == int(link.group(2))
    assert 'hx-get="' + address + '?part=tab&amp;tab=log&amp;questions=1"' in page, "the choice outlives a live update"


def test_a_log_of_questions_only_says_that_nothing_was_changed(dana, browser_of, hosts):
    job = scenes.job(dana, "planned")
    scenes.ran(job, "relay_lv", timezone.now(), commands=[scenes.command("lvs", probe=True)])
    page = text(browser_of(dana).get(reverse("jobs:job", args=[job.pk]), {"tab": "log"}))
    assert "No changes yet" in page
    assert "Show 1 read-only command<" in page


def test_a_halted_job_says_what_was_expected_what_was_found_and_the_ways_on(dana, browser_of, hosts):
    page = text(browser_of(dana).get(reverse("jobs:job", args=[scenes.halted(dana).pk])))
    for words in (
        "The live disk is not changed",
        "make the temporary volume",
        "an LV of this name without",
        "this step changed nothing",
        "then resume",
        "Resume",
    ):
        assert words in page


@pytest.mark.parametrize("name", ["overview", "jobs:list", "jobs:approvals", "jobs:new"])
def test_pages_stand_on_an_empty_database_and_say_what_to_do_first(name, dana, browser_of):
    assert browser_of(dana).get(reverse(name)).status_code == 200


@pytest.mark.parametrize("outcome", ["failed", "blocked", "rejected"])
def test_what_came_to_nothing_is_on_the_overview_with_the_word_for_it(outcome, dana, browser_of, hosts):
    scenes.job(dana, "undone", outcome=outcome, instance_name="lost-1")
    page = text(browser_of(dana).get("/"))
    assert "lost-1" in page
    assert f"Undone: {outcome}" in page


def test_the_first_overview_says_who_registers_hypervisors(dana, person, browser_of):
    assert "An administrator can register them" in text(browser_of(dana).get("/"))
    assert "Register the first hypervisor" in text(browser_of(person("ada", "administrator")).get("/"))


def test_the_overview_tells_what_runs_what_is_stuck_and_what_waits_for_whom(dana, kim, browser_of, hosts):
    running, stuck = scenes.job(dana, "preparing", instance_name="runs-1"), scenes.halted(dana)
    scenes.approval(scenes.job(dana, "awaiting_approval", instance_name="asks-1"))
    scenes.reservation(running)
    page = text(browser_of(kim).get("/"))
    assert "runs-1" in page
    assert stuck.halt_reason in page
    assert "cmp-lvm-08" in page  # in quarantine
    assert "Awaiting you" in page
    assert "632.0 GiB" in page
    assert "Awaiting you" not in text(browser_of(dana).get("/"))


def test_a_badge_counts_the_approvals_that_wait_for_this_person(dana, kim, browser_of, hosts):
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    badge = '<span class="count">1'
    assert badge in text(browser_of(kim).get("/"))
    assert badge not in text(browser_of(dana).get("/"))
    scenes.decision(asked, kim)
    assert badge not in text(browser_of(kim).get("/"))


@pytest.mark.parametrize("status", ["checking", "planned", "preparing", "awaiting_approval", "on_trial", "done"])
def test_what_people_typed_is_never_markup(status, dana, kim, browser_of, hosts):
    evil = scenes.HOSTILE
    job = scenes.job(
        dana,
        status,
        instance_name=evil,
        ticket=evil,
        halt_reason=evil if status == "preparing" else "",
        waiting_for=evil,
        outcome_reason=evil,
    )
    job.checks = [{"name": evil, "severity": "warns", "ok": False, "sentence": evil, "found": {evil: [evil]}}]
    job.save()
    for run in job.runs.all():
        run.evidence, run.commands, run.error = (
            {evil: evil},
            [scenes.command(evil, 1, stderr=evil)],
            {"tried": evil, "found": evil},
        )
        run.save()
    asked = scenes.approval(job)
    scenes.decision(asked, kim, reason=evil)
    paths = [
        "/",
        "/migrations/",
        "/approvals/",
        f"/approvals/{asked.pk}/",
        *(f"/migrations/{job.pk}/?tab={tab}" for tab in TABS),
    ]
    for path in [*paths, "/migrations/?q=" + evil, "/migrations/?person=" + evil]:
        page = text(browser_of(kim).get(path))
        assert "<img" not in page, path


def test_somebody_without_a_role_sees_no_job(dana, person, browser_of, hosts):
    job = scenes.job(dana)
    nobody = browser_of(person("nobody"))
    for path in ("/", "/migrations/", f"/migrations/{job.pk}/", "/approvals/"):
        assert nobody.get(path).status_code == 403


def test_strangers_are_sent_to_the_login(client, dana, hosts):
    job = scenes.job(dana)
    for path in ("/", "/migrations/", "/migrations/new", f"/migrations/{job.pk}/", "/approvals/"):
        assert client.get(path).headers["Location"].startswith("/login/")


def test_a_job_that_is_not_there_is_not_found(dana, browser_of):
    assert browser_of(dana).get("/migrations/77/").status_code == 404
    assert browser_of(dana).get(f"/migrations/{scenes.job(dana).pk}/?tab=secrets").status_code == 404
    assert browser_of(dana).post("/migrations/77/start").status_code == 404
    assert browser_of(dana).get("/approvals/77/").status_code == 404


def test_viewers_look_and_are_offered_nothing(dana, person, browser_of, hosts):
    job = scenes.job(dana, "planned")
    page = text(browser_of(person("vic", "viewer")).get(f"/migrations/{job.pk}/"))
    assert "you need the role operator" in page
    assert "Set limit" not in page


def test_every_page_keeps_to_the_content_security_policy(dana, browser_of, hosts):
    job = scenes.job(dana, "preparing")
    for path in ("/", "/migrations/", "/migrations/new", f"/migrations/{job.pk}/", "/approvals/"):
        response = browser_of(dana).get(path)
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        page = text(response)
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|\son[a-z]+=|<style|\sstyle=", page), path


def test_the_choice_of_colours_is_rendered_by_the_server(dana, browser_of):
    browser = browser_of(dana)
    browser.cookies["theme"] = "dark"
    assert 'data-bs-theme="dark"' in text(browser.get("/"))
    browser.cookies["theme"] = '"><script>'
    assert 'data-theme-choice="system"' in text(browser.get("/"))


def test_the_history_is_searched_by_what_people_remember(dana, kim, person, browser_of, hosts):
    wanted = scenes.job(dana, "done", instance_name="billing-db", ticket="OPS-77")
    other = scenes.job(person("erin", "operator"), "undone", instance_name="cache-1", ticket="X-1")
    scenes.decision(scenes.approval(wanted), kim)
    browser = browser_of(dana)
    for query in (
        "q=billing",
        "q=OPS-77",
        f"q={wanted.instance_id}",
        f"q={wanted.pk}&status=done",
        "person=dana",
        "person=kim",
        "status=done",
    ):
        page = text(browser.get(f"/migrations/?{query}"))
        assert "billing-db" in page, query
        assert "cache-1" not in page, query
    assert "cache-1" in text(browser.get("/migrations/?status=failed"))
    assert "No migration matches" in text(browser.get("/migrations/?since=2030-01-01"))
    assert "No migration matches" in text(browser.get(f"/migrations/?host={hosts['cmp-lvm-08'].pk}"))
    assert other.instance_name in text(browser.get(f"/migrations/?host={hosts['jump-02'].pk}"))
    assert browser.get("/migrations/?since=nonsense&status=never").status_code == 200
    assert browser.get("/migrations/?after=" + "9" * 6000).status_code == 200


def test_pages_of_the_history_go_on_below_a_number_and_keep_the_filters(dana, browser_of, hosts):
    numbers = [scenes.job(dana, "undone", outcome="cancelled").pk for _ in range(53)]
    browser = browser_of(dana)
    first = text(browser.get("/migrations/?status=undone"))
    after = re.search(r"\?status=undone&amp;after=(\d+)", first).group(1)
    assert int(after) == sorted(numbers)[-50]
    second = text(browser.get(f"/migrations/?status=undone&after={after}"))
    assert all(f">{number}</a>" in second for number in sorted(numbers)[:3])


def asked_for(browser, path):
    """How many queries a page takes."""
    browser.get(path)
    with CaptureQueriesContext(connection) as queries:
        browser.get(path)
    return len(queries)


@pytest.mark.parametrize("path", ["/", "/migrations/", "/approvals/"])
def test_lists_ask_the_database_the_same_number_of_times_whatever_they_list(path, dana, kim, browser_of, hosts):
    counts = []
    for more in (1, 11):
        for number in range(more):
            scenes.job(dana, "preparing", instance_name=f"r{number}")
            scenes.job(dana, "on_trial", instance_name=f"t{number}")
            scenes.job(dana, "undone")
            scenes.halted(dana)
            scenes.approval(scenes.job(dana, "awaiting_approval", instance_name=f"a{number}"))
            scenes.decision(scenes.approval(scenes.job(dana, "done"), consumed_at=timezone.now()), kim)
        counts.append(asked_for(browser_of(kim), path))
    assert counts[1] <= counts[0] < 34


def read_by(browser, path, monkeypatch):
    """How many queries a page takes, and how many rows and characters it reads with them."""
    counted, chunks = Counter(), compiler.cursor_iter

    def counting(*args):
        for rows in chunks(*args):
            counted["rows"] += len(rows)
            counted["characters"] += sum(len(value) for row in rows for value in row if isinstance(value, str))
            yield rows

    browser.get(path)
    with monkeypatch.context() as patched, CaptureQueriesContext(connection) as queries:
        patched.setattr(compiler, "cursor_iter", counting)
        browser.get(path)
    return len(queries), counted["rows"], counted["characters"]


def kept_disks(by, count):
    """Migrations that left a disk on the share each."""
    made = [scenes.job(by, "checking") for _ in range(count)]
    Job.objects.filter(status="checking").update(status="done", outcome="done", ended_at=timezone.now())
    for each in made:
        scenes.kept(each)
    return made


def lists_disks_of(name, jobs, more=0):
    """A hypervisor that mounts the share lists these disks on it, and says how many more there are."""
    host = factories.a_hypervisor(name)
    factories.mounts(host, scenes.SHARE)
    disks = [(f".volmig/{job.uuid}/disk.old", str(job.uuid)) for job in jobs]
    things = [scenes.told("backup", disk, uuid, "4711", share=scenes.SHARE) for disk, uuid in disks]
    scan = scenes.scanned(host, things, [{"source": scenes.SHARE, "answered": True}])
    scan.more = more
    scan.save()
    return scan


@pytest.mark.parametrize("path", ["/", "/leftovers/"])
def test_as_much_is_read_when_every_hypervisor_lists_the_same_share(path, dana, browser_of, hosts, monkeypatch):
    jobs, browser, read = kept_disks(dana, 30), browser_of(dana), []
    for name, count in (("first", 2), ("more", 10)):
        scans = [lists_disks_of(f"{name}-{number}", jobs) for number in range(count)]
        read.append(read_by(browser, path, monkeypatch))
    (queries, rows, characters), (more_queries, more_rows, more_characters) = read
    assert more_queries == queries
    assert more_rows - rows <= 10 * 5, "each hypervisor, its mount and the time of its scan"
    assert more_characters - characters < len(json.dumps(scans[0].on_shares)), "not what each of the ten lists"


@pytest.mark.parametrize("path", ["/", "/leftovers/"])
def test_no_more_is_read_when_the_share_has_more_kept_disks_than_are_listed(path, dana, browser_of, hosts, monkeypatch):
    jobs, browser = kept_disks(dana, 10), browser_of(dana)
    lists_disks_of("first", jobs, more=20)
    before = read_by(browser, path, monkeypatch)
    kept_disks(dana, 20)
    assert read_by(browser, path, monkeypatch)[:2] == before[:2]


@pytest.mark.parametrize("path", ["/", "/migrations/", "/approvals/"])
def test_lists_do_not_fetch_facts_that_they_do_not_show(path, dana, kim, browser_of, hosts):
    scenes.job(dana, "preparing", instance_name="r")
    scenes.halted(dana)
    scenes.approval(scenes.job(dana, "awaiting_approval", instance_name="a"))
    browser = browser_of(kim)
    with CaptureQueriesContext(connection) as queries:
        browser.get(path)
    assert not [query["sql"] for query in queries if '."facts"' in query["sql"]]


def test_a_job_page_asks_the_database_little(dana, browser_of, hosts, django_assert_max_num_queries):
    job = scenes.job(dana, "preparing")
    browser = browser_of(dana)
    with django_assert_max_num_queries(40):
        browser.get(f"/migrations/{job.pk}/")


def test_every_icon_that_is_named_is_there_and_none_lies_idle():
    templates = "".join(path.read_text() for path in (settings.BASE_DIR / "templates").rglob("*.html"))
    named = set(re.findall(r'\{% icon "([\w-]+)"', templates)) | set(ui.MESSAGE_ICONS.values())
    named |= {icon for table in (ui.STATUSES, ui.STEP_STATES, ui.SEVERITIES) for _, icon, *_ in table.values()}
    named |= {gate(Job(status=status, outcome=outcome))[2] for status in STATUSES for outcome in ("", "rejected")}
    sprite = (settings.BASE_DIR / "static" / ui.SPRITE).read_text()
    assert named | {"shield-check"} == set(re.findall(r'<symbol id="([\w-]+)"', sprite))


def test_roles_are_named_beside_the_person(dana, browser_of):
    dana.groups.add(Group.objects.get(name="auditor"))
    page = text(browser_of(dana).get("/"))
    assert "auditor, operator" in page
    assert "/audit/" in page
