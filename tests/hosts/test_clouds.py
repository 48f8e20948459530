"""Clouds with Nova: how they are entered, what of the credential is kept and shown, and what is read of them."""

import datetime as dt
import json
import re
import time

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from hosts import tasks
from hosts.models import Cloud, Compute, Hypervisor, Server
from hosts.remote import nova
from hosts.remote.host import HostError
from tests import factories
from tests.factories import a_hypervisor, a_volume, a_volume_group, an_instance, in_cloud, mounts
from tests.fakenova import PROJECT
from tests.fakenova import Cloud as FakeCloud
from tests.fakenova import Server as FakeServer
from tests.fakes import INSTANCE
from tests.typed import just_typed
from volmig import data_dir, encryption, keys
from volmig.accounts.models import Team
from volmig.record.models import Event

SECRET = "only-you-know-17"


@pytest.fixture
def fake():
    cloud = FakeCloud()
    yield cloud
    cloud.close()
    nova.forget()


@pytest.fixture
def ada(client, person):
    client.force_login(person("ada", "administrator"))
    just_typed(client)
    return client


def typed(**changed):
    return {
        "name": "prod",
        "control": "openstack",
        "auth_type": "v3applicationcredential",
        "auth_url": "https://keystone.example.org/v3",
        "application_credential_id": "ac-1",
        "secret": SECRET,
        "verify": "on",
        **changed,
    }


def add(client, **changed):
    return client.post(reverse("hosts:add_cloud"), typed(**changed), follow=True)


# The credential


def test_a_secret_is_kept_sealed_and_never_shown_again(ada):
    add(ada)
    cloud = Cloud.objects.get()
    assert SECRET not in json.dumps(Cloud.objects.values().get(), default=str)
    assert dict(cloud.access().auth)["application_credential_secret"] == SECRET
    assert SECRET not in repr(cloud.access())
    pages = [reverse("hosts:cloud", args=[cloud.pk]), reverse("hosts:nova", args=[cloud.pk]), reverse("hosts:clouds")]
    assert [url for url in pages if SECRET in ada.get(url).content.decode()] == []
    assert SECRET not in json.dumps(list(Event.objects.values("data")))


def test_a_secret_that_was_typed_into_a_faulty_form_is_not_sent_back(ada):
    page = add(ada, auth_url="").content.decode()
    assert "Required to log in." in page
    assert SECRET not in page
    assert 'value="ac-1"' in page


def test_an_empty_secret_keeps_the_one_that_is_there(ada):
    add(ada)
    cloud = Cloud.objects.get()
    ada.post(reverse("hosts:cloud", args=[cloud.pk]), typed(secret="", name="production"))
    cloud.refresh_from_db()
    assert (cloud.name, dict(cloud.access().auth)["application_credential_secret"]) == ("production", SECRET)


def test_a_secret_does_not_go_to_another_address_or_credential(ada):
    add(ada)
    cloud = Cloud.objects.get()
    changes = [
        {"auth_url": "https://elsewhere.example.net/v3"},
        {"application_credential_id": "ac-2"},
        {"region": "elsewhere"},
        {"ca_file": "/tmp/mine.pem"},
        {"verify": ""},
    ]
    for changed in changes:
        page = ada.post(reverse("hosts:cloud", args=[cloud.pk]), typed(secret="", **changed)).content.decode()
        assert "Enter the secret" in page
    cloud.refresh_from_db()
    assert cloud.auth["auth_url"] == "https://keystone.example.org/v3"


@pytest.mark.parametrize("changed", [{"region": "x"}, {"ca_file": "/tmp/mine.pem"}, {"verify": False}])
def test_the_secret_is_not_kept_by_any_other_way_in_either(ada, changed):
    add(ada)
    cloud = Cloud.objects.get()
    names = ("name", "control", "auth_type", "auth", "region", "ca_file", "verify")
    told = {name: getattr(cloud, name) for name in names}
    cloud.reregister(None, [], **(told | changed))
    assert Cloud.objects.get().secret == ""


@pytest.mark.parametrize("address", ["http://169.254.169.254/v3", "https://[fe80::1]/v3"])
def test_a_metadata_address_is_no_keystone(ada, address):
    page = ada.post(reverse("hosts:add_cloud"), typed(auth_url=address)).content.decode()
    assert "metadata address" in page
    assert not Cloud.objects.exists()


