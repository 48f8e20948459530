"""Every main page in light and dark, wide and narrow: no fault that axe-core finds, nothing scrolls sideways."""

import pytest
from django.contrib.auth.models import User
from django.urls import resolve
from django.utils import timezone

from jobs.models import Policy
from jobs.web.migrations import TABS
from tests.browser.test_two_people import KEPT, PASSWORD
from tests.fleet.beats import a_process
from tests.pages import scenes
from tests.volmig.test_matrix import MATRIX
from volmig.accounts import factors
from volmig.accounts.models import Team, Token

LOGIN = "/login/"


@pytest.fixture
def pages(hosts, person):
    """The main pages with something on each."""
    dana = User.objects.filter(username="dana").first() or person("dana", "operator")
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    running = scenes.job(dana, "preparing", instance_name="a-name-that-is-" + "long-" * 20)
    scenes.reservation(running)
    scenes.leftovers(dana)
    chosen = f"/migrations/new?source={hosts['cmp-lvm-07'].pk}&destination={hosts['cmp-nfs-03'].pk}"
    plain = ["/", "/migrations/", "/migrations/?q=nothing", chosen, "/approvals/", f"/approvals/{asked.pk}/", "/audit/"]
    team = Team.objects.get()
    policy = Policy.objects.create(team=team, windows=["Thu 02:00-04:00"], blackouts=["2026-12-24"])
    accounts = ["/account/", "/accounts/", f"/accounts/{dana.pk}/", "/account/factor/", "/account/tokens/add/", "/api/"]
    accounts += ["/account/confirm/", "/adopt/"]
    accounts += ["/teams/", "/teams/add/", f"/teams/{team.pk}/"]
    accounts += [f"/teams/{team.pk}/policies/{page}/" for page in ("add", policy.pk)]
    void, used = scenes.approval(scenes.job(dana, "preparing")), scenes.approval(scenes.job(dana, "on_trial"))
    void.void("What was approved is The state has changed.", ["source writes: was 40, is 41"])
    used.consumed_at = timezone.now()
    used.save()
    accounts += [f"/approvals/{void.pk}/", f"/approvals/{used.pk}/"]
    tabs = [f"/migrations/{running.pk}/?tab={tab}" for tab in (*TABS, "log&questions=1")]
    kept = [scenes.job(dana, "done"), scenes.job(dana, "on_trial"), scenes.job(dana, "rolled_back")]
    for job, days, found in zip(kept, (-1, 5, 10), ("differs", "", "ok"), strict=True):
        scenes.kept(job, days, found)
    ends = [f"/migrations/{job.pk}/" for job in (scenes.halted(dana), kept[0], kept[2])]
    plain += ["/backups/", "/backups/?due=1", f"/migrations/{kept[0].pk}/extend"]
    host, cloud = hosts["jump-02"].pk, scenes.nova(hosts).pk
    under = ("", "register/", "clouds/", "clouds/add/", f"clouds/{cloud}/", f"{host}/", f"{host}/edit/", f"{host}/pin/")
    under = (*under, f"clouds/{cloud}/nova/")
    plain += [
        "/leftovers/",
        "/evidence/",
        "/instances/",
        f"/instances/{scenes.OLD}/",
        "/checks/",
        "/processes/",
        "/migrations/new?find_from=orders&find_to=orders",
    ]
    a_process("web")
    a_process("watcher", "a-machine-that-is-" + "long-" * 8, age=300)
    machines = [f"/hosts/{page}" for page in (*under, f"{hosts['cmp-lvm-08'].pk}/")]
    return [*plain, *accounts, *tabs, *ends, *machines, LOGIN]


# Answers that are no pages, a part of one, and pages that are looked at by themselves below.
NO_PAGES = {
    "health",
    "health_live",
    "health_ready",
    "metrics",
    "audit_export",
    "hosts:bundle",
    "jobs:export",
    "jobs:evidence",
    "jobs:count",
    "jobs:attention",
    "jobs:plan",
    "client",
    "evidence_heads",
    "evidence_keys",
    "evidence_verifier",
}
NO_PAGES |= {name for name in MATRIX if name.startswith("api:")}
BY_THEMSELVES = {"login_code", "change_factor"}


