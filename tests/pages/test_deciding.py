"""Approvals: who may decide, what they must give, what a refusal keeps, and what it is bound to."""

import datetime as dt
import time

import pytest
from django.utils import timezone

from jobs.models import Decision, Policy
from jobs.web.review import Proof, Review
from tests.pages import scenes
from volmig.record.models import Event

EASY = "correct horse battery"


@pytest.fixture
def asked(dana, hosts):
    return scenes.approval(scenes.job(dana, "awaiting_approval"))


def say(asked, verdict="approve", **changed):
    values = {
        "reason": "Agreed with the tenant.",
        "tail": asked.job.instance_id[-6:],
        "password": EASY,
        "digest": asked.digest,
    }
    return {**values, "verdict": verdict, **changed}


def text(response):
    return response.content.decode()


def test_another_person_approves_exactly_what_was_shown(asked, kim, browser_of):
    response = browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked))
    assert response.headers["Location"] == f"/migrations/{asked.job_id}/"
    assert Decision.objects.get().person == kim
    asked.job.refresh_from_db()
    assert asked.job.status == "approved"


def test_a_rejection_needs_a_reason_and_not_the_instance(asked, kim, browser_of):
    assert browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, "reject", reason="")).status_code == 422
    assert browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, "reject", tail="")).status_code == 302
    assert Decision.objects.get().verdict == "reject"


def test_a_yes_without_a_reason_is_refused(asked, kim, browser_of):
    response = browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, reason="  "))
    assert response.status_code == 422
    assert not Decision.objects.exists()


@pytest.mark.parametrize("wrong", [{"tail": "000000"}, {"tail": ""}, {"password": "guess"}, {"password": ""}])
def test_a_yes_with_the_wrong_instance_or_password_is_refused_and_keeps_the_reason(wrong, asked, kim, browser_of):
    response = browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, reason="Typed at length.", **wrong))
    assert response.status_code == 422
    assert "Typed at length." in text(response)
    assert EASY not in text(response)
    assert not Decision.objects.exists()


def guess(asked, browser, times, typed="guess"):
    for _ in range(times):
        page = text(browser.post(f"/approvals/{asked.pk}/", say(asked, password=typed)))
    return page


def test_after_five_wrong_passwords_in_any_sessions_the_right_one_is_refused_for_ten_minutes(
    asked, kim, browser_of, monkeypatch
):
    assert "Wrong password" in guess(asked, browser_of(kim), 3)
    assert "Wrong password" in guess(asked, browser_of(kim), 2)
    page = guess(asked, browser_of(kim), 1, EASY)
    assert "Too many wrong passwords: no decision is possible until" in page
    assert not Decision.objects.exists()
    refused = Event.objects.filter(action="approval.password_refused", actor=kim, job=asked.job_id)
    assert refused.count() == 5, "what is not even looked at is not counted"
    later = timezone.now() + dt.timedelta(minutes=10, seconds=1)
    monkeypatch.setattr("volmig.accounts.step_up.timezone.now", lambda: later)
    browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked))
    assert Decision.objects.exists()


def test_wrong_passwords_of_one_person_do_not_keep_another_from_deciding(asked, kim, person, browser_of):
    guess(asked, browser_of(person("kai", "approver")), 6)
    browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked))
    assert Decision.objects.get().person == kim


def test_five_wrong_passwords_over_a_longer_time_are_forgiven(asked, kim, browser_of, monkeypatch):
    began = timezone.now()
    for minutes in range(0, 15, 3):
        monkeypatch.setattr(timezone, "now", lambda at=began + dt.timedelta(minutes=minutes): at)
        guess(asked, browser_of(kim), 1)
    assert "Wrong password" in guess(asked, browser_of(kim), 1)


def test_an_empty_password_is_no_guess(asked, kim, browser_of):
    assert "Enter your password" in guess(asked, browser_of(kim), 6, "")
    assert not Event.objects.filter(action="approval.password_refused").exists()


def test_what_was_looked_at_before_it_changed_is_refused(asked, kim, browser_of):
    response = browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, digest="0" * 64, reason="Long reason."))
    assert response.status_code == 422
    assert "review it again" in text(response)
    assert "Long reason." in text(response)
    assert not Decision.objects.exists()


def test_the_requester_sees_why_they_cannot_and_is_refused(asked, dana, person, browser_of):
    dana.is_superuser = True
    dana.save()
    browser = browser_of(dana)
    page = text(browser.get(f"/approvals/{asked.pk}/"))
    assert "another person has to decide" in page
    assert "Approve</button>" not in page
    assert browser.post(f"/approvals/{asked.pk}/", say(asked)).status_code == 422
    assert not Decision.objects.exists()


def test_an_operator_without_the_role_is_refused_by_the_server(asked, person, browser_of):
    browser = browser_of(person("olga", "operator"))
    assert "you need the role approver" in text(browser.get(f"/approvals/{asked.pk}/"))
    assert browser.post(f"/approvals/{asked.pk}/", say(asked)).status_code == 403
    assert not Decision.objects.exists()


def test_a_password_typed_a_moment_ago_is_not_asked_for_again(asked, kim, browser_of):
    browser = browser_of(kim)
    assert 'name="password"' in text(browser.get(f"/approvals/{asked.pk}/"))
    session = browser.session
    session["password_at"] = time.time() - 60
    session.save()
    assert 'name="password"' not in text(browser.get(f"/approvals/{asked.pk}/"))
    session["password_at"] = time.time() - 400
    session.save()
    assert 'name="password"' in text(browser.get(f"/approvals/{asked.pk}/"))


