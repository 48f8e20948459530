"""The leftovers page: every difference with its owner and what can be done, and nothing for those who may not."""

import re

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from hosts.models import Hypervisor, Scan
from jobs import drift
from jobs.models import Footprint, Job, Removal
from tests.factories import a_hypervisor
from tests.pages import scenes
from volmig.accounts.models import Team, Token
from volmig.models import QueuedTask


def text(response):
    return response.content.decode()


@pytest.fixture
def over(dana, hosts):
    return scenes.leftovers(dana)


def page(browser):
    response = browser.get(reverse("jobs:leftovers"))
    assert response.status_code == 200
    return text(response)


def section(shown, verdict):
    found = re.search(rf'<section class="card" aria-labelledby="h-{verdict}">.*?</section>', shown, re.DOTALL)
    return found.group() if found else ""


def forms(shown):
    """Every form for a thing: where it goes, and what it tells."""
    for form in re.findall(r'<form method="post" action="(/leftovers/\d+/\w+)">(.*?)</form>', shown, re.DOTALL):
        yield form[0], dict(re.findall(r'name="(kind|name|job|identity)" value="([^"]*)"', form[1]))


def the_form(shown, kind):
    return next((address, told) for address, told in forms(shown) if told["kind"] == kind)


def test_all_differences_are_shown_with_owner_size_and_what_can_be_done(over, dana, browser_of):
    shown = page(browser_of(dana))
    left = section(shown, "left")
    assert f"/migrations/{over.pk}/" in left
    assert "632.0 GiB" in left
    assert {told["kind"] for _, told in forms(left)} == {"lv", "stage"}
    assert "Another object has this name" in section(shown, "other")
    stranger = section(shown, "stranger")
    assert "lvremove -S" in stranger
    assert "systemctl status" in stranger
    assert list(forms(stranger)) == []
    assert [told["kind"] for address, told in forms(section(shown, "gone")) if address.endswith("strike")] == ["mount"]
    assert "until its purge is approved" in section(shown, "needed")
    for words in ("connection refused", "is not responding there", "Not listed: unit"):
        assert words in section(shown, "asked")


def test_what_became_of_removals_is_shown_and_escaped(over, dana, browser_of):
    shown = section(page(browser_of(dana)), "removals")
    assert "under way" in shown
    assert scenes.HOSTILE not in shown
    assert "&lt;img" in shown


def test_the_overview_counts_what_drifts_and_is_silent_when_nothing_does(over, dana, browser_of):
    browser = browser_of(dana)
    assert "<strong>6 differences between the inventory and what hypervisors report." in text(browser.get("/"))
    Scan.objects.all().delete()
    assert "between the inventory and what" not in text(browser.get("/"))


def test_where_much_is_compared_the_overview_counts_once_for_all_who_see_the_same(
    over, dana, kim, person, browser_of, monkeypatch
):
    """And who sees other hypervisors has a count of their own: what another team's report changes none of it."""
    monkeypatch.setattr(drift.recent, "worth", lambda _: True)
    said = "<strong>6 differences between the inventory and what hypervisors report."
    assert said in text(browser_of(dana).get("/"))
    Team.objects.update(everybody=False)
    mine = Team.objects.create(name="mine")
    otto = person("otto", "operator")
    mine.members.add(otto)
    a_hypervisor("own").put(team=mine)
    assert "between the inventory and what" not in text(browser_of(otto).get("/"))
    drift.recent.forget()
    Team.objects.exclude(pk=mine.pk).get().members.add(dana, kim)
    Hypervisor.objects.filter(name="own").update(retired_at=timezone.now())
    assert said in text(browser_of(dana).get("/"))
    Scan.objects.all().delete()
    assert said in text(browser_of(kim).get("/")), "for some seconds"
    drift.recent.forget()
    assert "between the inventory and what" not in text(browser_of(kim).get("/"))


def test_what_a_person_does_is_on_the_page_at_once_however_long_comparisons_are_kept(
    over, dana, browser_of, monkeypatch
):
    monkeypatch.setattr(drift.recent, "worth", lambda _: True)
    browser = browser_of(dana)
    address, told = the_form(section(page(browser), "gone"), "mount")
    browser.post(address, told)
    assert "mount" not in [told["kind"] for _, told in forms(section(page(browser), "gone"))]


