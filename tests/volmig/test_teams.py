"""Teams: what their members see and do, what others do not, and that a small site notices nothing."""

import pytest
from django.utils import timezone

from hosts.models import Hypervisor, Share
from jobs.models import Approval, Job, Refused
from tests.factories import a_hypervisor, admin, approver, asked, operator, person
from tests.typed import just_typed
from volmig.accounts.models import Team
from volmig.accounts.roles import may, why_not
from volmig.record.models import Event

pytestmark = pytest.mark.django_db


@pytest.fixture
def job():
    return Job.objects.submit(operator(), **asked())


def team(name, *members, hypervisors=()):
    made = Team.objects.create(name=name)
    made.members.set(members)
    Hypervisor.objects.filter(name__in=hypervisors).update(team=made)
    return made


def again(user):
    """The same person at their next request: what they are a member of is asked once in each."""
    return type(user).objects.get(pk=user.pk)


def test_everything_belongs_to_one_team_of_which_everybody_is_a_member(job):
    assert [each.name for each in job.teams()] == ["everybody"]
    assert list(Job.objects.visible_to(person("vera", "viewer"))) == [job]
    assert why_not(approver(), "approve", job.teams()) == []


def test_what_belongs_to_another_team_is_not_seen_at_all(job):
    team("eu", hypervisors=["src", "jump", "dst"])
    olga = again(operator())
    assert not Job.objects.visible_to(olga).exists()
    assert not Hypervisor.objects.visible_to(olga).exists()
    assert not Share.objects.visible_to(olga).exists()


def figures(user):
    row = Share.objects.visible_to(user).with_figures(user).get()
    return {"size": row.size, "free": row.free, "held": row.held, "mounts": row.mounts.count(), "odd": row.disagree()}


def test_a_hypervisor_that_lies_about_a_share_changes_only_what_its_own_team_sees(job):
    """It claims to mount the share of another team, with figures of its own."""
    liar = a_hypervisor("liar")
    source = Share.objects.get().source
    job.footprints.create(kind="space", name="stage", share=Share.objects.get(), bytes=5 << 30)
    mallory, olga = person("mallory", "operator"), operator()
    team("eu", olga, hypervisors=["src", "jump", "dst"])
    team("us", mallory, hypervisors=["liar"])
    before = figures(again(olga))
    mount = {"source": source, "target": "/mnt/x", "options": "rw", "size": 7, "free": 1}
    liar.record_mounts([mount], timezone.now())
    assert figures(again(olga)) == before
    assert before["held"] == 5 << 30
    seen = figures(again(mallory))
    assert (seen["size"], seen["free"], seen["held"], seen["odd"]) == (7, 1, 0, False)
    rows = Share.objects.with_figures(again(mallory)).get().mounts.all()
    assert [each.hypervisor.name for each in rows] == ["liar"], "nor where others mount it"


def test_where_hypervisors_of_one_team_report_different_figures_the_least_counts_and_that_is_said(job):
    liar, olga = a_hypervisor("liar"), operator()
    before = figures(olga)
    mount = {"source": Share.objects.get().source, "target": "/mnt/x", "options": "rw", "size": 1 << 60, "free": 1}
    liar.record_mounts([mount], timezone.now())
    seen = figures(again(olga))
    assert (seen["size"], seen["free"], seen["odd"]) == (before["size"], 1, True)
    assert not before["odd"]


def test_administrators_and_auditors_see_everything_and_act_only_where_they_are_members(job):
    team("eu", hypervisors=["src", "jump", "dst"])
    for role in ("administrator", "auditor"):
        both = person(f"both-{role}", role, "operator")
        assert list(Job.objects.visible_to(both)) == [job]
        with pytest.raises(Refused, match="not a member of the team eu"):
            job.cancel(both)


def test_a_migration_across_teams_needs_membership_in_each(job):
    olga = operator()
    team("eu", olga, hypervisors=["src"])
    us = team("us", hypervisors=["dst"])
    assert not Job.objects.visible_to(again(olga)).exists()
    with pytest.raises(Refused, match="not a member of the team us"):
        job.cancel(again(olga))
    us.members.add(olga)
    assert Job.objects.visible_to(again(olga)).exists()
    job.cancel(again(olga))


def test_a_migration_over_hypervisors_of_another_team_is_not_even_asked_for(db):
    values = asked()
    team("eu", hypervisors=["jump"])
    values["relay"].refresh_from_db()
    with pytest.raises(Refused, match="not a member of the team eu"):
        Job.objects.submit(again(operator()), **values)
    assert not Job.objects.exists()


