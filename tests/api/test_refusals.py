"""Whatever a page refuses, the API refuses: in the same words, with a code, and nothing is changed by either."""

import datetime as dt
import html
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client
from django.utils import timezone

from hosts.models import Hypervisor, Instance, LogicalVolume, Mount, VolumeGroup
from jobs.drift import rows
from jobs.models import Approval, Decision, Footprint, Job, Rehearsal, Removal, Submission
from tests.api.conftest import VERBS, Program, code, letters_of
from tests.factories import PASSWORD, person
from tests.pages import scenes
from tests.typed import just_typed
from volmig.accounts.models import Team

TABLES = (Hypervisor, Job, Approval, Decision, Footprint, Removal, Rehearsal, Submission)


@dataclass(frozen=True)
class Twin:
    """One request to a page and the same one to the API; `status` is that of the API."""

    page: str
    typed: dict[str, Any]
    operation: str
    sent: dict[str, Any] | None
    code: str
    status: int = 409
    method: str = "POST"


class Scene:
    """A site of which nothing stands in the way; each refusal changes what it needs."""

    def __init__(self):
        self.hosts = scenes.hypervisors()
        self.dana, self.kim = person("dana", "operator"), person("kim", "approver")
        self.ada = person("ada", "administrator")
        self.by = self.dana

    # Asking for a migration

    def asks(self, says, status=409, **sent):
        group, volume = "vg_nova0", f"vg_nova0/{scenes.OLD}_disk.local"
        wish = {"source": "cmp-lvm-07", "volume": volume, "instance": scenes.NEW, "relay": "jump-02", "relay_vg": group}
        wish |= {"start": False, **sent}
        return Twin("/migrations/new", self.typed(wish), "/jobs", wish, says, status)

    def typed(self, wish):
        """What the form would send of a wish."""
        name = wish["volume"].rpartition("/")[2]
        volume = LogicalVolume.objects.filter(volume_group__hypervisor__name=wish["source"], name=name).first()
        relay = VolumeGroup.objects.filter(hypervisor__name=wish["relay"], name=wish["relay_vg"]).first()
        instance = Instance.objects.filter(uuid=wish["instance"]).first()
        disk = wish.get("disk", "disk.local")
        return {
            "volume": volume.pk if volume else 0,
            "disk": f"{instance.pk if instance else 0}/{disk}",
            "relay": relay.pk if relay else 0,
            "rate": wish.get("rate_mib") or "",
        }

    # Verbs and consent

    def does(self, job, verb, says, page="", sent=None, status=409, **typed):
        return Twin(f"/migrations/{job.pk}/{page or verb}", typed, f"/jobs/{job.pk}/{verb}", sent, says, status)

    def job(self, status, **changed):
        return scenes.job(self.dana, status, **changed)

    def asked(self, kind="swap", **changed):
        return scenes.approval(self.job("on_trial" if kind != "swap" else "awaiting_approval"), kind, **changed)

    def says(self, asked, verdict, code, status=409, **changed):
        told = {"digest": asked.digest, "instance": asked.job.instance_id[-6:], "reason": "As agreed.", **changed}
        typed = {"verdict": verdict, "tail": told["instance"], "password": PASSWORD, **told}
        sent = told if verdict == "approve" else {"reason": told["reason"]}
        return Twin(f"/approvals/{asked.pk}/", typed, f"/jobs/{asked.job_id}/{verdict}", sent, code, status)

    def extends(self, says, job, days, reason="It is needed.", status=409):
        day = f"{timezone.now() + dt.timedelta(days=days):%Y-%m-%d}"
        told = {"day": day, "reason": reason}
        return Twin(f"/migrations/{job.pk}/extend", told, f"/jobs/{job.pk}/extend", told, says, status)


def foreign(scene):
    """Everything of a team of which nobody here is a member."""
    other = Team.objects.create(name="blue")
    Team.objects.filter(name="everybody").update(everybody=False)
    Team.objects.get(name="everybody").members.set([scene.dana, scene.kim])
    scene.hosts["jump-02"].put(team=other)
    scene.by = person("alma", "operator", "administrator")


