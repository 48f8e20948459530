"""What can break amid a migration breaks, on real hosts: it ends well by itself, or is undone and says why."""

import contextlib
import datetime as dt
import json
import threading
import time
from pathlib import Path

import pytest
from django.db.models import Q
from django.utils import timezone

from hosts.remote import ssh
from jobs.engine import failpoints, routes
from jobs.models import Job, StepRun
from jobs.worker import tick
from jobs.worker.watcher import Watcher
from tests import factories
from tests.jobs.lives import Killed, dying
from tests.lab.guest import HOSTCTL
from tests.lab.lab import INSTANCES, SHARE
from tests.lab_tests.conftest import MIB, admit

pytestmark = pytest.mark.lab
torture = pytest.mark.torture  # all but one: make test has no hour

OLD, NEW = "5a1ce0de-0000-4111-8222-933334444555", "7b2df1ef-1111-4222-8333-944445555666"
VOLUME = f"{OLD}_disk.local"
DEVICE = f"/dev/vg_nova0/{VOLUME}"
COPIES = 20


class Scene:
    """A volume with 48 MiB of data, a guest that is switched off, and how both were before."""

    def __init__(self, lab, drive):
        self.lab, self.drive = lab, drive
        self.digest = lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=4, bulk_mb=44)
        self.guest = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
        self.source, self.live = self.disks()

    def disks(self):
        return self.lab.sha256(self.lab.src, DEVICE), self.lab.sha256(self.lab.dst, self.guest.disk)

    def submit(self, **changed):
        self.job = self.drive.submit(VOLUME, self.guest, **changed)
        return self.job

    def amid(self, step):
        """Until this step has moved something."""
        moving = self.job.runs.filter(step=step, result="running", bytes_done__gt=0)
        self.drive.until(moving.exists, self.job)

    def goes_on(self, after):
        """What broke is whole again: within a minute, and without anybody's hand, work moves or ends."""
        began, job = timezone.now(), self.job
        moved = job.runs.filter(Q(progress_at__gt=began) | Q(ended_at__gt=began, result="done"))
        self.drive.until(moved.exists, job, seconds=60)
        print(f"\nAfter {after} it went on within {(timezone.now() - began).total_seconds():.1f} s.")

    def ends_well(self, seconds=180):
        """The rest of the way, with the people's part."""
        self.drive.reach(self.job, "awaiting_approval", seconds=seconds)
        self.drive.approve(self.job)
        self.starts_and_ends(seconds)

    def starts_and_ends(self, seconds=180):
        """The guest mounts what was on the source, and nothing is left but the backup."""
        drive, job, lab = self.drive, self.job, self.lab
        drive.reach(job, "on_trial", seconds=seconds)
        lab.wait_console(self.guest, f"VOLMIG-DATA sha256 {self.digest}")
        job.confirm(factories.operator())
        drive.reach(job, "done")
        self.nothing_is_left("README", "card.json", "disk.old")

    def is_undone(self, seconds=180):
        """It came to nothing, and there is nothing to be seen of it; why, for people."""
        self.drive.until(lambda: self.job.status == "undone", self.job, seconds=seconds)
        failed = self.job.runs.filter(direction="do", result="failed").latest("ended_at")
        took = (self.job.ended_at - failed.ended_at).total_seconds()
        print(f"\nIt was undone {took:.1f} s after {failed.step} failed.")
        self.nothing_is_left()
        assert self.disks()[1] == self.live
        return self.job.outcome_reason

    def nothing_is_left(self, *kept):
        assert sorted(self.lab.leftovers()) == [f"filer: share {self.job.uuid}/{name}" for name in kept]
        assert self.disks()[0] == self.source
        assert self.lab.src.run(f"lvs --noheadings -o lv_permissions {DEVICE}").strip() == "writeable"


@pytest.fixture
def scene(clean_lab, register, drive):
    clean_lab.mount_share(acdirmax=1)
    made = Scene(clean_lab, drive)
    register()
    return made


