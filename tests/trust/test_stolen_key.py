"""With only the SSH key: requests made by hand, with an invented migration, to the real hostctl of three hypervisors.

What is tried is judged by the world afterwards: every file, volume, mount, export, unit and guest is as it was before.
"""

import copy
import itertools
import json
import random
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from hosts.remote.hostctl import authority, policy
from hosts.remote.hostctl.verbs import VERBS
from tests import policies
from tests.fakes import INSTANCE, INSTANCES, SHARE, SOURCE_LV
from tests.machines import KEPT_OF_MACHINE, Site, install
from tests.trust.amounts import amount, figure

LV_UUID = "aaaaaa-bbbb-bbbb-bbbb-bbbb-bbbb-cccccc"
# What an attacker would like to name, and what these hypervisors' policies do allow.
INSIDE = {
    "vg": [policies.GROUP],
    "share_source": [SHARE],
    "instances": [INSTANCES],
    "backup_path": [INSTANCES + "/.volmig/x/disk.old"],
    "address": ["10.77.0.12"],
    "client": ["10.77.0.11"],
    "relay_address": ["10.77.0.12"],
}
OUTSIDE = {
    "vg": ["vg_prod", "vg_nova00", "VG_NOVA0", "vg_nova"],
    "share_source": ["203.0.113.9:/loot", "filer:/vol/nova2", "filer:/vol", "filer2:/vol/nova"],
    "instances": ["/etc", "/root", "/var/lib/nova", INSTANCES + "2", "/var/lib/nova/instances_"],
    "backup_path": ["/etc/shadow", "/root/.ssh/id_ed25519", INSTANCES + "2/disk.old"],
    "address": ["203.0.113.9", "127.0.0.1", "169.254.169.254", "10.21.0.2", "::1", "::ffff:203.0.113.9"],
    "client": ["203.0.113.9", "198.51.100.7", "10.21.0.1", "fd00::1"],
    "relay_address": ["203.0.113.9", "192.0.2.1"],
}
CODES = {
    "vg": "policy-volume-group",
    "share_source": "policy-share",
    "instances": "policy-directory",
    "backup_path": "policy-directory",
    "address": "policy-peer",
    "client": "policy-peer",
    "relay_address": "policy-peer",
}
SEALED = [verb for verb, rule in policy.RULES.items() if rule.sealed]


