"""What a migration is asked to do, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.engine.steps import hypervisor_role


@dataclass(frozen=True)
class Migration:
    """What a job asks for, in names and bytes; the engine's view of a job.

    `route` names one of jobs.engine.routes.ROUTES, `control` says how the instance is locked, stopped and started:
    "openstack", or empty for its own hypervisor. `rate` is a limit in bytes per second, 0 for none; `deadline` are the
    seconds that the instance gets to shut down, `margin` those that a lock stays longer than caches may last.
    """

    job: str
    number: int
    route: str
    source: str
    relay: str
    destination: str
    source_vg: str
    source_lv: str
    lv_uuid: str
    source_size: int
    relay_vg: str
    share_source: str
    instance_id: str
    instance_name: str
    disk: str
    relay_address: str = ""
    rate: int = 0
    deadline: int = 180
    margin: int = 30
    control: str = ""

    @property
    def hex(self) -> str:
        """The job's UUID as 32 digits."""
        return self.job.replace("-", "")

    def host(self, on: str) -> str:
        """The name of the hypervisor that a step's `on` means; raise UnknownRole where no migration has one."""
        name: str = getattr(self, hypervisor_role(on))
        return name
