"""Rows of docs/failure-modes.md that need a real kernel, LVM or NFS, each without a whole migration around it."""

import json
import re
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from hosts.remote import ssh
from hosts.remote.host import Address, Request
from hosts.remote.hostctl.pack import bundle
from jobs.engine import checks
from jobs.engine.rules import Around, Case
from jobs.worker.gateway import skew
from tests import policies
from tests.engine import sound
from tests.hostctl.conftest import qcow2
from tests.lab.lab import INSTANCES, SHARE
from tests.lab_tests.conftest import MIB, admit

pytestmark = pytest.mark.lab

PROGRAM, SCRIPT = "/root/hostctl-rows", "/root/run-verb"
GROUP, VOLUME = "vg_nova0", "5a1ce0de-0000-4111-8222-933334444555_disk.local"
INSTANCE = "7b2df1ef-1111-4222-8333-944445555666"


@pytest.fixture(scope="module")
def rows(lab):
    """The lab with hostctl on its three hypervisors; each test leaves it as it was."""
    lab.reset()
    program, script = bundle(), (Path(__file__).parent / "run_verb.py").read_bytes()
    guests = (lab.src, lab.jump, lab.dst)
    for guest in guests:
        guest.write(PROGRAM, program)
        guest.write(SCRIPT, script)
    yield lab
    for guest in guests:
        guest.run(["rm", "-f", PROGRAM, SCRIPT])
    lab.reset()


def run(guest, *calls, off=False, timeout=120):
    """Evidence of each verb, or the refusal at which it ended."""
    given = json.dumps({"calls": calls, "off": off})
    return json.loads(guest.run(["/usr/bin/python3", "-I", SCRIPT, PROGRAM], stdin=given, timeout=timeout))


def done(guest, *calls, **how):
    said = run(guest, *calls, **how)
    assert "code" not in said[-1], said[-1]
    return said


def refused(guest, *calls, **how):
    said = run(guest, *calls, **how)
    assert "code" in said[-1], said[-1]
    return said[-1]


def finding(name, **changed):
    """A check of these facts, which are in order but for what changed."""
    return next(each for each in checks.look(sound.case(**changed)) if each.name == name)


# F05: a volume group inside the source volume


SCANNED = "--config devices/scan_lvs=1"


def test_a_group_that_the_source_activated_inside_the_volume_is_named_and_its_command_deactivates_it(rows):
    src, job, device = rows.src, str(uuid.uuid4()), f"/dev/{GROUP}/{VOLUME}"
    src.run(
        f"lvcreate -qy -Wn -L 64M -n {VOLUME} {GROUP} && pvcreate -q {SCANNED} {device} &&"
        f" vgcreate -q {SCANNED} vg-guest {device} && lvcreate -qy -Wn {SCANNED} -L 8M -n root-1 vg-guest"
    )
    try:
        asked = {"vg": GROUP, "lv": VOLUME, "relay_address": rows.jump.address("data")}
        (facts,) = done(src, ["source_facts", job, asked])
        (holder,) = facts["volume"]["holders"]
        assert (
            "the volume group vg-guest, which lies inside it and which this host activated (vg-guest/root-1)" in holder
        )
        fence = {"vg": GROUP, "lv": VOLUME, "lv_uuid": facts["volume"]["uuid"], "size": 64 * MIB}
        assert "vg-guest" in refused(src, ["lv_fence", job, fence])["found"]
        src.run(re.search("vgchange [^.]*", holder).group())
        (facts,) = done(src, ["source_facts", job, asked])
        assert (facts["volume"]["holders"], facts["volume"]["open"]) == ([], False)
    finally:
        src.run(f"vgchange -qan {SCANNED} vg-guest; wipefs -qa {device}; lvremove -qfy {GROUP}/{VOLUME}")


# A relay's filesystem that is served to the source