# Whoever works on it dies


@pytest.fixture
def workers_die(monkeypatch):
    """A worker that is killed lets go of nothing: its job is taken over when the lease is over."""
    run, release = tick.run, tick.release

    def survived(pk):
        try:
            run(pk)
        except Killed:
            Job.objects.filter(pk=pk).update(lease_until=timezone.now() - dt.timedelta(days=1))

    monkeypatch.setattr(tick, "run", survived)
    monkeypatch.setattr(tick, "release", lambda job: None if dying() else release(job))


@pytest.fixture
def connections(monkeypatch):
    """The ways into hypervisors that were ever used."""
    call, used = ssh.SSHHost.call, set()

    def noted(host, request, timeout=20):
        used.add(host)
        return call(host, request, timeout)

    monkeypatch.setattr(ssh.SSHHost, "call", noted)
    return used


def die():
    raise Killed


@pytest.mark.parametrize(
    "who", [pytest.param("worker", marks=torture), pytest.param("watcher", marks=torture), "connection"]
)
def test_one_migration_in_which_somebody_dies_at_every_boundary_ends_well(scene, drive, workers_die, connections, who):
    def new_watcher():
        drive.watcher.let_go()
        drive.watcher = Watcher()

    def cut():
        for host in list(connections):
            if host.connection:
                host.connection.client.close()
        connections.clear()

    kill = {"worker": die, "watcher": new_watcher, "connection": cut}[who]
    left = {
        point for point in failpoints.every([step for step in routes.steps() if step.phase != "D"]) if ".do." in point
    }

    def once(point):
        if point in left:
            left.remove(point)
            kill()

    failpoints.arm(once)
    try:
        scene.submit()
        scene.ends_well(seconds=400)
    finally:
        failpoints.arm(None)
    assert left == set()


# Power


@torture
def test_a_relay_that_loses_its_power_amid_the_conversion_is_set_up_again(scene):
    scene.submit(rate=3 * MIB)
    scene.amid("convert")
    scene.lab.power_cut(scene.lab.jump)
    scene.lab.boot(scene.lab.jump)
    scene.goes_on("the relay's power cut")
    scene.ends_well(seconds=400)
    assert scene.job.runs.filter(step="relay_export", direction="do", result="done").count() == 2
    assert scene.job.runs.filter(step="convert", result="failed").count() <= 1


@torture
def test_a_source_that_loses_its_power_amid_the_conversion_is_mounted_and_fenced_again(scene):
    scene.submit(rate=3 * MIB)
    scene.amid("convert")
    scene.lab.power_cut(scene.lab.src)
    scene.lab.boot(scene.lab.src)
    scene.goes_on("the source's power cut")
    scene.ends_well(seconds=300)
    assert scene.job.runs.filter(step="source_fence", direction="do", result="done").count() == 2


DEVICE_OF = 'device=$(ip -o addr show to "$0" | cut -d" " -f2); '
FREEZE = DEVICE_OF + 'while [ ! -e "$1" ]; do :; done; ip link set "$device" down'


def cut_when(lab, there):
    """Cut the power of dst as soon as the filer has this file; from that very moment the filer hears nothing more."""

    def watch():
        lab.filer.run(["sh", "-c", FREEZE, lab.filer.address("storage"), there], timeout=120)
        lab.power_cut(lab.dst)

    cutting = threading.Thread(target=watch)
    cutting.start()
    return cutting


