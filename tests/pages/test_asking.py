"""A new migration and the verbs of a job: what is offered, what is refused and why, and that nothing typed is lost."""

from urllib.parse import parse_qsl

import pytest
from django.utils import timezone

from hosts.models import Cloud, Hypervisor, Instance, LogicalVolume, Server, VolumeGroup
from jobs.models import Job
from tests.pages import scenes


def text(response):
    return response.content.decode()


@pytest.fixture
def picked(hosts):
    """What a complete form sends."""
    volume = LogicalVolume.objects.get(name=f"{scenes.OLD}_disk.local")
    relay = VolumeGroup.objects.get(hypervisor=hosts["jump-02"])
    instance = Instance.objects.get(name="db-new")
    return {
        "source": hosts["cmp-lvm-07"].pk,
        "volume": volume.pk,
        "destination": hosts["cmp-nfs-03"].pk,
        "disk": f"{instance.pk}/disk.local",
        "relay": relay.pk,
        "ticket": "OPS-1",
        "rate": "40",
    }


def test_choosing_everything_makes_a_job_that_is_only_checked(picked, dana, browser_of):
    response = browser_of(dana).post("/migrations/new", picked)
    job = Job.objects.get()
    assert response.headers["Location"] == f"/migrations/{job.pk}/"
    assert (job.requester, job.ticket, job.rate, job.start_when_checked) == (dana, "OPS-1", 40 << 20, False)
    assert (job.source.name, job.relay.name, job.destination.name) == ("cmp-lvm-07", "jump-02", "cmp-nfs-03")


def test_the_other_button_starts_it_as_soon_as_the_checks_hold(picked, dana, browser_of):
    browser_of(dana).post("/migrations/new?start=1", {**picked, "rate": ""})
    job = Job.objects.get()
    assert job.start_when_checked
    assert job.rate is None


@pytest.mark.parametrize("missing", ["volume", "disk", "relay"])
def test_a_form_that_lacks_a_choice_keeps_the_rest_and_makes_nothing(missing, picked, dana, browser_of):
    response = browser_of(dana).post("/migrations/new", {**picked, missing: "", "ticket": "KEEP-ME"})
    assert response.status_code == 422
    assert "KEEP-ME" in text(response)
    assert "Nothing was created" in text(response)
    assert "checked" in text(response)
    assert not Job.objects.exists()


def test_a_volume_that_went_away_since_the_page_was_loaded_is_refused_in_words(picked, dana, browser_of):
    LogicalVolume.objects.all().delete()
    response = browser_of(dana).post("/migrations/new", picked)
    assert "The volume no longer exists" in text(response)
    assert not Job.objects.exists()


def test_a_disk_that_went_away_is_refused_in_words(picked, dana, browser_of):
    Instance.objects.all().delete()
    assert "The disk no longer exists" in text(browser_of(dana).post("/migrations/new", picked))


@pytest.mark.parametrize("rate", ["-4", "fast", "0.01", "1e999"])
def test_a_limit_that_is_no_limit_is_refused_and_kept(rate, picked, dana, browser_of):
    response = browser_of(dana).post("/migrations/new", {**picked, "rate": rate})
    assert response.status_code == 422
    assert f'value="{rate}"' in text(response)
    assert not Job.objects.exists()


def test_a_volume_that_was_opened_meanwhile_is_refused_by_the_verb_and_the_form_is_kept(picked, dana, browser_of):
    LogicalVolume.objects.update(is_open=True)
    response = browser_of(dana).post("/migrations/new", picked)
    assert response.status_code == 422
    assert "is in use on cmp-lvm-07" in text(response)
    assert "OPS-1" in text(response)


def options(page, name):
    """The radio buttons of one name with their text, from a page."""
    found = {}
    for piece in page.split(f'<input type="radio" name="{name}"')[1:]:
        value = piece.split('value="')[1].split('"')[0]
        found[value] = piece.split("</label>")[0]
    return found