class Served:
    """What the steps before a conversion make, for a separate job."""

    def __init__(self, lab):
        self.lab, self.job = lab, str(uuid.uuid4())
        short = self.job.replace("-", "")
        self.there, self.here, self.lv = f"/srv/volmig/{short}", f"/mnt/volmig/{short}", f"volmig_{short[:12]}"
        self.client = lab.src.address("data")
        volume = {"vg": GROUP, "lv": self.lv, "size": 64 * MIB}
        (made,) = done(lab.jump, ["lv_create", self.job, volume])
        self.volume = {**volume, "lv_uuid": made["lv_uuid"]}
        self.filesystem = {**self.volume, "fs_uuid": self.job, "mountpoint": self.there}
        done(lab.jump, ["fs_create", self.job, self.filesystem])

    def exported(self, client=""):
        args = {"mountpoint": self.there, "fs_uuid": self.job, "client": client or self.client}
        return ["export", self.job, {**args, "uid": 0, "gid": 0, "start": ["rpcbind", "nfs-server"]}]

    def export(self):
        done(self.lab.jump, self.exported())

    def unexported(self):
        return ["unexport", self.job, {"mountpoint": self.there, "client": self.client}]

    def mounted(self):
        where = {"address": self.lab.jump.address("data"), "export": self.there, "mountpoint": self.here}
        return ["nfs_mount", self.job, {**where, "fs_uuid": self.job}]

    def mount(self):
        done(self.lab.src, self.mounted())

    def unmounted(self):
        return ["nfs_unmount", self.job, {"mountpoint": self.here}]

    def removed(self):
        return ["fs_remove", self.job, {"mountpoint": self.there, "fs_uuid": self.job}]

    def let_go(self):
        """Only the filesystem on the relay stays."""
        self.lab.src.run(
            f"timeout -s KILL 10 umount {self.here} || umount -f -l {self.here}; rmdir {self.here}", check=False
        )
        done(self.lab.jump, self.unexported())
        self.client = self.lab.src.address("data")

    def end(self):
        gone = {**self.volume, "made": {"lv_uuid": self.volume["lv_uuid"]}}
        done(self.lab.jump, self.removed(), ["lv_remove", self.job, gone])


@pytest.fixture(scope="module")
def relay(rows):
    made = Served(rows)
    yield made
    made.end()


@pytest.fixture
def served(relay):
    yield relay
    relay.let_go()


# F27: a source with two addresses on the relay's network


SECOND = "10.77.1.99"


@contextmanager
def second_address(guest, preferred):
    """A second address on the data network; `preferred` is that which the kernel sends from."""
    card = f"eth{guest.nets.index('data')}"
    guest.run(f"ip address add {SECOND}/24 dev {card} && ip route replace 10.77.1.0/24 dev {card} src {preferred}")
    try:
        yield
    finally:
        guest.run(
            f"ip route replace 10.77.1.0/24 dev {card} src {guest.address('data')};"
            f" ip address del {SECOND}/24 dev {card}"
        )


def test_of_two_addresses_the_relay_exports_to_the_one_that_the_source_sends_from(rows, served):
    asked = {"vg": GROUP, "lv": VOLUME, "relay_address": rows.jump.address("data")}
    with second_address(rows.src, served.client):
        (facts,) = done(rows.src, ["source_facts", served.job, asked])
        assert facts["source_address"] == served.client
    with second_address(rows.src, SECOND):
        (facts,) = done(rows.src, ["source_facts", served.job, asked])
        served.client = facts["source_address"]
        assert served.client == SECOND
        served.export()
        served.mount()
        rows.src.run(["umount", served.here])


def test_a_source_that_sends_from_another_address_than_was_exported_to_is_told_which(rows, served):
    served.export()
    with second_address(rows.src, SECOND):
        said = refused(rows.src, served.mounted())
    assert said["code"] == "not-mounted"
    assert f"this host's packets to {rows.jump.address('data')} carry the address {SECOND}" in said["found"]


# F29: an administrator exports everything again from the files, or withdraws this one


def test_an_export_outlives_exportfs_r_and_the_mount_works_again_after_one_was_withdrawn(rows, served):
    served.export()
    served.mount()
    listed, write = rows.jump.run("exportfs -s"), ["sh", "-c", 'echo more >> "$0"/more && sync "$0"/more', served.here]
    assert served.there in listed
    rows.jump.run("exportfs -r && exportfs -f")
    assert rows.jump.run("exportfs -s") == listed
    rows.src.run(write)
    rows.jump.run(f"exportfs -u {served.client}:{served.there} && exportfs -f")
    said = refused(rows.src, served.mounted())
    assert said["code"] == "not-mounted", said
    served.export()
    rows.src.run(write)