def test_with_several_teams_a_hypervisor_does_not_say_which_compute_it_is(hypervisor):
    """A compute that was broken into may claim the name of another team's."""
    liar = hypervisor("liar")
    liar.put(facts={"hostname": "compute7"})
    assert liar.names_in_nova() == {"liar", "compute7"}
    Team.objects.create(name="others")
    assert liar.names_in_nova() == {"liar"}
    liar.put(nova_host="compute8")
    assert liar.names_in_nova() == {"compute8"}


def test_a_cloud_goes_back_to_libvirt_without_keeping_a_credential(ada):
    add(ada)
    cloud = Cloud.objects.get()
    ada.post(reverse("hosts:cloud", args=[cloud.pk]), typed(control="libvirt", secret=""))
    cloud.refresh_from_db()
    assert (cloud.secret, cloud.auth, cloud.control) == ("", {}, "libvirt")


def test_secrets_are_sealed_anew_with_a_new_key_and_still_open(ada, fake):
    add(ada)
    before = Cloud.objects.get().secret
    before_keys = encryption.sealing_keys()
    call_command("rotate_secrets")
    cloud = Cloud.objects.get()
    assert cloud.secret != before
    assert encryption.sealing_keys()[0] not in before_keys
    assert dict(cloud.access().auth)["application_credential_secret"] == SECRET
    call_command("rotate_secrets")
    assert len(encryption.sealing_keys()) == 2
    assert dict(Cloud.objects.get().access().auth)["application_credential_secret"] == SECRET


def test_a_lost_key_is_said_and_nothing_is_rotated(ada):
    keys.ensure([encryption.KEYS])
    add(ada)
    path = data_dir.directory() / encryption.KEYS
    kept = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(HostError, match=r"put .*sealing_keys back from a backup"):
            Cloud.objects.get().access()
        with pytest.raises(CommandError, match="No key was changed"):
            call_command("rotate_secrets")
    finally:
        data_dir.replace(path, kept)


def test_a_cloud_can_be_taken_from_a_clouds_yaml_by_its_name(ada, fake, settings, tmp_path):
    path = tmp_path / "clouds.yaml"
    auth = dict(fake.access().auth)
    path.write_text(json.dumps({"clouds": {"lab": {"auth_type": "v3applicationcredential", "auth": auth}}}))
    settings.CLOUDS_YAML = str(path)
    assert ">lab</option>" in ada.get(reverse("hosts:add_cloud")).content.decode()
    ada.post(reverse("hosts:add_cloud"), {"name": "lab", "control": "openstack", "entry": "lab"})
    cloud = Cloud.objects.get()
    assert (cloud.entry, cloud.secret) == ("lab", "")
    assert nova.connect(cloud.access()).server(INSTANCE)["name"] == "db7"


def test_a_name_that_is_not_in_the_clouds_yaml_any_more_is_an_error_in_words(ada, settings, tmp_path):
    path = tmp_path / "clouds.yaml"
    path.write_text("clouds: {lab: {auth: {auth_url: 'http://127.0.0.1:1/v3'}}}")
    settings.CLOUDS_YAML = str(path)
    ada.post(reverse("hosts:add_cloud"), {"name": "lab", "control": "openstack", "entry": "lab"})
    path.write_text("clouds: {}")
    tasks.refresh_cloud(Cloud.objects.get().pk)
    assert "lab" in Cloud.objects.get().last_error


@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_only_administrators_see_and_check_credentials(client, person, fake, role):
    cloud = in_cloud(fake)
    client.force_login(person("vera", role))
    asked = [("get", "nova"), ("get", "cloud"), ("post", "check_cloud"), ("post", "refresh_cloud")]
    answers = [getattr(client, how)(reverse(f"hosts:{name}", args=[cloud.pk])).status_code for how, name in asked]
    assert answers == [403] * 4


# What the credential may do


def calls(cloud):
    cloud.refresh_from_db()
    return {each["call"]: each["may"] for each in cloud.calls}


