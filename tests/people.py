"""What people do on volmig's pages, each in a browser of their own, and with its client, each with their own token."""

import http.cookiejar
import re
import urllib.parse
import urllib.request

import pytest

from tests.shell import Shell
from tests.site import PASSWORD


@pytest.fixture
def sign_in(chromium):
    """A browser of a person's own: sign_in(site, "olga")."""
    contexts = []

    def enter(site, name):
        context = chromium.new_context(base_url=site.url, viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto("/login/")
        page.fill("[name=username]", name)
        page.fill("[name=password]", PASSWORD)
        page.click("main button")
        page.wait_for_url(f"{site.url}/")
        return page

    yield enter
    for context in contexts:
        context.close()


def ask(page, volume, disk, limit=""):
    """Fill in a new migration from src through jump to dst as an operator does, and start it.

    `volume` occurs in the source volume's name, `disk` ends the choice of a disk, `limit` is MiB/s.
    """
    page.goto("/migrations/new")
    page.select_option("#id_source", label="src")
    page.check(f"#from label:has-text('{volume}') input")
    page.select_option("#id_destination", label="dst")
    page.check(f"#to input[value$='/{disk}']")
    page.check("#through label:has-text('jump') input")
    page.fill("#id_rate", limit)
    page.click("text=Check, plan and start")
    page.wait_for_url(re.compile(r"/migrations/\d+/$"))
    page.wait_for_selector("[data-live][data-state=live]")


def wait_for_consent(page):
    """Until the image is staged and verified."""
    page.wait_for_selector("#where:has-text('Another person has to approve the swap')", timeout=240_000)


def approve(page, instance):
    """Approve the only request that waits, as another person; `instance` is the instance's id."""
    page.goto("/approvals/")
    page.click("main a[href^='/approvals/']")
    page.fill("#id_reason", "Agreed with the tenant.")
    page.fill("#id_tail", instance[-6:])
    if page.locator("#id_password").count():  # signed in more than five minutes ago
        page.fill("#id_password", PASSWORD)
    page.click("button:has-text('Approve')")
    page.wait_for_url(re.compile(r"/migrations/\d+/$"))


def confirm(page):
    """Say that the instance has its data."""
    page.click("#verb-confirm button:enabled", timeout=180_000)
    page.wait_for_selector("#where:has-text('its data is confirmed')", timeout=60_000)


class PlainBrowser:
    """Just enough of one to log in and to make a token."""

    def __init__(self, url):
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def post(self, path, **typed):
        page = self.opener.open(self.url + path).read().decode()
        csrf = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1]
        sent = urllib.parse.urlencode({"csrfmiddlewaretoken": csrf, **typed}, doseq=True).encode()
        return self.opener.open(self.url + path, sent).read().decode()


@pytest.fixture
def shell_of(tmp_path):
    """A shell of a person of this site, with a token that they made on its page."""

    def make(site, name, *verbs):
        browser = PlainBrowser(site.url)
        browser.post("/login/", username=name, password=PASSWORD)
        page = browser.post("/account/tokens/add/", name="client", verbs=verbs, days=1, password=PASSWORD)
        return Shell(site.url, re.search(r"volmig_[\w-]{43}", page)[0], tmp_path / name)

    return make
