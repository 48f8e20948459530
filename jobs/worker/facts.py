"""What is asked of hypervisors and Nova before a decision, and how the answers are read."""

from collections.abc import Iterable
from typing import Any

from hosts.remote.host import Request
from hosts.remote.nova_control import HARMLESS
from jobs.engine import runner
from jobs.engine.host_facts import read
from jobs.engine.rules import Trouble
from jobs.engine.steps import INSTANCE
from jobs.models import Job
from jobs.worker.gateway import Heard

# What others may have Nova do to an instance on trial without the old disk or the way back to it suffering.
USUAL = HARMLESS | {"start", "reboot", "pause", "unpause", "suspend", "resume", "createImage", "createBackup"}


class Unheard(Exception):  # noqa: N818 - the word that callers read
    """A hypervisor whose facts are needed gave none; it is asked again later.

    `answers` when it does answer, but not with the facts: that does not pass by itself for ever.
    """

    def __init__(self, sentence: str, heard: Iterable[Heard], hosts: str = "") -> None:
        errors = [each.error for each in heard]
        self.hosts, self.kind = hosts, runner.wait_kind(errors)
        self.answers = any(not isinstance(error, runner.SHUT) for error in errors)
        super().__init__(sentence)


def fact_requests(job: Job, fully: bool = False) -> dict[str, Request]:
    """What each hypervisor is asked, by role; one that has no way to another cannot be asked about that way.

    Nova is asked where it controls the instance, and `fully` where checks are to be made.
    """
    migration, route = job.migration(), job.get_route()
    asked = route.fact_requests(migration)
    if fully and INSTANCE in asked:
        asked[INSTANCE][1].update(
            source_instance=route.source.owner(migration), source_names=sorted(job.names_in_nova("source"))
        )
    return {
        role: Request(verb, args, job=str(job.uuid), number=job.pk, fence=job.fence)
        for role, (verb, args) in asked.items()
        if role not in route.transport.cut_off(migration)
    }


def understood(job: Job, role: str, heard: Heard) -> Any:
    """The facts of an answer; raise Unheard when a machine sent something else."""
    try:
        return read(job.get_route().answers[role], heard.answer.evidence if heard.answer else {})
    except (AttributeError, TypeError, ValueError) as error:
        raise Unheard(f"The facts of the {role} are malformed: {str(error)[:200]}", [heard]) from error


def trouble(heard: Heard) -> Trouble | None:
    """Why there are no facts, in words; None when there are."""
    if heard.error is not None:
        return Trouble(type(heard.error).__name__, str(heard.error))
    if heard.answer is not None and heard.answer.state == "done":
        return None
    error = (heard.answer.error if heard.answer else None) or {}
    return Trouble(str(error.get("code", "failed")), f"{error.get('found', 'it gave no reason')}")