def test_a_check_says_what_an_administrators_credential_may_do_and_changes_nothing(db, fake):
    cloud = in_cloud(fake)
    tasks.check_cloud(cloud.pk)
    assert set(calls(cloud).values()) == {"yes", "likely"}
    assert {each for each, may in calls(cloud).items() if may == "likely"} == {"lock and unlock", "stop", "start"}
    assert [each for each in fake.calls if each[0] == "POST" and "/action" in each[1]] == []
    assert timezone.now() - cloud.checked_at < dt.timedelta(minutes=1)


def test_a_check_says_what_a_member_may_not_do(db, fake):
    cloud = in_cloud(fake)
    fake.roles = ["member"]
    tasks.check_cloud(cloud.pk)
    found = calls(cloud)
    assert (found["log in"], found["list the instances of all projects"], found["stop"]) == ("yes", "no", "no")


def test_a_check_says_that_the_secret_is_wrong_or_that_nova_is_too_old(db, fake):
    cloud = in_cloud(fake)
    fake.newest = (2, 60)
    tasks.check_cloud(cloud.pk)
    assert calls(cloud) == {"log in": "yes", "lock with a reason": "no"}
    cloud.put(secret=encryption.seal("wrong"))
    tasks.check_cloud(cloud.pk)
    assert calls(cloud) == {"log in": "no"}
    assert "rejects the credential" in cloud.calls[0]["sentence"]


def test_access_rules_of_an_application_credential_are_read(db):
    rules = [{"service": "compute", "method": "POST", "path": "/v2.1/servers/*/action"}]
    me = {"roles": ["admin"], "rules": rules}
    assert [each["may"] for each in tasks.changes(me)] == ["likely"] * 3
    assert [each["may"] for each in tasks.changes({"roles": ["admin"], "rules": []})] == ["no"] * 3


def test_the_check_button_leaves_the_asking_to_a_worker(ada, fake, drain):
    cloud = in_cloud(fake)
    fake.calls.clear()
    ada.post(reverse("hosts:check_cloud", args=[cloud.pk]))
    assert fake.calls == []
    drain()
    page = ada.get(reverse("hosts:nova", args=[cloud.pk])).content.decode()
    assert "list the instances of all projects" in page
    assert fake.calls != []


# What is read


def test_computes_are_matched_with_registered_hypervisors_by_name(ada, fake):
    fake.services |= {"cmp-9": {"state": "down", "status": "disabled", "forced_down": False}}
    a_hypervisor("src")
    dst = a_hypervisor("oslo-1", nova_host="dst.example.org")
    cloud = in_cloud(fake, "src", "oslo-1", "jump")
    tasks.refresh_cloud(cloud.pk)
    matched = {Hypervisor.objects.get(pk=pk).name: [row.host for row in rows] for pk, rows in cloud.matched().items()}
    assert matched == {"src": ["src"], "oslo-1": ["dst"], "jump": []}
    assert [(row.host, row.trouble) for row in cloud.unmatched()] == [("cmp-9", "down, disabled")]
    page = ada.get(reverse("hosts:nova", args=[cloud.pk])).content.decode()
    assert "not found in Nova" in page
    assert "down, disabled" in page
    assert dst.names_in_nova() == {"dst.example.org"}


def test_a_machine_is_found_in_nova_by_the_host_name_that_it_gives_itself(db, fake):
    host = a_hypervisor("rack-4", facts={"hostname": "dst"})
    cloud = in_cloud(fake, "rack-4")
    tasks.refresh_cloud(cloud.pk)
    assert [row.host for row in cloud.matched()[host.pk]] == ["dst"]


def test_instances_of_all_projects_are_read_page_by_page_and_those_that_went_away_are_forgotten(db, fake, monkeypatch):
    monkeypatch.setattr(tasks, "PAGE", 2)
    for number in range(5):
        uuid = f"00000000-0000-4000-8000-00000000000{number}"
        fake.servers[uuid] = FakeServer(uuid, f"web{number}", "cmp-9", address=f"10.9.1.{number}")
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    assert Server.objects.count() == 6
    seen = Server.objects.get(uuid=INSTANCE)
    assert (seen.project, seen.project_name, seen.host, seen.status) == (PROJECT, "databases", "dst", "ACTIVE")
    assert (seen.ephemeral_gb, seen.addresses) == (1, ["10.9.0.7"])
    del fake.servers["00000000-0000-4000-8000-000000000000"]
    fake.server.locked, fake.server.locked_reason = True, "maintenance"
    before = set(Server.objects.values_list("pk", flat=True))
    tasks.refresh_cloud(cloud.pk)
    assert Server.objects.count() == 5
    assert set(Server.objects.values_list("pk", flat=True)) < before
    assert Server.objects.get(uuid=INSTANCE).locked_reason == "maintenance"