def test_whoever_left_the_team_consents_no_more(job):
    pavel = approver()
    eu = team("eu", pavel, operator(), hypervisors=["src", "jump", "dst"])
    approval = job.make_approval("rollback", {"x": 1}, operator())
    approval.approve(again(pavel), approval.digest, "fine")
    assert approval.state == "approved"
    eu.members.remove(pavel)
    assert Approval.objects.get(pk=approval.pk).state == "open"


def test_a_superuser_is_a_member_of_every_team_and_still_no_second_person(job):
    root = admin()
    team("eu", hypervisors=["src", "jump", "dst"])
    assert why_not(root, "submit", job.teams()) == []
    assert may(root, "approve")


def test_another_teams_hypervisors_are_not_offered_and_cannot_be_sent(client, db):
    values, olga = asked(), operator()
    team("eu", hypervisors=["jump"])
    client.force_login(olga)
    page = client.get("/migrations/new").content.decode()
    assert "src" in page
    assert "jump" not in page
    group = values["relay"].volume_groups.get()
    sent = {"volume": values["source_volume"].pk, "disk": f"{values['destination'].pk}/disk.local", "relay": group.pk}
    page = client.post("/migrations/new", sent).content.decode()
    assert "volume group no longer exists" in page
    assert not Job.objects.exists()


def test_whoever_sees_a_hypervisor_without_being_a_member_is_told_why_it_cannot_be_chosen(client, db):
    asked()
    team("eu", hypervisors=["src"])
    client.force_login(person("both", "auditor", "operator"))
    assert (
        "src belongs to the team eu, and you are not a member of it" in client.get("/migrations/new").content.decode()
    )


def test_what_waits_for_another_team_is_in_nobody_elses_inbox(client, job):
    team("eu", hypervisors=["src", "jump", "dst"])
    job.make_approval("rollback", {"x": 1}, operator())
    client.force_login(person("both", "auditor", "approver"))
    page = client.get("/approvals/").content.decode()
    assert '<span class="count">' not in page
    assert ">Review<" not in page


@pytest.fixture
def ada(client):
    client.force_login(person("ada", "administrator"))
    just_typed(client)
    return client


def test_an_administrator_makes_a_team_and_that_is_recorded(ada):
    host, olga = a_hypervisor("src"), operator()
    ada.post("/teams/add/", {"name": "eu", "members": [olga.pk], "hypervisors": [host.pk]})
    made = Team.objects.get(name="eu")
    assert (list(made.members.all()), list(made.hypervisors.all())) == ([olga], [host])
    event = Event.objects.get(action="team.add")
    assert event.data["after"] == {"name": "eu", "everybody": False, "members": ["olga"], "hypervisors": ["src"]}


def test_a_change_of_a_team_is_recorded_with_before_and_after(ada):
    made = team("eu")
    ada.post(f"/teams/{made.pk}/", {"name": "eu-1", "everybody": "on"})
    change = Event.objects.get(action="team.change").data
    assert change == {"before": {"name": "eu", "everybody": False}, "after": {"name": "eu-1", "everybody": True}}
    ada.post(f"/teams/{made.pk}/", {"name": "eu-1", "everybody": "on"})
    assert Event.objects.filter(action="team.change").count() == 1, "nothing was changed the second time"


def test_a_team_with_hypervisors_and_the_only_team_cannot_be_removed(ada):
    host, only = a_hypervisor("src"), Team.objects.get()
    page = ada.post(f"/teams/{only.pk}/remove/", follow=True).content.decode()
    assert "Hypervisors still belong to it: src" in page
    made = team("eu", hypervisors=["src"])
    ada.post(f"/teams/{only.pk}/remove/")
    assert list(Team.objects.all()) == [made]
    host.refresh_from_db()
    Hypervisor.objects.all().delete()
    assert "the only team" in ada.post(f"/teams/{made.pk}/remove/", follow=True).content.decode()


def test_a_hypervisor_is_registered_into_a_team_where_there_are_several(ada):
    assert "id_team" not in ada.get("/hosts/register/").content.decode()
    made = team("eu")
    assert "id_team" in ada.get("/hosts/register/").content.decode()
    told = {"name": "cmp-1", "address": "cmp-1", "port": 22, "user": "volmig", "team": made.pk}
    ada.post("/hosts/register/", told)
    assert Hypervisor.objects.get(name="cmp-1").team == made
    assert Event.objects.get(action="hypervisor.register").data["team"] == "eu"
