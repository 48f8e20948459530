#!/usr/bin/env python3
"""Entry point of the server's commands."""

import os
import sys

from django.core.management import execute_from_command_line

from volmig.parts import GROUPS

PARTS = {"qcluster": "workers"}  # which kind of process a command is, for the keys that it may read (volmig.data_dir)

if __name__ == "__main__":
    part = sys.argv[2] if sys.argv[1:2] == ["up"] and len(sys.argv) > 2 else PARTS.get("".join(sys.argv[1:2]), "")
    if part in GROUPS:
        os.environ.setdefault("VOLMIG_PART", part)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "volmig.settings")
    # upgrade-check is upgrade_check: a module's name has no dash.
    if sys.argv[1:2] == ["qcluster"]:  # which may be started without `up`
        import django

        django.setup()
        from volmig import database, keys

        database.wait("workers")
        keys.at_start()
    command = [word if word.startswith("-") else word.replace("-", "_") for word in sys.argv[1:2]]
    execute_from_command_line([*sys.argv[:1], *command, *sys.argv[2:]])
