"""Two people in two browsers: what one asks the other sees at once and decides, and the first sees that, too."""

from contextlib import contextmanager

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.utils import timezone

from jobs.models import Decision
from tests.pages import scenes

PASSWORD = "correct horse battery"
COUNT = "#inbox-count"
KEPT = PBKDF2PasswordHasher().encode(PASSWORD, PBKDF2PasswordHasher().salt())


@pytest.fixture
def olga(hosts, logged_in):
    return logged_in("olga", "operator")


@pytest.fixture
def pavel(hosts, person, logged_in):
    known = person("pavel", "approver")
    # As the server keeps passwords: the tests' own way is a quicker one, which it does not know.
    User.objects.filter(pk=known.pk).update(password=KEPT)
    return logged_in("pavel", "approver")


@pytest.fixture
def job(olga):
    return scenes.job(User.objects.get(username="olga"), "awaiting_approval")


def live(page, path):
    """Opens a page and waits until it follows: then it asks how much waits."""
    with page.expect_response("**/approvals/count"):
        page.goto(path)


def counted(page, number):
    if number:
        page.wait_for_selector(f"{COUNT} .count:has-text('{number}')")
    else:
        page.wait_for_selector(f"{COUNT} .count", state="detached")


def fill(page, asked, reason="Agreed with the tenant."):
    page.fill("#id_reason", reason)
    page.fill("#id_tail", asked.job.instance_id[-6:])
    if page.query_selector("#id_password"):
        page.fill("#id_password", PASSWORD)


@pytest.mark.parametrize("path", ["/", "/hosts/", "/account/", "/approvals/", "/migrations/"])
def test_the_count_in_the_navigation_follows_on_every_page_for_whom_it_waits_only(job, olga, pavel, path):
    live(pavel, path)
    live(olga, path)
    counted(pavel, 0)
    asked = scenes.approval(job)
    counted(pavel, 1)
    counted(olga, 0)
    asked.void("It changed.")
    counted(pavel, 0)


def test_one_approves_and_the_other_sees_it(job, olga, pavel):
    asked = scenes.approval(job)
    live(olga, f"/migrations/{job.pk}/")
    live(pavel, "/approvals/")
    counted(pavel, 1)
    pavel.click("text=Review >> nth=0")
    fill(pavel, asked)
    pavel.click("button:has-text('Approve')")
    pavel.wait_for_url(f"**/migrations/{job.pk}/")
    olga.wait_for_selector("#where .state:has-text('Approved')")
    counted(pavel, 0)
    assert Decision.objects.get().person.username == "pavel"


def test_one_rejects_and_the_other_reads_why(job, olga, pavel):
    asked = scenes.approval(job)
    live(olga, f"/migrations/{job.pk}/?tab=approvals")
    pavel.goto(f"/approvals/{asked.pk}/")
    fill(pavel, asked, "Not during the fair.")
    pavel.click("text=Reject")
    olga.wait_for_selector("#where .state:has-text('Undoing')")
    olga.wait_for_selector("#details:has-text('Not during the fair.')")


def test_a_request_that_expires_leaves_the_inbox_and_the_page_says_so(job, pavel):
    asked = scenes.approval(job)
    live(pavel, f"/approvals/{asked.pk}/")
    counted(pavel, 1)
    pavel.fill("#id_reason", "Typed at length.")
    type(asked).objects.filter(pk=asked.pk).update(expires_at=timezone.now())
    counted(pavel, 0)
    pavel.wait_for_selector("#request:has-text('This request expired')")
    assert pavel.input_value("#id_reason") == "Typed at length."


def test_a_fact_that_changed_makes_it_void_while_somebody_reads_and_the_change_is_shown(job, pavel):
    asked = scenes.approval(job)
    live(pavel, f"/approvals/{asked.pk}/")
    asked.void("What was approved is The state has changed.", ["source writes: was 40, is 41"])
    pavel.wait_for_selector("#request:has-text('source writes: was 40, is 41')")
    counted(pavel, 0)


