"""Every main page in light and dark, wide and narrow: no fault that axe-core finds, nothing scrolls sideways."""

import pytest
from django.contrib.auth.models import User

from tests.pages import scenes


@pytest.fixture
def pages(hosts, person):
    """The main pages with something on each."""
    dana = User.objects.filter(username="dana").first() or person("dana", "operator")
    asked = scenes.approval(scenes.job(dana, "awaiting_approval"))
    running = scenes.job(dana, "preparing", instance_name="a-name-that-is-" + "long-" * 20)
    scenes.reservation(running)
    plain = ["/", "/migrations/", "/migrations/new", "/approvals/", f"/approvals/{asked.pk}/"]
    tabs = [f"/migrations/{running.pk}/?tab={tab}" for tab in ("plan", "log", "evidence")]
    host = hosts["jump-02"].pk
    ours = [f"/hosts/{page}" for page in ("", "register/", "clouds/", "clouds/add/", f"{host}/", f"{host}/edit/")]
    plain += [*ours, f"/hosts/{hosts['cmp-lvm-08'].pk}/", "/audit/"]
    return [*plain, *tabs, f"/migrations/{scenes.halted(dana).pk}/", f"/migrations/{scenes.job(dana, 'done').pk}/"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_fault(scheme, pages, logged_in):
    from axe_playwright_python.sync_playwright import Axe

    page = logged_in("ada", "operator", "approver", "administrator", "auditor", color_scheme=scheme)
    found = []
    for path in pages:
        page.goto(path)
        report = Axe().run(page).response["violations"]
        found += [f"{path}: {fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in report]
    assert not found, "\n".join(found)


def test_no_page_scrolls_sideways_on_a_telephone(pages, logged_in):
    page = logged_in("ada", "operator", "approver", "administrator", "auditor")
    page.set_viewport_size({"width": 390, "height": 800})
    for path in pages:
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_the_first_stop_of_the_keyboard_skips_to_the_content(pages, logged_in):
    page = logged_in("ada", "operator")
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