def test_a_verdict_is_shown_whole_where_it_was_cut(over, dana, browser_of, monkeypatch):
    monkeypatch.setattr("jobs.web.leftovers.SHOWN", 1)
    browser = browser_of(dana)
    cut = page(browser)
    assert {len(list(forms(section(cut, verdict)))) for verdict in ("left", "gone")} == {1}
    assert 'href="?all=left"' in section(cut, "left")
    whole = text(browser.get("/leftovers/?all=left"))
    assert {told["kind"] for _, told in forms(section(whole, "left"))} == {"lv", "stage"}
    assert section(whole, "gone") == ""
    assert "/leftovers/?all=left" in whole, "so that it stays whole when it is fetched again"
    assert section(text(browser.get("/leftovers/?all=nonesuch")), "gone")


def test_a_removal_is_asked_for_from_the_page(over, dana, browser_of):
    browser = browser_of(dana)
    address, told = the_form(page(browser), "stage")
    shown = text(browser.post(address, told, follow=True))
    assert "is checked again" in shown
    wish = Removal.objects.get(kind="stage")
    assert (wish.job, wish.identity, wish.step, wish.asked_by) == (over, "88123", "stage", dana)
    assert "dana requested its removal" in section(shown, "left")


def test_what_is_gone_is_struck_off_from_the_page(over, dana, browser_of):
    browser = browser_of(dana)
    address, told = the_form(section(page(browser), "gone"), "mount")
    assert "is marked as gone" in text(browser.post(address, told, follow=True))
    assert over.footprints.get(kind="mount").state == "gone"


@pytest.mark.parametrize(
    "changed", [{"identity": "another"}, {"name": "vg_nova0/root"}, {"job": ""}, {"kind": "fence"}]
)
def test_a_form_that_means_something_else_than_is_seen_changes_nothing(over, dana, browser_of, changed):
    browser = browser_of(dana)
    address, told = the_form(page(browser), "lv")
    before = Removal.objects.count()
    assert "Nothing was changed" in text(browser.post(address, {**told, **changed}, follow=True))
    assert Removal.objects.count() == before


def test_a_form_of_another_hypervisor_changes_nothing(over, dana, browser_of):
    browser = browser_of(dana)
    _, told = the_form(page(browser), "lv")
    elsewhere = reverse("jobs:leftover", args=[over.source_id, "remove"])
    before = Removal.objects.count()
    assert "Nothing was changed" in text(browser.post(elsewhere, told, follow=True))
    assert Removal.objects.count() == before


def test_strangers_and_backups_are_not_removed_by_a_form_that_somebody_wrote(over, dana, browser_of):
    browser = browser_of(dana)
    before = Removal.objects.count()
    for thing in Scan.objects.get(hypervisor=over.relay).things:
        if thing["identity"] in ("strange", "4711", "another filesystem", "unit"):
            told = {name: thing[name] for name in ("kind", "name", "job", "identity")}
            browser.post(reverse("jobs:leftover", args=[over.relay_id, "remove"]), told)
    assert Removal.objects.count() == before


@pytest.mark.parametrize("role", ["viewer", "approver", "auditor", "administrator"])
def test_who_is_no_operator_sees_it_all_and_is_offered_nothing(over, role, person, browser_of):
    browser = browser_of(person("somebody", role))
    shown = page(browser)
    assert section(shown, "left")
    assert list(forms(shown)) == []
    assert "you need the role operator" in shown
    told = {"kind": "lv", "name": "x", "job": str(over.uuid), "identity": "re1ayy"}
    assert browser.post(reverse("jobs:leftover", args=[over.relay_id, "remove"]), told).status_code == 403


def test_another_teams_hypervisors_are_neither_shown_nor_acted_on(over, person, browser_of):
    Team.objects.update(everybody=False)
    mine = Team.objects.create(name="mine")
    otto = person("otto", "operator")
    mine.members.add(otto)
    Hypervisor.objects.filter(pk=over.source_id).update(team=mine)
    browser = browser_of(otto)
    shown = page(browser)
    assert (section(shown, "left"), section(shown, "stranger")) == ("", "")
    gone = section(shown, "gone")
    assert "of another team" in gone
    assert f"/migrations/{over.pk}/" not in gone
    assert browser.post(reverse("jobs:leftover", args=[over.relay_id, "remove"]), {}).status_code == 404


