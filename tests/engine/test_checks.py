"""Every pre-check passes on a sound case and refuses the one that it is for."""

import pytest

from hosts.remote.hostctl import policy
from jobs.engine.checks import blocking, look
from jobs.engine.host_facts import Contents, Facts, Filesystem, Guest, Probe
from jobs.engine.rules import Around, Trouble
from jobs.engine.sizes import qcow2_size
from jobs.engine.transports.relay_nfs import relay_size
from tests import policies

from .sound import FACTS, INSTANCE, LIVE, MIB, MIGRATION, SHARE, case

OURS = f"/var/lib/nova/instances/.volmig/{MIGRATION.job}"


def refused(checks, name):
    check = next(check for check in checks if check.name == name)
    assert not check.ok, f"{name} did not refuse"
    return check


def test_a_sound_case_passes_every_check():
    assert [check.sentence for check in look(case()) if not check.ok] == []


@pytest.mark.parametrize(
    ("name", "says", "changed"),
    [
        ("volume is there", "not on src any more", {"source__volume": None}),
        ("volume is the same", "another volume", {"volume__uuid": "cccccc"}),
        ("volume is the same", "another size", {"volume__size": 513 * MIB}),
        ("volume is free", "in use by qemu (pid 12)", {"volume__holders": ("qemu (pid 12)",), "volume__open": True}),
        ("volume is free", "does not say who", {"volume__open": True}),
        ("source instance is off", "is running", {"source__instance_running": Guest("u", "old", "running")}),
        ("volume is readable", "is not active", {"volume__attributes": "-wi-------", "volume__active": False}),
        ("volume is readable", "is a snapshot", {"volume__attributes": "swi-a-s---"}),
        ("volume is readable", "is a thin volume", {"volume__attributes": "Vwi-a-tz--"}),
        ("volume is readable", "is a thin pool", {"volume__attributes": "twi-aotz--"}),
        ("volume is readable", "is suspended", {"volume__attributes": "-wi-s-----"}),
        ("volume is readable", "lost a physical volume", {"volume__attributes": "-wi-a---p-"}),
        ("volume is plain", "dm-crypt", {"volume__crypt": True}),
        ("source reaches the relay", "2049 (filtered)", {"source__reach": (Probe("10.20.0.2", 2049, "filtered"),)}),
        ("relay can serve NFS", "no NFS server", {"relay__nfs_server": {"nfs-server": "missing"}}),
        ("relay has the volume group", "no volume group vg_nova0", {"relay__vg": None}),
        ("relay has space", "needs", {"group__free": 512 * MIB}),
        ("nothing of ours is left on the relay", "already has volmig_3f", {"relay__leftovers": ("volmig_3f",)}),
        ("nothing of ours is left on the share", "already has", {"destination__leftovers": (OURS,)}),
        ("relay mounts the share", "jump does not mount", {"relay__share": None}),
        ("destination mounts the share", "dst does not mount", {"destination__share": None}),
        ("relay mounts the share", "read-only", {"share__options": "ro,vers=3"}),
        ("share has space", "may need", {"share__free": 512 * MIB}),
        ("share can be written", "squashes root", {"share__owner_uid": 0}),
        ("instance is there", f"no instance {INSTANCE}", {"destination__domain": None}),
        ("instance can be swapped", "is paused", {"domain__state": "paused"}),
        ("disk is there", "not exactly one disk", {"destination__disk": None}),
        ("disk is the instance's", "2 names", {"disk__nlink": 2}),
        ("disk is the instance's", "uses /elsewhere", {"domain__source": "/elsewhere"}),
        ("disk is qcow2", "the file says raw", {"disk__format": "raw"}),
        ("image is safe to open", "it is encrypted", {"disk__objections": ("it is encrypted (method 2)",)}),
        ("disk is qcow2", "definition says raw", {"domain__driver": "raw"}),
        ("disk is qcow2", "disk.info says raw", {"destination__disk_info": {LIVE: "raw"}}),
        ("not smaller", "would shrink", {"disk__virtual_size": 513 * MIB}),
    ],
)
def test_it_blocks(name, says, changed):
    checks = look(case(**changed))
    check = refused(checks, name)
    assert says in check.sentence
    assert check in blocking(checks)


