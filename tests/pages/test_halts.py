"""The page of a halted job: what was expected, what was found, how to look at it, and the safe ways on."""

import html

import pytest

from jobs.engine import halt_help
from tests.pages import scenes

INODES = ("old disk: inode 4711", "new disk: inode 88123")


def text(response):
    return response.content.decode()


def page_of(browser, job):
    return text(browser.get(f"/migrations/{job.pk}/"))


def test_what_was_expected_found_and_can_be_done_is_on_the_page(dana, browser_of, hosts):
    job = scenes.halted(dana)
    page = html.unescape(page_of(browser_of(dana), job))
    card = page.split('aria-labelledby="h-halt"')[1].split("</section>")[0]
    assert halt_help.EXPECTED["foreign-volume"] in card
    assert "an LV of this name without volmig's tag" in card
    assert "no: this step changed nothing" in card
    assert "on jump-02; read-only" in card
    assert "lvs -o lv_name,lv_uuid,lv_attr,lv_tags vg_nova0" in card
    assert "Look at it on jump-02; remove or rename it, then resume." in card
    assert '<a href="#verb-resume">Resume</a>' in card
    assert '<a href="#verb-cancel">Cancel</a>' in card
    assert 'id="verb-resume"' in page
    assert 'id="verb-cancel"' in page


@pytest.mark.parametrize("status", sorted(halt_help.RESUME))
def test_in_every_status_the_page_leads_on(status, dana, browser_of, hosts):
    data = {"code": "unknown-state", "step": "swap", "found": "strange inodes", "next": "Look."}
    job = scenes.job(dana, status, halt_reason="Strange.", halt_data=data)
    page = html.unescape(page_of(browser_of(dana), job))
    assert halt_help.RESUME[status] in page
    assert f"ls -lai {scenes.INSTANCES}/{job.instance_id}/disk.local {scenes.INSTANCES}/.volmig/{job.uuid}" in page
    assert f'action="/migrations/{job.pk}/resume"' in page
    for words in INODES if status in ("on_trial", "rolling_back", "purging") else ():
        assert words in page


def test_everybody_reads_the_ways_and_only_operators_go_them(kim, dana, browser_of, hosts):
    job = scenes.halted(dana)
    page = page_of(browser_of(kim), job)
    assert '<a href="#verb-resume">Resume</a>' in page
    assert f'action="/migrations/{job.pk}/resume"' not in page
    assert "you need the role operator" in page


@pytest.mark.parametrize(
    "data", [{}, [], {"code": ["x"], "step": {"a": 1}, "found": [{"y": scenes.HOSTILE}], "more": scenes.HOSTILE}]
)
def test_strange_data_is_shown_as_text_and_leads_on(data, dana, browser_of, hosts):
    job = scenes.job(dana, "preparing", halt_reason=scenes.HOSTILE, halt_data=data)
    page = page_of(browser_of(dana), job)
    assert scenes.HOSTILE not in page
    assert halt_help.RESUME["preparing"] in html.unescape(page)


def test_what_waits_can_be_tried_again_on_the_page(dana, browser_of, hosts):
    job = scenes.job(dana, "undoing", waiting_for="jump-02 does not answer.")
    assert 'id="verb-try-again"' in page_of(browser_of(dana), job)
    assert browser_of(dana).post(f"/migrations/{job.pk}/try-again").status_code == 302
