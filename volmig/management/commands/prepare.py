"""manage.py prepare: what `up` does before it starts a part, as a step that is run once for each release."""

from typing import Any

from django.core.management.base import BaseCommand

from volmig.management.commands.up import alone, prepare


class Command(BaseCommand):
    help = "Migrates the database and prepares the rest. `up` does the same, except with --no-prepare."

    def handle(self, *args: Any, **options: Any) -> None:
        with alone():
            prepare()
        self.stdout.write("The database is prepared for this release.")