def test_a_reading_that_takes_longer_than_a_turn_is_left_to_the_next_task(db, fake, monkeypatch, drain):
    monkeypatch.setattr(tasks, "PAGE", 1)
    monkeypatch.setattr(tasks, "TURN", 0)
    for number in range(3):
        uuid = f"00000000-0000-4000-8000-00000000000{number}"
        fake.servers[uuid] = FakeServer(uuid, f"web{number}", "cmp-9")
    cloud = in_cloud(fake)
    ran = drain()
    assert ran.count("hosts.tasks.refresh_cloud") >= 4
    cloud.refresh_from_db()
    assert (Server.objects.count(), cloud.marker, cloud.round_at) == (4, "", None)
    assert cloud.seen_at


def test_a_cloud_that_does_not_answer_keeps_its_last_figures_and_says_so(ada, fake, monkeypatch):
    monkeypatch.setattr("hosts.remote.nova.PAUSES", (0.01, 0.01))
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    fake.down = True
    tasks.refresh_cloud(cloud.pk)
    cloud.refresh_from_db()
    assert "503" in cloud.last_error
    assert Server.objects.count() == 1
    assert "could not be read" in ada.get("/instances/").content.decode()


def test_every_cloud_is_read_again_when_its_figures_are_old_and_not_while_it_is_being_read(db, fake, drain):
    cloud = in_cloud(fake)
    drain()
    tasks.refresh_clouds()
    assert drain() == []
    cloud.put(tried_at=timezone.now() - dt.timedelta(hours=1))
    tasks.refresh_clouds()
    tasks.refresh_clouds()
    assert drain() == ["hosts.tasks.refresh_cloud"]
    cloud.put(tried_at=timezone.now() - dt.timedelta(hours=1), round_at=timezone.now())
    tasks.refresh_clouds()
    assert drain() == []


# Instances


def test_an_instance_is_found_by_name_id_project_and_address_without_asking_anybody(ada, fake):
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    fake.calls.clear()
    for words in ("db7", INSTANCE[:13], "databases", PROJECT, "10.9.0.7", "DB7 databases"):
        assert INSTANCE in ada.get("/instances/", {"q": words}).content.decode(), words
    assert INSTANCE not in ada.get("/instances/", {"q": "web"}).content.decode()
    assert fake.calls == []


def test_no_page_asks_a_cloud_for_anything(ada, fake, capsys):
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    ada.force_login(ada_with_all_roles())
    just_typed(ada)
    fake.calls.clear()
    pages = [
        "/",
        "/instances/?q=db7",
        f"/instances/{INSTANCE}/",
        "/migrations/new?find_from=db7&find_to=db7",
        "/hosts/",
    ]
    pages += [reverse("hosts:clouds"), reverse("hosts:nova", args=[cloud.pk]), reverse("hosts:cloud", args=[cloud.pk])]
    asked = {}
    for page in pages:
        assert ada.get(page).status_code == 200, page
        asked[page] = len(fake.calls)
    with capsys.disabled():
        print(f"\nRequests to the cloud for each page: {asked}")
    assert set(asked.values()) == {0}


def ada_with_all_roles():
    return factories.person("ada", "administrator", "operator", "approver", "auditor")


def test_the_page_of_an_instance_leads_to_a_migration_of_its_disks(client, person, fake):
    client.force_login(person("olga", "operator"))
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    src, dst = a_hypervisor("src"), a_hypervisor("dst")
    volume = a_volume(a_volume_group(src))
    mounts(dst)
    seen = an_instance(dst)
    page = client.get(f"/instances/{INSTANCE}/").content.decode()
    assert f"/migrations/new?source={src.pk}&amp;volume={volume.pk}" in page
    assert f"/migrations/new?destination={dst.pk}&amp;disk={seen.pk}/disk.local" in page
    assert "Reported by Nova of prod" in page
    assert "Reported by libvirt on dst" in page
    assert client.get("/instances/00000000-0000-4000-8000-000000000000/").status_code == 404


