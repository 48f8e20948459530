"""By the instance's own hypervisor: hostctl there locks, stops and starts it with libvirt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hosts.remote import hostctl
from hosts.remote.hostctl.act import Act
from jobs.engine.host_facts import Destination, Facts
from jobs.engine.migration import Migration
from jobs.engine.part import Commands, Control, Sink, Steps
from jobs.engine.rules import BLOCKS, About, Case, Finding, Rules
from jobs.engine.steps import DESTINATION, INSTANCE, Artifact, Step, Task

AFTER_TIMEOUT: Final = 120  # seconds beyond the image's own shutdown timeout until a stop counts as stuck
rule: Final = Rules()


def stop_deadline(ask: Migration, facts: Facts) -> int:
    """Seconds that the instance gets to shut down; Nova cuts its power off after what the image says."""
    said = facts.instance.properties.get("os_shutdown_timeout", "") if facts.instance else ""
    return max(ask.deadline, int(said) + AFTER_TIMEOUT) if said.isdecimal() else ask.deadline


class Libvirt(Control):
    """The steps with the instance, and what libvirt says of it; a cloud that controls it adds to that."""

    kind = ""
    needs = ""
    by_host = True
    rules = rule
    facts = {}

    def asks(self, ask: Migration) -> Mapping[str, Mapping[str, Any]]:
        """Nothing: the destination reports the instance with its disk."""
        return {}

    def has(self, facts: Facts) -> bool:
        """It needs nothing."""
        return True

    def values(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """The instance, how many seconds it gets to shut down, and the reason that its lock carries."""
        return {
            "instance_id": ask.instance_id,
            "deadline": stop_deadline(ask, facts),
            "reason": f"volmig:{ask.job}",
        }

    def look_commands(self, ask: Migration, instances: str) -> Commands:
        """virsh domstate."""
        return {DESTINATION: [("virsh", "-r", "domstate", "--domain", ask.instance_id)]}

    def acts(self, verb: str, args: dict[str, Any], job: str) -> tuple[Act, ...]:
        """Those of hostctl."""
        return hostctl.acts(verb, args, job)

    def lock(self) -> Steps:
        """A mark in the metadata of the domain, which prevents nothing: libvirt has no lock."""
        return (
            Step(
                "lock",
                Task.LOCK,
                "B",
                INSTANCE,
                "instance_lock",
                "Lock the instance",
                {"instance": "instance_id", "reason": "reason"},
                undo="instance_unlock",
                torn_by="unlock",
                settles=True,
                artifact=Artifact("lock", "instance_id", removable=False, word="lock of the instance"),
                box="Lock",
            ),
        )

    def stop(self, sink: Sink) -> Steps:
        """A clean shutdown; measures the live disk at rest."""
        return (
            Step(
                "stop",
                Task.STOP,
                "B",
                INSTANCE,
                "instance_stop",
                "Shut the instance down",
                {**sink.live(), "deadline": "deadline"},
                undo="instance_start",
                seconds=(2, 15, 90),
                repeatable=False,
                box="Stop",
            ),
        )

    def start(self, sink: Sink) -> Steps:
        """Start it, once its disk is the one that was put there."""
        return (
            Step(
                "start",
                Task.START,
                "B",
                INSTANCE,
                "instance_start",
                "Start the instance on the new disk",
                {**sink.live(), **sink.exchanged(), "deadline": "deadline"},
                undo="instance_stop",
                seconds=(1, 3, 10),
                repeatable=False,
                bars=True,
                box="Start",
            ),
        )

    def unlock(self) -> Steps:
        """Take the mark away."""
        return (
            Step(
                "unlock",
                Task.UNLOCK,
                "C",
                INSTANCE,
                "instance_unlock",
                "Unlock the instance",
                {"instance": "instance_id", "reason": "reason"},
                settles=True,
                box="Release",
            ),
        )

    def binding(self, ask: Migration, facts: Facts) -> dict[str, Any]:
        """Nothing more than libvirt says."""
        return {}

    def not_now(self, facts: Facts) -> tuple[str, bool]:
        """They always can."""
        return "", True


LIBVIRT: Final = Libvirt()


# Its checks


@rule(About.INSTANCE, "instance is there", BLOCKS, "The instance is on its hypervisor.", "destination")
def _instance_is_there(case: Case, destination: Destination) -> Finding:
    name = case.migration.destination
    if destination.domain_problem:
        return (
            f"libvirt on {name} did not report the instance: {destination.domain_problem}. "
            "Where libvirt runs in a container, virsh has to be installed on the host too."
        ), destination.domain_problem
    if destination.domain is None:
        return f"{name} has no instance {case.migration.instance_id}.", None
    return None


@rule(About.INSTANCE, "instance can be swapped", BLOCKS, "The instance runs or is shut off.", "destination")
def _instance_is_settled(case: Case, destination: Destination) -> Finding:
    domain = destination.domain
    if domain and domain.state not in ("running", "shut off"):
        return f"{domain.name} is {domain.state}; it has to run or be shut off.", domain.state
    return None
