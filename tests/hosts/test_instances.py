"""Instance control through Nova: what is refused, what is waited for, and for how long, with nothing changed by it."""

import time
from types import SimpleNamespace

import pytest

from hosts.remote import nova
from hosts.remote.host import Request, Unreachable
from hosts.remote.nova_control import START_DEADLINE, Control
from tests.fakenova import Cloud
from tests.fakes import INSTANCE, INSTANCES, Refusal, Site

REASON = "volmig:3f1c9a52-7d40-4be1-9c55-2f6a0b8d1e77"
LONG_AGO = {
    "this": {"request": "req-0b1f6c2e-6a0e-4a8f-9d55-2f1d6d3f9c01", "asked_at": time.time() - 2 * START_DEADLINE}
}
JUST_NOW = {"this": {"request": "req-0b1f6c2e-6a0e-4a8f-9d55-2f1d6d3f9c01", "asked_at": time.time() + 3600}}


@pytest.fixture
def rig(monkeypatch):
    """A cloud with an instance that runs on `site.destination`; `ask` is what the runner does with a step."""
    monkeypatch.setattr(nova, "PAUSES", ())
    site = Site()
    cloud = Cloud(site)
    control = Control(nova.connect(cloud.access()), lambda: site.destination, frozenset({"dst"}), lambda *_: None)

    def ask(verb, direction="do", known=None, **args):
        whole = {"instance": INSTANCE, "instances": INSTANCES, "disk": "disk.local", "reason": REASON, **args}
        return control.call(Request(verb, whole, direction=direction, known=known or {}))

    yield SimpleNamespace(site=site, cloud=cloud, server=cloud.server, ask=ask, control=control)
    control.close()
    nova.forget()
    cloud.close()


def changes(rig):
    """What Nova was asked to change, and did."""
    return [path.split("#")[1] for method, path, status in rig.cloud.calls if method == "POST" and "#" in path]


def turn(rig, vm_state, task_state=None):
    rig.server.vm_state, rig.server.task_state = vm_state, task_state
    rig.site.destination.state = "running" if vm_state == "active" else "shut off"


def test_a_lock_that_nova_refuses_is_told_in_its_words(rig):
    rig.cloud.refuses["lock"] = "Instance is being moved."
    answer = rig.ask("instance_lock")
    assert (answer.state, answer.error["code"]) == ("failed", "not-locked")
    assert "409 Instance is being moved" in answer.error["found"]
    assert not rig.server.locked


def test_a_lock_that_nova_does_not_take_off_is_told_in_its_words(rig):
    rig.server.locked, rig.server.locked_reason = True, REASON
    rig.cloud.refuses["unlock"] = "Instance is being moved."
    answer = rig.ask("instance_unlock")
    assert (answer.state, answer.error["code"]) == ("failed", "still-locked")
    assert "409 Instance is being moved" in answer.error["found"]
    assert rig.server.locked


def test_what_was_changed_before_the_cloud_went_silent_is_written_down_and_not_asked_twice(rig, monkeypatch):
    real = rig.cloud.act

    def act(server, body):
        request = real(server, body)
        rig.cloud.down = True
        return request

    monkeypatch.setattr(rig.cloud, "act", act)
    answer = rig.ask("instance_lock")
    assert (answer.state, answer.evidence["request"]) == ("running", rig.server.actions[0]["request_id"])
    with pytest.raises(Unreachable):
        rig.ask("instance_lock", known={"this": answer.evidence})
    rig.cloud.down = False
    assert rig.ask("instance_lock", known={"this": answer.evidence}).state == "done"
    assert changes(rig) == ["lock"]


@pytest.mark.parametrize("verb", ["instance_stop", "instance_start"])
def test_of_an_instance_that_was_deleted_there_is_nothing_to_take_back(rig, verb):
    rig.cloud.delete()
    assert rig.ask(verb, "undo").evidence == {"gone": True, "already": True}
    answer = rig.ask(verb)
    assert (answer.state, answer.error["code"]) == ("refused", "unknown-instance")


@pytest.mark.parametrize("verb", ["instance_lock", "instance_stop", "instance_start"])
@pytest.mark.parametrize("host", ["third", ""])
def test_an_instance_that_is_not_on_its_hypervisor_is_left_alone(rig, verb, host):
    rig.server.host = host
    answer = rig.ask(verb)
    assert (answer.state, answer.error["code"]) == ("refused", "unknown-host")
    assert f"Nova has it on {host or 'no host'}, not on dst" in answer.error["found"]
    assert changes(rig) == []


@pytest.mark.parametrize("verb", ["instance_stop", "instance_start"])
@pytest.mark.parametrize(("vm_state", "task"), [("paused", None), ("active", "rebuilding"), ("error", None)])
def test_a_state_that_nobody_foresaw_is_refused_and_keeps_an_undo_from_going_on(rig, verb, vm_state, task):
    turn(rig, vm_state, task)
    answer = rig.ask(verb)
    assert (answer.state, answer.error["code"], answer.error["touched"]) == ("refused", "unknown-state", False)
    assert answer.error["found"] == f"it is {vm_state}" + (f" and {task}" if task else "")
    undo = rig.ask(verb, "undo")
    assert (undo.state, undo.error["code"]) == ("failed", "not-settled")
    assert changes(rig) == []


