"""Every row of what may go wrong between volmig and Nova, against a real Nova; nothing stands in the API's place."""

import datetime as dt

import pytest
from django.utils import timezone

from hosts import tasks
from hosts.models import Compute, Server
from hosts.remote import nova
from jobs.models import StepRun
from tests.cloud_tests.migration import NEW, OLD, in_real_cloud
from tests.factories import operator
from volmig.models import Notice

pytestmark = pytest.mark.cloud


def before(monkeypatch, host, verb, act):
    """Have something happen just before the hypervisor is asked for this verb, once."""
    real = getattr(host, verb)

    def wrapped(*args):
        monkeypatch.setattr(host, verb, real)
        act()
        return real(*args)

    monkeypatch.setattr(host, verb, wrapped)


def after(monkeypatch, host, verb, act):
    real = getattr(host, verb)

    def wrapped(*args):
        monkeypatch.setattr(host, verb, real)
        found = real(*args)
        act()
        return found

    monkeypatch.setattr(host, verb, wrapped)


# All is well


def test_a_whole_migration_and_how_often_nova_is_asked(migration, monkeypatch, capsys):
    monkeypatch.setattr("hosts.remote.nova_control.AGAIN", 2)  # as in life, so that looking again counts for little
    with migration.plane.counted() as calls:
        migration.on_trial().confirm(operator())
        job = migration.until("done")
    assert (job.status, migration.world) == ("done", NEW), job.halt_reason
    asked = calls.of("compute", "image")
    with capsys.disabled():
        print(f"\nOne job asked {len(asked)} times, and logged in {len(calls.of('identity'))}: {dict(calls.counts())}")
    assert len(asked) <= 25
    planned = [text for phase in "ABC" for text in job.planned().texts(phase) if text.startswith("POST")]
    assert [line["text"] for line in job.log() if line["kind"] == "http"] == planned


def test_a_rollback_after_the_trial(migration):
    job = migration.on_trial()
    job.ask("rollback", operator())
    migration.approve("rollback").until("rolled_back")
    assert (job.status, migration.world) == ("rolled_back", OLD), job.halt_reason


# The stop


def test_a_stop_that_is_refused_calls_the_swap_off(migration, monkeypatch):
    refuse = {"method": "POST", "path": "/action", "times": 1}
    compute = migration.plane.compute
    before(monkeypatch, migration.site.destination, "instance_state", lambda: compute.answer(409, **refuse))
    migration.submit()
    job = migration.approve().until("rolled_back")
    assert (job.outcome, migration.world) == ("failed", OLD)
    assert "Nova refused: 409" in job.outcome_reason


def test_a_stop_that_is_refused_because_somebody_stopped_it_first_is_fine(migration, monkeypatch):
    def stop():
        migration.admin.stop_server(migration.server.uuid)
        migration.settled(status="SHUTOFF")

    before(monkeypatch, migration.site.destination, "instance_state", stop)
    job = migration.on_trial()
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason
    assert "Cannot 'stop'" in str([line["stderr"] for line in job.log() if line["kind"] == "http"])


def test_a_slow_stop_is_waited_for_without_a_worker(migration):
    migration.submit()
    with migration.plane.dst.held("power_off"):
        job = migration.approve().at("stop")
        assert (job.status, job.lease_owner, migration.world[3]) == ("swapping", "", True)
    job = migration.until("on_trial")
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason


def test_a_stuck_stop_leaves_the_phase_and_the_instance_runs_when_it_was_carried_out(migration):
    migration.submit()
    with migration.plane.dst.held("power_off"):
        migration.approve().at("stop")
        migration.age("stop", 181)
        job = migration.wait(lambda job: job.status == "rolling_back")
    job = migration.until("rolled_back")
    assert (job.outcome, migration.world) == ("failed", OLD), job.halt_reason
    assert "still under way after" in job.outcome_reason


def test_the_images_own_shutdown_timeout_is_read_and_respected(make):
    migration = make(image_properties={"os_shutdown_timeout": "300", "hw_disk_bus": "scsi"})
    job = migration.submit()
    stop = next(each for each in job.planned().steps if each.step.name == "stop")
    assert stop.args["deadline"] == 420
    said = {check["name"] for check in job.checks if not check["ok"]}
    assert {"time to shut down", "bus of the disk"} <= said


