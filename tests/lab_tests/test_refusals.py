"""Bad input: each kind gets a sentence that says what is wrong, and nothing is made on any hypervisor."""

from contextlib import contextmanager
from functools import wraps

import pytest

from hosts.models import Hypervisor
from jobs.models import Job, Refused
from tests import factories
from tests.lab.lab import INSTANCES, SHARE
from tests.lab_tests.conftest import MIB

pytestmark = pytest.mark.lab

OLD, NEW, OTHER = (f"{number}f8df945-7cbd-46e0-8ad1-d51013cf706b" for number in (3, 4, 5))
VOLUME, SMALL, SECOND = f"{OLD}_disk.local", f"{NEW}_disk.local", f"{OTHER}_disk.local"


@pytest.fixture(scope="module")
def scene(lab):
    """Three volumes and two instances; every test leaves them as they were."""
    lab.reset()
    lab.volume(lab.src, VOLUME, 64 * MIB, data_mb=1)
    for name, size in ((SMALL, 32), (SECOND, 64)):
        make(lab.src, name, f"-L {size}M")
    lab.db = lab.instance(NEW, "db-new", disk_bytes=64 * MIB)
    lab.web = lab.instance(OTHER, "web-new", disk_bytes=64 * MIB)
    return lab


@pytest.fixture
def page(scene, look_once):
    """What a page that was loaded before anything went wrong knows."""
    look_once()
    return scene


def spoils(steps):
    """What goes wrong after the page was loaded, up to its yield; it is put right again however the test ends."""

    @contextmanager
    @wraps(steps)
    def spoil(lab):
        under_way = steps(lab)
        next(under_way)
        try:
            yield
        finally:
            next(under_way, None)

    return spoil


@spoils
def volume_in_use(lab):
    holds = f"-p StandardInput=file:/dev/vg_nova0/{VOLUME} sleep infinity"
    lab.src.run(f"systemd-run -q --unit=lab-holder {holds}")
    yield
    lab.src.run("systemctl stop lab-holder")


@spoils
def volume_gone(lab):
    remove(lab.src, SECOND)
    yield
    make(lab.src, SECOND, "-L 64M")


@spoils
def volume_replaced(lab):
    remove(lab.src, SECOND)
    make(lab.src, SECOND, "-L 64M")
    yield


@spoils
def relay_full(lab):
    make(lab.jump, "lab_rest", "-l 100%FREE")
    yield
    remove(lab.jump, "lab_rest")


@spoils
def share_full(lab):
    lab.fill(lab.filer, "/vol/nova", 40 * MIB)
    yield
    lab.unfill(lab.filer, "/vol/nova")


@spoils
def share_not_on_the_relay(lab):
    lab.jump.run(f"umount {INSTANCES}")
    yield
    lab.jump.run(f"mount {INSTANCES}")


@spoils
def source_out_of_reach(lab):
    lab.link_cut(lab.src, "mgmt")
    yield
    lab.link_heal(lab.src, "mgmt")
    lab.src.wait_ssh()


@spoils
def relay_out_of_reach_of_the_source(lab):
    lab.link_cut(lab.src, "data")
    yield
    lab.link_heal(lab.src, "data")


@spoils
def disk_info_says_raw(lab):
    path = f"/vol/nova/{NEW}/disk.info"
    lab.filer.run(f"sed -i 's/qcow2/raw/g' {path}")
    yield
    lab.filer.run(f"sed -i 's/raw/qcow2/g' {path}")


@spoils
def domain_says_raw(lab):
    define = "virsh dumpxml --inactive db-new | sed \"s/type='{}'/type='{}'/\" | virsh -q define /dev/stdin"
    lab.dst.run(define.format("qcow2", "raw"))
    yield
    lab.dst.run(define.format("raw", "qcow2"))


@spoils
def all_well(lab):
    yield


@pytest.mark.parametrize(
    ("spoil", "volume", "words"),
    [
        (volume_in_use, VOLUME, f"vg_nova0/{VOLUME} is in use by process|(sleep) of lab-holder.service"),
        (volume_gone, SECOND, f"vg_nova0/{SECOND} is not on src any more"),
        (volume_replaced, SECOND, f"vg_nova0/{SECOND} is another volume now"),
        (all_well, SMALL, f"has {32 * MIB} bytes, the present disk {64 * MIB}: it would shrink"),
        (relay_full, VOLUME, "vg_nova0 on jump has 0 MiB left|the temporary volume needs"),
        (share_full, VOLUME, f"{SHARE} has|MiB left|the staged copy may need"),
        (share_not_on_the_relay, VOLUME, f"jump does not mount {SHARE}"),
        (relay_out_of_reach_of_the_source, VOLUME, "src cannot reach 10.77.|2049"),
        (disk_info_says_raw, VOLUME, "is not qcow2 everywhere|disk.info says raw"),
        (domain_says_raw, VOLUME, "is not qcow2 everywhere|the instance's definition says raw"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_input_is_refused_in_words_and_nothing_is_made(page, drive, spoil, volume, words):
    free = free_extents(page)
    with spoil(page):
        job = drive.submit(volume, page.db)
        drive.reach(job, "undone", seconds=60)
    assert job.outcome == "blocked"
    assert [word for word in words.split("|") if word not in job.outcome_reason] == [], job.outcome_reason
    assert not job.runs.exists()
    assert (page.leftovers(), free_extents(page)) == ([], free)


def test_a_source_out_of_reach_is_asked_until_it_answers_and_nothing_is_made(page, drive):
    with source_out_of_reach(page):
        job = drive.submit(VOLUME, page.db, start=False)
        assert (job.status, job.plan) == ("checking", {})
        assert "Tried to log in to volmig@" in job.waiting_for
        assert "Retrying automatically" in job.waiting_for
    drive.reach(job, "planned", seconds=60)
    assert not job.runs.exists()
    assert page.leftovers() == []


def test_another_host_key_quarantines_and_no_command_is_sent(page, drive):
    sent = "journalctl -q --no-pager -t sudo | grep -c hostctl"
    before = page.src.run(sent)
    src = Hypervisor.objects.get(name="src")
    src.put(host_key=page.jump.host_key)
    job = drive.submit(VOLUME, page.db)
    drive.reach(job, "undone", seconds=60)
    src.refresh_from_db()
    assert "it offered the host key SHA256:" in job.outcome_reason
    assert src.quarantine_reason in job.outcome_reason
    assert src.quarantined_at
    assert (int(before) > 0, page.src.run(sent)) == (True, before)
    with pytest.raises(Refused, match="src cannot be used: it is in quarantine"):
        drive.submit(VOLUME, page.web)
    assert page.leftovers() == []


def test_a_volume_or_an_instance_that_has_a_job_gets_no_second_one(page, drive):
    job = Job.objects.submit(factories.operator(), **drive.asked(VOLUME, page.db))
    with pytest.raises(Refused, match=f"Migration {job.pk} already moves this volume"):
        drive.submit(VOLUME, page.web)
    with pytest.raises(Refused, match=f"Migration {job.pk} already uses this instance"):
        drive.submit(SECOND, page.db)
    assert Job.objects.count() == 1


def make(guest, name, size):
    guest.run(f"lvcreate -qy -Wy -n {name} {size} vg_nova0")


def remove(guest, name):
    guest.run(f"lvremove -qy vg_nova0/{name}")


def free_extents(lab):
    return [guest.run("vgs --noheadings -o vg_free_count vg_nova0").strip() for guest in (lab.src, lab.jump)]