@torture
def test_a_destination_that_loses_its_power_between_link_and_rename_has_one_whole_disk_and_goes_on(scene, drive):
    lab, job = scene.lab, scene.submit()
    drive.reach(job, "awaiting_approval")
    found = {}

    def slow_and_watched():
        # Each answer of the filer waits behind what is read meanwhile: between link and rename lies half a second.
        lab.bandwidth(lab.dst, "storage", 1)
        reading = f"while :; do dd if={scene.guest.disk} of=/dev/null bs=64k iflag=direct status=none; done"
        lab.dst.run(["systemd-run", "-q", "sh", "-c", reading])
        found["cutting"] = cut_when(lab, f"/vol/nova/.volmig/{job.uuid}/disk.old")

    drive.moments["swap", "do"] = slow_and_watched
    drive.approve(job)
    drive.until(lambda: "cutting" in found and not found["cutting"].is_alive(), job)
    names = lab.filer.run(["ls", f"/vol/nova/.volmig/{job.uuid}"]).split()
    assert {"disk.new", "disk.old"} <= set(names), "not between the two"
    lab.bandwidth(lab.dst, "storage", None)
    lab.filer.run(["sh", "-c", DEVICE_OF + 'ip link set "$device" up', lab.filer.address("storage")])
    lab.boot(lab.dst)
    scene.goes_on("the destination's power cut between link and rename")
    scene.starts_and_ends(seconds=120)


@torture
def test_a_destination_that_loses_its_power_amid_the_start_starts_the_instance_once_it_is_back(scene, drive):
    lab, job = scene.lab, scene.submit()
    drive.reach(job, "awaiting_approval")
    over = threading.Event()

    def soon():
        threading.Timer(0.7, lambda: (lab.power_cut(lab.dst), over.set())).start()

    drive.moments["instance_start", "do"] = soon
    drive.approve(job)
    drive.until(over.is_set, job)
    lab.boot(lab.dst)
    scene.goes_on("the destination's power cut amid the start")
    scene.starts_and_ends(seconds=120)


# Links


@torture
def test_a_data_link_that_is_cut_for_two_minutes_amid_the_conversion_is_told_and_survived(scene, drive):
    job = scene.submit(rate=3 * MIB)
    scene.amid("convert")
    scene.lab.link_cut(scene.lab.src, "data")
    began = time.monotonic()
    try:
        drive.until(lambda: "moved nothing" in job.waiting_for, job, seconds=130)
        assert StepRun.objects.get(pk=job.running().pk).result == "running"
        drive.until(lambda: time.monotonic() - began > 120, job, seconds=130)
    finally:
        scene.lab.link_heal(scene.lab.src, "data")
    scene.goes_on("two minutes without the data link")
    scene.ends_well(seconds=240)
    assert job.runs.filter(step="convert", direction="do").count() == 1


# Space


@contextlib.contextmanager
def full(lab, guest, path):
    """Down to what root alone may take."""
    lab.fill(guest, path, MIB)
    guest.run(
        ["sh", "-c", 'dd if=/dev/zero of="$0"/.lab-fill oflag=append conv=notrunc bs=1M status=none || true', path]
    )
    try:
        yield
    finally:
        lab.unfill(guest, path)


@torture
def test_a_relay_whose_filesystem_is_full_undoes_the_migration_and_says_so(scene, drive):
    job = scene.submit(rate=3 * MIB)
    scene.amid("convert")
    scene.lab.fill(scene.lab.jump, f"/srv/volmig/{job.uuid.hex}", 2 * MIB)
    assert "No space left" in scene.is_undone()


@torture
def test_a_share_that_is_full_undoes_the_migration_and_says_so(scene, drive):
    lab = scene.lab
    with contextlib.ExitStack() as stack:
        # Before it is asked for: a quick machine has staged the disk by the time submit is over.
        drive.moments["stage", "do"] = lambda: stack.enter_context(full(lab, lab.filer, "/vol/nova"))
        job = scene.submit()
        drive.until(lambda: job.status in ("undoing", "undone"), job)
    assert "No space left" in scene.is_undone()


# Bytes


BAD_BLOCK = """
name=$(dmsetup info -c --noheadings -o name "$0"); set -- $(dmsetup table "$name")
printf '0 65536 linear %s %s\\n65536 8 error\\n65544 %s linear %s %s\\n' \
  "$4" "$5" $(($2 - 65544)) "$4" $(($5 + 65544)) | dmsetup load --readonly "$name"
dmsetup suspend "$name"; dmsetup resume "$name"
"""