# The start


def test_a_start_that_fails_before_the_guest_ran_goes_back(migration, monkeypatch):
    migration.plane.dst.fail("power_on", "no such disk")
    before(monkeypatch, migration.site.destination, "swap_back", migration.plane.dst.heal)
    migration.submit()
    job = migration.approve().until("rolled_back")
    assert (job.outcome, migration.world) == ("failed", OLD), job.halt_reason
    assert "no such disk" in job.outcome_reason


def test_a_start_that_fails_after_the_guest_may_have_run_halts(migration, monkeypatch):
    migration.plane.dst.fail("power_on", "no such disk")
    ran = {"at": timezone.now().timestamp() + 60, "ended": "crashed"}
    after(monkeypatch, migration.site.destination, "swap", lambda: migration.site.destination.runs.append(ran))
    migration.submit()
    job = migration.approve().until("on_trial")
    assert (job.status, job.halt_data["code"]) == ("swapping", "start-failed")
    assert migration.world == ("new disk", "shut off", "stopped", True)


# The API


def test_an_api_that_answers_503_in_mid_swap_is_waited_for_and_people_are_told(migration, monkeypatch):
    migration.submit()
    with migration.plane.dst.held("power_off"):
        migration.approve().at("stop")
        migration.plane.compute.answer(503)
    monkeypatch.setattr("hosts.remote.nova.PAUSES", (0.01, 0.01))
    job = migration.wait(lambda job: "503" in job.waiting_for)
    StepRun.objects.filter(ended_at=None).update(silent_since=timezone.now() - dt.timedelta(minutes=2))
    migration.wake()
    job = migration.wait(lambda job: "needs attention" in job.waiting_for)
    assert Notice.objects.filter(kind="unanswered").count() == 1
    assert (job.status, job.halt_reason) == ("swapping", "")
    assert migration.site.files[migration.site.live].content == "old disk"
    migration.plane.compute.heal()
    assert migration.world[2:] == ("stopped", True)
    migration.wake()
    job = migration.until("on_trial")
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason


@pytest.mark.parametrize("verb", ["lv_create", "swap"])
def test_a_token_that_is_revoked_in_mid_job_is_fetched_anew(migration, monkeypatch, verb):
    def revoke():
        for way in nova._open.values():
            migration.plane.revoke(way.session.get_token())

    host = migration.site.relay if verb == "lv_create" else migration.site.destination
    after(monkeypatch, host, verb, revoke)
    job = migration.on_trial()
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason


@pytest.mark.parametrize("step", ["lock", "stop", "start", "unlock"])
def test_a_request_whose_answer_is_lost_is_not_made_twice(migration, step):
    number = ["lock", "stop", "start", "unlock"].index(step)
    migration.submit()
    lost = {"method": "POST", "path": "/action"}
    post, asked = nova.Nova.post, []

    def lose(self, path, body):
        asked.append(next(iter(body)))
        if len(asked) == number + 1:
            migration.plane.compute.lose_answers(times=1, **lost)
        return post(self, path, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nova.Nova, "post", lose)
        job = migration.approve().until("on_trial")
        job = migration.wait(lambda job: job.halt_reason or "Check the data" in job.waiting_for)
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason
    done = [row.action for row in migration.admin.server_actions(migration.server.uuid)]
    assert sorted(done) == ["create", "lock", "start", "stop", "unlock"]


# Somebody else


def test_an_instance_that_is_deleted_before_the_swap_stops_the_job(migration):
    migration.submit()
    migration.plane.delete(migration.server)
    job = migration.approve().until("swapping")
    assert "was deleted" in job.halt_reason
    job = migration.resume(cancel=True).until("undone")
    assert (job.status, job.outcome) == ("undone", "cancelled")


def test_an_instance_that_is_deleted_in_mid_swap_halts_before_the_disk_is_touched(migration):
    migration.submit()
    with migration.plane.dst.held("power_off"):
        migration.approve().at("stop")
    migration.plane.delete(migration.server)
    job = migration.until("on_trial")
    assert (job.status, job.halt_data["code"]) == ("swapping", "unknown-instance")
    assert migration.site.files[migration.site.live].content == "old disk"
    job = migration.resume(cancel=True).until("rolled_back")
    assert (job.status, job.outcome) == ("rolled_back", "cancelled"), job.halt_reason