# What of the world is otherwise, and what is asked for then. Each returns the twin.


def quarantined(scene):
    scene.hosts["jump-02"].quarantine("its key changed")
    return scene.asks("hypervisor-unusable")


def unpinned(scene):
    scene.hosts["cmp-lvm-07"].put(host_key="")
    return scene.asks("hypervisor-unusable")


def opened(scene):
    LogicalVolume.objects.update(is_open=True)
    return scene.asks("volume-open")


def volume_busy(scene):
    scene.job("preparing", lv_uuid=LogicalVolume.objects.get(name=f"{scenes.OLD}_disk.local").uuid)
    return scene.asks("volume-in-migration")


def instance_busy(scene):
    scene.job("preparing", instance_id=scenes.NEW)
    return scene.asks("instance-in-migration")


def raw_disk(scene):
    instance = Instance.objects.get(uuid=scenes.NEW)
    instance.disks = [{**instance.disks[0], "format": "raw"}]
    instance.save()
    return scene.asks("not-qcow2")


def two_disks(scene):
    instance = Instance.objects.get(uuid=scenes.NEW)
    instance.disks = instance.disks * 2
    instance.save()
    return scene.asks("no-such-disk")


def off_the_share(scene):
    instance = Instance.objects.get(uuid=scenes.NEW)
    instance.disks = [{**instance.disks[0], "path": "/elsewhere/disk.local"}]
    instance.save()
    return scene.asks("not-on-a-share")


def relay_without_share(scene):
    Mount.objects.filter(hypervisor=scene.hosts["jump-02"]).delete()
    return scene.asks("relay-lacks-share")


def relay_is_the_source(scene):
    return scene.asks("relay-is-an-end", relay="cmp-lvm-07")


def source_is_the_destination(scene):
    Instance.objects.filter(uuid=scenes.NEW).update(hypervisor=scene.hosts["cmp-lvm-07"])
    return scene.asks("same-hypervisor")


def volume_gone(scene):
    return scene.asks("invalid-choice", 422, volume="vg_nova0/gone")


def disk_gone(scene):
    return scene.asks("invalid-choice", 422, disk="disk.swap")


def relay_gone(scene):
    return scene.asks("invalid-choice", 422, relay_vg="vg_gone")


def asked_by_a_viewer(scene):
    scene.by = person("vera", "viewer")
    return scene.asks("no-role", 403)


def asked_across_teams(scene):
    foreign(scene)
    return scene.asks("no-member", 403)


def verb_of_a_viewer(scene):
    scene.by = person("vera", "viewer")
    return scene.does(scene.job("planned"), "cancel", "no-role", status=403)


def verb_across_teams(scene):
    job = scene.job("planned")
    foreign(scene)
    return scene.does(job, "cancel", "no-member", status=403)


def wrong_status(verb, status, page="", sent=None):
    return lambda scene: scene.does(scene.job(status), verb, "wrong-status", page, sent)


def cancelled_already(scene):
    return scene.does(scene.job("preparing", cancel_requested_at=timezone.now()), "cancel", "no-cancel")


def confirmed_already(scene):
    return scene.does(scene.job("on_trial", confirmed_at=timezone.now()), "confirm", "confirmed-already")


def confirmed_against_a_rollback(scene):
    return scene.does(scene.asked("rollback").job, "confirm", "rollback-asked")


def rollback_asked_twice(scene):
    return scene.does(scene.asked("rollback").job, "rollback", "asked-already", "ask-rollback", {})


def rollback_never_granted(scene):
    return scene.does(scene.job("on_trial"), "rollback", "no-rollback", "roll-back", {"now": True})


def purge_asked_twice(scene):
    job = scene.job("done")
    scenes.approval(job, "purge")
    return scene.does(job, "purge", "asked-already", "ask-purge")


def nothing_to_rehearse(scene):
    return scene.does(scene.job("done"), "rehearse", "no-rehearsal")


def kept(scene):
    job = scene.job("done")
    scenes.kept(job, days=10)
    return job