def test_the_review_shows_downtime_before_and_after_proof_and_commands(asked, kim, browser_of):
    page = text(browser_of(kim).get(f"/approvals/{asked.pk}/"))
    for words in (
        "Instance is down for",
        "Live disk now",
        "Block by block equal",
        "0 writes counted",
        "virsh",
        asked.bound["stage"]["sha256"],
    ):
        assert words in page


def test_missing_proof_is_said_and_not_painted_over(asked, kim, browser_of):
    asked.job.runs.filter(step__in=["compare", "stage_verify"]).delete()
    page = text(browser_of(kim).get(f"/approvals/{asked.pk}/"))
    assert "No comparison with the source volume has been done" in page
    assert "not been proved equal to the compared copy" in page


@pytest.mark.parametrize(
    ("kind", "status", "says"), [("rollback", "on_trial", "Put the old"), ("purge", "done", "cannot be undone")]
)
def test_rollback_and_purge_have_reviews_of_their_own(kind, status, says, dana, kim, browser_of, hosts):
    asked = scenes.approval(scenes.job(dana, status), kind)
    assert says in text(browser_of(kim).get(f"/approvals/{asked.pk}/"))


def test_a_void_request_says_what_changed_and_offers_no_form(asked, kim, browser_of):
    asked.void("The source volume changed.", ["source writes: was 40, is 41"])
    page = text(browser_of(kim).get(f"/approvals/{asked.pk}/"))
    assert "source writes: was 40, is 41" in page
    assert "Approve</button>" not in page


def test_the_inbox_lists_what_waits_for_this_person_and_what_waits_for_others(asked, dana, kim, browser_of):
    link = f'href="/approvals/{asked.pk}/">Review'
    assert link in text(browser_of(kim).get("/approvals/"))
    assert link not in text(browser_of(dana).get("/approvals/"))


def test_a_yes_is_taken_back_with_a_reason_and_without_a_password(asked, kim, browser_of):
    browser = browser_of(kim)
    browser.post(f"/approvals/{asked.pk}/", say(asked))
    refused = browser.post(f"/approvals/{asked.pk}/", {"verdict": "withdraw", "reason": " "}, follow=True)
    assert "Give a reason" in text(refused)
    assert asked.consents().exists()
    taken = browser.post(f"/approvals/{asked.pk}/", {"verdict": "withdraw", "reason": "Not tonight."}, follow=True)
    assert "Your approval is withdrawn" in text(taken)
    asked.job.refresh_from_db()
    assert (asked.consents().exists(), asked.job.status) == (False, "awaiting_approval")


def test_a_decision_that_says_neither_yes_nor_no_is_none(asked, kim, browser_of):
    response = browser_of(kim).post(f"/approvals/{asked.pk}/", say(asked, "perhaps"))
    assert (response.status_code, "Choose approve or reject." in text(response)) == (422, True)
    assert not Decision.objects.exists()


def test_soon_after_a_password_was_typed_a_yes_does_without_it(asked, kim, browser_of):
    browser = browser_of(kim)
    session = browser.session
    session["password_at"] = typed = time.time() - 60
    session.save()
    assert browser.post(f"/approvals/{asked.pk}/", say(asked, password="")).status_code == 302
    assert Decision.objects.get().verdict == "approve"
    assert browser.session["password_at"] == typed, "deciding does not make it last longer"


def test_what_waits_for_a_window_says_when_it_would_be_done(asked, dana, kim, browser_of, monkeypatch):
    Policy(team=asked.job.destination.team, windows=["Thu 02:00-04:00"]).change(dana)
    monkeypatch.setattr(timezone, "now", lambda moment=asked.created_at: moment)
    assert "Thursday" in Review(asked).when
    assert "02:00 to 04:00 UTC, once the facts are re-read" in Review(asked).when
    monkeypatch.setattr(type(asked.job), "window", lambda job: None)
    assert Review(asked).when.startswith("not within a year")


def test_how_many_have_to_agree_is_said_as_it_is(asked, dana, hosts):
    assert Review(asked).needed == "0 of 1 required approvals given."
    asked.approvers = 0
    assert "does not require a second person" in Review(asked).needed
    asked.granted_by = scenes.approval(scenes.job(dana, "on_trial"))
    assert Review(asked).needed == "Pre-approved together with the swap."


def test_an_approval_says_what_a_rollback_approved_in_advance_gives_up(asked):
    assert "without further approval" not in Review(asked).if_wrong
    asked.job.rollback_minutes = 30
    asked.bound = {**asked.bound, "rollback": 30}
    said = Review(asked).if_wrong
    assert f"for 30 minutes after the swap {asked.requester} can roll back without further approval" in said
    assert "data written since the swap is then lost" in said


def counted(job, step, **evidence):
    """The evidence of a step that was done."""
    job.runs.filter(step=step, direction="do").update(evidence=evidence)


def test_an_approval_says_when_the_source_was_written_to_during_the_copy(asked):
    counted(asked.job, "source_fence", writes=7)
    counted(asked.job, "compare", writes=7)
    assert Review(asked).quiet().holds
    counted(asked.job, "compare", writes=8)
    assert Review(asked).quiet() == Proof(False, "The source volume was written to during the copy.")
    for lacks in ("compare", "source_fence"):
        counted(asked.job, lacks)
        assert Review(asked).quiet() == Proof(False, "Writes to the source volume have not been counted.")


def test_an_approval_says_when_the_copy_was_not_compared_or_its_hashes_differ(asked):
    for step in ("seal", "stage", "stage_verify"):
        counted(asked.job, step, sha256="a" * 64)
    assert Review(asked).hashed().holds
    counted(asked.job, "stage_verify", sha256="b" * 64)
    assert not Review(asked).hashed().holds
    counted(asked.job, "compare")
    assert Review(asked).compared() == Proof(False, "No comparison with the source volume has been done.")