def test_what_cannot_be_chosen_is_shown_with_the_reason(picked, dana, browser_of, hosts):
    other = scenes.job(dana, "preparing", lv_uuid=LogicalVolume.objects.get(pk=picked["volume"]).uuid)
    page = text(browser_of(dana).get("/migrations/new", picked))
    volumes = options(page, "volume")
    busy = volumes[str(picked["volume"])]
    assert "disabled" in busy
    assert f"already in migration {other.pk}" in busy
    assert any("in use" in volume for volume in volumes.values())
    assert any("raw, not qcow2" in disk for disk in options(page, "disk").values())
    assert "cmp-lvm-08: cmp-lvm-08 is quarantined" in page


def test_relays_are_narrowed_by_source_share_and_room(picked, dana, browser_of, hosts):
    big = LogicalVolume.objects.get(size=9000 * scenes.GIB)
    relays = options(text(browser_of(dana).get("/migrations/new", {**picked, "volume": big.pk})), "relay")
    jump = relays[str(picked["relay"])]
    assert "not enough free space" in jump
    source = next(relay for value, relay in relays.items() if value != str(picked["relay"]))
    assert "same hypervisor as the source" in source
    assert f"does not mount {scenes.SHARE}" in source


def test_a_disk_with_another_part_of_the_name_than_the_volume_comes_last_and_says_why(picked, dana, browser_of):
    guest = Instance.objects.get(name="db-new")
    root = {**guest.disks[0], "name": "disk", "path": guest.disks[0]["path"].replace("disk.local", "disk")}
    guest.disks.insert(0, root)
    guest.save()
    wanted, wrong = f"{guest.pk}/disk.local", f"{guest.pk}/disk"
    disks = options(text(browser_of(dana).get("/migrations/new", {**picked, "disk": wrong})), "disk")
    assert "the volume was disk.local of its instance" in disks[wrong]
    assert "disabled" in disks[wrong]
    assert "checked" not in disks[wrong]
    assert "disabled" not in disks[wanted]
    assert list(disks).index(wanted) < list(disks).index(wrong)
    before = options(text(browser_of(dana).get("/migrations/new", {**picked, "volume": ""})), "disk")
    assert "disabled" not in before[wrong], "no volume is chosen yet"


def test_room_that_other_jobs_hold_is_not_offered_twice(picked, dana, browser_of, hosts):
    jump = hosts["jump-02"].volume_groups.get()
    held = scenes.job(dana, "preparing")
    scenes.reservation(held)
    held.footprints.filter(kind="space", hypervisor=jump.hypervisor).update(bytes=jump.free - scenes.GIB)
    assert (
        "not enough free space" in options(text(browser_of(dana).get("/migrations/new", picked)), "relay")[str(jump.pk)]
    )


def test_htmx_gets_only_the_choices(picked, dana, browser_of):
    response = browser_of(dana).get("/migrations/new", picked, headers={"HX-Request": "true"})
    assert "<html" not in text(response)
    assert "HX-Request" in response.headers["Vary"]
    assert f'value="{picked["volume"]}" checked' in text(response)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"source": "x"},
        {"volume": "9" * 30},
        {"volume": "9" * 6000},
        {"disk": "a/b/c"},
        {"relay": "-1"},
        {"destination": "9999"},
    ],
)
def test_values_that_no_form_sends_do_no_harm(nonsense, picked, dana, browser_of):
    assert browser_of(dana).get("/migrations/new", {**picked, **nonsense}).status_code == 200


def test_only_operators_ask(picked, kim, browser_of):
    assert browser_of(kim).get("/migrations/new").status_code == 403
    assert browser_of(kim).post("/migrations/new", picked).status_code == 403
    assert not Job.objects.exists()