def test_a_start_that_ended_in_error_says_what_nova_says(rig):
    turn(rig, "error")
    rig.server.fault = "libvirt: internal error"
    answer = rig.ask("instance_start", known=LONG_AGO)
    assert (answer.state, answer.error["code"]) == ("failed", "start-failed")
    assert "libvirt: internal error" in answer.error["found"]
    assert answer.evidence["ever_ran"] is True  # nobody knows when it was swapped


def test_an_instance_that_only_nova_calls_active_is_waited_for_and_then_told(rig):
    turn(rig, "active")
    rig.site.destination.state = "crashed"
    assert rig.ask("instance_start", known=JUST_NOW).state == "running"
    answer = rig.ask("instance_start", known=LONG_AGO)
    assert (answer.state, answer.error["code"]) == ("failed", "not-running")
    assert answer.error["found"] == "Nova reports active, libvirt on the hypervisor reports crashed"
    assert answer.evidence["ever_ran"] is True


def test_an_instance_that_only_nova_calls_stopped_is_waited_for_and_then_told(rig):
    turn(rig, "stopped")
    rig.site.destination.state = "running"
    assert rig.ask("instance_stop", known=JUST_NOW).state == "running"
    answer = rig.ask("instance_stop", known=LONG_AGO)
    assert (answer.state, answer.error["code"]) == ("refused", "unknown-state")


def test_nova_is_not_waited_for_until_a_clock_that_was_set_back_comes_there_again(rig):
    turn(rig, "active")
    rig.site.destination.state = "crashed"
    noticed = time.time() - START_DEADLINE - 1
    answer = rig.ask("instance_start", known={**JUST_NOW, "began": noticed})
    assert (answer.state, answer.error["code"]) == ("failed", "not-running")


@pytest.mark.parametrize("ahead", [0, 50])
def test_a_start_whose_answer_was_lost_is_known_again_although_nova_has_another_clock(rig, ahead):
    turn(rig, "stopped")
    rig.cloud.loses = {"os-start"}
    with pytest.raises(Unreachable):
        rig.ask("instance_start")
    turn(rig, "active")
    answer = rig.ask("instance_start", known={"this": {"asking": time.time() + ahead}})
    assert (answer.state, answer.evidence["already"]) == ("done", False)


@pytest.mark.parametrize("verb", ["instance_stop", "instance_start"])
def test_without_a_word_of_its_libvirt_nothing_is_asked_of_nova(rig, monkeypatch, verb):
    def refuse(args):
        raise Refusal("no-libvirt", "virsh is not installed on this host")

    turn(rig, "active" if verb == "instance_stop" else "stopped")
    monkeypatch.setattr(rig.site.destination, "instance_state", refuse)
    answer = rig.ask(verb)
    assert (answer.state, answer.error["code"]) == ("refused", "unknown-state")
    assert answer.error["found"] == "virsh is not installed on this host"
    assert changes(rig) == []


def test_an_instance_whose_disk_is_gone_is_neither_stopped_nor_started(rig):
    rig.site.files.clear()
    for vm_state, verb in (("active", "instance_stop"), ("stopped", "instance_start")):
        turn(rig, vm_state)
        answer = rig.ask(verb)
        assert (answer.state, answer.error["code"]) == ("refused", "unknown-disk")
        assert answer.error["found"].endswith("disk.local is not there")
    assert changes(rig) == []


def test_an_instance_that_uses_another_disk_is_not_stopped(rig):
    answer = rig.ask("instance_stop", disk="disk.other")
    assert (answer.error["code"], changes(rig)) == ("unknown-disk", [])


def test_an_instance_is_not_started_on_a_disk_that_somebody_replaced(rig):
    turn(rig, "stopped")
    inode = rig.site.files[rig.site.live].inode
    answer = rig.ask("instance_start", expect_inode=inode + 1)
    assert (answer.state, answer.error["code"]) == ("refused", "unknown-inode")
    assert changes(rig) == []
    assert rig.ask("instance_start", expect_inode=inode).state == "running"
    assert changes(rig) == ["os-start"]


def test_what_moved_the_instance_before_is_among_the_facts(rig):
    row = {"migration_type": "evacuation", "status": "done", "source_compute": "src", "dest_compute": "dst"}
    rig.cloud.migrations = [{"instance_uuid": INSTANCE, **row, "updated_at": None, "created_at": "2026-11-20T08:00:00"}]
    found = rig.ask("nova_facts", source_instance=INSTANCE).evidence
    at = {"kind": "evacuation", "status": "done", "source": "src", "destination": "dst", "at": "2026-11-20T08:00:00"}
    assert (found["moves"], found["source_moves"]) == ([at], [])


def test_nobody_follows_what_nova_does(rig):
    assert list(rig.control.watch()) == []
