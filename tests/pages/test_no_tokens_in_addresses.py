"""A CSRF token that is sent by GET ends in the history of the browser and in the logs of every proxy."""

import re
from html.parser import HTMLParser

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from tests.pages import scenes
from volmig.urls import urlpatterns

TEMPLATES = sorted((settings.BASE_DIR / "templates").rglob("*.html"))
TOKEN = "csrfmiddlewaretoken"


class Forms(HTMLParser):
    """Collects what is wrong with the forms of a page; a button may send its form by another method than the form's."""

    def __init__(self):
        super().__init__()
        self.form, self.faults, self.seen = None, [], 0

    def handle_starttag(self, tag, given):
        attributes = dict(given)
        if tag == "form":
            self.seen += 1
            self.form = {"by_get": attributes.get("method", "get").lower() == "get", "token": False}
        elif self.form is not None and tag == "input" and attributes.get("name") == TOKEN:
            self.form["token"] = True
        elif tag in ("button", "input") and attributes.get("formmethod", "").lower() == "get" and self.form:
            self.form["by_get"] = True
        if tag in ("a", "form") and TOKEN in (attributes.get("href") or attributes.get("action") or ""):
            self.faults.append(f"a token in an address: {attributes}")

    def handle_endtag(self, tag):
        if tag == "form" and self.form:
            if self.form["by_get"] and self.form["token"]:
                self.faults.append("a form that may be sent by GET holds a token")
            self.form = None


def faults(html):
    forms = Forms()
    forms.feed(html)
    return forms.faults, forms.seen


def expanded(path):
    """A template with its includes in place, and its token as the field that it becomes."""

    def included(found):
        return expanded(settings.BASE_DIR / "templates" / found[1]) if found[1] != path.name else ""

    text = re.sub(r'{% include "([^"]+)"[^%]*%}', included, path.read_text(encoding="utf-8"))
    return text.replace("{% csrf_token %}", f'<input type="hidden" name="{TOKEN}">')


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_has_a_form_that_sends_a_token_by_get(path):
    assert faults(expanded(path))[0] == []


@pytest.mark.parametrize(
    "html",
    [
        f'<form><input name="{TOKEN}"></form>',
        f'<form method="post"><input name="{TOKEN}"><button formmethod="get"></button></form>',
        f'<a href="/?{TOKEN}=x">',
    ],
)
def test_each_of_these_would_be_found(html):
    assert faults(html)[0]


def addresses(patterns, before="/"):
    """Those of volmig that hold no number or name, in all of its apps."""
    for each in patterns:
        if each.pattern.converters == {}:
            address = f"{before}{each.pattern}"
            yield from addresses(each.url_patterns, address) if hasattr(each, "url_patterns") else [address]


def test_no_page_has_one_either(dana, person, browser_of, hosts):
    ada = person("ada", "administrator", "operator", "approver", "auditor", is_superuser=True)
    job = scenes.job(dana, "awaiting_approval")
    scenes.approval(job)
    forms = 0
    for address in [*addresses(urlpatterns), reverse("jobs:job", args=[job.pk])]:
        response = browser_of(ada).get(address)
        if response.status_code == 200 and "text/html" in response.headers["Content-Type"]:
            wrong, seen = faults(response.content.decode())
            assert wrong == [], address
            forms += seen
    assert forms > 10


def test_a_new_migration_is_still_protected(dana):
    """What posts carries its token itself; without it nothing is made."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(dana)
    page = browser.get("/migrations/new").content.decode()
    assert f'formmethod="post" name="{TOKEN}" value="' in page
    assert browser.post("/migrations/new", {}).status_code == 403
    token = page.split(f'name="{TOKEN}" value="')[1].split('"')[0]
    assert browser.post("/migrations/new", {TOKEN: token}).status_code == 422
