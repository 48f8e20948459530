"""The hypervisor pages."""

import datetime as dt
import re

import pytest
from django.urls import reverse
from django.utils import timezone

from hosts.models import Cloud, Hypervisor, Share
from hosts.remote import hostctl
from hosts.remote.host import HostKeyChanged, fingerprint
from hosts.remote.hostctl import pack
from tests import factories
from tests.hosts.conftest import KEY
from tests.typed import just_typed
from volmig import data_dir
from volmig.record.models import Event

pytestmark = pytest.mark.django_db
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g"


@pytest.fixture
def browser(client, person):
    """Logs in as somebody with these roles."""

    def enter(*roles):
        client.force_login(person("-".join(roles) or "nobody", *roles))
        just_typed(client)
        return client

    return enter


def page(client, name, *args):
    return client.get(reverse(f"hosts:{name}", args=args)).content.decode()


FORM = {"name": "src", "address": "10.77.0.11", "port": 22, "user": "volmig", "limit_mib": "100"}


def test_registering_asks_for_the_key_and_trusts_nothing(browser, drain, monkeypatch):
    monkeypatch.setattr("hosts.remote.ssh.offered_key", lambda *_: KEY)
    answer = browser("administrator").post(reverse("hosts:register"), FORM)
    src = Hypervisor.objects.get()
    assert answer.url == reverse("hosts:pin", args=[src.pk])
    assert drain() == ["hosts.tasks.offer_key"]
    src.refresh_from_db()
    assert (src.offered_key, src.host_key, src.rate_limit) == (KEY, "", 100 * 1024**2)
    assert Event.objects.get().action == "hypervisor.register"


def test_a_form_that_is_wrong_keeps_what_was_typed_and_makes_nothing(browser):
    html = browser("administrator").post(reverse("hosts:register"), FORM | {"user": "root"}).content.decode()
    assert "root logins only" in html
    assert 'value="10.77.0.11"' in html
    assert not Hypervisor.objects.exists()


def test_the_install_commands_have_volmigs_own_key_and_no_argument(browser, monkeypatch):
    """A worker made it, and keeps its public half where pages find it: they must not read the private one."""
    data_dir.ssh_key()
    monkeypatch.setenv("VOLMIG_PART", "web")
    html = page(browser("administrator"), "register")
    assert "restrict,command=&quot;sudo -n /usr/local/libexec/volmig-hostctl&quot; ssh-ed25519 AAAA" in html.replace(
        '"', "&quot;"
    )
    assert 'NOPASSWD: /usr/local/libexec/volmig-hostctl ""' in html
    assert "!use_pty" in html


def pin(client, src, shown, typed):
    return client.post(reverse("hosts:pin", args=[src.pk]), {"shown": shown, "typed": typed})


def test_the_key_is_pinned_by_typing_the_end_of_its_fingerprint(browser, hypervisor):
    src = hypervisor(host_key="", offered_key=KEY)
    client, shown = browser("administrator"), fingerprint(KEY)
    assert shown in page(client, "pin", src.pk)
    pin(client, src, shown, shown[-8:])
    src.refresh_from_db()
    assert (src.host_key, src.pinned_by.username) == (KEY, "administrator")


@pytest.mark.parametrize(
    ("shown", "typed"), [(fingerprint(KEY), "wrong123"), (fingerprint(OTHER), fingerprint(OTHER)[-8:])]
)
def test_a_wrong_end_or_a_key_that_changed_meanwhile_is_not_pinned(browser, hypervisor, shown, typed):
    src = hypervisor(host_key="", offered_key=KEY)
    pin(browser("administrator"), src, shown, typed)
    src.refresh_from_db()
    assert src.host_key == ""


def test_quarantine_is_plain_and_has_no_button_that_accepts(browser, hypervisor):
    src = hypervisor()
    src.quarantine("it offered another key")
    html = page(browser("administrator"), "hypervisor", src.pk)
    assert "Put in quarantine" in html
    assert "Accept" not in html
    assert "Refresh" not in html
    assert "compare and pin a new one" not in page(browser("approver"), "hypervisor", src.pk)


def test_a_new_key_after_a_quarantine_is_shown_beside_the_old_one(browser, hypervisor, drain, monkeypatch):
    monkeypatch.setattr("hosts.remote.ssh.offered_key", lambda *_: OTHER)
    src = hypervisor()
    src.quarantine("it offered another key")
    client = browser("administrator")
    client.post(reverse("hosts:offer", args=[src.pk]))
    drain()
    html = page(client, "pin", src.pk)
    assert fingerprint(KEY) in html
    assert fingerprint(OTHER) in html
    assert "It has changed" in html
    src.refresh_from_db()
    assert src.quarantined_at