# F31: umount says busy after the export is gone


LOCK = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX)
open("/run/locked", "w").close()
time.sleep(600)
"""


@contextmanager
def locked(guest, path):
    """A process of this guest that holds a lock on a file, as long as that lasts."""
    guest.run(["systemd-run", "-q", "--unit=lab-lock", "/usr/bin/python3", "-c", LOCK, path])
    guest.wait("test -e /run/locked", 20)
    try:
        yield
    finally:
        guest.run("systemctl kill -s KILL lab-lock; systemctl reset-failed lab-lock; rm -f /run/locked", check=False)


@pytest.fixture
def own(rows):
    """One that a test may take down."""
    made = Served(rows)
    yield made
    made.let_go()
    made.end()


def test_a_lock_that_the_nfs_server_holds_for_a_client_does_not_keep_the_filesystem_mounted(rows, own):
    served = own
    served.export()
    served.mount()
    with locked(rows.src, f"{served.here}/held"):
        done(rows.jump, served.unexported())
        assert "busy" in rows.jump.run(f"umount {served.there} 2>&1; true"), "the NFS server holds it"
        said = done(rows.jump, served.removed())[-1]
        assert any("unlock_filesystem" in text for text in said["commands"])
        assert rows.jump.run(f"findmnt {served.there}", check=False) == ""


# F41: small packets pass and bulk stalls


@contextmanager
def narrow(lab, guest, mtu):
    """A switch that silently drops what is longer on its way to this guest, whose own card has no data about it."""
    tap = f"{guest.name}-data"
    words = lab.network.command("ip", "link", "set", tap, "mtu")
    subprocess.run([*words, str(mtu)], check=True)
    try:
        yield
    finally:
        subprocess.run([*words, "1500"], check=True)


def test_a_path_that_drops_full_frames_lets_the_mount_through_and_not_the_eight_mebibytes(rows, served):
    served.export()
    said = []
    mounting = threading.Thread(target=lambda: said.extend(run(rows.src, served.mounted())))
    with narrow(rows, rows.jump, 1200):
        asked = {"vg": GROUP, "lv": VOLUME, "relay_address": rows.jump.address("data")}
        (facts,) = done(rows.src, ["source_facts", served.job, asked])
        answered = {each["port"]: each["state"] for each in facts["reach"]}
        assert (answered.pop(111), answered.pop(2049)) == ("open", "open"), "small packets pass"
        assert set(answered.values()) <= {"open", "refused"}, "where mountd listens is its own choice"
        mounting.start()
        rows.jump.wait(f"test -e {served.there}/.probe", 20)
        time.sleep(3)
        assert mounting.is_alive(), "nothing says that it is done"
        assert int(rows.jump.run(f"stat -c %s {served.there}/.probe")) < 8 * MIB
    mounting.join(60)
    assert "code" not in said[-1], "what was stuck goes on once the path is whole"


# F44: a share that is mounted without locks


QEMU = """
import fcntl, os, struct, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
for start in (100, 200):
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, start, 1, 0))
open("/run/locked", "w").close()
time.sleep(600)
"""


def test_a_disk_that_another_hypervisor_has_open_is_seen_by_its_locks_and_without_locks_the_check_says_so(rows):
    dst, jump, job = rows.dst, rows.jump, str(uuid.uuid4())
    live, place = f"/vol/nova/{INSTANCE}/disk.local", f"/vol/nova/.volmig/{job}"
    for path in (live, f"{place}/disk.new"):
        rows.filer.write(path, qcow2(MIB))
    rows.filer.run(f"chown -R nova: /vol/nova/{INSTANCE} /vol/nova/.volmig")
    seen = json.loads(
        dst.run(
            [
                "/usr/bin/python3",
                "-c",
                IDENTITY,
                f"{INSTANCES}/{INSTANCE}/disk.local",
                f"{INSTANCES}/.volmig/{job}/disk.new",
            ]
        )
    )
    where = {"instances": INSTANCES, "share_source": SHARE, "instance": INSTANCE, "disk": "disk.local"}
    swap = ["swap", job, {**where, "virtual_size": MIB, "live": seen[0], "stage": seen[1]}]
    jump.run(
        ["systemd-run", "-q", "--unit=lab-lock", "/usr/bin/python3", "-c", QEMU, f"{INSTANCES}/{INSTANCE}/disk.local"]
    )
    try:
        jump.wait("test -e /run/locked", 20)
        assert refused(dst, swap, off=True)["code"] == "disk-in-use"
        remount(dst, "vers=3,hard,nolock")
        asked = {"instance": INSTANCE, "disk": "disk.local", "share_source": SHARE}
        (facts,) = done(dst, ["destination_facts", job, asked])
        found = finding("locks reach the server", share__options=facts["share"]["options"])
        assert not found.ok
        assert "Make sure that the instance runs on no other hypervisor." in found.sentence
        done(dst, swap, off=True)  # which is what the check warns of
    finally:
        jump.run("systemctl kill -s KILL lab-lock; systemctl reset-failed lab-lock; rm -f /run/locked", check=False)
        rows.filer.run(f"rm -rf /vol/nova/{INSTANCE} /vol/nova/.volmig")
        rows.mount_share()


IDENTITY = """
import json, os, stat, sys
def identity(path):
    seen = os.stat(path)
    mode = {"uid": seen.st_uid, "gid": seen.st_gid, "mode": stat.S_IMODE(seen.st_mode)}
    return {"inode": seen.st_ino, "file_size": seen.st_size, "mtime_ns": seen.st_mtime_ns, **mode}