def rebuild(migration):
    image = migration.admin.get_server(migration.server.uuid).image.id
    migration.admin.rebuild_server(migration.server.uuid, image=image)
    migration.settled()


def resize(migration):
    flavor = migration.admin.find_flavor("medium").id
    migration.admin.resize_server(migration.server.uuid, flavor)
    migration.settled(status="VERIFY_RESIZE")


def restart(migration):
    migration.admin.stop_server(migration.server.uuid)
    migration.settled(status="SHUTOFF")
    migration.admin.start_server(migration.server.uuid)
    migration.settled(status="ACTIVE")


@pytest.mark.parametrize(("act", "word"), [(rebuild, "rebuild"), (restart, "start")], ids=["rebuilt", "started"])
def test_what_others_did_since_the_approval_voids_it_and_people_are_asked_again(migration, act, word):
    job = migration.submit()
    first = job.approvals.get()
    act(migration)
    migration.approve()
    job = migration.wait(lambda job: job.approvals.count() == 2)
    first.refresh_from_db()
    assert any(f", is {word} at" in line for line in first.void_changes)
    assert migration.world == OLD
    job = migration.approve().until("on_trial")
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason


def test_a_resize_since_the_approval_is_seen_and_nothing_is_swapped(migration):
    job = migration.submit()
    first = job.approvals.get()
    resize(migration)
    job = migration.approve().wait(lambda job: job.approvals.get().voided_at)
    first.refresh_from_db()
    assert any("VERIFY_RESIZE" in line for line in first.void_changes)
    assert migration.site.files[migration.site.live].content == "old disk"
    assert not migration.admin.get_server(migration.server.uuid).is_locked


def test_an_instance_that_moved_since_the_approval_stops_the_job(migration):
    job = migration.submit()
    migration.admin.live_migrate_server(migration.server.uuid, host="jump", block_migration=False)
    migration.settled(status="ACTIVE")
    while migration.admin.get_server(migration.server.uuid).compute_host != "jump":
        migration.settled(status="ACTIVE")
    job = migration.approve().wait(lambda job: job.halt_reason)
    assert "on jump now, not on dst" in job.halt_reason
    assert any("instance on: was dst, is jump" in line for line in job.approvals.get().void_changes)


def start(migration):
    migration.admin.start_server(migration.server.uuid)
    migration.settled(status="ACTIVE")


def test_an_instance_started_by_an_administrator_before_the_rename_halts_untouched(migration, monkeypatch):
    before(monkeypatch, migration.site.destination, "swap", lambda: start(migration))
    migration.submit()
    job = migration.approve().until("on_trial")
    assert (job.status, job.halt_data["code"]) == ("swapping", "foreign-action")
    assert migration.world == ("old disk", "running", "active", True)
    job = migration.resume(cancel=True).until("rolled_back")
    assert (job.status, migration.world) == ("rolled_back", OLD), job.halt_reason


def test_an_instance_started_by_an_administrator_after_the_rename_halts_and_can_go_on(migration, monkeypatch):
    after(monkeypatch, migration.site.destination, "swap", lambda: start(migration))
    migration.submit()
    job = migration.approve().until("on_trial")
    assert (job.status, job.halt_data["code"]) == ("swapping", "foreign-action")
    job = migration.resume().until("on_trial")
    assert (job.status, migration.world) == ("on_trial", NEW), job.halt_reason


def test_an_instance_that_somebody_else_has_locked_is_left_to_them(migration):
    job = migration.submit()
    migration.admin.lock_server(migration.server.uuid, locked_reason="maintenance")
    job = migration.approve().wait(lambda job: job.approvals.count() == 2)
    assert "instance locked by others: was no, is maintenance" in job.approvals.last().void_changes
    job = migration.approve().until("on_trial")
    assert job.halt_data["code"] == "foreign-lock"
    seen = migration.admin.get_server(migration.server.uuid)
    assert (seen.locked_reason, migration.world[:3]) == ("maintenance", OLD[:3])


