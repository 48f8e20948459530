"""manage.py health: whether the named part of this machine is well, for exec probes of containers and units."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, InterfaceError, ProgrammingError

from volmig.health import alive, ready
from volmig.parts import GROUPS

SECONDS = 5.0  # that the database may take to answer


class Command(BaseCommand):
    help = "Exit code 0 when the named part of this machine sends heartbeats, else 1 and a sentence for each fault."
    requires_system_checks: list[str] = []  # a probe runs every few seconds

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("part", choices=GROUPS)

    def handle(self, *args: Any, **options: Any) -> None:
        """Exits with 1, and a line for each fault of the part."""
        try:
            faults = ready.within(SECONDS, lambda: alive.faults(options["part"]))
        except ProgrammingError:  # as before the first migration: it has no such table
            self.stdout.write("The database is not prepared for this release: run manage.py prepare.")
            return
        except (DatabaseError, InterfaceError, ready.TooSlow):
            # Nothing is known of this part, and to start it anew would not bring the database back.
            self.stdout.write("The database does not respond, so the heartbeats cannot be read.")
            return
        for sentence in faults or ["All heartbeats of this part are recent."]:
            self.stdout.write(sentence)
        if faults:
            sys.exit(1)