def test_of_another_teams_migration_on_a_common_share_nothing_is_shown_that_names_it(over, person, browser_of):
    """What lies there, and how large it is; neither number nor UUID, on the page and in the API."""
    Team.objects.update(everybody=False)
    mine = Team.objects.create(name="mine")
    otto = person("otto", "operator")
    mine.members.add(otto)
    scan = next(each for each in Scan.objects.order_by("pk") if each.on_shares)
    mount = {"source": scan.shares[0]["source"], "target": "/mnt/x", "options": "", "size": 9, "free": 1}
    own = a_hypervisor("own")
    own.put(team=mine)
    own.record_mounts([mount], timezone.now())
    on_share = scan.on_shares
    scenes.scanned(own, on_share, scan.shares)
    others = [job for job in Job.objects.all() if str(job.uuid) in str(on_share)]
    assert others, "there is something of them on the share"
    shown = page(browser_of(otto))
    assert "of another team" in shown
    letters = Token.objects.make(otto, "t", [], 1)[1]
    told = Client(headers={"Authorization": f"Bearer {letters}"}).get("/api/v1/leftovers?all=true")
    assert any(row["name"] == "of another team" for row in told.json()["items"])
    for job in others:
        for text in (shown, told.content.decode()):
            assert str(job.uuid) not in text
            assert f"igration {job.pk}" not in text
            assert f"/migrations/{job.pk}/" not in text
            assert "jump-02" not in text, "nor their hypervisors"
    about = {"kind": on_share[0]["kind"], "name": on_share[0]["name"], "job": on_share[0]["job"], "identity": "x"}
    sent = browser_of(otto).post(reverse("jobs:leftover", args=[own.pk, "strike"]), about, follow=True)
    assert "The state has changed" in sent.content.decode()


def test_everybody_may_have_the_hypervisors_scanned_and_requesting_it_twice_scans_once(over, person, browser_of):
    QueuedTask.objects.all().delete()
    browser = browser_of(person("vera", "viewer"))
    for _ in range(2):
        browser.post(reverse("jobs:scan"))
    assert sorted(QueuedTask.objects.values_list("name", "number")) == sorted(
        ("hosts.tasks.scan", pk) for pk in Hypervisor.objects.reachable().values_list("pk", flat=True)
    )


def test_who_has_caused_too_many_tasks_is_refused_a_scan_with_the_reason(over, person, browser_of, settings):
    settings.TASKS_CAP = {**settings.TASKS_CAP, "background": (0, 0)}
    QueuedTask.objects.all().delete()
    shown = browser_of(person("vera", "viewer")).post(reverse("jobs:scan"), follow=True).content.decode()
    assert "Your account has made 0 requests for background work" in shown
    assert not QueuedTask.objects.exists()


def test_nothing_else_can_be_asked_for_than_what_is_offered(over, dana, browser_of):
    address = reverse("jobs:leftover", args=[over.relay_id, "remove"]).replace("remove", "erase")
    assert browser_of(dana).post(address).status_code == 404


def test_a_ledger_that_agrees_says_so(hosts, dana, browser_of):
    assert "No scan has run yet" in page(browser_of(dana))
    now = scenes.timezone.now()
    Scan.objects.create(hypervisor=hosts["jump-02"], tried_at=now, began_at=now)
    assert "the inventory matches what the hypervisors report" in page(browser_of(dana))


def test_the_page_asks_the_database_the_same_number_of_times_whatever_it_lists(
    over, dana, browser_of, django_assert_max_num_queries
):
    for number in range(20):
        mark = {"kind": "lv", "name": f"vg/volmig_{number}", "hypervisor": over.relay, "state": "present"}
        Footprint.objects.create(job=scenes.job(dana, "undone"), since=over.created_at.replace(year=2020), **mark)
    browser = browser_of(dana)
    with django_assert_max_num_queries(40):
        shown = page(browser)
    assert "volmig_19" in section(shown, "gone")


def test_locks_that_volmig_left_in_nova_are_shown_to_administrators(over, hosts, person, dana, browser_of):
    cloud = scenes.nova(hosts)
    cloud.servers.filter(name="orders-db").update(locked_reason=f"volmig:{over.uuid}")
    assert "is locked by volmig" in page(browser_of(person("ada", "administrator")))
    assert "is locked by volmig" not in page(browser_of(dana))