def test_a_rebuild_on_trial_stops_the_job(migration, settings):
    settings.NOTICE_SECONDS = 0
    migration.on_trial()
    migration.wait(lambda job: "Check the data" in job.waiting_for)
    rebuild(migration)
    migration.wake()
    job = migration.wait(lambda job: job.halt_reason)
    assert "changed while on trial. Someone changed it through Nova: rebuild at" in job.halt_reason


# The cloud itself


@pytest.mark.parametrize(
    ("entry", "all_projects", "stop"),
    [("admin", "yes", "likely"), ("appcred", "yes", "likely"), ("member", "no", "no"), ("reader", "no", "no")],
)
def test_a_check_says_what_each_credential_may_do(migration, entry, all_projects, stop):
    cloud = in_real_cloud(entry)
    tasks.check_cloud(cloud.pk)
    cloud.refresh_from_db()
    found = {each["call"]: each["may"] for each in cloud.calls}
    assert (found["log in"], found["list the instances of all projects"], found["stop"]) == ("yes", all_projects, stop)
    assert [row.action for row in migration.admin.server_actions(migration.server.uuid)] == ["create"]


def test_computes_and_instances_are_read_as_they_are(migration, monkeypatch):
    monkeypatch.setattr(tasks, "PAGE", 1)
    other = migration.plane.server("web", "src", project="demo", start=False)
    cloud = in_real_cloud()
    tasks.refresh_cloud(cloud.pk)
    cloud.refresh_from_db()
    assert (cloud.last_error, cloud.round_at) == ("", None)
    assert sorted(Compute.objects.values_list("host", "state", "status")) == [
        (name, "up", "enabled") for name in ("dst", "jump", "src")
    ]
    assert {each.name: (each.host, each.status, each.ephemeral_gb) for each in Server.objects.all()} == {
        "db7": ("dst", "ACTIVE", 1),
        "web": ("src", "SHUTOFF", 0),
    }
    assert Server.objects.get(uuid=other.uuid).project_name == "demo"
    assert [row.name for row in cloud.unmatched()] == ["jump"]


def test_a_compute_that_is_down_blocks(migration):
    migration.plane.dst.stop()
    job = migration.submit(until="undone")
    assert "nova-compute on dst is down" in job.outcome_reason


# The instance that the volume was of


def test_a_source_whose_instance_still_runs_in_nova_blocks(make, clean_cloud):
    old = clean_cloud.server("db-old", "src")
    job = make(source=old).submit(until="undone")
    assert "belongs to db-old, which is ACTIVE in Nova on src" in job.outcome_reason


def test_a_source_whose_instance_is_shut_off_is_said_and_counted(make, clean_cloud, monkeypatch, capsys):
    monkeypatch.setattr("hosts.remote.nova_control.AGAIN", 2)
    old = clean_cloud.server("db-old", "src", start=False)
    migration = make(source=old)
    with clean_cloud.counted() as calls:
        migration.on_trial().confirm(operator())
        job = migration.until("done")
    assert (job.status, migration.world) == ("done", NEW), job.halt_reason
    assert "source instance may be started" in {check["name"] for check in job.checks if not check["ok"]}
    asked = calls.of("compute", "image")
    with capsys.disabled():
        print(f"\nWith an old instance on the source, one job asked {len(asked)} times")
    assert len(asked) <= 25


def test_an_evacuation_after_which_nova_would_delete_the_volume_blocks(make, clean_cloud):
    old = clean_cloud.server("db-old", "src")
    clean_cloud.src.stop()
    compute = clean_cloud.connection("admin").compute
    compute.evacuate_server(old.uuid)
    # Since microversion 2.95 Nova stops what was evacuated; ACTIVE lasts for an instant only.
    compute.wait_for_server(compute.get_server(old.uuid), status="SHUTOFF", interval=0.2, wait=60)
    migration = make(source=old)
    job = migration.submit(until="undone")
    assert "it wipes and removes this volume" in job.outcome_reason
    found = next(check for check in job.checks if check["name"] == "no evacuation threatens the source")
    assert "evacuation from src" in found["found"]