@torture
def test_a_source_with_a_block_that_cannot_be_read_undoes_the_migration_and_says_so(scene, drive):
    drive.moments["convert", "do"] = lambda: scene.lab.src.run(["sh", "-ec", BAD_BLOCK, DEVICE])
    job = scene.submit()
    assert "Input/output error" in scene.is_undone()
    assert job.runs.filter(step="convert", result="failed").count() == 3


@torture
def test_a_source_cannot_be_written_through_another_device_node_while_it_is_converted(scene, drive):
    lab, job = scene.lab, scene.submit(rate=3 * MIB)
    scene.amid("convert")
    script = (
        "set -- $(stat -L -c '%t %T' $0); mknod /run/lab-node b 0x$1 0x$2; refused=0;"
        " for n in $(seq 100); do dd if=/dev/urandom of=/run/lab-node bs=4k count=1 seek=$n conv=notrunc status=none"
        " 2>/dev/null || refused=$((refused + 1)); done; rm /run/lab-node; echo $refused"
    )
    assert int(lab.src.run(["sh", "-c", script, DEVICE])) == 100
    assert job.running().step == "convert"
    scene.ends_well()


def installed(guest, script, *words):
    """The command that runs a script of this directory with the hostctl that is installed there."""
    guest.write(f"/run/{script}", (Path(__file__).parent / script).read_bytes())
    return ["/usr/bin/python3", f"/run/{script}", HOSTCTL, *words]


def on(guest, script, *words):
    told = json.loads(guest.run(installed(guest, script, *words), timeout=3000))
    print(f"\n{script}: {told}")
    return told


@torture
def test_no_conversion_is_accepted_that_ran_out_of_space_or_could_not_read_its_source(clean_lab):
    admit(clean_lab, ["src"])
    told = on(clean_lab.src, "break_copies.py", str(COPIES), "1")
    assert (told["full accepted"], told["unreadable accepted"]) == (0, 0)
    assert (told["full told"], told["unreadable told"]) == (COPIES, COPIES)


@contextlib.contextmanager
def a_reader(guest, pause):
    """One that opens the live disk for ever, `pause` seconds apart; in the end what it found there each time."""
    found, out = {}, "/run/read-disks"
    unit = ["systemd-run", "--quiet", "--unit=read-disks", f"--property=StandardOutput=truncate:{out}"]
    guest.run([*unit, *installed(guest, "kill_swaps.py", INSTANCES, SHARE, "read", pause)])
    try:
        yield found
    finally:
        guest.run("systemctl stop read-disks")
        found.update(json.loads(guest.read(out)))
        print(f"a reader on {guest.name}: {found}")


@torture
@pytest.mark.parametrize(("reader", "pause", "swaps"), [("jump", "0", 1000), ("dst", "0.02", 300)])
def test_a_swap_that_is_killed_at_any_instant_loses_neither_disk_and_the_next_call_finishes_it(
    clean_lab, reader, pause, swaps
):
    """A swap waits until a reader on its own hypervisor has closed the disk: the NFS client there would put an open
    disk aside before it renames another over it, and the live disk would have no name in between."""
    lab = clean_lab
    lab.mount_share()
    admit(lab, ["dst", "jump"])
    on(lab.dst, "kill_swaps.py", INSTANCES, SHARE, "0", "")  # a reader is to find a disk from the first
    with a_reader(lab.guests[reader], pause) as read:
        told = on(lab.dst, "kill_swaps.py", INSTANCES, SHARE, str(swaps), "1")
    assert sum(told["killed"].values()) == swaps
    assert set(told["live"]) | set(read) <= {"old", "new"}
    assert read["new"] > 0 < read["old"]
    assert (told["backup lost"], told["not finished"]) == (0, 0)
    assert set(told["states"]) >= {"new", "new+old", "old"}, "before the link, between link and rename, after both"