def test_every_page_is_looked_at(pages):
    looked = {resolve(path.split("?")[0]).view_name for path in pages}
    assert {name for name, methods in MATRIX.items() if "GET" in methods} - NO_PAGES - BY_THEMSELVES == looked


def go(page, path):
    if path == LOGIN:
        page.context.clear_cookies()
    page.goto(path)


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_axe_finds_no_fault_and_nothing_scrolls_sideways(scheme, width, pages, logged_in):
    from axe_playwright_python.sync_playwright import Axe

    page = logged_in("ada", "operator", "approver", "administrator", "auditor", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    found = []
    for path in pages:
        go(page, path)
        report = Axe().run(page).response["violations"]
        found += [f"{path}: {fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in report]
        found += [f"{path} scrolls"] if page.evaluate("document.documentElement.scrollWidth") > width else []
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1440), ("light", 390)])
def test_the_page_on_which_migrations_are_adopted_has_no_fault_and_puts_the_guest_that_is_down_first(
    scheme, width, hosts, person, logged_in
):
    from axe_playwright_python.sync_playwright import Axe

    scenes.adoptions(User.objects.filter(username="dana").first() or person("dana", "operator"))
    page = logged_in("ada", "administrator", color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto("/adopt/")
    faults = Axe().run(page).response["violations"]
    assert [f"{fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in faults] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("section.card h2").first.inner_text().endswith("orders-db-2")
    assert page.get_by_text("The guest may be down: adopt this first").count() == 1
    assert page.get_by_role("button", name="Adopt migration").count() == 2


def test_a_command_in_the_log_is_read_on_a_telephone_without_scrolling_sideways(pages, logged_in):
    page = logged_in("ada", "operator")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(next(path for path in pages if "questions" in path))
    assert page.evaluate("(log => log.scrollWidth - log.clientWidth)(document.querySelector('#details .scroll'))") == 0


def test_what_is_left_over_is_read_on_a_telephone_without_scrolling_sideways(pages, logged_in):
    page = logged_in("ada", "operator")
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto("/leftovers/")
    wide = "[...document.querySelectorAll('.scroll:has(.stacked)')].map(each => each.scrollWidth - each.clientWidth)"
    assert set(page.evaluate(wide)) == {0}


def test_the_first_stop_of_the_keyboard_skips_to_the_content(pages, logged_in):
    page = logged_in("ada", "operator")
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_on_the_pages_of_a_second_factor(scheme, hosts, person, logged_in):
    from axe_playwright_python.sync_playwright import Axe

    known = person("kim", "approver")
    User.objects.filter(pk=known.pk).update(password=KEPT)
    page = logged_in("kim", "approver", typed=True, color_scheme=scheme)
    factors.begin(known)
    factors.App.objects.update(confirmed=True)
    for path in ("/account/", "/account/factor/remove/", "/account/factor/new-codes/"):
        page.goto(path)
        assert not Axe().run(page).response["violations"], path
    page.fill("#id_password", PASSWORD)
    page.click("main button")
    assert page.locator(".codes li").count() == 10
    assert not Axe().run(page).response["violations"]
    page.context.clear_cookies()
    page.goto("/login/")
    page.fill("#id_username", "kim")
    page.fill("#id_password", PASSWORD)
    page.click("text=Log in >> nth=-1")
    page.wait_for_url("**/login/code/")
    assert not Axe().run(page).response["violations"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault_on_the_pages_of_tokens(scheme, hosts, person, logged_in):
    from axe_playwright_python.sync_playwright import Axe

    known = person("kim", "approver")
    Token.objects.make(known, "nightly report", [], 30)
    User.objects.filter(pk=known.pk).update(password=KEPT)
    page = logged_in("kim", "approver", color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto("/account/")
    page.click("text=Create a token")
    page.fill("#id_name", "approve tonight")
    page.check("label:has-text('approve swaps') input")
    page.fill("#id_password", PASSWORD)
    assert not Axe().run(page).response["violations"]
    page.click("text=Create token")
    assert page.inner_text("code.token").startswith("volmig_")
    assert not Axe().run(page).response["violations"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("text=I have saved it")
    assert "approve tonight" in page.inner_text("main")
    assert not Axe().run(page).response["violations"]
    page.goto("/api/")
    page.click("#submit summary")
    assert "rollback_minutes" in page.inner_text("#submit")
    assert not Axe().run(page).response["violations"]