def own_request(scene):
    scene.dana = scene.by = person("dana", "operator", "approver")
    return scene.says(scene.asked(), "approve", "own-request")


def own_change(scene):
    scene.by = scene.kim
    return scene.says(scene.asked(last_editor=scene.kim), "approve", "own-change")


def approved_by_an_operator(scene):
    asked = scene.asked()
    scene.by = person("olga", "operator")
    return scene.says(asked, "approve", "no-role", 403)


def by_kim(arrange):
    def arranged(scene):
        scene.by = scene.kim
        return arrange(scene, scene.asked())

    return arranged


def decided_already(scene, asked):
    scenes.decision(asked, scene.kim)
    return scene.says(asked, "approve", "decided-already")


def void(scene, asked):
    asked.void("The plan was edited.")
    return scene.says(asked, "approve", "request-void")


def expired(scene, asked):
    Approval.objects.update(expires_at=timezone.now())
    return scene.says(asked, "approve", "request-expired")


def used_before_it_is_withdrawn(scene, asked):
    scenes.decision(asked, scene.kim)
    Approval.objects.update(consumed_at=timezone.now())
    return scene.says(asked, "withdraw", "request-consumed")


def without_a_second_factor(scene, asked):
    return scene.says(asked, "approve", "no-second-factor")


def register(scene):
    scene.by = scene.ada
    told = {"name": "jump-02", "address": "192.0.2.7"}
    return Twin("/hosts/register/", {**told, "port": 22, "user": "volmig"}, "/hypervisors", told, "unique", 422)


def pin(scene):
    scene.by, host = scene.ada, scene.hosts["cmp-lvm-08"]
    host.put(offered_key="ssh-ed25519 BBBB")
    typed = {"shown": "SHA256:other", "typed": "another1"}
    sent = {"fingerprint": "SHA256:another1"}
    return Twin(f"/hosts/{host.pk}/pin/", typed, f"/hypervisors/{host.pk}/pin", sent, "other-key", 422)


def retire(scene, name="jump-02"):
    scene.by, host = scene.ada, scene.hosts["jump-02"]
    told = {"name": name}
    says = "name-not-typed" if name != "jump-02" else "still-needed"
    return Twin(f"/hosts/{host.pk}/retire/", told, f"/hypervisors/{host.pk}/retire", told, says, 422)


def retire_in_use(scene):
    scenes.reservation(scene.job("preparing"))
    return retire(scene)


def leftover(verb, verdict, says):
    def arrange(scene):
        scenes.leftovers(scene.dana)
        found = rows(Hypervisor.objects.active())
        row = next(row for row in found if row.found.verdict == verdict)
        told = {name: getattr(row.thing, name) for name in ("kind", "name", "job", "identity")}
        told |= {"name": "vg_nova0/gone"} if says == "not-so" else {}
        pk = row.hypervisor.pk
        return Twin(f"/leftovers/{pk}/{verb}", told, f"/hypervisors/{pk}/leftovers/{verb}", told, says)

    return arrange