@pytest.fixture
def site(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    return install(Site(tmp_path / "site"), monkeypatch)


class World:
    """Everything on a site as it is now, to be compared with what it is later."""

    def __init__(self, site):
        self.hosts = [{name: copy.deepcopy(vars(host)[name]) for name in KEPT_OF_MACHINE} for host in site.hosts]
        self.files = {}
        for path in sorted(site.root.rglob("*")):
            if "owner.json" not in path.name:  # which volmig a host belongs to is not what a policy is about
                found = path.lstat()
                content = path.read_bytes() if path.is_file() and found.st_size < 1 << 20 else b""
                self.files[str(path)] = (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, content)

    def differs(self, site):
        now = World(site)
        changed = [path for path in {*self.files, *now.files} if self.files.get(path) != now.files.get(path)]
        return [path for path in changed if not path.endswith("/var/lib/volmig")] + [
            str(before) for before, after in zip(self.hosts, now.hosts, strict=True) if before != after
        ]


def arguments(verb, job, pick):
    """What the verb needs, well-formed; `pick` chooses the values that a policy limits."""
    short = job.replace("-", "")
    known = {
        **{"lv": SOURCE_LV, "relay_lv": "volmig_x", "lv_uuid": LV_UUID, "size": 512 << 20, "fs_uuid": job},
        **{"instance": INSTANCE, "disk": "disk.local", "reason": "volmig:" + job, "uid": 0, "gid": 0, "start": []},
        **{"rate": 0, "writes": 40, "sectors_written": 320, "sha256": "5e" * 32, "file_size": 1, "virtual_size": 1},
        **{"live": {"inode": 1}, "stage": {"inode": 2, "sha256": "5e" * 32, "file_size": 1}, "recorded": {"inode": 1}},
        **{"backup_inode": 1, "live_inode": 2},
        "mountpoint": f"/srv/volmig/{short}" if policy.RULES[verb].roles == ("relay",) else f"/mnt/volmig/{short}",
        "export": f"/srv/volmig/{short}",
    }
    args = {}
    for name in VERBS[verb].needs:
        if name == "targets":
            args[name] = [{"address": pick("address"), "port": 2049}]
        else:
            args[name] = pick(name) if name in INSIDE else copy.deepcopy(known[name])
    return args


def limited(verb):
    """The arguments of a verb that a policy limits."""
    named = ["address" if name == "targets" else name for name in VERBS[verb].needs]
    return [name for name in named if name in INSIDE]


def inside(verb, job, **instead):
    """Its arguments within the policy, but for these."""
    return arguments(verb, job, lambda name: instead.get(name, INSIDE[name][0]))


def send(host, verb, args, job, **more):
    request = {"verb": verb, "args": args, "job": job, "step": "convert", "fence": 1, **more}
    return host.handle(json.dumps(request).encode())


def refused(answer):
    """The code of a refusal that has everything that a person needs, and says that nothing was touched."""
    error = answer["error"]
    assert answer["state"] == "refused", answer
    assert error["touched"] is False
    assert all(len(error[part]) > 10 for part in ("tried", "found", "next")), error
    assert answer["commands"] == [], "a tool ran"
    return error["code"]


def test_no_verb_reaches_anything_outside_the_policy(site):
    """Every verb on every host with every value outside in every place, also hidden in evidence; then at random."""
    before, seen, tried = World(site), Counter(), 0
    for host, verb in itertools.product(site.hosts, VERBS):
        for name in limited(verb):
            for value in OUTSIDE[name]:
                job = str(uuid.uuid4())
                args = inside(verb, job, **{name: value})
                code = refused(send(host, verb, args, job))
                assert code in (CODES[name], "policy-role"), (host.name, verb, name, code)
                seen[code] += 1
                tried += 1
        for name, values in OUTSIDE.items():  # where the verb does not need it, and where evidence is
            job = str(uuid.uuid4())
            args = inside(verb, job)
            for hidden in ({"made": {name: values[0]}}, {"live": {name: values[0]}}):
                code = refused(send(host, verb, args | hidden, job))
                assert code in (CODES[name], "policy-role"), (host.name, verb, name, code)
                seen[code] += 1
                tried += 1
    assert before.differs(site) == []
    choose = random.Random(12)
    for _ in range(amount(20_000, 1_500)):
        host, verb = choose.choice(site.hosts), choose.choice(sorted(VERBS))
        job = str(uuid.UUID(int=choose.getrandbits(128)))
        args = arguments(verb, job, lambda each: choose.choice(INSIDE[each] + OUTSIDE[each]))
        if extra := choose.choice([None, *OUTSIDE]):
            args |= {choose.choice(["made", "stage", "recorded"]): {extra: choose.choice(OUTSIDE[extra])}}
        allowed = not extra and all(value in INSIDE[name] for name, value in args.items() if name in INSIDE)
        if allowed or (verb == "reach" and not extra):
            continue  # not outside
        code = refused(send(host, verb, args, job, attempt=choose.randrange(1, 99), fence=choose.randrange(1 << 40)))
        seen[code] += 1
        tried += 1
    assert before.differs(site) == []
    assert set(seen) == {*CODES.values(), "policy-role"}
    figure(f"stolen key: {tried} requests outside the policy of three hosts, 0 changed anything; refusals {dict(seen)}")


def test_without_a_policy_nothing_changes(site):
    for host in site.hosts:
        (host.root / policy.PATH[1:]).unlink()
    before, tried = World(site), 0
    for host, verb in itertools.product(site.hosts, [verb for verb in VERBS if VERBS[verb].mutates]):
        job = str(uuid.uuid4())
        assert refused(send(host, verb, inside(verb, job), job)) == "no-policy"
        tried += 1
    assert before.differs(site) == []
    figure(f"stolen key: {tried} changes asked of hypervisors without a policy, 0 carried out")


def flipped(mac, place):
    """The same with one bit of this digit turned."""
    return mac[:place] + format(int(mac[place], 16) ^ 1, "x") + mac[place + 1 :]


def forgeries(verb, job, args, now):
    """Seals that someone without the key could send, by the refusal that each must meet."""
    valid = authority.make(policies.key("dst"), job, verb, args, "0" * 64, now + 3600)
    other_job, other_verb = str(uuid.uuid4()), next(each for each in SEALED if each != verb)
    whole = {**EVERYTHING, **args}
    yield "no-seal", {}
    for key in ("0" * 64, policies.key("src"), policies.key("jump"), "ab" * 32):  # guessed, and of other hosts
        yield "seal-foreign", authority.make(key, job, verb, args, "0" * 64, now + 3600)
    for part, value in (
        *[("expires", now + 10**8), ("digest", "1" * 64), ("job", other_job), ("verb", other_verb), ("bound", {})],
        *[("bound", {**valid["bound"], "instance": other_job}), ("mac", "0" * 64)],
        *[("mac", flipped(valid["mac"], place)) for place in range(64)],
    ):
        yield "seal-foreign", {**valid, part: value}
    yield "seal-expired", authority.make(policies.key("dst"), job, verb, args, "0" * 64, now - authority.SKEW - 5)
    yield "seal-other-job", authority.make(policies.key("dst"), other_job, verb, args, "0" * 64, now + 3600)
    for each in SEALED:
        if each != verb:  # a seal that was seen for another step of the same migration
            yield "seal-other-verb", authority.make(policies.key("dst"), job, each, whole, "0" * 64, now + 3600)
    for name in policy.RULES[verb].bound:
        changed = {"inode": 99} if name == "stage" else 99 if name.endswith("inode") else other_job
        other = authority.make(policies.key("dst"), job, verb, args | {name: changed}, "0" * 64, now + 3600)
        yield "seal-other-arguments", other


EVERYTHING = {
    **{"instance": INSTANCE, "disk": "disk.local", "share_source": SHARE, "backup_inode": 1, "live_inode": 2},
    "stage": {"inode": 2, "sha256": "5e" * 32, "file_size": 1},
}


def test_nothing_is_stopped_swapped_or_purged_without_a_valid_seal(site):
    before, seen, tried, now = World(site), Counter(), 0, int(time.time())
    for _ in range(amount(40, 3)):
        for verb in SEALED:
            job = str(uuid.uuid4())
            args = inside(verb, job)
            for expected, seal in forgeries(verb, job, args, now):
                assert refused(send(site.destination, verb, args, job, seal=seal)) == expected
                seen[expected] += 1
                tried += 1
    assert before.differs(site) == []
    assert site.destination.state == "running"
    figure(f"stolen key: {tried} stops, swaps, rollbacks and purges without a valid seal, 0 carried out; {dict(seen)}")


def test_a_valid_seal_is_what_makes_the_difference(site):
    """Else the tests above would pass on a hostctl that refuses everything."""
    job = str(uuid.uuid4())
    args = inside("instance_stop", job)
    seal = policies.seal("dst", job, "instance_stop", args)
    before = World(site)
    assert send(site.destination, "instance_stop", args, job, seal=seal)["state"] == "done"
    assert site.destination.state == "shut off"
    assert before.differs(site)


def test_what_the_key_can_still_do_is_what_the_documentation_says(site):
    """Within the policy, and without a seal: read, take space, fence a closed volume, and start a guest that is off."""
    site.destination.domains[INSTANCE].state = "shut off"
    job = str(uuid.uuid4())
    args = inside("instance_start", job)
    assert send(site.destination, "instance_start", args, job)["state"] == "done"
    fence = inside("lv_fence", job)
    assert send(site.source, "lv_fence", fence, job)["state"] == "done"
    text = (Path(__file__).parents[2] / "docs/containment.md").read_text()
    assert "start a guest that is shut off" in text
    assert "set a closed volume" in text
