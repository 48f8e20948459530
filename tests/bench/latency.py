"""How long progress takes from qemu-img's report on the source to the fragment on a socket, four conversions at once.

The limits are lifted by the settings (four conversions from a source, four through a relay); everything else is as
users run it: web, workers and watcher are processes of their own, and a socket is opened with a session's cookie.
"""

import asyncio
import http.cookiejar
import itertools
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import websockets

from hosts.remote import ssh
from hosts.remote.host import Address, HostError
from jobs.engine import routes
from tests.lab.guest import Guest
from tests.lab.lab import Lab
from tests.site import PASSWORD, ROOT, Site

MIB = 1 << 20
JOBS = 4
# Asks for the migrations as olga; their numbers are printed.
ASK = """
import json, sys
import django
django.setup()
from django.contrib.auth.models import User
from hosts.models import Hypervisor, Instance, LogicalVolume
from jobs.models import Job
asked, olga, jobs = json.load(sys.stdin), User.objects.get(username="olga"), {}
for name in asked["uuids"]:
    job = Job.objects.submit(
        olga, source_volume=LogicalVolume.objects.get(name=f"{name}_disk.local"),
        destination=Instance.objects.get(uuid=name), disk="disk.local", relay=Hypervisor.objects.get(name="jump"),
        relay_vg="vg_nova0", rate=asked["rate"], start=True)
    jobs[str(job.uuid)] = job.pk
print(json.dumps(jobs))
"""


class Crowd(Site):
    """A volmig that lets four conversions run at once on the lab's one source and one relay."""

    @property
    def environment(self) -> dict[str, str]:
        lifted = {"VOLMIG_CONVERSIONS_PER_SOURCE": str(JOBS), "VOLMIG_CONVERSIONS_PER_RELAY": str(JOBS)}
        return {**super().environment, **lifted}


@dataclass
class Seen:
    """Of one job, while it converts: (bytes done, time) as hostctl reports them, and as fragments show them."""

    reports: list[tuple[int, float]] = field(default_factory=list)
    fragments: list[tuple[int, float]] = field(default_factory=list)

    def reported(self, done: int, at: float) -> None:
        """Note a report that says something new; qemu-img repeats itself until the next percent is full."""
        if not self.reports or done > self.reports[-1][0]:
            self.reports.append((done, at))

    def delays(self, began: float, ended: float) -> list[float]:
        """Seconds from each report between two times to the first fragment that shows as much or more.

        The last report of the conversion that ends first may never be shown: the next step is.
        """
        within = [(done, at) for done, at in self.reports if began <= at <= ended]
        found = ((at, next((seen for shown, seen in self.fragments if shown >= done), None)) for done, at in within)
        return [seen - at for at, seen in found if seen is not None]


def measure(lab: Lab) -> dict[str, Any]:
    """Median, 95th percentile and maximum in seconds, over all reports made while all four conversions ran."""
    seen = run(lab, size=224 * MIB, data=192, rate=3 * MIB)
    if not all(each.reports for each in seen):
        raise RuntimeError("a conversion did not report")
    began = max(each.reports[0][1] for each in seen)
    ended = min(each.reports[-1][1] for each in seen)
    delays = sorted(itertools.chain(*(each.delays(began, ended) for each in seen)))
    if len(delays) < 100:
        raise RuntimeError(f"only {len(delays)} reports while all {JOBS} ran together: the conversions are too short")
    return {
        "conversions": JOBS,
        "seconds_together": round(ended - began, 1),
        "reports": len(delays),
        "median": round(statistics.median(delays), 3),
        "p95": round(delays[int(len(delays) * 0.95)], 3),
        "max": round(delays[-1], 3),
    }


def run(lab: Lab, size: int, data: int, rate: int) -> list[Seen]:
    """Four migrations of `size` bytes with `data` MiB in each at `rate` bytes per second, watched while they convert.

    The lab is reset first and is left with work under way on it: reset it afterwards.
    """
    lab.reset()
    uuids = [str(uuid.uuid4()) for _ in range(JOBS)]
    for number, each in enumerate(uuids):
        lab.volume(lab.src, f"{each}_disk.local", size, data_mb=1, bulk_mb=data - 1)
        lab.instance(each, f"guest-{number}", disk_bytes=size)
    site = Crowd(lab, lab.folder / "latency")
    site.wipe()
    try:
        site.prepare()
        site.start()
        return watch(lab, site, uuids, rate)
    finally:
        site.stop()
        site.wipe()


