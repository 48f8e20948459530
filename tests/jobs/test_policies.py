"""Policies: how many people, for how long, in which window; taking consent back; going back by consent in advance."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts.models import Hypervisor
from jobs.models import Approval, Job, Policy, Refused
from jobs.worker.executor import Work
from tests.factories import admin, approver, asked, operator, person
from tests.fakes import LIVE
from tests.ticks import tick_now
from volmig.accounts.models import Team
from volmig.record.models import Event

EVENING = dt.datetime(2026, 11, 25, 17, 0, tzinfo=dt.UTC)  # a Wednesday
NIGHT = dt.datetime(2026, 11, 26, 2, 0, tzinfo=dt.UTC)


@pytest.fixture
def at(monkeypatch, site):
    """Sets the clocks of volmig and of the hosts, which check when a seal expires: at(NIGHT)."""

    def go(moment):
        monkeypatch.setattr(timezone, "now", lambda: moment)
        site.clock = moment.timestamp

    return go


def policy(team=None, **told):
    made = Policy(team=team or Team.objects.get())
    made.change(admin(), **told)
    return made


def approve(job, by=None, kind="swap"):
    approval = job.approvals.open().get(kind=kind)
    approval.approve(by or approver(), approval.digest, "as agreed")
    return approval


def refused(call, says):
    with pytest.raises(Refused) as said:
        call()
    assert any(says in sentence for sentence in said.value.sentences), said.value.sentences


# How many people


def test_a_policy_may_want_two_people(drive, site):
    policy(approvers=2)
    job = drive.submit()
    approve(job)
    assert drive.go(job).status == "awaiting_approval"
    approve(job, person("paula", "approver"))
    assert drive.go(job).status == "on_trial"
    used = Event.objects.get(action="approval.use").data
    assert (used["approvers"], used["consents"]) == (2, ["pavel", "paula"])


def test_the_policy_of_the_size_holds(drive):
    policy(approvers=1)
    policy(approvers=3, min_bytes=512 << 20)
    policy(approvers=5, min_bytes=513 << 20)
    assert drive.submit().open_approval().approvers == 3


def test_across_teams_the_strictest_of_each_holds(db, settings):
    job = Job.objects.submit(operator(), **asked())
    policy(approvers=2, expiry_hours=8)
    other = Team.objects.create(name="eu", everybody=True)
    Hypervisor.objects.filter(name="dst").update(team=other)
    assert (job.terms().approvers, job.terms().expiry) == (2, dt.timedelta(hours=8))
    settings.APPROVERS, settings.APPROVAL_HOURS = 4, 24
    assert job.terms().approvers == 4, "a team without a policy goes by the settings"
    policy(other, approvers=1, expiry_hours=2, windows=["Thu 02:00-04:00"])
    terms = job.terms()
    assert (terms.approvers, terms.expiry, len(terms.schedules)) == (2, dt.timedelta(hours=2), 1)


def test_a_policy_that_becomes_stricter_holds_for_what_is_open(drive, site):
    rule = policy(approvers=1)
    job = drive.submit()
    approval = job.open_approval()
    rule.change(admin(), approvers=2)
    approval.refresh_from_db()
    assert approval.approvers == 2
    approve(job)
    assert drive.go(job).status == "awaiting_approval"
    rule.change(admin(), approvers=1)
    assert drive.go(job).status == "on_trial", "and one that becomes laxer, too"


def test_settings_that_became_stricter_are_seen_when_a_consent_is_used(drive, site, settings):
    job = drive.submit()
    approve(job)
    settings.APPROVERS = 2
    drive.go(job)
    assert (job.status, site.files[LIVE].content) == ("awaiting_approval", "old disk")
    assert job.open_approval().approvers == 2


def test_a_request_expires_by_the_policy(drive):
    policy(expiry_hours=3)
    approval = drive.submit().open_approval()
    assert approval.expires_at - approval.created_at < dt.timedelta(hours=3, minutes=1)


def test_changes_of_policies_are_recorded(db):
    rule = policy(approvers=2)
    rule.change(admin(), approvers=3)
    rule.remove(admin())
    actions = Event.objects.filter(action__startswith="policy.").order_by("seq").values_list("action", "data")
    assert [action for action, _ in actions] == ["policy.add", "policy.change", "policy.remove"]
    assert actions[1][1] == {"before": {"approvers": 2}, "after": {"approvers": 3}}


# One person


def test_a_site_of_one_person_asks_nobody_and_its_record_says_so(drive, site, settings, client):
    settings.APPROVERS = 0
    job = drive.submit()
    assert job.status == "on_trial"
    said = Event.objects.filter(action__in=["approval.ask", "approval.use"]).values_list("data", flat=True)
    assert all(each["one_person_site"] and each["approvers"] == 0 for each in said)
    assert len(said) == 2
    client.force_login(operator())
    for page in ("/", "/migrations/", f"/migrations/{job.pk}/", "/approvals/", "/hosts/", "/account/"):
        assert "does not require a second person" in client.get(page).content.decode(), page


def test_a_team_with_a_policy_is_asked_even_there(drive, settings):
    settings.APPROVERS = 0
    policy(approvers=1)
    assert drive.submit().status == "awaiting_approval"


# Windows


@pytest.fixture
def nightly(drive, at):
    """A verified copy on a Wednesday evening, of a team that swaps on Thursdays from two to four."""
    at(EVENING)
    policy(windows=["Thu 02:00-04:00"], expiry_hours=4)
    return drive.submit()


def test_an_approval_given_in_the_evening_is_used_in_the_window_of_the_night(nightly, drive, site, at):
    approval = approve(nightly)
    drive.go(nightly)
    assert (nightly.status, site.files[LIVE].content) == ("approved", "old disk")
    assert nightly.waiting_for.startswith("It waits for the window on Thursday 02:00 to 04:00 UTC: none is open now")
    assert nightly.wake_at == NIGHT, "the clock is the job's alarm"
    approval.refresh_from_db()
    assert approval.expires_at == NIGHT + dt.timedelta(hours=2), "it counts until the window ends"
    at(NIGHT - dt.timedelta(seconds=1))
    assert drive.go(nightly).status == "approved"
    at(NIGHT)
    assert drive.go(nightly).status == "on_trial"


@pytest.mark.parametrize("before", [dt.timedelta(0), dt.timedelta(days=5)], ids=["the evening before", "days before"])
def test_seals_last_until_the_window_ends_and_through_the_rollback_allowed_in_advance(drive, site, at, before):
    """An approval at 17:00, a window from 02:00 to 06:00, the swap at its last moment, and a rollback a day later."""
    at(EVENING - before)
    policy(windows=["Thu 02:00-06:00"], expiry_hours=4)
    job = drive.submit(rollback_minutes=24 * 60)
    seals = approve(job).seals
    at(NIGHT + dt.timedelta(hours=4) - job.downtime() - dt.timedelta(seconds=1))
    assert drive.go(job).status == "on_trial", job.outcome_reason
    at(job.rollback_until() - dt.timedelta(seconds=1))
    assert seals["swap_back"]["expires"] > site.clock()
    job.roll_back(operator())
    assert drive.go(job).status == "rolled_back"
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")


def test_a_host_refuses_the_seal_of_a_swap_that_comes_a_day_too_late(nightly, drive, site, at):
    approve(nightly)
    at(NIGHT)
    site.clock = (NIGHT + dt.timedelta(days=2)).timestamp
    drive.go(nightly)
    assert "the seal expired" in nightly.outcome_reason
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")


def test_facts_are_read_again_when_the_window_opens(nightly, drive, site, at):
    approval = approve(nightly)
    drive.go(nightly)
    site.files[LIVE].inode = 4799
    at(NIGHT)
    drive.go(nightly)
    approval.refresh_from_db()
    assert (nightly.status, approval.state) == ("awaiting_approval", "void")
    assert approval.void_changes == ["live inode: was 4711, is 4799"]


def test_a_swap_that_might_end_after_its_window_waits_for_the_next(nightly, drive, site, at):
    nightly.approvals.update(expires_at=NIGHT + dt.timedelta(days=1))
    at(NIGHT + dt.timedelta(hours=2) - nightly.downtime() + dt.timedelta(seconds=1))
    approval = approve(nightly)
    drive.go(nightly)
    assert (nightly.status, site.files[LIVE].content) == ("approved", "old disk")
    assert "Thursday 3 December 2026 02:00 to 04:00 UTC" in nightly.waiting_for
    assert "the present window closes at 04:00 UTC" in nightly.waiting_for
    approval.refresh_from_db()
    assert approval.expires_at == NIGHT + dt.timedelta(days=7, hours=2)


def test_a_window_that_was_missed_ends_its_consent(nightly, drive, site, at):
    approve(nightly)
    drive.go(nightly)
    at(NIGHT + dt.timedelta(hours=2))
    drive.go(nightly)
    assert (nightly.status, site.files[LIVE].content) == ("awaiting_approval", "old disk")
    assert nightly.approvals.exclude(voided_at=None).get().void_reason == "It expired."


def test_on_blackout_days_nothing_is_swapped(nightly, drive, site, at):
    Policy.objects.get().change(admin(), blackouts=["2026-11-26"])
    approve(nightly)
    at(NIGHT)
    drive.go(nightly)
    assert (nightly.status, site.files[LIVE].content) == ("approved", "old disk")
    assert "3 December" in nightly.waiting_for


def test_a_window_that_is_never_long_enough_is_said(nightly, drive):
    Policy.objects.get().change(admin(), windows=["Thu 02:00-02:01"])
    approve(nightly)
    drive.go(nightly)
    assert nightly.waiting_for.startswith("No window within a year is long enough for the swap")


def test_a_worker_that_comes_late_shuts_nothing_down(nightly, drive, site, at, monkeypatch):
    approve(nightly)
    at(NIGHT)
    with monkeypatch.context() as dying:
        dying.setitem(Work.handlers, "swapping", lambda work: None)  # the worker dies after it used the consent
        assert drive.go(nightly).status == "swapping"
    at(NIGHT + dt.timedelta(hours=3))
    drive.go(nightly)
    assert (nightly.status, nightly.outcome) == ("rolled_back", "failed")
    assert not site.destination.asked("instance_stop")
    assert (site.files[LIVE].content, site.destination.state) == ("old disk", "running")


def test_rollbacks_do_not_wait_for_windows(nightly, drive, at):
    approve(nightly)
    at(NIGHT)
    drive.go(nightly)
    at(NIGHT + dt.timedelta(hours=5))
    nightly.ask("rollback", operator())
    approve(nightly, kind="rollback")
    assert drive.go(nightly).status == "rolled_back"


# Taking consent back


def test_a_consent_that_was_withdrawn_is_not_used(nightly, drive, site, at):
    approval = approve(nightly)
    drive.go(nightly)
    approval.withdraw(approver(), "the tenant called")
    at(NIGHT)
    drive.go(nightly)
    assert (nightly.status, site.files[LIVE].content) == ("awaiting_approval", "old disk")
    assert Event.objects.get(action="approval.withdraw").data["reason"] == "the tenant called"


def test_whoever_withdrew_may_consent_again(nightly, drive, at):
    approval = approve(nightly)
    approval.withdraw(approver(), "the tenant called")
    assert approve(nightly).pk == approval.pk
    at(NIGHT)
    assert drive.go(nightly).status == "on_trial"


def test_nobody_withdraws_for_somebody_else_or_twice_or_too_late(nightly, drive, at):
    approval = approve(nightly)
    refused(lambda: approval.withdraw(person("paula", "approver"), "no"), "You have not approved")
    refused(lambda: approval.withdraw(approver(), "  "), "Give a reason")
    at(NIGHT)
    drive.go(nightly)
    refused(lambda: approval.withdraw(approver(), "no"), "is consumed")
    assert nightly.status == "on_trial"


def test_one_of_three_who_withdraws_leaves_two(drive):
    policy(approvers=2)
    job = drive.submit()
    for name in ("pavel", "paula"):
        approve(job, person(name, "approver"))
    job.open_approval().withdraw(person("paula", "approver"), "not tonight")
    job.refresh_from_db()
    assert job.status == "awaiting_approval"
    approve(job, person("pia", "approver"))
    assert drive.go(job).status == "on_trial"


# Going back by what was approved in advance


@pytest.fixture
def trial(drive):
    return drive.on_trial(rollback_minutes=30)


def test_a_rollback_in_advance_is_part_of_what_is_approved(trial):
    bound = trial.swap_approval().bound
    assert "for 30 minutes after the swap" in bound["rollback"]["is"]
    without = {name: value for name, value in bound.items() if name != "rollback"}
    assert trial.bound("swap", None).keys() - without.keys() == {"rollback"}


def test_the_requester_goes_back_by_it_without_asking_again(trial, drive, site):
    trial.roll_back(operator())
    drive.go(trial)
    assert (trial.status, site.files[LIVE].content, site.destination.state) == ("rolled_back", "old disk", "running")
    assert "pre-approved" in trial.outcome_reason
    granted = trial.approvals.get(kind="rollback")
    assert granted.granted_by == trial.swap_approval()
    used = Event.objects.filter(action="approval.use").latest("seq").data
    assert used["granted_by"] == trial.swap_approval().pk
    assert "one_person_site" not in used
    assert Event.objects.filter(action="job.rollback", actor=operator()).exists()


def test_it_is_for_nobody_else_and_for_no_later_time(trial, at):
    other = person("oscar", "operator")
    refused(lambda: trial.roll_back(other), "Only the requester")
    at(timezone.now() + dt.timedelta(minutes=31))
    refused(lambda: trial.roll_back(operator()), "No pre-approved rollback is left")
    assert not trial.approvals.filter(kind="rollback").exists()


def test_without_it_a_rollback_has_to_be_asked_for(drive):
    job = drive.on_trial()
    refused(lambda: job.roll_back(operator()), "No pre-approved rollback is left")
    assert "roll-back" not in {action.verb for action in job.actions(operator())}


def test_it_is_offered_to_the_requester_and_others_are_told_why_not(trial):
    offered = {action.verb: action for action in trial.actions(operator())}
    assert offered["roll-back"].allowed
    others = {action.verb: action for action in trial.actions(person("oscar", "operator"))}
    assert "Only the requester" in others["roll-back"].why_not


def test_after_the_data_was_confirmed_there_is_no_going_back_by_it(trial):
    trial.confirm(operator())
    refused(lambda: trial.roll_back(operator()), "already confirmed")


def test_a_row_that_claims_to_be_granted_by_an_approval_that_was_not_used_is_no_consent(drive, site):
    job = drive.on_trial()
    other = job.make_approval("purge", {"x": 1}, operator())
    job.make_approval("rollback", job.bound("rollback"), operator(), granted_by=other)
    assert tick_now(job.pk) is None
    job.refresh_from_db()
    assert (job.status, Approval.objects.get(kind="rollback").state) == ("on_trial", "open")
