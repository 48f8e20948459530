"""manage.py prepare: what `up` does before it starts a part, as a separate step, once for each release."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from volmig import database, keys
from volmig.management.commands.up import prepare, when_possible


class Command(BaseCommand):
    help = "Migrates the database and prepares the rest. `up` does the same, except with --no-prepare."

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError when the database cannot be used or keys differ."""
        try:
            when_possible("prepare", prepare)
        except (database.Unusable, keys.KeysDiffer) as error:
            raise CommandError(f"Nothing was prepared. {error}") from error
        self.stdout.write("The database is prepared for this release.")