@pytest.mark.parametrize(
    ("name", "says", "changed"),
    [
        ("not larger than allowed", "has to want this", {"disk__virtual_size": 256 * MIB}),
        ("not larger than allowed", "has to want this", {"domain__max_bytes": 500 * MIB}),
        ("same size", "grows", {"disk__virtual_size": 511 * MIB}),
        ("no backing chain", "/base", {"disk__backing": ("/base",)}),
        ("no internal snapshots", "2 internal snapshot(s)", {"disk__snapshots": 2}),
        ("no persistent bitmaps", "1 persistent bitmap(s)", {"disk__bitmaps": 1}),
        ("not marked corrupt", "qemu-img check -r all", {"disk__corrupt": True}),
        ("not marked dirty", "while the guest runs", {"disk__dirty": True}),
        ("not marked dirty", "did not close it", {"disk__dirty": True, "domain__state": "shut off"}),
        ("bases have full paths", "../_base/0123", {"disk__relative_bases": ("../_base/0123",)}),
        (
            "filesystems keep their names",
            "UUID=2222",
            {"destination__contents": Contents(filesystems=(Filesystem("whole disk", "ext4", "data", "2222"),))},
        ),
        (
            "instance has left the source",
            "still defined",
            {"source__instance_running": Guest(INSTANCE, "db7", "shut off")},
        ),
        ("locks reach the server", "with nolock", {"share__options": "rw,vers=3,nolock,hard"}),
        ("locks reach the server", "with local_lock=all", {"share__options": "rw,vers=4.1,local_lock=all"}),
        ("locks reach the server", "with local_lock=posix", {"share__options": "rw,vers=3,local_lock=posix"}),
    ],
)
def test_it_warns_and_does_not_block(name, says, changed):
    checks = look(case(**changed))
    assert says in refused(checks, name).sentence
    assert not blocking(checks)


def test_one_extent_more_than_allowed_is_no_warning():
    assert all(check.ok for check in look(case(domain__max_bytes=508 * MIB)) if check.name == "not larger than allowed")


@pytest.mark.parametrize("options", ["rw,vers=3,lock,local_lock=none", "rw,vers=3,local_lock=flock"])
def test_locks_of_the_kind_that_an_instance_takes_reach_the_server(options):
    assert all(check.ok for check in look(case(share__options=options)) if check.name == "locks reach the server")


def test_space_that_other_jobs_reserved_is_not_free():
    need = relay_size(512 * MIB, 4 * MIB)
    assert "reserved" in refused(look(case(Around(reserved_on_relay=(4 << 30) - need + 1))), "relay has space").sentence
    staged = qcow2_size(512 * MIB)
    assert refused(look(case(Around(reserved_on_share=(9 << 30) - staged))), "share has space")


@pytest.mark.parametrize("hosts", [{"relay": "src"}, {"relay": "dst"}, {"destination": "src"}])
def test_three_hypervisors_are_three(hosts):
    assert refused(look(case(migration=hosts)), "three hypervisors")


def test_volume_and_instance_are_in_one_job_at_a_time():
    checks = look(case(Around(job_with_volume=3, job_with_instance=4)))
    assert "Migration 3" in refused(checks, "one job per volume").sentence
    assert "Migration 4" in refused(checks, "one job per instance").sentence


def test_a_source_without_a_way_to_the_relay_is_refused():
    assert (
        "never uses the management"
        in refused(look(case(migration={"relay_address": ""})), "address of the relay").sentence
    )


