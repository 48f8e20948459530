"""Plans of many migrations at once, each read once by this process: they are large, and pages show hundreds."""

from collections.abc import Iterable
from typing import Any

from jobs.models import Job

MOST = 1000  # plans that are kept


class Plans:
    """By migration and digest: what has the same digest is the same plan. Whoever gets one must not change it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.known: dict[tuple[int, str], dict[str, Any]] = {}

    def give(self, jobs: Iterable[Job]) -> None:
        """Sets the plan of each, which was deferred; {} for one whose plan has just changed."""
        wanted = {(job.pk, job.digest): job for job in jobs}
        found = {key: self.known[key] for key in wanted.keys() & self.known.keys()}
        if lacking := [pk for pk, _ in wanted.keys() - found.keys()]:
            for pk, digest, plan in Job.objects.filter(pk__in=lacking).values_list("pk", "digest", "plan"):
                found[pk, digest] = plan
            # Of other migrations those that are not kept are read again when they are next shown.
            self.known = found if len(self.known) + len(lacking) > MOST else self.known | found
        for key, job in wanted.items():
            job.plan = found.get(key, {})


plans = Plans()
