"""What a person can do on the host itself while volmig is down: look at a job, and roll a swap back."""

import json
import sys
from typing import Any, Dict

from . import mounts, verbs
from .act import Args, Refused, Stop
from .commands import Work
from .job_directory import Place, read_card
from .request import LOCK_WITHIN, Desk, answer, check_args, guarded, refusal
from .store import Store

FROM_CARD = ("instances", "share_source", "instance", "disk", "live", "stage", "virtual_size")


def main(verb: str, job: str) -> int:
    """Print the answer as JSON; 0 when it is good."""
    given = answer("done", Desk().status(job)) if verb == "status" else rollback(job)
    json.dump(given, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0 if given["state"] == "done" else 1


def rollback(job: str) -> Dict[str, Any]:
    """Make the former disk of a swapped job live again, from the card on the share; the instance must be shut off."""
    kept = Store(job)
    kept.open()
    try:
        args = _from_card(job)
    except Stop as stop:
        return refusal(stop)
    with kept.locked("lock", LOCK_WITHIN) as held:
        if not held:
            return answer("busy")
        verb = verbs.VERBS["swap_back"]
        return guarded(verb.run, Work(args, job, verb.acts, kept))


def _from_card(job: str) -> Args:
    """The swap's arguments; the card lies on a share that others can write, so it is validated like a request."""
    for mount in mounts.mounts():
        if mount.fstype in ("nfs", "nfs4"):
            card = _card({"instances": mount.target}, job)
            if "instance" in card:
                found = {name: card[name] for name in FROM_CARD if name in card}
                return check_args("swap_back", dict(found, instances=mount.target, share_source=mount.source), job)
    raise Refused(
        "no-card",
        "roll back job %s" % job,
        "no share mounted here has a card of a swap of this job",
        "Run this on the instance's own hypervisor. If disk.old does not exist, nothing was swapped.",
    )


def _card(args: Args, job: str) -> Dict[str, Any]:
    try:
        with Place(args, job) as place:
            return read_card(place)
    except (OSError, ValueError, Stop):
        return {}