def test_a_silent_host_is_named_and_its_checks_are_left_out():
    silent = case(Around(trouble={"relay": Trouble("Unreachable", "connection refused")}))
    checks = look(type(silent)(silent.migration, Facts(FACTS.source, None, FACTS.destination), silent.around))
    assert "The relay jump: connection refused" in refused(checks, "relay answers").sentence
    assert "relay has space" not in {check.name for check in checks}


def test_clocks_that_differ_are_a_warning():
    checks = look(case(Around(skew={"source": 2.5, "relay": 0.1})))
    assert "src by 2.5 s" in refused(checks, "clocks agree").sentence
    assert not blocking(checks)


def test_a_data_volume_does_not_replace_a_root_disk():
    check = refused(look(case(migration={"disk": "disk"})), "same name")
    assert check in blocking(look(case(migration={"disk": "disk"})))
    assert "The volume was disk.local of its instance" in check.sentence


def test_a_volume_that_is_named_otherwise_may_replace_any_disk():
    assert all(check.ok for check in look(case(migration={"source_lv": "rescued"})) if check.name == "same name")


def test_backups_of_other_migrations_on_the_share_are_no_hindrance():
    checks = look(
        case(destination__leftovers=("/var/lib/nova/instances/.volmig/c0ffee00-0000-4000-8000-000000000000",))
    )
    assert blocking(checks) == []


def reports(**changes):
    """What the three hypervisors of a sound migration say that their policies are."""
    of = {"source": "src", "relay": "jump", "destination": "dst"}
    share = {"shares": [SHARE.source]}
    also = {"source": {}, "relay": share, "destination": share}
    return {
        role: policy.report(policies.reading(name, **{**also[role], **changes.get(role, {})}))
        for role, name in of.items()
    }


def said_of_policies(**around):
    [check] = [each for each in look(case(Around(**around))) if each.name == "policies allow it"]
    return check


def test_policies_that_allow_the_whole_plan_pass():
    assert said_of_policies(policies=reports()).ok


@pytest.mark.parametrize(
    ("role", "change", "code"),
    [
        ("source", {"volume_groups": []}, "policy-volume-group"),
        ("relay", {"volume_groups": ["vg_other"]}, "policy-volume-group"),
        ("relay", {"networks": ["192.0.2.0/24"]}, "policy-peer"),
        ("source", {"networks": ["192.0.2.0/24"]}, "policy-peer"),
        ("destination", {"shares": []}, "policy-share"),
        ("destination", {"directories": ["/srv"]}, "policy-directory"),
        ("destination", {"stop_guests": False}, "policy-stop"),
        ("destination", {"roles": ["source"]}, "policy-role"),
    ],
)
def test_what_a_hypervisor_would_refuse_in_any_step_blocks_in_its_own_words(role, change, code):
    check = said_of_policies(policies=reports(**{role: change}))
    assert not check.ok
    assert check.severity == "blocks"
    [codes] = check.found.values()
    assert set(codes) == {code}
    assert "/etc/volmig/hostctl.json" in check.sentence


def test_a_hypervisor_without_a_policy_blocks_and_says_how_to_install_it():
    check = said_of_policies(policies={**reports(), "relay": policy.report(policy.Reading(None, policy.missing()))})
    assert check.found == {"jump": ["no-policy"]}
    assert "Install the policy that the hypervisor's page in volmig prints" in check.sentence


def test_seals_that_the_destination_would_not_believe_block():
    known = {"destination": policy.fingerprint(policies.document("dst")["seal_keys"][0])}
    assert said_of_policies(policies=reports(), seal_keys=known).ok
    check = said_of_policies(policies=reports(), seal_keys={"destination": "0" * 16})
    assert check.found == {"dst": ["seal-foreign"]}


def test_where_nova_stops_the_instance_its_hypervisor_need_not():
    by_nova = case(Around(policies=reports(destination={"stop_guests": False})), migration={"control": "openstack"})
    assert next(each for each in look(by_nova) if each.name == "policies allow it").ok