REFUSALS = {
    "a relay in quarantine": quarantined,
    "a source that is not pinned": unpinned,
    "a volume in use": opened,
    "a volume in another migration": volume_busy,
    "an instance in another migration": instance_busy,
    "a disk that is raw": raw_disk,
    "two disks of the name": two_disks,
    "a disk on no share": off_the_share,
    "a relay that does not mount the share": relay_without_share,
    "a relay that is the source": relay_is_the_source,
    "a source that is the destination": source_is_the_destination,
    "a volume that is gone": volume_gone,
    "a disk that is gone": disk_gone,
    "a volume group that is gone": relay_gone,
    "a migration for a viewer": asked_by_a_viewer,
    "a migration across teams": asked_across_teams,
    "a verb of a viewer": verb_of_a_viewer,
    "a verb across teams": verb_across_teams,
    "a start of what runs": wrong_status("start", "preparing"),
    "a cancel of what is done": wrong_status("cancel", "done"),
    "a cancel of what is being cancelled": cancelled_already,
    "a resume of what is not halted": lambda scene: scene.does(scene.job("preparing"), "resume", "not-halted"),
    "a new try of what does not wait": lambda scene: scene.does(scene.job("preparing"), "try-again", "not-waiting"),
    "a confirmation before the swap": wrong_status("confirm", "preparing"),
    "a second confirmation": confirmed_already,
    "a confirmation against a rollback": confirmed_against_a_rollback,
    "a rollback of what is planned": wrong_status("rollback", "planned", "ask-rollback", {}),
    "a rollback that is asked for already": rollback_asked_twice,
    "a rollback that nobody granted": rollback_never_granted,
    "a purge on trial": wrong_status("purge", "on_trial", "ask-purge"),
    "a purge that is asked for already": purge_asked_twice,
    "a rehearsal of nothing": nothing_to_rehearse,
    "a limit on trial": wrong_status("rate", "on_trial", "rate", {"rate_mib": None}),
    "a longer keep of nothing": lambda scene: scene.extends("no-backup", scene.job("done"), 20),
    "a longer keep that is shorter": lambda scene: scene.extends("not-later", kept(scene), 2),
    "a longer keep for years": lambda scene: scene.extends("too-long", kept(scene), 900),
    "a longer keep without a reason": lambda scene: scene.extends("required", kept(scene), 20, " ", 422),
    "a yes to one's own request": own_request,
    "a yes to one's own change": own_change,
    "a yes of an operator": approved_by_an_operator,
    "a second yes": by_kim(decided_already),
    "a yes to a void request": by_kim(void),
    "a yes to an expired request": by_kim(expired),
    "a yes to another digest": by_kim(lambda scene, asked: scene.says(asked, "approve", "other-digest", digest="0")),
    "a yes to another instance": by_kim(
        lambda scene, asked: scene.says(asked, "approve", "other-instance", 422, instance="abcdef")
    ),
    "a yes without a reason": by_kim(lambda scene, asked: scene.says(asked, "approve", "required", 422, reason=" ")),
    "a yes without a second factor": by_kim(without_a_second_factor),
    "a no of an operator": lambda scene: scene.says(scene.asked(), "reject", "no-role", 403),
    "a withdrawal of nothing": by_kim(lambda scene, asked: scene.says(asked, "withdraw", "no-consent")),
    "a withdrawal of what was used": by_kim(used_before_it_is_withdrawn),
    "a name that is taken": register,
    "another key than was compared": pin,
    "a retirement without the name": lambda scene: retire(scene, "jump-03"),
    "a retirement of what is in use": retire_in_use,
    "a removal of what is gone": leftover("remove", "gone", "leftover-kept"),
    "a removal of a stranger": leftover("remove", "stranger", "leftover-kept"),
    "a removal of what nobody knows": leftover("remove", "left", "not-so"),
    "a strike of what is there": leftover("strike", "left", "leftover-there"),
}  # fmt: skip


@pytest.fixture
def scene(db, settings, request):
    settings.APPROVERS_NEED_TOTP = "second factor" in request.node.name
    return Scene()


def world():
    return {table.__name__: list(table.objects.order_by("pk").values()) for table in TABLES}


def shown_by_page(twin, user):
    client = Client()
    client.force_login(user)
    just_typed(client)
    with transaction.atomic():
        response = client.post(twin.page, twin.typed, follow=True)
        return html.unescape(response.content.decode())


@pytest.mark.parametrize("name", REFUSALS)
def test_the_api_refuses_what_a_page_refuses_in_the_same_words(name, scene):
    twin = REFUSALS[name](scene)
    before = world()
    page = shown_by_page(twin, User.objects.get(pk=scene.by.pk))
    assert world() == before, "the page did something"
    response = Program(letters_of(scene.by, *VERBS)).ask(twin.method, twin.operation, twin.sent)
    assert (response.status_code, code(response)) == (twin.status, twin.code), response.json()
    assert world() == before, "the API did something"
    for reason in response.json()["errors"]:
        assert reason["detail"] in page
