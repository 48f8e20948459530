"""`make bench`: pages of a long history, live pages, the manual procedure against volmig, downtime, latency."""

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from tests.bench import history, latency, manual, sockets
from tests.lab.image import say
from tests.lab.lab import Instance, Lab
from tests.site import Site

DATA = Path(__file__).resolve().parents[2] / ".cache/bench"
PORT = 8090
MIB = 1 << 20
MBIT = 100


def main() -> None:
    quick = history.main()
    lively = sockets.main()
    lab = Lab()
    site = Site(lab, DATA, PORT)
    os.environ.update(site.environment)
    with lab.held():
        try:
            _bench(lab, site)
        finally:
            site.stop()
            lab.down()
    if not quick:
        sys.exit("Pages of the history or of the record take too long.")
    if not lively:
        sys.exit("Live pages take too long, or too much.")


def _bench(lab: Lab, site: Site) -> None:
    was_up = lab.is_up()
    lab.up()
    if was_up:
        lab.reset()
    site.wipe()
    site.prepare()
    site.start()
    import django

    django.setup()
    _throttle(lab, MBIT)
    compare(lab, size=1024 * MIB, data=400)
    downtimes(lab, {256 * MIB: 100, 2048 * MIB: 800})
    _throttle(lab, None)
    figures = latency.measure(lab)
    print(f"\nProgress, from qemu-img's report to the browser, in seconds: {json.dumps(figures)}")
    if figures["median"] > 1 or figures["p95"] > 2:
        sys.exit("Progress reaches the browser too late: the median is to be under 1 s, 95 % under 2 s.")


def compare(lab: Lab, size: int, data: int) -> None:
    """The same volume by hand and by volmig."""
    device, instance = _pair(lab, size, data)
    say("the manual procedure")
    by_hand = manual.run(lab, f"/dev/vg_nova0/{device}", instance, size + size // 4)
    device, instance = _pair(lab, size, data)
    say("the same by volmig")
    ours = migrate(lab, device, instance)
    _table(f"By hand, {size // MIB} MiB with {data} MiB of data, {MBIT} Mbit/s", by_hand)
    _table("volmig", ours["steps"])
    hand_total, our_total = sum(by_hand.values()), ours["total"]
    hand_down = sum(by_hand[name] for name in manual.DOWN)
    print(f"\nBytes moved over the links: {ours['bytes'] // MIB} MiB by volmig (convert, compare, stage, read back)")
    print(f"Whole: {hand_total:.1f} s by hand, {our_total:.1f} s by volmig, ratio {our_total / hand_total:.2f}")
    print(
        f"Down (seen stopped to start called): {hand_down:.1f} s by hand, {ours['down']:.1f} s by volmig, "
        f"ratio {ours['down'] / hand_down:.3f}"
    )


def downtimes(lab: Lab, sizes: dict[int, int]) -> None:
    """Downtime must not depend on the disk's size."""
    down = {}
    for size, data in sizes.items():
        device, instance = _pair(lab, size, data)
        down[size] = migrate(lab, device, instance)["down"]
    for size, seconds in down.items():
        print(f"Down with {size // MIB} MiB: {seconds:.2f} s")
    spread = max(down.values()) - min(down.values())
    print(f"Difference: {spread:.2f} s")
    if spread > 2:
        sys.exit("Downtime depends on the disk's size.")


def migrate(lab: Lab, volume: str, instance: Instance) -> dict[str, Any]:
    """One whole migration through volmig's own processes, with its second person; the instance is left on trial."""
    from hosts import tasks
    from hosts.models import Hypervisor, LogicalVolume
    from hosts.models import Instance as Row
    from jobs.models import Job

    for hypervisor in Hypervisor.objects.all():
        tasks.refresh(hypervisor.pk)
    job = Job.objects.submit(
        _person("olga"),
        source_volume=LogicalVolume.objects.get(name=volume),
        destination=Row.objects.get(uuid=instance.uuid),
        disk="disk.local",
        relay=Hypervisor.objects.get(name="jump"),
        relay_vg="vg_nova0",
        start=True,
    )
    _until(job, "awaiting_approval")
    approval = job.open_approval()
    approval.approve(_person("pavel"), approval.digest, "Measured.")
    _until(job, "on_trial")
    while not job.runs.filter(step="forget_destination", result="done").exists():
        time.sleep(0.5)
    job.confirm(_person("olga"))
    lab.dst.run(["virsh", "-q", "destroy", instance.name])
    return _figures(job)


def _person(name: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.get(username=name)


def _figures(job: Any) -> dict[str, Any]:
    runs = {run.step: run for run in job.runs.filter(direction="do", result="done")}
    steps = {name: (run.ended_at - run.started_at).total_seconds() for name, run in runs.items()}
    down = runs["start"].started_at.timestamp() - runs["stop"].evidence["stopped_at"]
    size = runs["stage"].evidence["file_size"]
    total = (runs["start"].ended_at - job.created_at).total_seconds()
    return {"steps": steps, "down": down, "bytes": 4 * size, "total": total}


def _until(job: Any, status: str) -> None:
    while job.status != status:
        if job.halt_reason or job.ended_at:
            sys.exit(f"{job} is {job.status}: {job.halt_reason or job.outcome_reason}")
        time.sleep(0.2)
        job.refresh_from_db()


def _pair(lab: Lab, size: int, data: int) -> tuple[str, Instance]:
    """A volume on src and a running instance on dst that is to have it."""
    volume = f"{uuid.uuid4()}_disk.local"
    lab.volume(lab.src, volume, size, data_mb=1, bulk_mb=data)
    instance = lab.instance(str(uuid.uuid4()), f"bench-{uuid.uuid4().hex[:6]}", disk_bytes=size)
    lab.start(instance)
    lab.wait_console(instance, "VOLMIG-READY")
    return volume, instance


def _throttle(lab: Lab, mbit: int | None) -> None:
    lab.bandwidth(lab.src, "data", mbit)
    lab.bandwidth(lab.filer, "storage", mbit)


def _table(title: str, seconds: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:36} {value:8.1f} s")


if __name__ == "__main__":
    main()