def watch(lab: Lab, site: Site, uuids: list[str], rate: int) -> list[Seen]:
    """Follow both ends at once: hostctl's own stream on the source, and one socket for each job's page."""
    asked = json.dumps({"uuids": uuids, "rate": rate})
    told = subprocess.run(
        [sys.executable, "-c", ASK], cwd=ROOT, env=site.environment, input=asked, text=True, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    numbers = json.loads(told.stdout.splitlines()[-1])
    seen = {job: Seen() for job in numbers}
    address = entrance(lab, site)
    ahead, stop = skew(lab.src), threading.Event()
    follower = threading.Thread(target=follow, args=(address, seen, ahead, stop), daemon=True)
    follower.start()
    try:
        pages = listen(site, sign_in(site, "pavel"), {number: seen[job] for job, number in numbers.items()})
        with ThreadPoolExecutor(1) as apart:  # in this thread a browser of an earlier test may have a loop of its own
            apart.submit(asyncio.run, pages).result()
    finally:
        stop.set()
        follower.join(timeout=15)
    return list(seen.values())


def sign_in(site: Site, name: str) -> str:
    """The cookies of a person who has logged in as people do."""
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    browser.open(f"{site.url}/login/").read()
    token = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
    fields = {"username": name, "password": PASSWORD, "csrfmiddlewaretoken": token}
    browser.open(f"{site.url}/login/", urllib.parse.urlencode(fields).encode()).read()
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)


def entrance(lab: Lab, site: Site) -> Address:
    src = lab.src
    return Address("127.0.0.1", src.port, "volmig", src.host_key, key_file=str(site.data / "ssh_key"))


def skew(guest: Guest) -> float:
    """By how many seconds the guest's clock is ahead of ours: of twenty questions, the one answered quickest."""
    return min(asked_the_time(guest) for _ in range(20))[1]


def asked_the_time(guest: Guest) -> tuple[float, float]:
    """How long the answer took, and how far the time in it is from the middle of that."""
    began = time.time()
    said = float(guest.run("date +%s.%N"))
    ended = time.time()
    return ended - began, said - (began + ended) / 2


def follow(address: Address, seen: dict[str, Seen], ahead: float, stop: threading.Event) -> None:
    """Note every report of the conversions; ends with the next beat after `stop`."""
    try:
        with ssh.connect(address) as host:
            for line in host.watch():
                if stop.is_set():
                    return
                report = line.get("progress", {})
                if report.get("step") == "convert" and report["done"]:
                    seen[report["job"]].reported(report["done"], report["at"] - ahead)
    except HostError:
        if not stop.is_set():
            raise


async def listen(site: Site, cookie: str, seen: dict[int, Seen]) -> None:
    await asyncio.wait_for(asyncio.gather(*(socket_of(site, cookie, *each) for each in seen.items())), timeout=600)


async def socket_of(site: Site, cookie: str, number: int, seen: Seen) -> None:
    """Note every fragment of a job's conversion until another step is shown after it."""
    address = f"ws://127.0.0.1:{site.port}/live/migrations/{number}/"
    headers = {"Cookie": cookie, "Origin": site.url}
    async with websockets.connect(address, additional_headers=headers) as page:
        async for message in page:
            at = time.time()
            shown = shown_by(str(message))
            if shown is not None:
                seen.fragments.append((shown, at))
            elif "<hx-partial" in message and (seen.fragments or ">Ended " in message):
                return


def shown_by(message: str) -> int | None:
    """Bytes that the bar of the conversion stands at in a fragment; None when it shows something else."""
    bar = re.search(r'<progress max="\d+" value="(\d+)"', message)
    return int(bar[1]) if bar and f">{routes.named()['convert'].title}</h2>" in message else None