def test_starting_and_cancelling_are_asked_of_the_job(dana, browser_of, hosts):
    job, browser = scenes.job(dana, "planned"), browser_of(dana)
    assert browser.post(f"/migrations/{job.pk}/start").status_code == 302
    assert browser.post(f"/migrations/{job.pk}/cancel").status_code == 302
    job.refresh_from_db()
    assert job.start_requested_at
    assert job.cancel_requested_at


def test_what_came_to_nothing_can_be_asked_for_again_with_the_same_choices(picked, dana, browser_of, hosts):
    volume, instance = LogicalVolume.objects.get(pk=picked["volume"]), Instance.objects.get(name="db-new")
    job = scenes.job(dana, "undone", lv_uuid=volume.uuid, instance_id=instance.uuid, rate=40 << 20)
    page = text(browser_of(dana).get(f"/migrations/{job.pk}/"))
    link = page.split("/migrations/new?")[1].split('"')[0].replace("&amp;", "&")
    form = text(browser_of(dana).get(f"/migrations/new?{link}"))
    for name in ("volume", "disk", "relay"):
        assert "checked" in options(form, name)[str(picked[name])]
    assert 'value="40.0"' in form


def test_it_can_be_asked_for_again_through_another_relay(picked, dana, browser_of, hosts):
    other = Hypervisor.objects.create(name="jump-03", address="192.0.2.99", host_key="ssh-ed25519 AAAA")
    known = [scenes.group(5000 * scenes.GIB)]
    other.record_inventory(scenes.inventory(known, mounts=[scenes.MOUNT], address="10.20.0.9"))
    volume, instance = LogicalVolume.objects.get(pk=picked["volume"]), Instance.objects.get(name="db-new")
    job = scenes.job(dana, "undone", lv_uuid=volume.uuid, instance_id=instance.uuid)
    page = text(browser_of(dana).get(f"/migrations/{job.pk}/"))
    assert "you can change the relay and everything else" in page
    link = page.split("/migrations/new?")[1].split('"')[0].replace("&amp;", "&")
    sent = dict(parse_qsl(link)) | {"relay": str(other.volume_groups.get().pk)}
    assert browser_of(dana).post("/migrations/new", sent).status_code == 302
    again = Job.objects.get(status="checking")
    assert (again.relay, again.lv_uuid, again.instance_id) == (other, job.lv_uuid, job.instance_id)


def test_a_verb_that_is_refused_says_why_on_the_next_page(dana, browser_of, hosts):
    job = scenes.job(dana, "done")
    page = text(browser_of(dana).post(f"/migrations/{job.pk}/cancel", follow=True))
    assert "cannot be cancelled" in page


@pytest.mark.parametrize(
    "verb",
    ["start", "cancel", "resume", "try-again", "confirm", "rate", "ask-rollback", "ask-purge", "rehearse"],
)
def test_every_verb_needs_a_post_and_the_role(verb, dana, kim, browser_of, hosts):
    job = scenes.job(dana, "planned")
    assert browser_of(dana).get(f"/migrations/{job.pk}/{verb}").headers["Location"] == job.get_absolute_url()
    assert browser_of(kim).post(f"/migrations/{job.pk}/{verb}").status_code == 403
    assert browser_of(dana).post(f"/migrations/{job.pk}/{verb}", {"rate": "5"}).status_code == 302


def test_verbs_that_there_are_not_are_not_found(dana, browser_of, hosts):
    assert browser_of(dana).post(f"/migrations/{scenes.job(dana).pk}/explode").status_code == 404


def test_a_limit_is_set_in_mib_and_a_bad_one_changes_nothing(dana, browser_of, hosts):
    job, browser = scenes.job(dana, "preparing"), browser_of(dana)
    browser.post(f"/migrations/{job.pk}/rate", {"rate": "25"})
    job.refresh_from_db()
    assert job.rate == 25 << 20
    page = text(browser.post(f"/migrations/{job.pk}/rate", {"rate": "-1"}, follow=True))
    assert "stays as it was" in page
    job.refresh_from_db()
    assert job.rate == 25 << 20


