"""Detached work: transient systemd units, their progress, and what is left of a job on this host."""

from typing import Tuple

from .act import Act, Args, command, syscall


def forget_acts(args: Args, job: str) -> Tuple[Act, ...]:
    return (command("systemctl", "reset-failed", "--", "volmig-%s-*" % job.replace("-", "")),
            syscall("remove /var/lib/volmig/%s and /run/volmig/%s" % (job, job)))
