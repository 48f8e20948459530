"""A guest that is down is the loudest thing on screen: slow, dead and hanging hosts before a real browser.

The web process and its websocket are real; ticks are real, over hypervisors in memory. Only the thresholds are short.
"""

import contextlib
import re
import select
import socket
import threading
import time
from pathlib import Path

import pytest
from django.db import close_old_connections, connection

from hosts.remote.host import Unreachable
from jobs.engine import approval_binding
from jobs.models import Job
from jobs.models.wake import wake
from jobs.worker import tick
from tests.browser.conftest import logged_in, served  # noqa: F401 - a fixture
from tests.factories import approver
from tests.fakes import Site
from tests.jobs.conftest import Drive
from tests.rig import free_port
from tests.trust.amounts import FULL, figure

pytestmark = pytest.mark.browser
in_full = pytest.mark.skipif(not FULL, reason="make trust runs it; each takes as long as its host")
STALLED = 2  # seconds, in place of 90
SLOW = 20  # seconds that a slow host takes for each answer, unless the test has seen enough
GIVEN_UP = 20  # seconds until SSH gives up on a dead one
WITHIN = 15  # seconds after the threshold by which the overview has to say so


@pytest.fixture(scope="module")
def site(tmp_path_factory, django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        database = Path(connection.settings_dict["NAME"]).absolute()
    with served(tmp_path_factory.mktemp("stalls"), database, VOLMIG_STALLED_SECONDS=str(STALLED)) as address:
        yield address


class Workers:
    """Ticks whatever is due, in a thread, as workers do."""

    def __init__(self):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.over.wait(0.2):
            for pk in list(Job.objects.due().values_list("pk", flat=True)):
                tick.run(pk)
            close_old_connections()
        connection.close()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


class Links:
    """What lies between volmig and the hosts: `broken` is asked about each request and may wait or raise."""

    def __init__(self, fake):
        self.broken = lambda request: None
        self.healed = threading.Event()
        fake.carry = self.carry

    def carry(self, host, request):
        self.broken(request)
        return host.hear(request)

    def slow(self, verbs):
        def wait(request):
            if request.verb in verbs:
                self.healed.wait(SLOW)

        self.broken = wait

    def dead(self, verbs):
        def vanish(request):
            if request.verb in verbs and not self.healed.is_set() and not self.healed.wait(GIVEN_UP):
                raise Unreachable(
                    "shut the instance down on dst", f"no response within {GIVEN_UP} s", "Retrying.", None
                )

        self.broken = vanish

    def heal(self):
        self.healed.set()


@pytest.fixture
def fake(transactional_db, monkeypatch, settings):
    settings.LOCK_MARGIN = 0
    there = Site()
    monkeypatch.setattr("hosts.remote.ssh.connect", there.connect)
    return there


@pytest.fixture
def approved(fake):
    """A migration whose copy is staged and whose swap is approved, and that has gone no further."""
    job = Drive(fake).submit()
    assert job.status == "awaiting_approval", job.waiting_for
    asked = job.approvals.open().get()
    asked.approve(approver(), asked.digest, "as agreed")
    return job


@pytest.fixture
def overview(logged_in, approved):  # noqa: F811
    page = logged_in("vera", "viewer")
    page.goto("/")
    page.wait_for_selector("[data-live][data-state=live]")
    page.evaluate("window.notReloaded = true")
    return page


def row(page, job):
    """Each status sentence that the page has about a migration."""
    return page.locator(f"[data-condition][data-job='{job.pk}']")


def stalled(page, job, kind, since, what):
    """The overview comes to say it by itself, within 15 s of the threshold, once, without a time left."""
    page.wait_for_selector(f"#attention [data-condition$='{kind}']", timeout=(WITHIN + STALLED + 30) * 1000)
    late = time.time() - since - STALLED
    assert late < WITHIN
    assert row(page, job).count() == 1
    assert page.locator("[data-left]").count() == 0
    assert not re.search(r"\d+ (s|min) left", page.inner_text("#overview"))
    page.wait_for_selector("#attention-count [data-attention='1']")
    title_becomes(page, r"\(1\) ")
    assert page.evaluate("window.notReloaded")
    figure(f"{what}: on the overview {late:.1f} s after the threshold (at most {WITHIN}), one sentence, no time left")


def title_becomes(page, pattern):
    """The script writes it a moment later; the pages' own policy forbids Playwright to wait for that within them."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if re.match(pattern, page.title()):
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.title())


def run_of(job, step):
    """The open or last run of a step, once there is one."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if run := job.runs.filter(step=step, direction="do").last():
            return run
        time.sleep(0.05)
    raise AssertionError(f"{step} never began: {Job.objects.get(pk=job.pk).waiting_for}")


def seconds_on(page, selector):
    """How long a clock says that it is, since when it counts, and what time it was then."""
    found = page.evaluate(
        """(selector) => {
            const clock = document.querySelector(selector + " [data-clock]");
            return [clock.querySelector("[data-time]").textContent, Number(clock.dataset.since), Date.now() / 1000];
        }""",
        selector,
    )
    minutes, seconds = found[0].split(":")
    return int(minutes) * 60 + int(seconds), found[1], found[2]


def clock_is_right(page, since, what):
    """Read ten times over two seconds; `since` is the recorded moment."""
    worst = 0.0
    for _ in range(10):
        shown, based_on, at = seconds_on(page, "#attention")
        assert abs(based_on - since) < 0.01
        worst = max(worst, abs(shown - (at - since)))
        page.wait_for_timeout(200)
    assert worst <= 1.0
    assert re.match(r"\(1\) Down \d+:\d\d · ", page.title())
    figure(f"{what}: the downtime clock is off by at most {worst:.2f} s")


@in_full
def test_a_slow_host_is_told_while_the_guest_is_down_and_the_swap_ends_well(overview, approved, fake):
    links = Links(fake)
    links.slow({"swap"})
    with Workers():
        run = run_of(approved, "swap")
        stalled(overview, approved, "down-unanswered", run.started_at.timestamp(), f"slow host ({SLOW} s)")
        stop = approved.runs.get(step="stop")
        clock_is_right(overview, stop.evidence["stopped_at"], "slow host")
        assert "no response from dst" in row(overview, approved).inner_text()
        links.heal()
        overview.wait_for_selector("text=On trial", timeout=30_000)
        overview.wait_for_selector("#attention", state="detached")
    assert overview.locator("[data-clock]").count() == 0
    title_becomes(overview, r"Overview · volmig$")


@in_full
def test_a_dead_host_is_told_and_the_guest_counts_as_perhaps_down(overview, approved, fake):
    links = Links(fake)
    links.dead({"instance_stop"})
    with Workers():
        run = run_of(approved, "stop")
        since = run.started_at.timestamp()
        stalled(overview, approved, "unanswered", since, "dead host (black hole)")
        # From the first time-out on volmig knows that nobody knows whether the stop arrived.
        overview.wait_for_selector("#attention [data-clock]", timeout=(GIVEN_UP + WITHIN) * 1000)
        clock_is_right(overview, since, "dead host")
        assert "Possibly down for" in overview.inner_text("#attention")
        assert "may be down" in row(overview, approved).inner_text()
        links.heal()
        overview.wait_for_selector("text=On trial", timeout=90_000)


def test_a_hanging_start_is_told_and_its_clock_turns_red_over_the_forecast(overview, approved, fake):
    plan = Job.objects.get(pk=approved.pk).plan
    start = next(each for each in plan["steps"] if each["name"] == "start")
    start["seconds"], plan["downtime"] = [0.5, 1, 3], [1, 2, 6]
    Job.objects.filter(pk=approved.pk).update(plan=plan, digest=approval_binding.digest(plan))
    fake.destination.slow.add("instance_start")
    with Workers():
        run = run_of(approved, "start")
        stopped = approved.runs.get(step="stop").evidence["stopped_at"]
        since = run.started_at.timestamp() + 3 - STALLED
        stalled(overview, approved, "down-hanging", since, "hanging start")
        clock_is_right(overview, stopped, "hanging start")
        overview.wait_for_selector("#attention .clock-over")
        shown, _, _ = seconds_on(overview, "#attention")
        assert shown >= 6
        page = overview.context.new_page()
        page.goto(f"/migrations/{approved.pk}/")
        assert page.locator("[data-condition]").count() == 1
        assert page.locator("[data-left]").count() == 0
        assert "0:06" in page.inner_text("#condition .clock-over")
        page.close()
        fake.destination.finish()
        wake(approved.pk)  # as the watcher does, which heard that it ended
        overview.wait_for_selector("text=On trial", timeout=60_000)


class Proxy:
    """A TCP proxy that can be frozen: nothing passes any more, and nobody is told, as on a link that died."""

    def __init__(self, address):
        self.target = ("127.0.0.1", int(address.rsplit(":", 1)[1]))
        self.port, self.frozen, self.over = free_port(), threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                threading.Thread(target=self.pump, args=(near, far), daemon=True).start()

    def pump(self, near, far):
        with near, far, contextlib.suppress(OSError):
            while not self.over.is_set():
                if self.frozen.wait(0):
                    time.sleep(0.05)
                    continue
                for ready in select.select([near, far], [], [], 0.1)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (far if ready is near else near).sendall(data)

    def close(self):
        self.over.set()
        self.listener.close()


def test_live_goes_within_ten_seconds_of_a_black_holed_connection_and_comes_back(site, logged_in, approved):  # noqa: F811
    page, proxy = logged_in("vera", "viewer"), Proxy(site)
    try:
        page.goto(f"http://127.0.0.1:{proxy.port}/")
        page.wait_for_selector("[data-live][data-state=live]")
        page.wait_for_timeout(4000)  # longer than a beat: it stays live without anything to tell
        assert page.get_attribute("[data-live]", "data-state") == "live"
        proxy.frozen.set()
        began = time.monotonic()
        page.wait_for_selector("[data-live][data-state=stale]", timeout=12_000)
        took = time.monotonic() - began
        assert took <= 10.5
        assert re.search(r"stale since \d\d:\d\d:\d\d UTC \(\d+ s\)", page.inner_text("[data-live]"))
        proxy.frozen.clear()
        page.wait_for_selector("[data-live][data-state=live]", timeout=20_000)
        figure(f"black-holed websocket: no longer live after {took:.1f} s (at most 10)")
    finally:
        proxy.close()
        page.close()
        logged_in.troubles.clear()  # a browser complains of requests that a dead link swallowed


def test_a_browser_without_a_network_says_so_at_once(overview, logged_in):  # noqa: F811
    overview.context.set_offline(True)
    overview.wait_for_selector("[data-live]:has-text('offline since')", timeout=3000)
    overview.context.set_offline(False)
    overview.wait_for_selector("[data-live][data-state=live]", timeout=30_000)
    logged_in.troubles.clear()  # a browser complains of requests that no network carried


def test_without_javascript_the_clock_says_of_when_it_is(logged_in, approved, fake):  # noqa: F811
    fake.destination.slow.add("instance_start")
    with Workers():
        run_of(approved, "start")
    page = logged_in("vera", "viewer", java_script_enabled=False)
    page.goto(f"/migrations/{approved.pk}/")
    told = page.inner_text("#condition .clock")
    assert re.search(r"Down for \d+:\d\d · forecast \d+:\d\d \(max \d+:\d\d\) as of \d\d:\d\d:\d\d UTC", told)
    assert re.match(r"\(?.*Down since \d\d:\d\d:\d\d · ", page.title())
