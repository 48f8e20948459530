"""manage.py evidence_key: the public keys with which anyone can check published heads and archives."""

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from volmig import data_dir
from volmig.record import key_file, signing


class Command(BaseCommand):
    help = "Prints the public keys that sign evidence, as keys.json: the last is in use, older ones were rotated."

    def add_arguments(self, parser: CommandParser) -> None:
        text = "write a first key to this new file, for VOLMIG_EVIDENCE_KEY_FILE of a volmig that has none yet"
        parser.add_argument("--new", type=Path, metavar="FILE", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints keys.json, or writes a first key; CommandError when the keys cannot be read."""
        try:
            if options["new"]:
                data_dir.write_new(options["new"], key_file.first())
                return
            self.stdout.write(json.dumps(signing.published(), indent=1))
        except (OSError, ValueError) as error:
            raise CommandError(f"The keys cannot be read: {error}.") from error