def test_consent_is_withdrawn_again(job, olga, pavel):
    asked = scenes.approval(job)
    live(olga, f"/migrations/{job.pk}/")
    asked.approve(User.objects.get(username="pavel"), asked.digest, "Agreed.")
    olga.wait_for_selector("#where .state:has-text('Approved')")
    pavel.goto(f"/approvals/{asked.pk}/")
    pavel.fill("#id_why", "The tenant called.")
    pavel.click("button:has-text('Withdraw')")
    pavel.wait_for_selector("text=Your approval is withdrawn")
    olga.wait_for_selector("#where .state:has-text('Awaiting approval')")


def tab_to(page, selector, most=60):
    """Press Tab until an element has the focus."""
    for _ in range(most):
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
        page.keyboard.press("Tab")
    seen = page.inner_text("main")
    raise AssertionError(f"the keyboard does not reach {selector} on a page that reads\n{seen}")


def test_everything_to_decide_is_done_with_the_keyboard_alone(job, pavel):
    asked = scenes.approval(job)
    pavel.goto("/")
    tab_to(pavel, "nav a[href='/approvals/']")
    pavel.keyboard.press("Enter")
    pavel.wait_for_url("**/approvals/")
    tab_to(pavel, f"a.btn-go[href='/approvals/{asked.pk}/']")
    pavel.keyboard.press("Enter")
    pavel.wait_for_url(f"**/approvals/{asked.pk}/")
    for field, words in {"#id_reason": "Agreed.", "#id_tail": job.instance_id[-6:], "#id_password": PASSWORD}.items():
        tab_to(pavel, field)
        pavel.keyboard.type(words)
    tab_to(pavel, "button[value=approve]")
    assert pavel.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus is seen"
    pavel.keyboard.press("Enter")
    pavel.wait_for_url(f"**/migrations/{job.pk}/")
    assert Decision.objects.get().verdict == "approve"


@contextmanager
def choosing(page):
    """What chooses something goes in here; afterwards the page shows what the server leaves to choose."""
    with page.expect_response("**/migrations/new?*") as answered:
        yield
    assert answered.value.ok, f"the choice was answered with {answered.value.status}"
    page.wait_for_selector("#choices:not(.htmx-request)")


def test_a_migration_is_asked_for_with_the_keyboard_alone(olga):
    from jobs.models import Job

    olga.goto("/migrations/new")
    for selector, key in {"#id_source": "cmp-lvm", "#id_destination": "cmp-nfs"}.items():
        tab_to(olga, selector)
        with choosing(olga):
            olga.keyboard.type(key)
    olga.wait_for_selector("input[name=disk]")
    tab_to(olga, "input[name=volume]")
    # Of two volumes that can be chosen one is too large for the relay: whoever chose it goes one further.
    for _ in range(2):
        if not olga.query_selector(f"label:has-text('{scenes.OLD}') :checked"):
            with choosing(olga):
                olga.keyboard.press("ArrowDown")
    for name in ("relay", "disk"):
        olga.wait_for_selector(f"input[name={name}]:enabled")
        tab_to(olga, f"input[name={name}]")
        with choosing(olga):
            olga.keyboard.press("Space")
    tab_to(olga, "button[formmethod=post]:not(.btn-go)")
    olga.keyboard.press("Enter")
    olga.wait_for_url("**/migrations/*/")
    assert Job.objects.count() == 1


def test_of_choices_made_before_the_server_has_answered_none_is_lost(olga):
    held = []
    olga.goto("/migrations/new")
    olga.route("**/migrations/new?*", lambda route: held.append(route), times=1)
    with olga.expect_request("**/migrations/new?*"):
        olga.select_option("#id_source", label="cmp-lvm-07")
    for name in ("cmp-lvm-07", "cmp-nfs-03"):
        olga.select_option("#id_destination", label=name)
    held[0].continue_()
    olga.wait_for_selector("input[name=disk]")
    olga.wait_for_selector("input[name=volume]")
    chosen = "(id) => document.getElementById(id).selectedOptions[0].label"
    assert [olga.evaluate(chosen, each) for each in ("id_source", "id_destination")] == ["cmp-lvm-07", "cmp-nfs-03"]
