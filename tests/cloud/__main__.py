"""The control plane by hand: python -m tests.cloud [real] up | down | status | reset | openstack [ARGUMENT…]

With `real` it is the one whose nova-computes drive libvirt on the storage lab.
"""

import os
import sys

from tests.cloud import processes
from tests.cloud.plane import ControlPlane
from tests.cloud.real import RealPlane


def status(plane: ControlPlane) -> int:
    """Print a line for each service that runs; the exit status is 0 when the plane is up."""
    for service in sorted(set(processes.living(plane.name).values())):
        print(service)
    up = plane.is_up()
    print(f"{'up' if up else 'down'}; OS_CLIENT_CONFIG_FILE={plane.clouds_yaml} OS_CLOUD=admin|appcred|member|reader")
    return 0 if up else 1


def command_line(plane: ControlPlane, words: list[str]) -> int:
    """Become OpenStack's own command, as OS_CLOUD or the administrator."""
    argv = [str(plane.installation.bin / "python"), str(plane.installation.bin / "openstack"), *words]
    environment = {"OS_CLOUD": "admin", **os.environ, "OS_CLIENT_CONFIG_FILE": str(plane.clouds_yaml)}
    os.execve(argv[0], argv, environment)  # noqa: S606


def main(words: list[str]) -> int:
    """Run one command; returns its exit status."""
    kind, words = (RealPlane, words[1:]) if words[:1] == ["real"] else (ControlPlane, words)
    match words:
        case ["up" | "down" | "reset" as verb]:
            getattr(kind(), verb)()
            return 0
        case ["status"]:
            return status(kind())
        case ["openstack", *rest]:
            return command_line(kind(), rest)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
