"""What is asked of hypervisors and Nova before a decision, and how the answers are read."""

import re
from collections.abc import Iterable
from typing import Any

from hosts.remote.host import Request
from hosts.remote.nova_control import HARMLESS
from jobs.engine import checks, runner
from jobs.engine.host_facts import Destination, Nova, Relay, Source, read
from jobs.models import Job
from jobs.worker.gateway import Heard

PARTS: dict[str, type[Source] | type[Relay] | type[Destination] | type[Nova]] = {
    "source": Source,
    "relay": Relay,
    "destination": Destination,
    "instance": Nova,
}
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
    """What each hypervisor is asked; a source without a way to the relay cannot be asked about that way.

    Nova is asked where it controls the instance, and `fully` where checks are to be made.
    """
    migration, share = job.migration(), {"share_source": job.share_source}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "source": (
            "source_facts",
            {"vg": job.source_vg, "lv": job.source_lv, "relay_address": migration.relay_address},
        ),
        "relay": ("relay_facts", {"vg": job.relay_vg, "relay_lv": migration.relay_lv, **share}),
        "destination": ("destination_facts", {"instance": job.instance_id, "disk": job.disk, **share}),
    }
    if not migration.relay_address:
        del asked["source"]
    if job.through_nova:
        around = {"source_instance": instance_of(job.source_lv), "source_names": sorted(job.names_in_nova("source"))}
        asked["instance"] = ("nova_facts", {"instance": job.instance_id, **(around if fully else {})})
    return {
        role: Request(verb, args, job=str(job.uuid), number=job.pk, fence=job.fence)
        for role, (verb, args) in asked.items()
    }


def instance_of(volume: str) -> str:
    """The instance that a volume of Nova's belongs to; empty when its name does not say."""
    found = re.fullmatch(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})_disk(?:\.\w+)?", volume)
    return found[1] if found else ""


def understood(role: str, heard: Heard) -> Any:
    """The facts of an answer; whatever else a machine may send is not taken for any."""
    try:
        return read(PARTS[role], heard.answer.evidence if heard.answer else {})
    except (AttributeError, TypeError, ValueError) as error:
        raise Unheard(f"The facts of the {role} are malformed: {str(error)[:200]}", [heard]) from error


def trouble(heard: Heard) -> checks.Trouble | None:
    """Why there are no facts, in words; None when there are."""
    if heard.error is not None:
        return checks.Trouble(type(heard.error).__name__, str(heard.error))
    if heard.answer is not None and heard.answer.state == "done":
        return None
    error = (heard.answer.error if heard.answer else None) or {}
    return checks.Trouble(str(error.get("code", "failed")), f"{error.get('found', 'it gave no reason')}")
