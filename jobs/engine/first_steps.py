"""What the steps of a plan were like before plans held them whole (format 1); never to be changed.

Such a plan holds of each step its name, phase, title, role, verb and undo. These are the other values of `Step`, where
they are not the usual ones, as they were in the last release that stored plans in that way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

FIRST_STEPS: Final[Mapping[str, Mapping[str, Any]]] = {
    "relay_lv": {"torn_by": "relay_erase", "leaves": "lv", "named": "relay_lv_path"},
    "relay_fs": {"torn_by": "relay_unmount", "volatile": True, "leaves": "filesystem", "named": "relay_mount"},
    "relay_export": {
        "torn_by": "relay_unexport",
        "volatile": True,
        "rests_on": "relay_fs",
        "leaves": "export",
        "named": "relay_mount",
    },
    "source_mount": {
        "torn_by": "source_unmount",
        "volatile": True,
        "rests_on": "relay_export",
        "leaves": "mount",
        "named": "source_mount",
    },
    "source_fence": {"torn_by": "source_release", "volatile": True, "leaves": "fence", "named": "source_path"},
    "convert": {"torn_by": "relay_erase", "work": "convert", "rests_on": "source_mount"},
    "seal": {"work": "seal"},
    "compare": {"torn_by": "relay_erase", "work": "compare", "rests_on": "source_mount"},
    "stage": {"torn_by": "swap", "work": "stage", "leaves": "stage", "where": "share", "named": "stage_path"},
    "stage_verify": {"work": "reread"},
    "source_unmount": {},
    "relay_unexport": {},
    "relay_unmount": {},
    "relay_erase": {"work": "erase", "size": "relay_size"},
    "lock": {"torn_by": "unlock", "settles": True, "leaves": "lock", "named": "instance_id"},
    "stop": {"repeatable": False},
    "swap": {"repeatable": False, "bars": True, "leaves": "backup", "where": "share", "named": "backup_path"},
    "start": {"repeatable": False, "bars": True},
    "source_release": {},
    "unlock": {"settles": True},
    "forget_source": {},
    "forget_relay": {},
    "forget_destination": {},
    "purge": {"repeatable": False},
    "forget_purge": {},
}
