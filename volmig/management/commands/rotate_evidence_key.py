"""manage.py rotate_evidence_key: replace the key that signs evidence; the old key signs the new one."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from volmig import data_dir, keys
from volmig.record import signing


class Command(BaseCommand):
    help = (
        "Creates a new key for evidence, signed by the old one, whose private half is then gone. Both stay published."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        text = "write the new file of keys here, where VOLMIG_EVIDENCE_KEY_FILE names one that volmig does not write"
        parser.add_argument("--output", type=Path, metavar="FILE", help=text)

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError when the new key cannot be written or registered; the old one then stays."""
        try:
            new = signing.rotate(options["output"])
        except (OSError, ValueError, DatabaseError, InterfaceError) as error:
            raise CommandError(f"The key was not changed: {error}.") from error
        except keys.Unsettled as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"Key {new['id']} signs from now on; key {new['signed_by']} signed it. Publish keys.json again to whoever "
            "checks evidence (manage.py evidence_key)."
        )
        where = options["output"] or data_dir.key_path(data_dir.EVIDENCE_KEY)
        self.stdout.write(f"Copy {where} to every other machine of this volmig: until then they sign nothing.")