def test_people_find_the_instances_on_hypervisors_of_their_own_teams(client, person, fake):
    fake.servers["0" * 8 + INSTANCE[8:]] = FakeServer("0" * 8 + INSTANCE[8:], "web1", "src")
    cloud = in_cloud(fake)
    tasks.refresh_cloud(cloud.pk)
    src, dst = a_hypervisor("src"), a_hypervisor("dst")
    an_instance(dst)
    a_volume(a_volume_group(src), f"{INSTANCE}_disk.local")
    olga = person("olga", "operator")
    client.force_login(olga)
    assert "web1" in client.get("/instances/").content.decode()
    theirs = Team.objects.create(name="theirs")
    Hypervisor.objects.filter(pk=src.pk).update(team=theirs)
    page = client.get("/instances/").content.decode()
    assert "db7" in page
    assert "web1" not in page
    assert f"{INSTANCE}_disk.local" not in client.get(f"/instances/{INSTANCE}/").content.decode()
    assert client.get(f"/instances/{'0' * 8 + INSTANCE[8:]}/").status_code == 404
    asked = client.get("/migrations/new", {"find_from": "db7", "find_to": "web"}).content.decode()
    assert f"{INSTANCE}_disk.local" not in asked
    assert "web1" not in asked
    theirs.members.add(olga)
    assert "web1" in client.get("/instances/").content.decode()


def test_names_from_a_cloud_are_text_and_nothing_else(ada, fake):
    fake.server.name = "<img src=x onerror=alert(1)>"
    fake.server.locked, fake.server.locked_reason = True, "<script>alert(2)</script>"
    tasks.refresh_cloud(in_cloud(fake).pk)
    for url in ("/instances/", f"/instances/{INSTANCE}/"):
        page = ada.get(url).content.decode()
        assert "<img src=x" not in page
        assert "<script>alert" not in page


# Much of it


def test_5000_instances_and_200_hypervisors_are_read_paged_and_searched_at_once(
    ada, fake, capsys, django_assert_max_num_queries
):
    fake.servers = {}
    for number in range(200):
        fake.services[f"cmp-{number:03d}"] = {"state": "up", "status": "enabled", "forced_down": False}
    for number in range(5000):
        uuid = f"{number:08x}-0000-4000-8000-000000000000"
        address = f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"
        fake.servers[uuid] = FakeServer(uuid, f"vm-{number:04d}", f"cmp-{number % 200:03d}", address=address)
    for number in range(200):
        a_hypervisor(f"cmp-{number:03d}", facts={"hostname": f"cmp-{number:03d}", "tools": {"lvm": "2.03"}})
    cloud = in_cloud(fake, *(f"cmp-{number:03d}" for number in range(200)))
    fake.calls.clear()
    began = time.monotonic()
    tasks.refresh_cloud(cloud.pk)
    while Cloud.objects.get().round_at:
        tasks.refresh_cloud(cloud.pk)
    took = time.monotonic() - began
    asked = fake.counted()
    assert (Server.objects.count(), Compute.objects.count()) == (5000, 202)
    assert asked["GET /servers/detail"] == 11
    fake.calls.clear()
    searches = {}
    for words in ("", "vm-4321", "10.0.16.225", "000010e1", PROJECT[:20], "nothing at all"):
        began = time.process_time()
        with django_assert_max_num_queries(15):
            page = ada.get("/instances/", {"q": words}).content.decode()
        searches[words or "everything"] = round(1000 * (time.process_time() - began))
        assert ("vm-4321" in re.sub("<input[^>]*>", "", page)) == (words in ("vm-4321", "10.0.16.225", "000010e1"))
    assert fake.calls == []
    with capsys.disabled():
        print(f"\n5,000 instances read in {took:.1f} s by {dict(asked)}; searches, in ms of processor time: {searches}")