def test_pages_show_what_was_seen_and_how_old_it_is(browser, hypervisor, inventory):
    src = hypervisor()
    src.record_inventory(inventory)
    src.put(seen_at=timezone.now() - dt.timedelta(minutes=3, seconds=12), hostctl_hash=hostctl.source_hash())
    client = browser("viewer")
    for html in (page(client, "list"), page(client, "hypervisor", src.pk)):
        assert "vg_nova0" in html
        assert re.search(r"3 min (1[2-9]|[2-5]\d) s ago", html)  # a busy machine takes some seconds
        assert "Ready" in html
    assert "_disk.local" in page(client, "hypervisor", src.pk)


def test_volumes_are_sorted_as_asked_and_by_name_otherwise(browser, hypervisor, inventory):
    src = hypervisor()
    volume = inventory["logical_volumes"][0]
    inventory["logical_volumes"] += [volume | {"name": "a", "uuid": "lv-2", "size": 1 << 20}]
    src.record_inventory(inventory)
    client, address = browser("viewer"), reverse("hosts:hypervisor", args=[src.pk])
    names = lambda sort: [row.name for row in client.get(address, {"sort": sort}).context["volumes"]]  # noqa: E731
    assert names("size")[0] == volume["name"]
    assert names("name") == names("nonsense'--") == sorted(names("name"))


def test_the_name_of_a_volume_is_text_and_nothing_else(browser, hypervisor, inventory):
    src = hypervisor()
    inventory["logical_volumes"][0]["name"] = "<img src=x onerror=alert(1)>"
    src.record_inventory(inventory)
    html = page(browser("viewer"), "hypervisor", src.pk)
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_the_matrix_says_which_ports_answer_and_why_a_pair_was_not_probed(browser, hypervisor, inventory):
    src, jump, dst = hypervisor("src"), hypervisor("jump"), hypervisor("dst")
    for number, each in enumerate((src, jump, dst)):
        inventory["addresses"][0]["address"] = f"10.77.1.1{number}"
        each.record_inventory(inventory)
    dst.volume_groups.all().delete()
    src.reaches.create(address="10.77.1.11", port=2049, state="open", seen_at=timezone.now())
    src.put(reach_error="2 of 3 ports were not probed. There was no time left for them.")
    html = page(browser("viewer"), "list")
    assert "2049 open" in html
    assert html.count('title="not probed"') == 2
    assert "2 of 3 ports were not probed." in html
    why = re.findall(r'title="([^"]+)">(no source|no relay|not probed)<', html)
    needs = "it needs a volume group and a mounted share, and a policy that allows the role."
    assert why.count((f"dst cannot be a relay: {needs}", "no relay")) == 2
    assert [short for _, short in why].count("no source") == 2


def test_an_empty_list_says_what_to_do_first(browser):
    assert "Register the first one" in page(browser("administrator"), "list")
    assert "An administrator registers them" in page(browser("viewer"), "list")


def test_retiring_needs_the_name_typed(browser, hypervisor):
    src, client = hypervisor(), browser("administrator")
    client.post(reverse("hosts:retire", args=[src.pk]), {"name": "sr"})
    assert Hypervisor.objects.active().count() == 1
    client.post(reverse("hosts:retire", args=[src.pk]), {"name": "src"})
    assert Hypervisor.objects.active().count() == 0
    assert "Retired" in page(client, "hypervisor", src.pk)


def test_a_bastion_is_not_retired_while_others_are_behind_it(browser, hypervisor):
    jump = hypervisor("jump")
    src = hypervisor("src", bastion=jump)
    client = browser("administrator")
    retire = lambda: client.post(reverse("hosts:retire", args=[jump.pk]), {"name": "jump"}, follow=True)  # noqa: E731
    assert "It is the bastion of src. Nothing was changed." in retire().content.decode()
    src.retire(None)
    retire()
    assert not Hypervisor.objects.active().exists()