def test_verbs_refuse_without_the_token_of_the_form(dana, hosts):
    from django.test import Client

    job, browser = scenes.job(dana, "planned"), Client(enforce_csrf_checks=True)
    browser.force_login(dana)
    assert browser.post(f"/migrations/{job.pk}/start").status_code == 403
    job.refresh_from_db()
    assert job.start_requested_at is None


# By instance instead of by hypervisor


@pytest.fixture
def in_nova(hosts):
    """Both instances as Nova tells of them: the one that the volume was of is called otherwise there."""
    cloud = Cloud.objects.create(name="eu-1", control="openstack")
    for uuid, name in ((scenes.OLD, "orders-db"), (Instance.objects.get(name="db-new").uuid, "orders-db-2")):
        words = f"{name} {uuid} shop 10.9.0.7"
        Server.objects.create(cloud=cloud, uuid=uuid, name=name, words=words, seen_at=timezone.now())


def test_the_disks_of_two_instances_are_found_by_their_names_without_a_path(in_nova, picked, dana, browser_of):
    page = text(browser_of(dana).get("/migrations/new", {"find_from": "orders", "find_to": "10.9.0.7"}))
    assert "orders-db disk.local" in page
    assert "orders-db-2 disk.local" in page
    del picked["source"], picked["destination"]
    browser_of(dana).post("/migrations/new", {**picked, "find_from": "orders", "find_to": "orders"})
    job = Job.objects.get()
    assert (job.source.name, job.destination.name) == ("cmp-lvm-07", "cmp-nfs-03")


def test_what_was_looked_for_stays_when_the_form_is_sent_back(in_nova, picked, dana, browser_of):
    response = browser_of(dana).post("/migrations/new", {**picked, "find_from": "orders", "volume": ""})
    assert response.status_code == 422
    assert 'value="orders"' in text(response)
    assert "orders-db disk.local" in text(response)


def test_the_first_button_of_the_form_looks_and_starts_nothing(dana, browser_of, hosts):
    page = text(browser_of(dana).get("/migrations/new"))
    form = page[page.index('id="migration"') :]
    assert form.index('formmethod="get"') < form.index("?start=1")


def test_an_instance_that_nobody_knows_is_said(dana, browser_of, hosts):
    page = text(browser_of(dana).get("/migrations/new", {"find_from": "nope", "find_to": "nope"}))
    assert "No volume of a matching instance found" in page
    assert "No matching instance with a disk on a share found" in page


def test_every_check_leads_to_its_explanation(dana, browser_of, hosts):
    page = text(browser_of(dana).get("/checks/"))
    assert 'id="no-evacuation-threatens-the-source"' in page


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (["volmig", "volmig.src=4c1f"], "fenced as the source of a migration"),
        (["volmig", "volmig.job=4c1f"], "a temporary volume of a migration"),
    ],
)
def test_a_fenced_source_is_the_customers_and_a_temporary_volume_is_volmigs(tags, said, dana, browser_of, hosts):
    """Both carry volmig's tag; that the customer's volume was made by volmig is untrue, and alarms people."""
    LogicalVolume.objects.filter(volume_group__hypervisor=hosts["cmp-lvm-07"]).update(tags=tags)
    page = text(browser_of(dana).get("/migrations/new", {"source": hosts["cmp-lvm-07"].pk}))
    assert said in page
    assert "made it itself" not in page


def test_the_lock_of_an_instance_is_not_said_to_be_in_nova_where_there_is_none(dana, browser_of, hosts):
    job = scenes.job(dana, "swapping")
    job.footprints.create(kind="lock", name=job.instance_id, hypervisor=job.destination, state="present")
    page = text(browser_of(dana).get(job.get_absolute_url(), {"tab": "evidence"}))
    assert "Lock of the instance" in page
    assert "Nova" not in page