print(json.dumps([identity(path) for path in sys.argv[1:]]))
"""


def remount(guest, options):
    guest.run(f"umount {INSTANCES} && mount -t nfs -o {options} {SHARE} {INSTANCES}")


# F14: clocks that differ


@contextmanager
def clock(guest, by):
    """A clock that is off by so many seconds."""
    guest.run(f"date -s @$(( $(date +%s) + {by} ))")
    try:
        yield
    finally:
        guest.run(f"date -s @$(( $(date +%s) - {by} ))")


@pytest.fixture
def dst(rows):
    """The destination as volmig enters it, with a policy and a seal key."""
    admit(rows, ["dst"])
    where = Address("127.0.0.1", rows.dst.port, "volmig", rows.dst.host_key, key_file=str(rows.key))
    with ssh.connect(where) as host:
        yield host


def stop(host):
    """The answer to a sealed stop of an instance that is not there: whether the seal admits it is said before that."""
    job, args = str(uuid.uuid4()), {"instance": INSTANCE, "disk": "disk.local", "instances": INSTANCES}
    seal = policies.seal("dst", job, "instance_stop", args)
    asked = Request("instance_stop", args, job=job, step="stop", fence=1, seal=seal)
    while (answer := host.call(asked)).state in ("running", "busy"):
        time.sleep(0.2)
    return answer


def finding_of_a_clock(rows, dst, by):
    """What the check of the clocks says of a destination whose clock is off by so many seconds."""
    with clock(rows.dst, by):
        began = time.time()
        said = dst.call(Request("hello")).evidence["time"]
    off = skew(said, began, time.time())
    assert abs(off - by) < 60
    case = Case(sound.MIGRATION, sound.FACTS, Around(skew={"destination": off}))
    found = next(each for each in checks.look(case) if each.name == "clocks agree")
    assert found.found == {"dst": round(off, 1)}
    return found.ok, found.severity


def test_a_clock_that_is_off_is_a_warning_and_of_two_only_one_far_ahead_refuses_a_seal_and_names_itself(rows, dst):
    assert {finding_of_a_clock(rows, dst, by) for by in (-3600, 7200)} == {(False, checks.WARNS)}
    usual = stop(dst).code
    assert usual
    assert not usual.startswith("seal-")
    with clock(rows.dst, -3600):
        assert stop(dst).code == usual
    with clock(rows.dst, 7200):
        answer = stop(dst)
    assert answer.code == "seal-expired"
    assert "by this hypervisor's clock, which shows " in answer.found
    assert answer.error["next"].startswith("If that clock is wrong, set it.")
