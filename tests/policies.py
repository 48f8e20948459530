"""The policy file of a test's hypervisor, and the seals that a volmig with this data directory makes for it."""

import json
import os
import time
from typing import Any

from hosts.remote.hostctl import authority, policy
from tests.fakes import INSTANCES, SHARE
from volmig import data_dir

GROUP = "vg_nova0"
# As registration prints it for a host of each kind, on the sites of tests/fakes.py and tests/machines.py.
OF_ROLE: dict[str, dict[str, Any]] = {
    "source": {"volume_groups": [GROUP], "networks": ["10.77.0.0/24", "10.20.0.0/24"]},
    "relay": {
        "volume_groups": [GROUP],
        "networks": ["10.77.0.0/24", "10.20.0.0/24", "10.30.0.0/24"],
        "shares": [SHARE],
        "directories": [INSTANCES],
    },
    "destination": {"networks": ["10.77.0.0/24", "10.30.0.0/24"], "shares": [SHARE], "directories": [INSTANCES]},
}
# Of the lab's guests (tests/lab), each of which is everything that a test makes of it.
LAB: dict[str, Any] = {
    "roles": list(policy.ROLES),
    "volume_groups": [GROUP],
    "shares": ["10.77.2.13:/vol/nova"],
    "directories": [INSTANCES],
    "networks": ["10.77.1.0/24", "10.77.2.0/24"],
}
HOSTS = {"src": "source", "jump": "relay", "dst": "destination"}


def key(name: str) -> str:
    """The key of this host's first generation, whatever this process is for the moment: a test wants to know it."""
    part = os.environ.pop("VOLMIG_PART", None)
    try:
        return data_dir.seal_key(name, 1)
    finally:
        if part is not None:
            os.environ["VOLMIG_PART"] = part


def document(name: str, *roles: str, **changes: Any) -> dict[str, Any]:
    """What stands in the file of this host; `roles` are those of HOSTS unless told otherwise."""
    roles = roles or (HOSTS.get(name, "source"),)
    lists: dict[str, Any] = {each: [] for each in policy.LISTS}
    for role in roles:
        for each, values in OF_ROLE[role].items():
            lists[each] = sorted({*lists[each], *values})
    keys = {} if "seal_keys" in changes else {"seal_keys": [key(name)]}
    return lists | {"roles": list(roles), "stop_guests": True, **keys, **changes}


def content(name: str, *roles: str, **changes: Any) -> bytes:
    return json.dumps(document(name, *roles, **changes), indent=2).encode()


def reading(name: str, *roles: str, **changes: Any) -> policy.Reading:
    return policy.understood(content(name, *roles, **changes), time.time())


def seal(name: str, job: str, verb: str, args: dict[str, Any], seconds: int = 3600) -> dict[str, Any]:
    """The seal that an approval would give for this request to this host."""
    return authority.make(key(name), job, verb, args, "0" * 64, int(time.time()) + seconds)