def test_hostctl_can_be_downloaded(browser):
    answer = browser("viewer").get(reverse("hosts:bundle"))
    assert answer.content == pack.bundle()
    assert answer.headers["X-Hostctl-Hash"] == hostctl.source_hash()


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *[(method, name) for name in ("register", "pin", "edit", "add_cloud") for method in ("get", "post")],
        *[("post", "offer"), ("post", "retire"), ("get", "clouds")],
    ],
)
@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_only_an_administrator_changes_hypervisors(browser, hypervisor, role, method, name):
    src = hypervisor(offered_key=KEY)
    address = reverse(f"hosts:{name}", args=[src.pk] if name in {"pin", "edit", "offer", "retire"} else [])
    answer = getattr(browser(role), method)(address, {"name": "src"})
    assert answer.status_code == 403
    assert "you need the role administrator" in answer.content.decode()
    assert Hypervisor.objects.active().count() == 1


@pytest.mark.parametrize("name", ["list", "register", "bundle", "clouds", "hypervisor", "pin", "edit"])
def test_nobody_sees_anything_without_logging_in(client, hypervisor, name):
    src = hypervisor()
    address = reverse(f"hosts:{name}", args=[src.pk] if name in {"hypervisor", "pin", "edit"} else [])
    assert client.get(address).url.startswith("/login/")


def test_somebody_without_a_role_is_told_what_is_missing(browser):
    answer = browser().get(reverse("hosts:list"))
    assert answer.status_code == 403
    assert "role administrator or approver or auditor or operator or viewer" in answer.content.decode()


@pytest.mark.parametrize("name", ["offer", "refresh", "retire", "policy", "seal_key"])
def test_what_changes_something_is_only_posted(browser, hypervisor, name):
    host = hypervisor()
    address, client = reverse(f"hosts:{name}", args=[host.pk]), browser("administrator")
    page = reverse("hosts:pin" if name == "offer" else "hosts:hypervisor", args=[host.pk])
    assert client.get(address).headers["Location"] == page
    assert client.put(address).status_code == 405
    host.refresh_from_db()
    assert host.retired_at is None


EDIT = {"address": "127.0.0.1", "port": "2200", "user": "volmig"}


def edit(client, host, **typed):
    return client.post(reverse("hosts:edit", args=[host.pk]), EDIT | typed, follow=True).content.decode()


def test_a_new_address_keeps_the_pinned_key_and_says_so(browser, hypervisor):
    src = hypervisor(offered_key=OTHER)
    html = edit(browser("administrator"), src, address="10.77.0.99", limit_mib="50")
    src.refresh_from_db()
    assert "Its pinned key stays" in html
    assert (src.address, src.rate_limit, src.host_key) == ("10.77.0.99", 50 * 1024**2, KEY)
    assert src.offered_key == ""  # it came from the old address


def test_a_change_is_recorded_as_it_was_and_as_it_is(browser, hypervisor):
    bastion, src = hypervisor("jump", port=22), hypervisor("src", port=2200)
    edit(browser("administrator"), src, bastion=bastion.pk)
    event = Event.objects.get()
    assert (event.action, event.object, event.actor_name) == ("hypervisor.change", "src", "administrator")
    assert event.data == {"before": {"bastion": ""}, "after": {"bastion": "jump"}}


def test_a_registration_that_stays_as_it_was_is_no_event(browser, hypervisor):
    src = hypervisor()
    assert "Its pinned key stays" not in edit(browser("administrator"), src)
    assert not Event.objects.exists()


def test_another_machine_at_the_new_address_is_refused_and_quarantined(browser, hypervisor, drain, monkeypatch):
    def changed(address):
        error = HostKeyChanged(f"log in to {address}", "it offered another host key")
        error.address = address
        raise error

    src = hypervisor()
    monkeypatch.setattr("hosts.remote.ssh.connect", changed)
    edit(browser("administrator"), src, address="10.77.0.99")
    assert drain() == ["hosts.tasks.refresh", "volmig.notify.send"]
    src.refresh_from_db()
    assert src.quarantined_at


def test_changing_a_quarantined_registration_does_not_end_its_quarantine(browser, hypervisor):
    src = hypervisor()
    src.quarantine("it offered another key")
    edit(browser("administrator"), src, address="10.77.0.99")
    src.refresh_from_db()
    assert src.quarantined_at


def test_without_a_pinned_key_the_new_place_is_asked_for_its_key(browser, hypervisor, drain, monkeypatch):
    monkeypatch.setattr("hosts.remote.ssh.offered_key", lambda host, *_: OTHER if host == "10.77.0.99" else KEY)
    src = hypervisor(host_key="", offered_key=KEY)
    html = edit(browser("administrator"), src, address="10.77.0.99")
    assert "Is this really src?" in html
    assert fingerprint(KEY) not in html
    drain()
    src.refresh_from_db()
    assert src.offered_key == OTHER


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [({"user": "root"}, "root logins only"), ({"port": "0"}, "greater than or equal to 1"), ({"address": "a b"}, "IP")],
)
def test_a_wrong_registration_keeps_what_was_typed_and_changes_nothing(browser, hypervisor, typed, sentence):
    src = hypervisor()
    html = edit(browser("administrator"), src, **typed)
    assert sentence in html
    assert f'value="{next(iter(typed.values()))}"' in html
    assert not Event.objects.exists()


def test_the_bastion_of_a_hypervisor_is_never_itself_and_stays_when_it_is_quarantined(browser, hypervisor):
    bastion = hypervisor("jump")
    src = hypervisor("src", bastion=bastion)
    bastion.quarantine("it offered another key")
    client = browser("administrator")
    choices = client.get(reverse("hosts:edit", args=[src.pk])).context["form"].fields["bastion"].queryset
    assert list(choices) == [bastion]


def test_a_retired_hypervisor_is_not_changed(browser, hypervisor):
    src = hypervisor(retired_at=timezone.now())
    assert browser("administrator").get(reverse("hosts:edit", args=[src.pk])).status_code == 404


def cloud(client, name, *members, pk=None):
    address = reverse("hosts:cloud", args=[pk]) if pk else reverse("hosts:add_cloud")
    typed = {"name": name, "control": "libvirt", "hypervisors": [host.pk for host in members]}
    return client.post(address, typed, follow=True).content.decode()


def test_a_cloud_is_added_with_its_hypervisors_and_renamed(browser, hypervisor):
    src, dst = hypervisor("src"), hypervisor("dst")
    client = browser("administrator")
    assert "Add the first one" in page(client, "clouds")
    assert "east is added" in cloud(client, "east", src)
    east = Cloud.objects.get()
    assert "west is changed" in cloud(client, "west", dst, pk=east.pk)
    assert [host.name for host in Cloud.objects.get(name="west").hypervisors.all()] == ["dst"]
    assert Event.objects.first().data == {
        "before": {"name": "east", "hypervisors": ["src"]},
        "after": {"name": "west", "hypervisors": ["dst"]},
    }


def test_a_hypervisor_moves_from_one_cloud_to_another(browser, hypervisor):
    src, client = hypervisor(), browser("administrator")
    cloud(client, "east", src)
    assert "src (in east)" in page(client, "add_cloud")
    cloud(client, "west", src)
    assert [(one.name, one.hypervisors.count()) for one in Cloud.objects.all()] == [("east", 0), ("west", 1)]


def test_two_clouds_of_one_name_are_refused(browser):
    client = browser("administrator")
    cloud(client, "east")
    assert "already exists" in cloud(client, "east")
    assert Cloud.objects.count() == 1


def test_a_retired_hypervisor_stays_in_the_cloud_that_it_was_in(browser, hypervisor):
    client, src = browser("administrator"), hypervisor()
    cloud(client, "east", src)
    src.put(retired_at=timezone.now())
    cloud(client, "west", pk=Cloud.objects.get().pk)
    src.refresh_from_db()
    assert src.cloud.name == "west"


def test_shares_say_what_is_reserved_on_them_and_who_mounts_them_where(browser, hypervisor, inventory):
    src, gone = hypervisor("src"), hypervisor("gone")
    src.record_inventory(inventory)
    gone.record_inventory(inventory)
    gone.put(retired_at=timezone.now())
    migration = factories.a_job()
    migration.footprints.create(
        kind="space", name="stage", share=Share.objects.get(source="filer:/nova"), bytes=5 << 30
    )
    migration.footprints.create(kind="space", name="vg_nova0", hypervisor=src, bytes=3 << 30)
    client = browser("viewer")
    html = page(client, "list")
    assert "3.0 GiB</span> reserved, " in html
    assert "3.0 GiB</span> reserved, " in page(client, "hypervisor", src.pk)
    assert "5.0 GiB</span> reserved, " in html
    assert "60.0 GiB</span> free of" in html
    shares = html[html.index('id="h-shares"') : html.index('id="h-reach"')]
    assert "/var/lib/nova/instances" in shares
    assert "gone" not in shares


def test_the_list_costs_no_more_queries_for_more_hypervisors(browser, hypervisor, inventory, django_assert_num_queries):
    client = browser("viewer")
    for number in range(12):
        hypervisor(f"h{number}").record_inventory(inventory)
        if number in (1, 11):
            page(client, "list")  # the first one of a session writes a few rows more
            with django_assert_num_queries(19):
                page(client, "list")
